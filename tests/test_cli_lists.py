"""What the command line tells someone who looks around: help, lists, benches."""

import dataclasses
import json
import re

import pytest

from bench.commands import BENCHES
from engine import boxes, prompts, search
from engine.heads import HEADS
from miniature import models
from miniature import tasks as embedded
from tuning.compare.comparison import Comparison
from tuning.data import load_task as tasks
from tuning.recipe import Recipe

LISTS = ("methods", "prompts", "tasks", "boxes")


def test_keyhole_alone_prints_its_help(command):
    code, out, err = command()
    assert code == 0 and not err
    assert out == command("--help")[1] and "Commands:" in out
    # A short help that click cuts ends in dots: nobody learns the rest.
    assert "..." not in out.partition("Commands:")[2]


@pytest.mark.parametrize("what", LISTS)
def test_a_list_is_a_table_with_a_header_and_a_line_for_each(command, what):
    code, out, err = command("list", what)
    lines = out.splitlines()
    assert code == 0 and not err and max(map(len, lines)) <= 100
    header = next(line for line in lines if line.startswith("name "))
    rows = json.loads(command("list", what, "--json")[1])[what]
    body = lines[lines.index(header) + 2 : lines.index(header) + 2 + len(rows)]
    begin = header.index("what it is for")
    assert [line.split()[0] for line in body] == [row["name"] for row in rows]
    assert [line[begin:] for line in body] == [row["what"] for row in rows]
    assert all(len(row["what"].split()) >= 3 for row in rows)


@pytest.mark.parametrize("what", LISTS)
def test_a_list_shows_no_python_paths(command, what):
    shown = command("list", what)[1].replace("package.module:function", "")
    assert not re.search(r"\b(engine|tuning|miniature)[.:]|\w\.\w+:\w|Array\(", shown), shown


def test_the_lists_leave_nothing_out(command):
    def names(what: str) -> set[str]:
        return {row["name"] for row in json.loads(command("list", what, "--json")[1])[what]}

    assert names("methods") == {*search.METHODS, "nevergrad:NAME", *(f"head:{name}" for name in HEADS), "ceiling:coop"}
    assert names("prompts") == set(prompts.PROMPTS)
    assert {name.partition(":")[0] for name in names("boxes")} == {*boxes.SCHEMES}
    assert {name.partition(":")[0] for name in names("tasks")} == {*tasks.SCHEMES, "package.module"}
    assert names("tasks") == {*tasks.task_names()} >= {f"mini:{name}" for name in embedded.TASKS}
    assert names("boxes") >= {f"mini:{name}" for name in models.HASHES}


def test_the_least_that_a_method_needs_is_the_poorest_of_what_it_takes(command):
    """One word stands for all that is richer: so a method that takes something must take what is richer, too."""
    order = ["labels", "topk", "scores", "features"]
    rows = {row["name"]: row for row in json.loads(command("list", "methods", "--json")[1])["methods"]}
    for method in search.describe():
        poorest = rows[method["name"]]["needs"].split(" + ")[0]
        assert method["gives"] == sorted(order[order.index(poorest) :])


@pytest.mark.parametrize(("name", "kind"), [("tune", Recipe), ("compare", Comparison)])
def test_help_shows_the_defaults_of_the_settings(command, name, kind):
    text = " ".join(command(name, "--help")[1].partition("Options:")[2].split())
    for field in dataclasses.fields(kind):
        if f"--{field.name} " not in text or field.default in (None, "", ()) or field.type == "bool":
            continue
        default = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        own = re.search(rf"--{field.name} (.*?)(?= --\w)", text).group(1)
        assert f"[default: {default}]" in own.replace("- ", "-"), field.name
    assert text.count("[default: ") >= 8


def test_help_follows_the_settings(command, monkeypatch):
    monkeypatch.setattr(Recipe.__dataclass_fields__["budget"], "default", 777)
    assert "[default: 777]" in " ".join(command("tune", "--help")[1].split())


@pytest.mark.parametrize("words", [("bench",), ("bench", "--help"), ("bench", "-h")])
def test_bench_lists_the_benches_with_a_line_each(command, words):
    code, out, err = command(*words)
    assert code == 0 and not err and "..." not in out.partition("Commands:")[2]
    for name, (_, about) in BENCHES.items():
        assert re.search(rf"^  {name} +{re.escape(about)}$", out, re.M)


@pytest.mark.parametrize("name", BENCHES)
def test_each_bench_has_a_help_of_its_own(command, name):
    code, out, _ = command("bench", name, "--help")
    assert code == 0 and out.startswith(f"usage: keyhole bench {name} ")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("tnue",), "Did you mean 'tune'?"),
        (("bench", "taks"), "Did you mean 'tasks'?"),
        (("tune", "--bugdet", "5"), "--budget"),
        (("list",), "Choose from: methods, prompts, tasks, boxes"),
        (("list", "method"), "'methods', 'prompts', 'tasks', 'boxes'"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_one(command, words, hint):
    code, out, err = command(*words)
    assert code == 2 and not out and hint in err and err.count("\n") == 1

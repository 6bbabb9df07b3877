"""A newcomer's mistakes on the command line: each ends in one sentence that helps, before anything was spent."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.boxes import open_box
from engine.errors import UnknownWordsError


def pictures(root: Path, classes: dict[str, int], suffix: str = "png") -> str:
    """Small noisy images, a folder a class; the task's URI."""
    for label, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng((label, number)).integers(0, 255, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.{suffix}", format="png")
    return f"folder:{root}"


@pytest.fixture
def refused(command, tmp_path, monkeypatch):
    """Runs a command that must be refused in one line, with `--json` as well; that line."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        code, out, err = command(*words)
        *doing, err = err.splitlines(keepends=True)  # a slow machine says what it is doing before
        assert all(line.endswith("...\n") for line in doing)
        assert code == 2 and not out and err.startswith("error: ") and err.endswith("\n"), (code, out, err)
        assert json.loads(command(*words, "--json")[1])["error"] == err.removeprefix("error: ").rstrip("\n")
        return err

    return run


@pytest.mark.parametrize("names", [("cat", "dog"), ("Persian", "beagle")])
@pytest.mark.parametrize("box", ["mini:resnet", "mini:vit"])
def test_cats_and_dogs_on_the_toy_are_told_the_word_and_what_to_do(refused, tmp_path, names, box):
    task = pictures(tmp_path / "pets", dict.fromkeys(names, 6))
    error = refused("tune", "--task", task, "--box", box, "--shots", "2", "--budget", "10")
    assert repr(names[0]) in error and repr(names[1]) in error and not re.search(r"tokens \[|\b\d{4,}\b", error)
    assert f"{box}, which is a toy" in error and "130 tokens" in error and f"keyhole doctor --box {box}" in error
    assert "--box open_clip:ViT-B-32,laion2b_s34b_b79k" in error and "open_clip:ViT-B-32,FILE" in error


def test_the_words_of_many_classes_are_cut_and_those_that_are_known_are_not_named():
    strange = [f"{word} heart" for word in ["cat", "dog", "hen", "cow", "owl", "ant", "bee", "fox", "elk", "emu"]]
    with pytest.raises(UnknownWordsError) as refused:
        open_box("mini:resnet", classes=["red heart", *strange], template="a photo of a {}.")
    error = str(refused.value)
    assert "class 'cat heart' and 9 more" in error and "'cat', 'dog'" in error and "and 2 more;" in error
    assert "'heart'" not in error and "'photo'" not in error and "'red" not in error


def test_a_template_with_a_strange_word_is_refused_by_that_word(refused, tmp_path):
    task = pictures(tmp_path / "colours", {"red": 6, "blue": 6})
    error = refused("tune", "--task", f"{task}?template=a zebra, a {{}}.", "--shots", "2", "--budget", "10")
    assert "template='a zebra, a {}.': this" in error and "word 'zebra';" in error


def test_a_folder_with_a_question_mark_is_tuned_on(command, refused, tmp_path):
    task = pictures(tmp_path / "what?", {"red": 6, "blue": 6})
    small = ("--shots", "1", "--budget", "3", "--out", str(tmp_path / "run"), "--json")
    assert "what%3F" in refused("tune", "--task", task, *small[:-1])
    code, out, err = command("tune", "--task", task.replace("?", "%3F"), *small)
    assert code == 0, err
    code, out, err = command("eval", str(tmp_path / "run"), "--json")
    assert code == 0 and json.loads(out)["task"].endswith("what%3F"), err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--task", "mini:digit"), ["did you mean 'digits'"]),
        (("--task", "digits"), ["did you mean 'mini:digits'"]),
        (("--task", "mini:digits?x=1"), ["'x'", "imbalance, label_noise"]),
        (("--task", "toy:?sed=1"), ["did you mean 'seed'", "train, val, test, imbalance, label_noise"]),
        (("--box", "mini:resnet50"), ["did you mean 'resnet'"]),
        (("--box", "mini:resnet?x=1"), ["'x'", "precision, clip, cache, gives, noise, round, topk, jpeg"]),
        (("--box", "mini:resnet?noize=1"), ["did you mean 'noise'"]),
        (("--box", "ViT-B-32"), ["scheme:name", "open_clip"]),
        (("--method", "sketsh"), ["did you mean 'sketch'"]),
        (("--shots", "0"), ["shots=0", "at least 1"]),
        (("--seed", "-1"), ["seed=-1", "at least 0"]),
        (("--budget", "abc"), ["--budget", "'abc'"]),
        (("prompt.tokns=5",), ["did you mean", "tokens"]),
        (("mini:digits",), ["--task"]),
        (("--resume", "nowhere"), ["nowhere", "recipe.yaml"]),
        (("--resume", "."), ["recipe.yaml"]),
        (("--task", "folder:nowhere"), ["nowhere", "does not exist"]),
        (("--task", "folder:"), ["folder:PATH"]),
    ],
)
def test_what_is_misspelt_is_answered_with_what_there_is(refused, words, parts):
    error = refused("tune", *words)
    assert all(part in error for part in parts), error


@pytest.mark.parametrize(
    ("classes", "suffix", "parts"),
    [
        ({"red": 6}, "png", ["1 classes", "at least 2"]),
        ({"red": 1, "blue": 1}, "png", ["no test images", "3 images or more"]),
        ({"red": 6, "blue": 0}, "png", ["class 'blue' has no training images"]),
        ({"red": 0, "blue": 0}, "png", ["without images", ".jpg"]),
        ({"red": 6, "blue": 6}, "xyz", ["without images", ".png"]),
        ({}, "png", ["no class folders", "a folder of its own"]),
        ({"red": 3, "blue": 3}, "png", ["but 6 are needed", "lower shots"]),
    ],
)
def test_a_folder_that_is_no_task_says_what_it_lacks(refused, tmp_path, classes, suffix, parts):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels.csv").write_text("image,label\n1.png,red\n")
    error = refused("tune", "--task", pictures(tmp_path / "data", classes, suffix), "--shots", "3", "--budget", "10")
    assert all(part in error for part in parts), error


def test_a_folder_without_its_scheme_and_a_file_in_place_of_one(refused, tmp_path):
    pictures(tmp_path / "pets", {"red": 6, "blue": 6})
    assert f"did you mean 'folder:{tmp_path}/pets'" in refused("tune", "--task", f"{tmp_path}/pets")
    (tmp_path / "labels.csv").touch()
    assert "is a file; give the folder" in refused("tune", "--task", f"folder:{tmp_path}/labels.csv")


@pytest.mark.parametrize(
    ("box", "parts"),
    [
        ("nope:", ["no scheme 'nope'", "open_clip, hf-hub, local-dir, mini, toy"]),
        ("min:resnet", ["did you mean 'mini'"]),
        ("mini:resnet50", ["did you mean 'resnet'"]),
        ("open_clip:ViT-B-32", ["which weights", "laion2b_s34b_b79k"]),
    ],
)
def test_doctor_answers_a_wrong_box_as_any_other_mistake(refused, box, parts):
    error = refused("doctor", "--box", box)
    assert all(part in error for part in parts), error


def test_a_model_that_needs_an_extra_says_how_to_install_it(refused, monkeypatch):
    def missing(*_args, **_more):
        raise ModuleNotFoundError("No module named 'transformers'")

    monkeypatch.setattr("open_clip.create_model", missing)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    error = refused("tune", "--box", "hf-hub:org/repo")
    assert "needs the package 'transformers'" in error and "pip install -e '.[hf]'" in error

import math
import time

import mutations
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import search
from engine.errors import KeyholeError, RecipeError
from engine.settings import ranges
from tuning.compare.comparison import make_comparison, trials_of
from tuning.recipe import Recipe, load_recipe, make_recipe
from tuning.resolve import method_of
from tuning.run import Tuning

FULL = make_recipe(
    {
        "method": {"name": "momentum", "k": 4, "radius": 0.2, "pairs": "never"}, "seed": 3, "rows": 8, "half": "base",
        "prompt": {"tokens": 4, "per_class": 200, "subspace": "random:64"}, "pool": {"gpus": 0.5, "timeout_s": 30},
    }
).as_dict()  # fmt: skip
"""A recipe in which much is said."""


def carried(path) -> Recipe:
    """What a command does with a recipe file, up to the method."""
    recipe = make_recipe(load_recipe(path))
    method_of(recipe)
    return recipe


def a_sentence(error: KeyholeError) -> bool:
    """Whether a message is one line that a person can read, whatever the value that it is about."""
    return 0 < len(str(error)) < 600 and str(error).isprintable()


def test_defaults_settings_and_overrides():
    recipe = make_recipe(
        {"task": "mini:biased", "method": {"name": "momentum", "radius": 0.2}, "prompt": {"tokens": 8}},
        ["budget=500", "prompt.subspace=random:64", "method.beta=0.8", "pool.timeout_s=30"],
    )
    assert recipe.box == "mini:resnet" and recipe.budget == 500.0 and isinstance(recipe.budget, float)
    assert recipe.prompt.tokens == 8 and recipe.prompt.subspace == "random:64"
    assert recipe.method == "momentum" and recipe.options == {"radius": 0.2, "beta": 0.8}
    assert recipe.pool.timeout_s == 30.0


def test_a_method_by_name_keeps_options_given_apart():
    assert make_recipe({"method": "cbbt"}, ["method.clip=5"]).options == {"clip": 5}
    assert make_recipe({"method": {"name": "cbbt", "clip": 5}}, ["method=momentum"]).method == "momentum"


def test_an_option_before_its_method_is_kept():
    recipe = make_recipe({}, ["method.radius=0.02"], {"method": "momentum"})
    assert recipe.method == "momentum" and recipe.options == {"radius": 0.02}


def test_what_is_written_is_read_back():
    recipe = make_recipe({"method": {"name": "momentum", "radius": 0.2}, "data_seed": 3}, ["prompt=text", "workers=2"])
    assert make_recipe(yaml.safe_load(yaml.safe_dump(recipe.as_dict()))) == recipe


@pytest.mark.parametrize(
    ("settings", "overrides", "message"),
    [
        ({"budgets": 5}, [], "unknown recipe key 'budgets', did you mean 'budget'"),
        ({"prompt": {"token": 5}}, [], "unknown recipe key 'prompt.token', did you mean 'tokens'"),
        ({"budget": "many"}, [], "budget='many' is a str"),
        ({"budget": True}, [], "budget=True is a bool"),
        ({"shots": 1.5}, [], "shots=1.5 is a float"),
        ({"prompt": 3}, [], "prompt=3 must be a mapping"),
        ({}, ["budget=-5"], "budget=-5.0 must be a positive"),
        ({}, ["shots=0"], "shots=0 must be at least 1"),
        ({}, ["workers=-1"], "workers=-1"),
        ({}, ["half=best"], "half='best'"),
        ({}, ["rows=0"], "rows=0"),
        ({}, ["budget"], "is not key=value"),
        ({}, ["budget={"], "is not YAML"),
        ({"options": {"a": 1}}, [], "unknown recipe key 'options'"),
    ],
)
def test_errors_say_what_and_what_to_do(settings, overrides, message):
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        make_recipe(settings, overrides)


def test_files(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    path = tmp_path / "a.yaml"
    path.write_text("- 1\n")
    with pytest.raises(RecipeError, match="holds a list"):
        load_recipe(path)
    path.write_text("a: [")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(path)
    path.write_text("")
    assert load_recipe(path) == {}


VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["[" * 3000, "{a: " * 3000, "[" * 3000 + "]" * 3000, "*a", "&a [*a]", "!!int x", "!!python/name:os.system"]
    ),
    st.sampled_from(
        [".inf", "-.inf", ".nan", "0b_", "2024-13-45", "9" * 5000, "0x" + "f" * 5000, "1:9:9e999", "~", "="]
    ),
)
KEYS = st.sampled_from(
    [
        "budget",
        "seed",
        "prompt",
        "prompt.tokens",
        "pool.cpus",
        "method",
        "method.k",
        "method.name",
        "options",
        ".",
        "a.b.c",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=30), st.builds("{}={}".format, KEYS, VALUES)))
def test_any_override_is_accepted_or_refused_in_words(word):
    for make in (make_recipe, make_comparison):
        try:
            make({}, [word])
        except RecipeError as error:
            assert a_sentence(error), word


def test_a_damaged_recipe_is_refused_in_a_sentence_or_still_one(tmp_path):
    """Several hundred mutations, of the bytes and of what they say."""
    path, text = tmp_path / "recipe.yaml", yaml.safe_dump(FULL).encode()
    kept = 0
    for seed in range(500):
        rng = np.random.default_rng(seed)
        if seed % 2:
            kind, data = mutations.mutated_bytes(text, rng)
        else:
            kind, tree = mutations.mutated_json(FULL, rng)
            data = mutations.dumped(tree).encode()
        path.write_bytes(data)
        try:
            recipe = carried(path)
        except KeyholeError as error:
            assert error.exit_code == 2 and a_sentence(error), (seed, kind, str(error))
        else:
            assert make_recipe(recipe.as_dict()) == recipe, (seed, kind)
            kept += 1
    assert 30 < kept < 250


def test_a_damaged_comparison_is_refused_in_a_sentence_or_still_one(tmp_path):
    path = tmp_path / "compare.yaml"
    tree = {
        "tasks": ["toy:"], "boxes": ["toy:"], "seeds": [1, 2], "shots": [2], "budget": 20, "searcher": "random",
        "methods": ["zero-shot", {"name": "momentum", "radius": {"loguniform": [0.1, 1]}, "k": {"grid": [2, 4]}}],
        "recipe": {"prompt": {"tokens": 4}}, "gate": {"zero_shot": {"toy:": 0.5}, "tolerance": 0.1},
        "published": [{"method": "CoOp", "accuracy": {"toy:": 0.5}}],
    }  # fmt: skip
    for seed in range(200):
        kind, mutated = mutations.mutated_json(tree, np.random.default_rng(seed))
        path.write_text(mutations.dumped(mutated))
        try:
            trials_of(make_comparison(load_recipe(path)))
        except KeyholeError as error:
            assert error.exit_code == 2 and a_sentence(error), (seed, kind, str(error))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(range(256)), "no text"),
        ("seed: 2".encode("utf-16-be"), "no text|special characters"),
        (b"a: " + b"[" * 3000 + b"]" * 3000, "more than 20 levels"),
        ("\n".join(f"{' ' * n}a:" for n in range(500)).encode(), "line 20: nested more than 20 levels"),
        (b"seed: 2\nbudget: 5\nseed: 3\n", "line 3: the key 'seed' stands there twice"),
        (b"prompt: {tokens: 2, tokens: 3}", "'tokens' stands there twice"),
        (b"a: &a [x]\nb: *a\n", r"line 2: \*a stands for"),
        (b"seed: !!python/object/apply:os.system [ls]", "the tag"),
        (b"? [a]\n: 1\n", "a key must be text"),
        (b"x" * 2**20, "larger"),
    ],
)
def test_what_no_recipe_is(tmp_path, data, words):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError, match=words) as raised:
        load_recipe(path)
    assert a_sentence(raised.value)


def test_a_recipe_in_utf_16_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 2", encoding="utf-16")
    assert load_recipe(path) == {"seed": 2}


def test_a_bomb_is_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines))
    started = time.monotonic()
    with pytest.raises(RecipeError, match="line 2") as raised:
        load_recipe(path)
    assert time.monotonic() - started < 1 and a_sentence(raised.value)


@pytest.mark.parametrize(
    "word",
    [
        *("budget=.inf", "budget=.nan", "budget=0", "budget=1.0e+300", f"budget={10**400}"),
        *("pool.cpus=-1", "pool.cpus=.nan", "pool.cpus=0.00001", "pool.gpus=-1", "pool.gpus=1.5", "pool.threads=0"),
        *("pool.timeout_s=0", "pool.timeout_s=-1", "pool.timeout_s=.nan", "pool.chunk=0", f"pool.chunk={10**30}"),
        *("checkpoint_s=-1", "checkpoint_s=.nan", "prompt.per_class=-3", "prompt.per_class=0", "prompt.tokens=0"),
        *("prompt.tokens=-1", f"prompt.tokens={10**30}", "prompt.width=0", "prompt.width=-5", "prompt.grid=1"),
        *(f"prompt.grid={10**30}", "looks=0", "looks=-1", f"looks={10**30}", "rows=-1", f"rows={10**30}", "batch=0"),
        *(f"batch={10**30}", f"seed={2**63}", f"data_seed={2**63}", "data_seed=-1", f"workers={10**30}"),
        *(f"shots={10**30}", f"half={'x' * 5000}", f"task={'x' * 5000}"),
    ],
)
def test_numbers_outside_of_their_range(word):
    with pytest.raises(RecipeError, match=word.partition("=")[0]) as raised:
        make_recipe({}, [word])
    assert a_sentence(raised.value) and len(str(raised.value)) < 250


METHODS = [*filter(search.searches, search.METHODS), "nevergrad:CMA"]


@pytest.mark.parametrize("name", METHODS)
def test_every_number_of_every_method_is_finite_and_in_its_range(name):
    method = search.make(name)
    numbers = {f: getattr(method, f) for f in type(method).__dataclass_fields__ if f != "name"}
    numbers = {f: value for f, value in numbers.items() if not isinstance(value, str)}
    assert numbers
    for field in numbers:
        for wrong in (float("inf"), float("nan"), -1, -(10**30), 10**30, 1e300, -0.5):
            with pytest.raises(RecipeError, match=field) as raised:
                search.make(name, {field: wrong})
            assert a_sentence(raised.value)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_runs_at_both_ends_of_every_range(tmp_path, name):
    ends = {
        (field, end): limits
        for field, limits in ranges(type(search.make(name))).items()
        for end in {limits.least, math.nextafter(limits.most, 0) if limits.below else limits.most}
    }
    finished = 0
    for number, (field, end) in enumerate(ends):
        settings = {"task": "toy:", "box": "toy:", "shots": 2, "budget": 12, "method": {"name": name, field: end}}
        try:
            for _ in Tuning(make_recipe(settings), tmp_path / str(number)):
                pass
            finished += 1
        except KeyholeError as error:
            assert a_sentence(error)
    assert finished or name == "words", "whose box accepts words"


def test_the_page_lists_every_key_with_its_default():
    import dataclasses
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "recipe.md").read_text(encoding="utf-8")

    def rows(kind, prefix=""):
        for field in dataclasses.fields(kind):
            if dataclasses.is_dataclass(field.default):
                yield from rows(type(field.default), f"{prefix}{field.name}.")
            elif field.name != "options":
                plain = field.default is None or isinstance(field.default, bool)
                default = (
                    {"None": "null"}.get(str(field.default), str(field.default).lower()) if plain else field.default
                )
                limits = ranges(kind).get(field.name)
                yield f"| `{prefix}{field.name}` | `{default}` |{f' {limits}' if limits else ''} |"

    missing = [row for row in rows(Recipe) if row not in page]
    assert not missing

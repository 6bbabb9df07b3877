import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RecipeError
from tuning.recipe import load_recipe, make_recipe


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


@given(st.text(max_size=30))
def test_any_override_is_accepted_or_refused_in_words(text):
    try:
        make_recipe({}, [text])
    except RecipeError as error:
        assert str(error)


def test_the_page_lists_every_key_with_its_default():
    import dataclasses
    from pathlib import Path

    from tuning.recipe import Recipe

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
                yield f"| `{prefix}{field.name}` | `{default}` |"

    missing = [row for row in rows(Recipe) if row not in page]
    assert not missing

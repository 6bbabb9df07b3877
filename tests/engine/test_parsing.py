"""URIs with options, and paths that hold a question mark."""

import pytest

from engine.errors import RecipeError
from engine.parsing import parse_uri, without_options
from tuning.data.load_task import load_pool


def test_a_question_mark_of_a_path_is_escaped(tmp_path):
    assert parse_uri("folder:/a/who%3F/b", "task") == ("folder", "/a/who?/b", {})
    assert parse_uri("folder:who%3F?template=what is a {}?", "task") == (
        "folder", "who?", {"template": "what is a {}?"},
    )  # fmt: skip


@pytest.mark.parametrize("options", ["", "?test=0.5"])
def test_an_existing_path_with_a_question_mark_is_told_how_to_write_it(tmp_path, options):
    folder = tmp_path / "what?"
    (folder / "red").mkdir(parents=True)
    for written in (folder, folder / "red"):
        right = str(written).replace("?", "%3F")
        with pytest.raises(RecipeError, match=f"folder:{right}") as refused:
            load_pool(f"folder:{written}{options}")
        assert str(refused.value).endswith(f"folder:{right}{options}")
    (folder / "weights.pt").touch()
    with pytest.raises(RecipeError, match="open_clip:RN50,.*what%3F/weights.pt"):
        parse_uri(f"open_clip:RN50,{folder}/weights.pt?activation=gelu", "box")


def test_the_options_of_a_path_that_exists_stay_options(tmp_path):
    assert parse_uri(f"folder:{tmp_path}?test=0.5", "task") == ("folder", str(tmp_path), {"test": "0.5"})


@pytest.mark.parametrize("query", ["x", "x=", "=x", "x=1&x=2", "a {} & b"])
def test_options_that_are_none_are_refused_for_tasks_as_for_boxes(query):
    for what in ("task", "box"):
        with pytest.raises(RecipeError, match=f"{what} 'mini:y"):
            parse_uri(f"mini:y?{query}", what)


def test_options_are_left_out_by_name():
    assert without_options("mini:resnet?precision=bf16", ["precision"]) == "mini:resnet"
    assert without_options("x:y?gives=scores&precision=bf16&seed=1", ["precision"]) == "x:y?gives=scores&seed=1"

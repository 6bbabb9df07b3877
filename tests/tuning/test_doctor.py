"""The doctor: where features are kept, and what a precision costs beside the signal of a probe."""

import pytest

from engine.boxes import open_box
from engine.errors import RecipeError
from tuning.doctor import CLASSES, TEMPLATE, examine, precision_error


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KEYHOLE_CACHE", str(tmp_path))
    return tmp_path


def test_where_features_are_kept(folder, monkeypatch):
    assert str(folder / "features") in examine()["cache"] and "0.0 MB of at most" in examine()["cache"]
    monkeypatch.setenv("KEYHOLE_CACHE", "off")
    assert examine()["cache"].startswith("off")


def test_the_error_of_a_precision_stands_beside_the_signal():
    findings = examine("mini:resnet?precision=bf16")
    assert findings["healthy"] and "bf16" in findings["path"]
    assert 1e-4 < findings["error_of_features"] < 0.1
    assert findings["error_of_loss"] > 0
    assert findings["error_over_signal"] == pytest.approx(
        findings["error_of_loss_difference"] / findings["signal_of_a_probe"]
    )


def test_fp32_has_no_error_and_needs_no_line():
    box = open_box("mini:resnet", classes=CLASSES, template=TEMPLATE)
    found = precision_error("mini:resnet", box)
    assert found["error_over_signal"] == 0 < found["signal_of_a_probe"]
    assert "error_over_signal" not in examine("mini:resnet")


def test_a_larger_probe_drowns_the_error():
    uri = "mini:resnet?precision=bf16"
    box = open_box(uri, classes=CLASSES, template=TEMPLATE)
    small, large = (precision_error(uri, box, h=h)["error_over_signal"] for h in (0.005, 0.5))
    assert large < small


def test_a_precision_without_effect_is_a_users_mistake(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(RecipeError, match="no effect on 'cpu'"):
        examine("mini:resnet?precision=tf32")


def test_a_box_that_cannot_be_fetched_is_not_healthy(monkeypatch):
    def unreachable(*_args, **_more):
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.create_model", unreachable)
    findings = examine("hf-hub:nobody/nothing")
    assert not findings["healthy"] and "no route to host" in findings["box"]


def test_the_words_of_a_box_with_few_are_all_listed():
    findings = examine("mini:resnet")
    words = findings["words"].split()
    assert findings["tokens"] == len(words) == 130 and {"digit", "seven", "tri-", "angles"} <= set(words)


def test_a_box_that_knows_any_word_says_how_many_tokens_it_has():
    findings = examine("open_clip:RN50,random")
    assert findings["tokens"] == 49408 and findings["words"].startswith("any")

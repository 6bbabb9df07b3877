"""Words become arms, arms comparisons, and comparisons rows."""

from __future__ import annotations

import os
import signal

import pytest

from bench import comparisons
from bench.search.arms import COOP, HEAD, TEMPLATE, Arm, Setting, references, run
from engine.errors import ArtifactError, BoxError, RecipeError

TOY = Setting(tasks=("toy:",), seeds=(1, 2), box="toy:", shots=4)


def test_words_carry_options():
    arm = Arm.read("cbbt:rule=adam:lr=0.01")
    assert arm == Arm(label="cbbt rule=adam lr=0.01", method="cbbt", options={"rule": "adam", "lr": 0.01})
    assert Arm.read("nevergrad:CMA").options == {}
    for word in ("momentun", "momentum:radios=1", "momentum:radius=x", "momentum:prompt.tokns=2"):
        with pytest.raises(RecipeError):
            Arm.read(word)


def test_an_arms_own_prompt_is_searched_and_rows_stand_in_the_order_of_arms(tmp_path):
    words = ["momentum:prompt.per_class=true", "craft", "momentum", "momentum:k=3"]
    rows = run([Arm.read(word) for word in words], [20.0], TOY, tmp_path)
    labels = ["momentum per_class=True", "craft, with its score-adapter", "momentum", "momentum k=3"]
    assert list(dict.fromkeys(row["label"] for row in rows)) == labels and len(rows) == 4 * 2
    assert {row["contexts"] for row in rows if row["arm"] == labels[0]} == {5}
    assert {row["contexts"] for row in rows if row["arm"] == "momentum"} == {1}
    assert {path.name for path in tmp_path.iterdir()} == {"20", "20-per_class=True"}
    assert all(row["evaluations"] <= row["budget"] and row["val_loss"] < 5 for row in rows)
    craft = next(row for row in rows if row["arm"] == "craft")
    assert craft["best_loss"] == craft["train_loss"], "of what is deployed, the prompt with its head"


def test_references_are_the_template_and_what_the_box_does_not_refuse(tmp_path):
    (told,) = references(TOY, tmp_path / "references").values()
    assert told.keys() == {"images", TEMPLATE, HEAD}, f"{COOP} needs gradients, which toy: has not"
    assert told["images"] == 20 and told[HEAD]["accuracy"] > told[TEMPLATE]["accuracy"] > 0.2


def test_finished_trials_are_not_run_again_and_lost_ones_are(tmp_path, monkeypatch):
    arms = [Arm.read("momentum")]
    first = run(arms, [20.0], TOY, tmp_path)
    monkeypatch.setattr(comparisons, "compare", lambda *_, **__: pytest.fail("run again"))
    assert run(arms, [20.0], TOY, tmp_path) == first
    monkeypatch.undo()
    kept, lost = sorted((tmp_path / "20" / "trials").iterdir())
    (lost / "result.json").unlink()
    before = (kept / "result.json").stat().st_mtime_ns
    again = run(arms, [20.0], TOY, tmp_path)
    assert (kept / "result.json").stat().st_mtime_ns == before and (lost / "result.json").exists()
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in first]


def test_a_folder_of_other_settings_is_refused(tmp_path):
    run([Arm.read("momentum")], [20.0], TOY, tmp_path)
    with pytest.raises(ArtifactError, match="other settings"):
        run([Arm.read("momentum:radius=0.1")], [20.0], TOY, tmp_path)


def test_a_failed_trial_is_an_error_that_names_it(tmp_path):
    with pytest.raises(BoxError, match=r"2 of 4 trials .*ZeroDivisionError"):
        run([Arm.read("momentum"), Arm.read("faulty_methods:Raises")], [20.0], TOY, tmp_path)


def test_an_interrupted_run_keeps_its_checkpoint_and_goes_on(tmp_path, monkeypatch):
    class Interrupting(comparisons.Board):
        def heard(self, folder, metrics):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(comparisons, "Board", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        run([Arm.read("momentum")], [60.0], TOY, tmp_path)
    first, second = sorted((tmp_path / "60" / "trials").iterdir())
    assert (first / "checkpoint").is_dir() and not (second / "recipe.yaml").exists()
    monkeypatch.undo()
    assert [row["evaluations"] for row in run([Arm.read("momentum")], [60.0], TOY, tmp_path)] == [58, 58]

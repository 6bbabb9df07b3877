"""Every method has a step size, and the best of five by validation is taken."""

from __future__ import annotations

import pytest

from bench.search import command, step_sizes
from bench.search.arms import Arm
from engine import search as methods


@pytest.mark.parametrize("word", command.METHODS)
def test_every_method_has_a_step_size_and_its_default_is_among_the_five(word):
    arm = Arm.read(word)
    candidates = step_sizes.tried(arm)
    assert len({candidate.label for candidate in candidates}) == 5
    made = [methods.make(candidate.method, candidate.options) for candidate in candidates]
    assert len({repr(method) for method in made}) == 5
    (option,) = candidates[0].options.keys() - arm.options.keys()
    default = getattr(methods.make(arm.method, arm.options), option)
    assert default in (None, candidates[step_sizes.FACTORS.index(1.0)].options[option])
    assert step_sizes.tried(candidates[0]) == []


def test_the_step_size_of_lowest_rank_by_validation_loss_is_taken():
    def run(arms):
        # On task c, whose losses are large, 0.3 is far ahead; 0.9 is best more often.
        losses = {"momentum radius=0.9": (0.1, 0.1, 40.0), "momentum radius=0.3": (0.2, 0.9, 1.0)}
        return [
            {"arm": arm.label, "task": task, "seed": 1, "val_loss": loss, "best_loss": -1.0, "evaluations": 50.0}
            for arm in arms
            for task, loss in zip("abc", losses.get(arm.label, (2.0, 2.0, 50.0)), strict=True)
        ]

    arms, told = step_sizes.choose([Arm.read("momentum"), Arm.read("bar:lr=1"), Arm.read("zip")], run)
    assert arms[:2] == [Arm(label="momentum", method="momentum", options={"radius": 0.9}), Arm.read("bar:lr=1")]
    assert arms[2].options == {"a": 0.01}, "all alike: the default"
    assert told.keys() == {"momentum", "zip"}
    assert told["momentum"]["evaluations"] == 750 and not told["momentum"]["at_edge"]
    text = step_sizes.table(told)
    assert "**0.9: 0.3**" in text and "1,500 evaluations" in text

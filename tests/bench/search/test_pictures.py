"""The one-panel picture: what is drawn, named and claimed."""

from __future__ import annotations

import numpy as np
import pytest

from bench.search import pictures

ACCURACIES = {
    "ours": {100: 0.5, 200: 0.8, 500: 0.9},
    "theirs": {100: 0.4, 200: 0.5, 500: 0.7, 5000: 0.79},
    "others": {500: 0.6},
}
ROWS = [
    {"label": label, "budget": budget, "task": task, "seed": seed, "accuracy": accuracy + gap}
    for label, line in ACCURACIES.items()
    for budget, accuracy in line.items()
    for task, gap in (("a", -0.1), ("b", 0.1))
    for seed in (1, 2)
]


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The figure that `headline` saves."""
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))

    def draw(rows, levels):
        pictures.headline(rows, tmp_path / "headline.png", levels)
        return figures[-1]

    return draw


def test_lines_are_means_named_at_their_ends_without_a_legend(drawn):
    figure = drawn(ROWS, {"zero-shot": 0.3, "head:auto": 0.795})
    (axis,) = figure.axes
    ours = axis.lines[0]
    assert ours.get_xdata().tolist() == [100, 200, 500] and ours.get_ydata() == pytest.approx([50, 80, 90])
    assert axis.get_xscale() == "log" and axis.get_legend() is None
    names = {text.get_text(): text.xy for text in axis.texts}
    assert names.keys() == {"ours", "theirs", "others", "zero-shot", "head:auto"}
    assert names["theirs"][0] == 5000 and names["ours"] == (500, pytest.approx(90))
    low, high = axis.get_ylim()
    apart = np.diff(sorted(y for x, y in names.values() if x == 5000))
    assert apart.min() > (high - low) / 20, "names do not lie on each other"


@pytest.mark.parametrize(
    ("best_of_others", "claim"),
    [(0.79, "ours has with 200 evaluations what the others have with 5000"), (0.95, "")],
)
def test_the_title_claims_what_the_rows_say(drawn, best_of_others, claim):
    rows = [{**row, "accuracy": row["accuracy"] - 0.79 + best_of_others} if row["budget"] == 5000 else row
            for row in ROWS]  # fmt: skip
    assert drawn(rows, {}).get_suptitle() == claim


def test_it_is_a_file(tmp_path):
    pictures.headline(ROWS[:4], tmp_path / "one.png", {})
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")

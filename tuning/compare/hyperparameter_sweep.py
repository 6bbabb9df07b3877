"""The search phase: settings chosen on validation before the comparison, by runs with a ledger of their own.

Its runs use another seed and few-shot sample than any that is reported; the choice is the lowest validation loss that
a run's selected prompt had; what they cost is told beside the table and never hidden in it.
Knows nothing of where runs are carried out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.files import write_text
from tuning.compare.comparison import Arm, Comparison, arms_of, make_trial, search_name, tasks_of
from tuning.compare.sweep_spaces import Space, drawn, in_words
from tuning.compare.trial import ERROR, RESULT, STOPPED, TRIAL, Trial, looks

SEARCH = "search.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One search: what is tried, and how."""

    home: Path
    comparison: Comparison
    arm: Arm
    task: str
    box: str
    shots: int

    @property
    def spaces(self) -> Mapping[str, Space]:
        return self.arm.searched

    @property
    def samples(self) -> int:
        return self.comparison.samples

    @property
    def searcher(self) -> str:
        return self.comparison.searcher

    @property
    def asha(self) -> bool:
        return self.comparison.asha

    @property
    def seed(self) -> int:
        return self.comparison.search_seed

    @property
    def budget(self) -> float:
        return self.comparison.budget

    @property
    def pool(self) -> Mapping[str, Any]:
        return self._trial({}).recipe["pool"]

    def _trial(self, config: Mapping[str, Any]) -> Trial:
        whole = {**self.arm.config, **config}
        made = make_trial(self.comparison, self.arm, self.task, self.box, self.shots, self.seed, whole)
        return replace(made, new_half=False, shift=())

    def make(self, config: Mapping[str, Any]) -> Path:
        """The folder of one combination, written if it is not there yet."""
        name = hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode()).hexdigest()[:12]
        if (self.home / name / TRIAL).exists():
            return self.home / name
        return replace(self._trial(config), name=name, config=dict(config)).write(self.home)

    def folders(self) -> list[Path]:
        """Of all combinations that were begun."""
        return sorted(path.parent for path in self.home.glob(f"*/{TRIAL}"))

    def tried(self) -> list[dict[str, Any]]:
        """The combinations that have come to an end."""
        return [dict(Trial.read(folder).config) for folder in self.folders() if _ended(folder)]


def _ended(folder: Path) -> bool:
    return any((folder / name).exists() for name in (RESULT, STOPPED, ERROR))


def choose(comparison: Comparison, home: Path, run: Callable[..., None], *, in_turn: bool) -> dict[str, dict[str, Any]]:
    """Run every search that is not done yet; what each chose, by name. Those cut short chose nothing.

    Args:
        home: the folder of searches.
        run: carries out trial folders, or with none the plan itself by its adaptive searcher.
        in_turn: there is no Tune, so that combinations are drawn at random whatever the searcher.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for task in tasks_of(comparison):
        for box in comparison.boxes:
            for shots in comparison.shots:
                for arm in arms_of(comparison):
                    if not arm.searched:
                        continue
                    name = search_name(arm, task, box, shots)
                    plan = Plan(home=home / name, comparison=comparison, arm=arm, task=task, box=box, shots=shots)
                    told = _search(plan, run, in_turn)
                    if told is not None:
                        chosen[name] = told["chosen"]
    return chosen


def _search(plan: Plan, run: Callable[..., None], in_turn: bool) -> dict[str, Any] | None:
    file = plan.home / SEARCH
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    if plan.searcher == "random" or in_turn:
        wanted = [plan.make(config) for config in drawn(plan.spaces, plan.samples, plan.seed)]
        run(wanted, plan)
        complete = all(_ended(folder) for folder in wanted)
    else:
        run([], plan)
        complete = len(plan.tried()) >= min(plan.samples, len(plan.folders()))  # the same one may be drawn twice
        complete = complete and bool(plan.folders())
    if not complete:
        return None
    told = _account(plan)
    write_text(file, json.dumps(told, indent=2) + "\n")
    return told


def _account(plan: Plan) -> dict[str, Any]:
    """What was tried, chosen and spent."""
    rows = []
    for folder in plan.folders():
        history = looks(folder)
        last = history[-1] if history else {"evaluations": 0.0, "pairs": 0, "seconds": 0.0}
        losses = [line["val_loss"] for line in history if line["val_loss"] is not None]
        rows.append(
            {
                "config": dict(Trial.read(folder).config),
                "val_loss": min(losses) if losses else None,
                "finished": (folder / RESULT).exists(),
                "error": json.loads((folder / ERROR).read_text())["error"] if (folder / ERROR).exists() else None,
                **{name: last[name] for name in ("evaluations", "pairs", "seconds")},
            }
        )
    finished = [row for row in rows if row["finished"] and row["val_loss"] is not None]
    best = min(finished, key=lambda row: row["val_loss"], default=None)
    return {
        "task": plan.task,
        "box": plan.box,
        "method": plan.arm.label,
        "shots": plan.shots,
        "seed": plan.seed,
        "searcher": plan.searcher + ", asha" * plan.asha,
        "chosen": best["config"] if best else {},
        "in_words": in_words(best["config"]) if best else "none finished: the method's own settings",
        "runs": len(rows),
        **{name: sum(row[name] for row in rows) for name in ("evaluations", "pairs", "seconds")},
        "tried": rows,
    }

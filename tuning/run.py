"""One tuning run: a recipe in, a run folder out. `Tuning` is iterated step by step and can be resumed at any moment.

Knows nothing of the terminal, of comparisons and of how methods search.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from engine import search
from engine.artifact import Artifact
from engine.errors import ArtifactError, BudgetError, RefusedError
from engine.evaluators.problem import ProblemSpec, installed_version
from engine.evaluators.ray_pool import RayPool
from engine.evaluators.serial import Serial
from engine.ledger import Ledger
from engine.protocols import BoxSpec, Evaluator, Method, Search, Task
from engine.search.warm import Warm
from engine.session import Session
from engine.threads import limited_steps
from engine.tuning_loop import Look, Step, steps
from tuning import budget, queryless
from tuning.data.load_task import load_task
from tuning.origin import origin_of, settings_of
from tuning.outcome import PLAIN, Outcome, check_head, of_head, of_prompt, of_templates, train_loss
from tuning.recipe import Recipe
from tuning.resolve import prompt_of, resolved
from tuning.run_folder import RunFolder

log = logging.getLogger(__name__)


def release() -> str:
    """The installed version of Keyhole."""
    return installed_version("keyhole") or "source"


def task_of(recipe: Recipe) -> Task:
    """The recipe's task with its few-shot sample."""
    seed = recipe.seed if recipe.data_seed is None else recipe.data_seed
    return load_task(recipe.task, shots=recipe.shots, seed=seed, half=recipe.half, test_images=recipe.test_images)


def problem_of(recipe: Recipe, task: Task, method: Method | None = None) -> ProblemSpec:
    """What a worker needs to answer this recipe's candidates."""
    prompt = prompt_of(recipe, method)
    return ProblemSpec(
        box=recipe.box,
        classes=task.classes,
        template=task.template,
        splits={"train": task.train, "val": task.val, "test": task.test},
        prompt={
            "name": prompt.name,
            "tokens": prompt.tokens,
            "subspace": prompt.subspace,
            "seed": recipe.seed,
            "options": {"per_class": prompt.per_class, "width": prompt.width, "grid": prompt.grid},
        },
        objective=recipe.objective,
        device=recipe.device,
        threads=recipe.pool.threads,
    )


def evaluator_of(recipe: Recipe, problem: ProblemSpec) -> Serial | RayPool:
    """Serial for workers=0, else a pool of Ray actors. The caller closes it."""
    if recipe.workers == 0:
        return Serial(problem, chunk=recipe.pool.chunk)
    return RayPool(
        problem,
        recipe.workers,
        chunk=recipe.pool.chunk,
        cpus=recipe.pool.cpus,
        gpus=recipe.pool.gpus,
        timeout_s=recipe.pool.timeout_s,
        mixed=recipe.pool.mixed,
    )


def refuse(method: Method, name: str, spec: BoxSpec) -> None:
    """Raise RefusedError if this box lacks what the method needs, before the first query."""
    needs = method.needs
    if not needs.gives & spec.gives or not needs.accepts <= spec.accepts:
        wants = " or ".join(sorted(needs.gives)) + "".join(f", and to accept {kind}" for kind in sorted(needs.accepts))
        raise RefusedError(
            f"method {name} needs a box that gives {wants}; {spec.uri} gives {', '.join(sorted(spec.gives))} and "
            f"accepts {', '.join(sorted(spec.accepts))}; `keyhole list methods` shows what each needs"
        )


def begin(recipe: Recipe, method: Method, session: Session) -> Search:
    """The method's search, at the template. A budget is in evaluations, a search counts candidates."""
    num_train = session.size("train")
    candidates = recipe.budget * num_train / min(recipe.rows or num_train, num_train)
    begun = method.start(session.space, candidates, recipe.seed)
    return begun.introduce(session.templates()) if hasattr(begun, "introduce") else begun


class Tuning:
    """A run. Iterate it for its steps; afterwards `result` is what `result.json` holds.

    A run that is left before its end, by an error or by closing the iterator, writes a checkpoint first.

    Args:
        recipe: every setting.
        out: the run folder. A finished or begun run in it is an error unless `resume`.
        resume: go on from the folder's checkpoint (from the start where there is none yet).
        opened: the recipe's task and its evaluator where the caller holds them open already, and closes them.
        patience_s: how long to wait for another process that writes the folder.

    Raises KeyholeError for anything that a user can mend; all of it before the first query where it can be known.
    """

    def __init__(
        self, recipe: Recipe, out: str | Path, *, resume: bool = False, opened: tuple[Task, Evaluator] | None = None,
        patience_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.recipe = recipe
        self.out = Path(out)
        self.result: dict[str, Any] = {}
        self._origin: dict[str, Any] = {}
        self.task, self._evaluator = opened or (task_of(recipe), None)
        self.queryless = queryless.is_queryless(recipe.method)
        self.method = None if self.queryless else search.make(recipe.method, recipe.options)
        if self.queryless:
            queryless.check(recipe)
        check_head(self._own_head())
        self.ledger = Ledger(images=len(self.task.train), budget=recipe.budget)
        self._folder = RunFolder(self.out, resume=resume, every_s=recipe.checkpoint_s, patience_s=patience_s)

    def __iter__(self) -> Iterator[Step]:
        started = time.monotonic()
        with self._folder.claimed() as state:
            self._settle(None)
            evaluator = self._evaluator or evaluator_of(self.recipe, problem_of(self.recipe, self.task, self.method))
            try:
                # The driver computes as its workers do, so that their number makes no difference to the bits.
                yield from limited_steps(self._steps(evaluator, state, started), self.recipe.pool.threads)
            except GeneratorExit:
                self._folder.checkpoint()
                raise
            except BaseException as error:
                self._rescue(error)
                raise
            finally:
                if self._evaluator is None:
                    evaluator.close()

    def _steps(self, evaluator: Evaluator, state: dict[str, Any] | None, started: float) -> Generator[Step, None, None]:
        keep = self._keeps_outputs(evaluator.describe()[0])
        session = Session(evaluator, self.ledger, self.task.splits, keep=keep)
        evaluator.stage("train")
        if self.queryless:
            self._settle(session.spec)
            outcome = queryless.fit(self.recipe, session)
            self._finish(session, outcome, time.monotonic() - started)
        else:
            yield from self._search(session, state)

    def _settle(self, spec: BoxSpec | None) -> None:
        """Fill in what the recipe leaves open, as far as it is known, and write it."""
        self.recipe = resolved(self.recipe, self.method, spec)
        if spec is None:
            self._origin = origin_of(self.recipe, self.task, release())
        self._origin["settings"] = settings_of(self.recipe)
        self._folder.settle(self.recipe, self._origin, final=spec is not None)

    def _rescue(self, error: BaseException) -> None:
        """Write the checkpoint of a run that fails, unless it is writing that failed."""
        if isinstance(error, ArtifactError):
            return
        try:
            self._folder.checkpoint()
        except ArtifactError as other:
            log.warning("%s", other)

    def _head(self, spec: BoxSpec) -> str | None:
        """The head that is joined to the prompt: the recipe's, else the method's own where this box gives features."""
        head = self.recipe.head or getattr(self.method, "head", None)
        return None if head == "templates" and "features" not in spec.gives else head

    def _own_head(self) -> str | None:
        """The head that the recipe joins to the method; None where it is the method's own."""
        return None if self.recipe.head == getattr(self.method, "head", None) else self.recipe.head

    def _keeps_outputs(self, spec: BoxSpec) -> bool:
        if self.queryless:
            return queryless.keeps_outputs(self.recipe)
        return self._head(spec) is not None or self.recipe.objective not in PLAIN

    def _check_covered(self, session: Session) -> None:
        """Raise BudgetError where a head's last read of the training images is not sure to be within the budget."""
        images, val = self.ledger.images, session.size("val")
        follows = session.free_looks and (self.recipe.rows or images) >= images
        if self._head(session.spec) and not follows and self.ledger.pairs_left < 2 * (images + val):
            raise BudgetError(
                f"budget={self.recipe.budget:g}: on this box a head takes one more read of the training images; "
                f"give at least {2 * (1 + val / images):g}, or leave the head out"
            )

    def _search(self, session: Session, state: dict[str, Any] | None) -> Generator[Step, None, None]:
        spec, method = session.spec, self.method
        assert method is not None
        refuse(method, self.recipe.method, spec)
        check_head(self._own_head(), spec)
        self._check_covered(session)
        if budget.is_small(self.recipe):
            sample = begin(budget.ample(self.recipe), method, session)
            if word := budget.word(self.recipe, sample, session):
                log.warning("%s", word)
        begun = self._started(method, session)
        self._settle(spec)
        recipe, best, seconds = self.recipe, None, 0.0
        for step in steps(
            begun,
            session,
            batch=recipe.batch,
            rows=recipe.rows,
            looks=recipe.looks,
            seed=recipe.seed,
            table=method.needs.table,
            resume=state,
        ):
            best, seconds = step.best, step.seconds
            self._folder.note(step)
            if self._folder.due:
                self._folder.checkpoint()
            yield step
        self._folder.checkpoint()  # before the final reads, so that a run that is resumed here makes them once
        if best is None:  # resumed from a checkpoint that had spent its budget already
            assert state is not None
            best, seconds = Look(**state["best"]), float(state["seconds"])
        head = self._head(spec)
        if head == "templates":
            outcome = of_templates(begun.asked, best.theta, session)  # type: ignore[attr-defined]
        elif head is not None:
            outcome = of_head(head, best.theta, session, recipe.seed)
        else:
            loss = train_loss(session, best, recipe.objective)
            outcome = of_prompt(best.theta, session, val_accuracy=best.val_accuracy, train_loss=loss)
        self._finish(session, outcome, seconds)

    def _started(self, method: Method, session: Session) -> Search:
        """The method's search, from the template or from the prompt of an earlier run."""
        spec, dim = session.spec, session.space.dim
        begun = begin(self.recipe, method, session)
        if self.recipe.start is None:
            return begun
        artifact = Artifact.load(self.recipe.start)
        theta = artifact.arrays.get("theta")
        same = artifact.meta["identity"].get("weights") == spec.identity.get("weights")
        if theta is None or len(theta) != dim or not same or artifact.meta["template"] != self.task.template:
            raise ArtifactError(
                f"start={self.recipe.start}: its prompt does not fit this run (box {artifact.meta['box']}, template "
                f"{artifact.meta['template']!r}, {0 if theta is None else len(theta)} dimensions; here {dim}); use the "
                "same box, template and prompt settings"
            )
        if not hasattr(begun, "introduce"):
            return Warm(begun, theta)
        pool = session.templates()
        # Numbers of words cannot be moved as vectors can: it is the first of the parents.
        others = pool[1:][(pool[1:] != theta).any(1)]
        return begun.introduce(np.vstack([pool[:1], theta, others]))

    def _finish(self, session: Session, outcome: Outcome, seconds: float) -> None:
        """The artifact and the result."""
        recipe = self.recipe
        arrays = {} if outcome.theta is None else {"theta": outcome.theta, **session.prompt(outcome.theta)}
        result = {
            "task": recipe.task,
            "box": recipe.box,
            "method": recipe.method,
            "prompt": None if self.queryless else prompt_of(recipe, self.method).name,
            "head": outcome.head,
            "shots": recipe.shots,
            "seed": recipe.seed,
            "budget": recipe.budget,
            **self.ledger.counts(),
            "test_images": len(self.task.test),
            "test_images_of": self.task.test_of or len(self.task.test),
            "zero_shot_accuracy": outcome.zero_shot_accuracy,
            "accuracy": outcome.accuracy,
            "val_accuracy": outcome.val_accuracy,
            "train_loss": outcome.train_loss,
            "base_accuracy": outcome.accuracy if recipe.half == "base" else None,
            "new_accuracy": outcome.accuracy if recipe.half == "new" else None,
            "seconds": round(seconds, 3),
            "workers": recipe.workers,
            "fingerprint": session.evaluator.fingerprint(),
            "version": release(),
        }
        artifact = Artifact(meta=self._meta(session.spec, result, outcome), arrays={**arrays, **outcome.arrays})
        self._folder.finish(artifact, result)
        self.result = result

    def _meta(self, spec: BoxSpec, result: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
        recipe = self.recipe
        keep = ("test_images", "zero_shot_accuracy", "accuracy", "val_accuracy", "train_loss")
        return {
            "keyhole": release(),
            "box": recipe.box,
            "identity": spec.identity,
            "provenance": {**result["fingerprint"], "path": spec.path},
            "task": {"uri": recipe.task, "shots": recipe.shots, "half": recipe.half, "seed": recipe.data_seed},
            "classes": list(self.task.classes),
            "template": self.task.template,
            "parametrization": None if self.queryless else asdict(prompt_of(recipe, self.method)),
            "method": " ".join(repr(self.method).split())[:2000] if self.method else recipe.method,
            "head": outcome.head,
            "ledger": self.ledger.counts(),
            "metrics": {name: result[name] for name in keep},
            "contains": dict.fromkeys(("training_features", "training_labels"), outcome.holds_training_data),
            "licence": {"artifact": None, "box": None, "data": None},
        }  # fmt: skip

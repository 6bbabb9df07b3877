"""One tuning run: a recipe in, a run folder out. `Tuning` is iterated step by step and can be resumed at any moment.

Knows nothing of the terminal, of comparisons and of how methods search.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from engine import heads
from engine.artifact import Artifact
from engine.errors import ArtifactError, BudgetError, RefusedError
from engine.evaluators.problem import ProblemSpec
from engine.evaluators.ray_pool import RayPool
from engine.evaluators.serial import Serial
from engine.outcome import accuracies_on_test, artifact_of, check_head, release
from engine.protocols import Array, BoxSpec, Evaluator, Method
from engine.session import RunSettings, Session
from engine.task import Task
from engine.threads import limited_steps
from engine.tuning_loop import SearchMethod, Step
from tuning import budget
from tuning.data.load_task import load_task
from tuning.origin import origin_of, settings_of
from tuning.recipe import Recipe
from tuning.resolve import joined_head, method_of, prompt_of, resolved
from tuning.run_folder import RunFolder

log = logging.getLogger(__name__)


def task_of(recipe: Recipe) -> Task:
    """The recipe's task with its few-shot sample."""
    return load_task(
        recipe.task, shots=recipe.shots, seed=recipe.sample_seed, half=recipe.half, test_images=recipe.test_images
    )


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


def session_of(recipe: Recipe, task: Task, evaluator: Evaluator, method: Method) -> Session:
    """The session of a recipe's run; it does not close the evaluator."""
    head = joined_head(recipe, method, evaluator.describe()[0])
    return Session(
        evaluator,
        task,
        objective=recipe.objective,
        budget=recipe.budget,
        keep=method.needs.whole or head is not None,
        settings=RunSettings(seed=recipe.seed, batch=recipe.batch, rows=recipe.rows, looks=recipe.looks, head=head),
    )


class Tuning:
    """A run. Iterate it for its steps; afterwards `result` is what `result.json` holds.

    A run that is left before its end, by an error or by closing the iterator, writes a checkpoint first.

    Args:
        recipe: every setting.
        out: the run folder. A finished or begun run in it is an error unless `resume`.
        resume: go on from the folder's checkpoint (from the start where there is none yet).
        task: the recipe's, where the caller has it already.
        evaluator: of it, where the caller holds one open, and closes it.
        patience_s: how long to wait for another process that writes the folder.

    Raises KeyholeError for anything that a user can mend; all of it before the first query where it can be known.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: str | Path,
        *,
        resume: bool = False,
        task: Task | None = None,
        evaluator: Evaluator | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self.recipe = recipe
        self.out = Path(out)
        self.result: dict[str, Any] = {}
        self.session: Session | None = None
        self._origin: dict[str, Any] = {}
        self.task, self._evaluator = task or task_of(recipe), evaluator
        self.method = method_of(recipe)
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
        recipe, method = self.recipe, self.method
        self.session = session = session_of(recipe, self.task, evaluator, method)
        refuse(method, recipe.method, session.spec)
        check_head(session.settings.head if session.settings.head in heads.HEADS else None, session.spec)
        evaluator.stage("train")
        if isinstance(method, SearchMethod):
            self._check_covered(session)
            if word := budget.word(session, method, recipe.method):
                log.warning("%s", word)
            if recipe.start is not None:
                session.settings = replace(session.settings, origin=self._origin_of(session))
        self._settle(session.spec)
        seconds = None
        for step in method.run(session, state):
            seconds = step.seconds
            self._folder.note(step)
            if self._folder.due or step.last:  # the last before the final reads, so that a resumed run makes them once
                self._folder.checkpoint()
            yield step
        if seconds is None:  # it has no rounds, or all of them were run before it was interrupted
            seconds = time.monotonic() - started if state is None else float(state["seconds"])
        self._finish(session, seconds)

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

    def _check_covered(self, session: Session) -> None:
        """Raise BudgetError where a head's last read of the training images is not sure to be within the budget."""
        images, val = session.ledger.images, session.size("val")
        follows = session.free_looks and session.rows == images
        if session.settings.head and not follows and session.ledger.pairs_left < 2 * (images + val):
            raise BudgetError(
                f"budget={self.recipe.budget:g}: on this box a head takes one more read of the training images; "
                f"give at least {2 * (1 + val / images):g}, or leave the head out"
            )

    def _origin_of(self, session: Session) -> Array:
        """The prompt of an earlier run, where the search begins. Raises ArtifactError where it does not fit."""
        assert self.recipe.start is not None
        artifact, dim = Artifact.load(self.recipe.start), session.space.dim
        theta = artifact.arrays.get("theta")
        same = artifact.meta["identity"].get("weights") == session.spec.identity.get("weights")
        if theta is None or len(theta) != dim or not same or artifact.meta["template"] != self.task.template:
            raise ArtifactError(
                f"start={self.recipe.start}: its prompt does not fit this run (box {artifact.meta['box']}, template "
                f"{artifact.meta['template']!r}, {0 if theta is None else len(theta)} dimensions; here {dim}); use the "
                "same box, template and prompt settings"
            )
        return theta

    def _finish(self, session: Session, seconds: float) -> None:
        """The test split is read; artifact and result are written."""
        recipe, method, outcome = self.recipe, self.method, session.outcome
        assert outcome is not None
        zero_shot, accuracy = accuracies_on_test(outcome, session)
        searched = isinstance(method, SearchMethod)
        prompt = prompt_of(recipe, method)
        artifact = artifact_of(
            outcome,
            session,
            (zero_shot, accuracy),
            task={"uri": recipe.task, "shots": recipe.shots, "half": recipe.half, "seed": recipe.data_seed},
            parametrization=asdict(prompt) if searched else None,
            method=" ".join(repr(method).split())[:2000] if searched else recipe.method,
        )
        result = {
            "task": recipe.task,
            "box": recipe.box,
            "method": recipe.method,
            "prompt": prompt.name if searched else None,
            "head": outcome.head_name,
            "shots": recipe.shots,
            "seed": recipe.seed,
            "budget": recipe.budget,
            **session.ledger.counts(),
            "test_images": len(self.task.test),
            "test_images_of": self.task.test_of or len(self.task.test),
            "zero_shot_accuracy": zero_shot,
            "accuracy": accuracy,
            "val_accuracy": outcome.val_accuracy,
            "train_loss": outcome.train_loss,
            "base_accuracy": accuracy if recipe.half == "base" else None,
            "new_accuracy": accuracy if recipe.half == "new" else None,
            "seconds": round(seconds, 3),
            "workers": recipe.workers,
            "fingerprint": session.evaluator.fingerprint(),
            "version": release(),
        }
        self._folder.finish(artifact, result)
        self.result = result

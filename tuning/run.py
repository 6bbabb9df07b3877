"""One tuning run: a recipe in, a run folder out. `Tuning` is iterated step by step and can be resumed at any moment.

Knows nothing of the terminal, of comparisons and of how methods search.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine import search
from engine.artifact import Artifact
from engine.core import BoxSpec, Evaluator, Method, Search, Task
from engine.errors import ArtifactError, RefusedError
from engine.ledger import Ledger
from engine.loop import Look, Step, steps
from engine.pool import RayPool, Serial
from engine.problem import ProblemSpec
from engine.prompts.text import own_contexts
from engine.search.warm import Warm
from tuning import queryless
from tuning.folder import RunFolder
from tuning.origin import origin_of, settings_of
from tuning.outcome import Outcome, check_head, of_head, of_prompt, of_templates
from tuning.recipe import PromptRecipe, Recipe
from tuning.resolve import prompt_of, resolved
from tuning.tasks import load_task

log = logging.getLogger(__name__)


def release() -> str:
    """The installed version of Keyhole."""
    try:
        return version("keyhole")
    except PackageNotFoundError:
        return "source"


def task_of(recipe: Recipe) -> Task:
    """The recipe's task with its few-shot sample."""
    seed = recipe.seed if recipe.data_seed is None else recipe.data_seed
    return load_task(recipe.task, shots=recipe.shots, seed=seed, half=recipe.half)


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


def fitted(method: Method, prompt: PromptRecipe, spec: BoxSpec) -> Method:
    """The method with what it leaves open and this prompt of this box settles."""
    if prompt.name != "text" or spec.text is None:
        return method
    return search.fit(method, sigma=spec.text.sigma, parts=own_contexts(prompt.per_class, len(spec.classes)))


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
                spec, dim, free_looks = evaluator.call("describe")
                if self.queryless:
                    self._settle(spec)
                    outcome = queryless.fit(self.recipe, self.task, evaluator, self.ledger, spec, dim)
                    self._finish(evaluator, spec, outcome, time.monotonic() - started)
                else:
                    yield from self._search(evaluator, spec, dim, free_looks, state)
            except GeneratorExit:
                self._folder.checkpoint()
                raise
            except BaseException as error:
                self._rescue(error)
                raise
            finally:
                if self._evaluator is None:
                    evaluator.close()

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

    def _own_head(self) -> str | None:
        """The head that the recipe joins to the method; None where it is the method's own."""
        return None if self.recipe.head == getattr(self.method, "head", None) else self.recipe.head

    def _search(
        self, evaluator: Evaluator, spec: BoxSpec, dim: int, free_looks: bool, state: dict[str, Any] | None
    ) -> Iterator[Step]:
        assert self.method is not None
        refuse(self.method, self.recipe.method, spec)
        check_head(self._own_head(), spec)
        self.method = method = fitted(self.method, prompt_of(self.recipe, self.method), spec)
        begun = self._started(method, spec, dim, evaluator)
        self._settle(spec)
        recipe, best, seconds = self.recipe, None, 0.0
        for step in steps(
            begun,
            evaluator,
            ledger=self.ledger,
            num_val=len(self.task.val),
            free_looks=free_looks,
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
        head = recipe.head or getattr(method, "head", None)
        asked = getattr(begun, "asked", None)
        if head == "templates" and asked is not None and "features" in spec.gives:
            outcome = of_templates(asked, best.theta, self.task, evaluator, self.ledger)
        elif head is not None and head != "templates":
            outcome = of_head(head, best.theta, self.task, evaluator, self.ledger, recipe.seed)
        else:
            train_loss = self._train_loss(evaluator, spec, best)
            outcome = of_prompt(
                best.theta, self.task, evaluator, self.ledger, val_accuracy=best.val_accuracy, train_loss=train_loss
            )
        self._finish(evaluator, spec, outcome, seconds)

    def _started(self, method: Method, spec: BoxSpec, dim: int, evaluator: Evaluator) -> Search:
        """The method's search, from the template or from the prompt of an earlier run."""
        begun = method.start(dim, self.recipe.budget, self.recipe.seed)
        if hasattr(begun, "introduce"):
            begun.introduce(evaluator.call("pool"))
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
        return Warm(begun, theta)

    def _train_loss(self, evaluator: Evaluator, spec: BoxSpec, best: Look) -> float | None:
        """Plain cross-entropy of the selected candidate on all training rows; booked where it was not known yet."""
        if not spec.gives & {"scores", "features"}:
            return None
        if best.train_loss is not None and self.recipe.objective in ("auto", "cross-entropy"):
            return best.train_loss
        if best.train_loss is None:
            if len(self.task.train) > self.ledger.pairs_left:
                return None
            self.ledger.charge(evaluator.evaluate(best.theta[None]))
        return evaluator.call("cross_entropy", best.theta)

    def _finish(self, evaluator: Evaluator, spec: BoxSpec, outcome: Outcome, seconds: float) -> None:
        """The artifact and the result."""
        recipe = self.recipe
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
            "zero_shot_accuracy": outcome.zero_shot_accuracy,
            "accuracy": outcome.accuracy,
            "val_accuracy": outcome.val_accuracy,
            "train_loss": outcome.train_loss,
            "base_accuracy": outcome.accuracy if recipe.half == "base" else None,
            "new_accuracy": outcome.accuracy if recipe.half == "new" else None,
            "seconds": round(seconds, 3),
            "workers": recipe.workers,
            "fingerprint": evaluator.fingerprint(),
            "version": release(),
        }
        arrays = {} if outcome.theta is None else {"theta": outcome.theta, **evaluator.call("decoded", outcome.theta)}
        artifact = Artifact(meta=self._meta(spec, result, outcome), arrays={**arrays, **outcome.arrays})
        self._folder.finish(artifact, result)
        self.result = result

    def _meta(self, spec: BoxSpec, result: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
        recipe = self.recipe
        keep = ("zero_shot_accuracy", "accuracy", "val_accuracy", "train_loss")
        return {
            "keyhole": release(),
            "box": recipe.box,
            "identity": spec.identity,
            "path": spec.path,
            "task": {"uri": recipe.task, "shots": recipe.shots, "half": recipe.half,
                     "seed": recipe.seed if recipe.data_seed is None else recipe.data_seed},
            "classes": list(self.task.classes),
            "template": self.task.template,
            "parametrization": None if self.queryless else asdict(prompt_of(recipe, self.method)),
            "method": repr(self.method) if self.method else recipe.method,
            "head": outcome.head,
            "ledger": self.ledger.counts(),
            "metrics": {name: result[name] for name in keep},
            "contains": dict.fromkeys(("training_features", "training_labels"), outcome.holds_training_data),
            "licence": {"artifact": None, "box": None, "data": None},
        }  # fmt: skip

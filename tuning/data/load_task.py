"""Tasks by URI: a pool of images becomes few-shot train and validation splits, by a seed.

The protocol is CoOp's (Zhou et al. 2022, arXiv 2109.01134, section 4.1): `shots` training images per class and
min(shots, 4) validation images per class, drawn from the validation split where the data has one, else from the
remaining training images; the test split is the data's own, complete and the same for every seed. Base and new classes
are the first ceil(C / 2) and the others (Zhou et al. 2022, arXiv 2203.05557).

One difference, on purpose: each class is drawn from its own random stream, keyed by its name. So adding a class, or
taking the base half, changes no other class's sample, and the 8-shot sample is a part of the 16-shot one.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.errors import RecipeError, TaskError, nearest
from engine.images import check_images
from engine.parsing import parse_uri, resolve
from engine.protocols import Array
from engine.random_streams import Purpose, rng
from engine.task import Split, Task
from tuning.data.corruptions import TASK_OPTIONS, degradations, degraded

HALVES = ("all", "base", "new")

SCHEMES: dict[str, str] = {
    "mini": "miniature.tasks:load",
    "toy": "engine.boxes.toy:toy_task",
    "folder": "tuning.data.folders:folder",
    "coop": "tuning.data.folders:coop",
    "hf": "tuning.data.huggingface:hub",
}
"""Scheme -> `module:function`, resolved when first used.

A loader takes what follows the scheme (nothing, if it declares no positional parameter) and the URI's query as
keyword-only arguments, each of its default's type, and returns a *pool*: a Task whose `train` holds all images that may
be drawn from, whose `val` is the data's validation split or empty, and whose `test` is final.
"""

FORMS: dict[str, str] = {
    "mini:NAME": "a task that comes with Keyhole",
    "folder:PATH": "your images: a folder a class, below train/ and test/ or directly",
    "coop:PATH": "CoOp's layout: images and a split_zhou_*.json",
    "hf:ORG/NAME": "an image classification set of the Hugging Face hub (extra `data`)",
    "toy:": "made-up images for the box toy:, to try Keyhole itself",
    "package.module:function": "your own loader",
}
"""How each scheme is written, and what it loads."""

VAL_SHOTS = 4
"""Most validation images per class: CoOp's min(shots, 4)."""

ON_DISK = frozenset({"folder", "coop"})
"""Schemes followed by a path."""


def load_task(uri: str, *, shots: int = 16, seed: int = 1, half: str = "all", test_images: int | None = None) -> Task:
    """A task with its few-shot splits drawn and its images checked.

    Args:
        uri: `mini:NAME`, `toy:`, `folder:PATH`, `coop:PATH`, `hf:NAME` or `package.module:function[:REST]`, each with
            options as a query (`folder:pets?template=a photo of a {}, a type of pet.`; `&` and `+` in a value are
            written %26 and %2B); `imbalance=20&label_noise=0.2` degrade any task's training split.
        shots: Training images per class, >= 1; there are also min(shots, 4) validation images per class.
        seed: Draws the sample, >= 0.
        half: One of `HALVES`: all classes, or the base (first) or new (second) half.
        test_images: How many test images to draw by `seed`, >= 1; None, or more than there are: all.

    Returns:
        A Task whose train split has `shots * C` rows and whose val split has `min(shots, 4) * C`, class by class.

    Raises:
        RecipeError: The scheme, an option or the half is unknown; shots, seed or test_images are out of range.
        TaskError: The data cannot make this task, or the header or the end of an image shows that it cannot be read;
            the message names the class or the file.
    """
    if shots < 1:
        raise RecipeError(f"{shots=}: a few-shot task needs at least 1 image a class; give shots of 1 or more")
    if seed < 0:
        raise RecipeError(f"{seed=}: seeds are 0 or more")
    if half not in HALVES:
        raise RecipeError(f"{half=} is unknown; allowed are {', '.join(HALVES)}{nearest(half, HALVES)}")
    return looked_over(part_of_test(few_shot(halve(load_pool(uri), half), shots=shots, seed=seed), test_images, seed))


def load_pool(uri: str, *, allow_code: bool = True) -> Task:
    """All of a task's images, before anything is drawn.

    Args:
        uri: As in `load_task`.
        allow_code: Whether it may be `package.module:function`: only where the user typed it.

    Raises RecipeError and TaskError as `load_task` does.
    """
    degradations(uri)  # refuses wrong values before anything is read
    loader, rest, options = _resolve(uri, allow_code)
    pool = replace(_call(loader, rest, options, uri), uri=uri)
    _check(pool)
    return pool


def few_shot(pool: Task, *, shots: int, seed: int) -> Task:
    """Draw the few-shot splits of a pool. Raises TaskError naming the first class with too few images."""
    train, val = few_shot_rows(pool, shots=shots, seed=seed)
    source = pool.val if len(pool.val) else pool.train
    drawn = replace(pool, train=pool.train.subset(train), val=source.subset(val), shots=shots, seed=seed)
    return degraded(drawn, seed)


def part_of_test(task: Task, number: int | None, seed: int) -> Task:
    """The task with `number` of its test images, drawn by `seed`; None, or more than there are: all.

    Raises RecipeError for a number below 1.
    """
    if number is not None and number < 1:
        raise RecipeError(f"test_images={number} must be at least 1, or null for the whole test split")
    total = len(task.test)
    if number is None or number >= total:
        return task
    rows = np.sort(rng(seed, 0, Purpose.TEST).choice(total, number, replace=False))
    return replace(task, test=task.test.subset(rows), test_of=total)


def looked_over(task: Task, splits: Sequence[str] = ("train", "val", "test")) -> Task:
    """The task, after checking the header and the end of every encoded image of these splits.

    Raises TaskError naming the first image that cannot be read.
    """
    check_images(*(task.splits[split].source for split in splits))
    return task


def few_shot_rows(pool: Task, *, shots: int, seed: int) -> tuple[Array, Array]:
    """`(shots * C,)` rows of the pool's train split, and `(min(shots, 4) * C,)` rows of its val split.

    Without a val split, the latter are rows of the train split that are not used for training. Raises TaskError naming
    the first class with too few images.
    """
    num_val = min(shots, VAL_SHOTS)
    own_val = len(pool.val) > 0
    _check_enough(pool, pool.train, shots + (0 if own_val else num_val), shots, 0 if own_val else num_val, "training")
    if own_val:
        _check_enough(pool, pool.val, num_val, 0, num_val, "validation")
    train, val = [], []
    for label, name in enumerate(pool.classes):
        drawn = _shuffled(pool.train, label, name, seed)
        train.append(drawn[:shots])
        # Validation is drawn from the other end, so that other shots keep both samples.
        val.append((_shuffled(pool.val, label, name, seed) if own_val else drawn[::-1])[:num_val])
    return np.concatenate(train), np.concatenate(val)


def halve(pool: Task, half: str) -> Task:
    """The base (first ceil(C / 2)) or new (other) classes of a pool, relabelled from 0; all of them for "all".

    Raises TaskError where the half is empty.
    """
    if half == "all":
        return pool
    middle = -(-len(pool.classes) // 2)
    kept = range(middle) if half == "base" else range(middle, len(pool.classes))
    if len(kept) == 0:
        raise TaskError(f"{pool.uri} has {len(pool.classes)} class, so its {half!r} half is empty; use half 'all'")
    return replace(
        pool,
        half=half,
        classes=tuple(pool.classes[label] for label in kept),
        train=_keep(pool.train, kept),
        val=_keep(pool.val, kept),
        test=_keep(pool.test, kept),
    )


def located(uri: str) -> str:
    """A task's URI with an absolute path, where it has a path, so that it does not depend on the current folder.

    >>> located("folder:/data/pets?test=0.5"), located("mini:digits")
    ('folder:/data/pets?test=0.5', 'mini:digits')
    """
    scheme, colon, rest = uri.partition(":")
    path, query, options = rest.partition("?")
    if scheme not in ON_DISK or not path:
        return uri
    return f"{scheme}{colon}{Path(path).expanduser().absolute()}{query}{options}"


def task_names() -> tuple[str, ...]:
    """The embedded tasks by name, then the forms for users' data, as `keyhole list tasks` prints them."""
    from miniature.tasks import TASKS

    return (*(f"mini:{name}" for name in TASKS), *(form for form in FORMS if form != "mini:NAME"))


def _resolve(uri: str, allow_code: bool = True) -> tuple[Callable[..., Task], str, dict[str, str]]:
    """The loader, what follows the scheme, and the options except those that degrade the task."""
    scheme, rest, options = parse_uri(uri, "task")
    colon = ":" in uri
    if colon and scheme in SCHEMES:
        target = SCHEMES[scheme]
    elif colon and "." in scheme:
        if not allow_code:
            raise RecipeError(
                f"task {uri!r:.200} is code, which an artifact cannot name; if it is yours, name it with --task"
            )
        function, _, rest = rest.partition(":")
        target = f"{scheme}:{function}"
    else:
        hint = nearest(scheme, SCHEMES if colon else task_names())
        if not colon and Path(uri).expanduser().is_dir():
            hint = f", did you mean 'folder:{uri}'?"
        raise RecipeError(f"task {uri!r} names no known scheme{hint}; a task is written {', '.join(FORMS)}")
    kept = {name: value for name, value in options.items() if name not in TASK_OPTIONS}
    return resolve(target, f"task {uri!r}"), rest, kept


def _call(loader: Callable[..., Task], rest: str, options: Mapping[str, str], uri: str) -> Task:
    """Call the loader with the options that its signature declares; refuse others."""
    parameters = inspect.signature(loader).parameters.values()
    takes_rest = any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for option in options:
        if option not in known:
            every = [*known, *TASK_OPTIONS]
            hint = nearest(option, every)
            raise RecipeError(
                f"task {uri!r} has an unknown option {option!r}{hint}; its options are {', '.join(every)}"
            )
    if rest and not takes_rest:
        raise RecipeError(f"task {uri!r}: nothing may follow the scheme here, but {rest!r} does; leave it out")
    typed = {option: _typed(text, known[option], f"task {uri!r}: {option}") for option, text in options.items()}
    pool = loader(rest, **typed) if takes_rest else loader(**typed)
    if not isinstance(pool, Task):
        raise RecipeError(f"task {uri!r}: the loader returned {type(pool).__name__}; it must return a Task")
    return pool


def _typed(text: str, default: object, where: str) -> object:
    """An option's text, as a number where its default is one."""
    kind = type(default)
    if kind not in (int, float):
        return text
    try:
        return kind(text)
    except ValueError as error:
        raise RecipeError(f"{where}={text!r} must be a {'whole ' if kind is int else ''}number") from error


def _check(pool: Task) -> None:
    """Raise TaskError where a loader's pool is inconsistent."""
    uri = pool.uri
    if len(pool.classes) < 2:
        raise TaskError(f"{uri} has {len(pool.classes)} classes; a task needs at least 2")
    if pool.template.count("{}") != 1:
        raise TaskError(f"{uri}: template {pool.template!r} must hold one {{}} for the class name")
    seen: dict[str, str] = {}
    for name in pool.classes:
        # Tokenizers fold case and spaces: names that differ in nothing else would have the same scores.
        folded = " ".join(name.casefold().split())
        if not folded:
            raise TaskError(f"{uri} has a class with an empty name; give every class a name")
        if folded in seen:
            raise TaskError(
                f"{uri}: class names {seen[folded]!r} and {name!r} are the same to a tokenizer; rename one of them"
            )
        seen[folded] = name
    for split, part in (("train", pool.train), ("val", pool.val), ("test", pool.test)):
        if len(part.source) != len(part.labels):
            raise TaskError(
                f"{uri}: {split} has {len(part.source)} images but {len(part.labels)} labels; match them up"
            )
        if len(part) and not 0 <= part.labels.min() <= part.labels.max() < len(pool.classes):
            raise TaskError(
                f"{uri}: {split} has labels from {part.labels.min()} to {part.labels.max()}; "
                f"with {len(pool.classes)} classes they must lie from 0 to {len(pool.classes) - 1}"
            )
    missing = np.flatnonzero(_counts(pool, pool.train) == 0)
    if len(missing):
        raise TaskError(
            f"{uri}: class {pool.classes[missing[0]]!r} has no training images"
            f"{_others(len(missing))}; add images or remove the class"
        )
    if not len(pool.test):
        raise TaskError(f"{uri} has no test images; accuracy is measured on them, so add a test split")


def _check_enough(pool: Task, split: Split, needed: int, shots: int, num_val: int, name: str) -> None:
    short = np.flatnonzero(_counts(pool, split) < needed)
    if len(short):
        label = int(short[0])
        what = " + ".join(
            part for part, count in ((f"{shots} shots", shots), (f"{num_val} for validation", num_val)) if count
        )
        raise TaskError(
            f"{pool.uri}: class {pool.classes[label]!r} has {int(_counts(pool, split)[label])} {name} images, "
            f"but {needed} are needed ({what}){_others(len(short))}; add images or lower shots"
        )


def _others(count: int) -> str:
    return f" (and {count - 1} other class{'es' if count > 2 else ''} likewise)" if count > 1 else ""


def _counts(pool: Task, split: Split) -> Array:
    return np.bincount(split.labels.astype(np.int64), minlength=len(pool.classes))


def _shuffled(split: Split, label: int, name: str, seed: int) -> Array:
    """All rows of a class in an order that depends on the seed, the class's name and its number of images only."""
    rows = np.flatnonzero(split.labels == label)
    return rows[rng(seed, zlib.crc32(name.encode()), Purpose.FEW_SHOT).permutation(len(rows))]


def _keep(split: Split, labels: range) -> Split:
    rows = np.flatnonzero((split.labels >= labels.start) & (split.labels < labels.stop))
    kept = split.subset(rows)
    return replace(kept, labels=kept.labels - labels.start)

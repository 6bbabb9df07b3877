"""A classifier as one file for other programs: its class rows, or its image tower with all that follows.

What a file holds is compared with the classifier on images before it is written.

Letters: n images, C classes, E joint width, H image side in pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import softmax

from engine import phases
from engine.classifier import Classifier
from engine.errors import ArtifactError, RecipeError, nearest
from engine.files import unwritable, write_bytes
from engine.images import ImageLike
from engine.protocols import Array
from engine.random_streams import Purpose, rng

FORMS: dict[str, str] = {
    "classifier": "engine.export:as_matrix",
    "onnx": "engine.boxes.clip.onnx_export:as_onnx",
}
"""Name -> `module:function`, called as `f(classifier)`, which gives an `Exported`."""
SUFFIXES = {"classifier": ".npz", "onnx": ".onnx"}
TOLERANCE = 1e-4
"""Largest difference of a probability from the classifier's own with which a file is written."""
CHECKED_IMAGES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """The content of a file, and how to ask it."""

    data: bytes
    scores: Callable[[Sequence[ImageLike]], Array]
    """Images -> `(n, C)` logits, computed from `data`."""


def export(classifier: Classifier, form: str, out: str | Path) -> dict[str, Any]:
    """Write a classifier as one file, once it has been checked.

    Args:
        classifier: What `Classifier.load` gives, perhaps bound to another box.
        form: One of `FORMS`. `classifier`: class rows for features that another program has (`as_matrix`); `onnx`:
            image tower, rows and head (`engine.boxes.clip.onnx_export.as_onnx`).
        out: The file; one that is there is replaced.

    Returns:
        `out`, `form`, `bytes`, `classes` (how many), `checked_images`, `largest_difference` (of a probability).

    Raises:
        RecipeError: The form is unknown, or a package that it needs is not installed.
        RefusedError: The artifact or its box cannot be exported in this form.
        ArtifactError: The artifact does not fit its box, the export does not answer as it does, or the file cannot be
            written.
    """
    out = Path(out)
    _check_form(form)
    if out.is_dir():
        raise ArtifactError(f"{out} is a folder; name a file, for example {out / ('digits' + SUFFIXES[form])}")
    with phases.phase(f"exporting to {form}"):
        exported: Exported = resolve_name(FORMS[form])(classifier)
    images = probe_images()
    with phases.phase("comparing it with the artifact"):
        found, own = softmax(exported.scores(images).astype(np.float64), axis=-1), classifier.predict(images)[1]
    difference = float(np.abs(found - own).max())
    if not difference <= TOLERANCE:
        raise ArtifactError(
            f"{out} is not written: its probabilities differ from the artifact's by up to {difference:.1e}, and "
            f"{TOLERANCE:.0e} is allowed; where its box has precision=, name the box without it with --box"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    write_bytes(out, exported.data)
    return {
        "out": str(out),
        "form": form,
        "bytes": len(exported.data),
        "classes": len(classifier.classes),
        "checked_images": len(images),
        "largest_difference": difference,
    }


def default_path(run_folder: Path, form: str) -> Path:
    """The file beside a run folder that bears its name. Raises RecipeError where the form is unknown."""
    _check_form(form)
    folder = run_folder.resolve() if run_folder.name in ("", "..") else run_folder
    return folder.with_name(folder.name + SUFFIXES[form])


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise RecipeError(f"export form {form!r} is unknown{nearest(form, FORMS)}; it is one of {', '.join(FORMS)}")


def as_matrix(classifier: Classifier) -> Exported:
    """An .npz without pickle: `logits = features @ rows.T + bias`, for L2-normalised features.

    It holds `rows` `(C, E)` and `bias` `(C,)` float32, `classes` `(C,)` strings and `about`, a JSON object in a string
    (`about`).

    Raises:
        RefusedError: The artifact is no matrix on features (`Folded.matrix`), or its box gives no features.
        ArtifactError: The artifact does not fit its box.
    """
    rows, bias = classifier.fold().matrix()
    facts = about(classifier)
    file = io.BytesIO()
    np.savez(file, rows=rows, bias=bias, classes=np.array(facts.pop("classes")), about=np.array(json.dumps(facts)))

    def scores(images: Sequence[ImageLike]) -> Array:
        file.seek(0)
        with np.load(file, allow_pickle=False) as held:
            return classifier.features(images) @ held["rows"].T + held["bias"]

    return Exported(data=file.getvalue(), scores=scores)


def about(classifier: Classifier) -> dict[str, Any]:
    """What an exported file says of itself, as JSON values.

    Returns:
        `classes`; `preprocess`: size, mean, std, interpolation, resize and fill, None where the box does not say;
        `identity`: which image tower the features are of; `artifact`: the digest of where it came from, its `template`
        and `head`, what training data it `contains`, and its `licence`. No paths: files travel.
    """
    meta, spec = classifier.artifact.meta, classifier.box.spec
    return {
        "classes": list(classifier.classes),
        "preprocess": spec.identity.get("preprocess"),
        "identity": spec.identity,
        "artifact": classifier.artifact.digest,
        **{name: meta[name] for name in ("template", "head", "contains", "licence")},
    }


def probe_images() -> list[Array]:
    """Seeded images of several sizes, from an even colour to fine noise: uint8 RGB `(h, w, 3)`."""
    images = []
    for number in range(CHECKED_IMAGES):
        random = rng(0, number, Purpose.CANARY)
        cells, sides = 2 ** (number % 8), random.integers(64, 320, 2)
        colours = random.integers(0, 256, (cells, cells, 3), np.uint8)
        images.append(np.asarray(Image.fromarray(colours).resize((int(sides[0]), int(sides[1])))))
    return images

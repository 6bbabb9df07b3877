"""The state of the environment: what is installed, what the hardware is, whether the embedded weights are whole.

Of a box: what it gives, accepts and knows of words, which way it computes and, where it computes in less than fp32,
how its error compares with what a search's probe changes.

Knows nothing of runs.
"""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any

import numpy as np
from scipy.special import log_softmax

from engine.errors import KeyholeError, RecipeError
from engine.evaluators.problem import installed_version
from engine.images import Given
from engine.parsing import without_options
from engine.protocols import Array, BlackBox, Outputs

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "ray",
    "nevergrad",
    "numpy",
    "scikit-learn",
    "pillow",
    "safetensors",
)


def examine(box_uri: str | None = None) -> dict[str, Any]:
    """Facts by name; `healthy` is False where something needed is missing or damaged.

    Raises RecipeError for a box that is named wrongly.
    """
    findings: dict[str, Any] = {
        "keyhole": _version("keyhole"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "disk_free_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        **{name: _version(name) for name in PACKAGES},
    }
    healthy = all(findings[name] != "missing" for name in PACKAGES if name != "ray")
    if findings["torch"] != "missing":
        import torch

        findings["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    findings["cache"] = _cache()
    findings["ray_address"] = os.environ.get("RAY_ADDRESS", "none: a local Ray is started where workers > 0")
    for name, state in _weights().items():
        findings[f"mini:{name}"] = state
        healthy &= state.startswith("whole")
    if box_uri is not None:
        healthy &= _box(box_uri, findings)
    return {**findings, "healthy": bool(healthy)}


def _version(package: str) -> str:
    return installed_version(package) or "missing"


def _weights() -> dict[str, str]:
    from miniature import models

    states = {}
    for name in models.HASHES:
        try:
            states[name] = f"whole, sha256 {models.load(name).weights_hash[:16]}"
        except KeyholeError as error:
            states[name] = str(error)
    return states


def _cache() -> str:
    """Where image features are kept and how large that is."""
    from engine.boxes.feature_cache import LIMIT_BYTES, VARIABLE, cache_bytes, cache_folder

    folder = cache_folder()
    if folder is None:
        return f"off ({VARIABLE}=off)"
    return f"{folder}: {cache_bytes(folder) / 1e6:.1f} MB of at most {LIMIT_BYTES / 1e6:.0f} MB ({VARIABLE})"


CLASSES, TEMPLATE = ("red", "blue"), "a photo of a {}."


def _box(uri: str, findings: dict[str, Any]) -> bool:
    from engine.boxes import open_box

    device = _device(findings)
    try:
        box = open_box(uri, classes=CLASSES, template=TEMPLATE, device=device)
    except RecipeError:
        raise
    except KeyholeError as error:
        findings["box"] = str(error)
        return False
    spec = box.spec
    findings["box"] = uri
    findings["gives"] = ", ".join(sorted(spec.gives))
    findings["accepts"] = ", ".join(sorted(spec.accepts))
    if spec.text is not None and spec.text.words is not None:
        findings["tokens"] = len(spec.text.words)
        findings["words"] = " ".join(spec.text.words)
    elif spec.text is not None and spec.text.vocabulary is not None:
        findings["tokens"] = len(spec.text.vocabulary)
        findings["words"] = "any: its tokenizer spells what it has no token for"
    findings["path"] = spec.path
    findings["identity"] = spec.identity
    if "precision" in spec.identity and "features" in spec.gives and spec.text is not None:
        findings.update(precision_error(uri, box, device=device))
    return True


def _device(findings: dict[str, Any]) -> str:
    return "cuda" if findings.get("gpus") else "cpu"


def precision_error(
    uri: str, box: BlackBox, *, device: str = "cpu", h: float = 0.05, probes: int = 8, images: int = 32
) -> dict[str, float]:
    """What a box's precision costs a search: its error against fp32, beside what a probe changes.

    The loss is the cross-entropy of seeded random images under labels in turn; probes start at the template, as the
    first step of `momentum` does. A search sees differences of losses, in which an offset common to all of them
    cancels; so it is their error that counts.

    Args:
        uri: The box's URI, with its precision.
        box: That box, open; it gives features and accepts contexts.
        device: Where both compute.
        h: Root mean square of a probe's entries, in units of theta.
        probes: How many directions.
        images: How many images.

    Returns:
        Largest error of a normalised feature (text or image); root mean square over the probes of the loss's error, of
        a loss difference's error and of the loss differences themselves in fp32; the quotient of the latter two.
    """
    from engine.boxes import open_box
    from engine.prompts import make_prompt

    fp32, side = without_options(uri, ["precision"]), box.spec.image_size
    exact = open_box(fp32, classes=box.spec.classes, template=box.spec.template, device=device)
    random = np.random.default_rng(0)
    prompt = make_prompt("text", box.spec)
    directions = random.standard_normal((probes, prompt.space.dim)).astype(np.float32)
    thetas = np.concatenate([np.zeros_like(directions[:1]), h * directions])
    source = Given(tuple(random.integers(0, 256, (images, side, side, 3), dtype=np.uint8)))
    rows = np.arange(images)
    answers = [one.answer(prompt.decode(thetas), one.stage(source), rows) for one in (exact, box)]
    features = max(_difference(answers[0].text, answers[1].text), _difference(answers[0].image, answers[1].image))
    losses = [_losses(answer, rows % len(box.spec.classes)) for answer in answers]
    rises = [loss[1:] - loss[0] for loss in losses]
    signal, error = _root_mean_square(rises[0]), _root_mean_square(rises[1] - rises[0])
    return {
        "error_of_features": features,
        "error_of_loss": _root_mean_square(losses[1] - losses[0]),
        "error_of_loss_difference": error,
        "signal_of_a_probe": signal,
        "error_over_signal": error / signal,
    }


def _losses(outputs: Outputs, labels: Array) -> Array:
    """`(P,)` cross-entropies, in float64 from the features on, so that fp32 logits do not blur what is compared."""
    assert outputs.text is not None and outputs.image is not None
    logits = outputs.scale * outputs.image.astype(np.float64) @ outputs.text.astype(np.float64).transpose(0, 2, 1)
    return -np.take_along_axis(log_softmax(logits, axis=-1), labels[None, :, None], -1)[..., 0].mean(-1)


def _difference(one: Array | None, other: Array | None) -> float:
    assert one is not None and other is not None
    return float(np.abs(one - other).max())


def _root_mean_square(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))

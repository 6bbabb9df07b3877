"""What a classifier computes besides the frozen towers: a few rows, perhaps a frame and a head; probabilities.

Where no frame and no nonlinear head stands in between, that is one matrix.

Letters: n images, C classes, E joint width, H image side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from engine.errors import ArtifactError, RefusedError
from engine.heads import Head, applied, on_scores
from engine.heads.linear import LinearHead
from engine.heads.template_mixture import MixtureHead
from engine.protocols import Array, Outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Folded:
    """A classifier on features, without its image and text towers.

    With f the L2-normalised features of the image plus `frame`, its logits are `scale * f @ text.T`, or what the
    head makes of f or of those logits.
    """

    text: Array | None
    """`(C, E)` float32 L2-normalised features of the tuned prompt; None where a head on image features needs none."""
    scale: float
    """What a cosine is multiplied by to make a logit."""
    frame: Array | None = None
    """`(3, H, H)` float32 frame, added to images in [0, 1]; None: there is none."""
    head: Head | None = None
    head_name: str | None = None
    """One of `heads.HEADS`, which says what the head reads."""

    @property
    def reads_scores(self) -> bool:
        """Whether the head reads log-probabilities `(n, C)` and not features."""
        return self.head_name is not None and on_scores(self.head_name)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = [self.text, self.frame, *(self.head.state_dict().values() if self.head else ())]
        return sum(array.nbytes for array in arrays if array is not None)

    def outputs(self, features: Array) -> Outputs:
        """The answer for `(n, E)` image features: features where there is no head, else scores. One candidate.

        Raises ArtifactError where the scores are not finite.
        """
        outputs = Outputs(text=None if self.text is None else self.text[None], image=features[None], scale=self.scale)
        return outputs if self.head is None else through_head(self.head, self.head_name or "", outputs)

    def matrix(self) -> tuple[Array, Array]:
        """The classifier as one matrix: `logits = f @ rows.T + bias`.

        >>> rows, bias = Folded(text=np.eye(2, dtype=np.float32), scale=10.0).matrix()
        >>> rows.tolist(), bias.tolist()
        ([[10.0, 0.0], [0.0, 10.0]], [0.0, 0.0])

        Returns:
            Rows `(C, E)`, scale included, and bias `(C,)`, both float32.

        Raises:
            RefusedError: A frame moves the features themselves, or the head is no linear function of them.
        """
        if self.frame is not None:
            raise RefusedError(
                "the artifact holds a pixel frame, which changes what the image tower sees and is no matrix; "
                "export it --to onnx"
            )
        if isinstance(self.head, LinearHead) and not self.reads_scores:
            return self.head.weight, self.head.bias
        if self.head is not None and not isinstance(self.head, MixtureHead):
            raise RefusedError(
                f"the artifact's head {self.head_name} is no linear function of image features and no matrix; "
                "export it --to onnx"
            )
        text, scale = (self.text, self.scale) if self.head is None else (self.head.text, self.head.scale)
        assert text is not None, "without a head there is text"
        return np.float32(scale) * text, np.zeros(len(text), np.float32)


def through_head(head: Head, name: str, outputs: Outputs) -> Outputs:
    """Scores `(1, B, C)` of a head, by its name, on a box's answer for one candidate.

    Raises ArtifactError as `engine.heads.applied`, or where the scores are not finite.
    """
    found = applied(name, head, outputs)
    check_finite(found.scores)
    return found


def check_finite(*answers: Array | None) -> None:
    """Raise ArtifactError where an answer holds a value that is not finite."""
    for answer in answers:
        if answer is not None and not np.isfinite(answer).all():
            raise ArtifactError("the answers to the artifact's prompt are not finite numbers; tune it again")


def probabilities_of(outputs: Outputs, num_classes: int) -> Array:
    """`(n, C)` float64 of an answer for one candidate, as `Classifier.predict` says."""
    if outputs.labels is not None:
        return np.full((outputs.labels.shape[1], num_classes), np.nan)
    if outputs.topk is None:
        return softmax(outputs.logits()[0].astype(np.float64), axis=-1)
    best, told = outputs.topk[0][0], outputs.topk[1][0]
    table = np.zeros((len(best), num_classes))
    np.put_along_axis(table, best, softmax(told.astype(np.float64), axis=-1), axis=-1)
    return table

"""Prometheus metrics `keyhole_*`, with a bounded number of series whatever clients send.

In a replica of Ray Serve they leave on Ray's own port, with the replica and its deployment as labels; in any other
process they are in `REGISTRY`. Labels hold names from the shelf, routes and codes, never a client's words.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Literal

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client import metrics as prometheus

from engine.protocols import Array

REGISTRY = CollectorRegistry()
"""The metrics of a process that is no replica of Ray Serve."""
OTHER = "other"
"""The label of what came after the bound was reached."""
_VERBS = {"Counter": "inc", "Gauge": "set", "Histogram": "observe"}


def in_ray_serve() -> bool:
    """Whether this process is a replica of Ray Serve."""
    context = sys.modules.get("ray.serve.context")
    return context is not None and context._get_internal_replica_context() is not None


class Metric:
    """A metric that is made when it is first recorded: by then it is known whether Ray Serve runs this process.

    Args:
        kind: Of metric.
        name: Without the `_total` that Prometheus puts behind a counter.
        text: What it counts, and its unit.
        labels: Names of its labels.
        buckets: Upper bounds of a histogram's buckets, ascending.
    """

    def __init__(
        self,
        kind: Literal["Counter", "Gauge", "Histogram"],
        name: str,
        text: str,
        labels: tuple[str, ...] = (),
        buckets: tuple[float, ...] = (),
    ) -> None:
        self.kind, self.name, self.text, self.labels, self.buckets = kind, name, text, labels, buckets

    def record(self, value: float = 1.0, **labels: str) -> None:
        """Add to a counter, observe in a histogram, set a gauge. All labels are needed."""
        self._record(value, labels)

    @cached_property
    def _record(self) -> Callable[[float, Mapping[str, str]], None]:
        if in_ray_serve():
            return self._in_ray()
        more = {"buckets": self.buckets} if self.buckets else {}
        made = getattr(prometheus, self.kind)(self.name, self.text, self.labels, registry=REGISTRY, **more)
        return lambda value, labels: getattr(made.labels(**labels) if labels else made, _VERBS[self.kind])(value)

    def _in_ray(self) -> Callable[[float, Mapping[str, str]], None]:
        from ray.serve import metrics

        more = {"boundaries": list(self.buckets)} if self.buckets else {}
        made = getattr(metrics, self.kind)(self.name, description=self.text, tag_keys=self.labels, **more)
        verb = getattr(made, _VERBS[self.kind])
        return lambda value, labels: verb(value, tags=dict(labels))


class Bounded:
    """Keeps the first `most` values; every later one becomes `other`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: set[Hashable] = set()

    def keeps(self, value: Hashable) -> bool:
        """Whether this value has its own label."""
        if value in self._seen:
            return True
        if len(self._seen) >= self._most:
            return False
        self._seen.add(value)
        return True

    def label(self, value: str) -> str:
        """The value, or `other`."""
        return value if self.keeps(value) else OTHER


ARTIFACTS, CLASSES, SHADOWS = Bounded(1_000), Bounded(5_000), Bounded(100)
"""Artifacts, pairs of an artifact and a class, and versions of shadows with series of their own. A replica that has
answered for a thousand artifacts has some 20,000 series, most of them of entropy and classes."""

REQUESTS = Metric(
    "Counter", "keyhole_requests", "HTTP requests, by the artifact that they were about", ("route", "artifact", "code")
)
SECONDS = Metric(
    "Histogram", "keyhole_request_seconds", "From a request's headers to the end of its answer, in seconds",
    ("route", "code"), (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)  # fmt: skip
BODY_BYTES = Metric("Counter", "keyhole_request_bytes", "Bytes of requests' bodies")
IMAGES = Metric("Counter", "keyhole_images", "Images times questions, by what came of them", ("artifact", "outcome"))
ENTROPY = Metric(
    "Histogram", "keyhole_score_entropy", "Entropy of an answer's probabilities: 0 is certain, 1 is all alike",
    ("artifact",), (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0),
)  # fmt: skip
LABELS = Metric("Counter", "keyhole_answers", "Answers by their best class", ("artifact", "label"))
SHADOWED = Metric(
    "Counter", "keyhole_shadow_images", "Images that a shadow answered too, and whether it agreed",
    ("artifact", "version", "agreed"),
)  # fmt: skip
BATCH = Metric(
    "Histogram", "keyhole_batch_images", "Images of a batch", (), (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
)
QUEUE = Metric("Gauge", "keyhole_queue_images", "Images that waited when the last batch was formed")
PROBES = Metric("Counter", "keyhole_probes", "Health checks, each of which encoded an image", ("outcome",))
METRICS = (REQUESTS, SECONDS, BODY_BYTES, IMAGES, ENTROPY, LABELS, SHADOWED, BATCH, QUEUE, PROBES)
"""All of them."""


def entropies(probabilities: Array) -> Array:
    """Shannon's entropy of each of `(n, C)` rows, as a fraction of its largest value: `(n,)` in 0 to 1.

    >>> entropies(np.array([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [1.0, 0.0]
    """
    logs = np.log(np.where(probabilities == 0, 1.0, probabilities))
    return abs((probabilities * logs).sum(axis=1)) / math.log(max(2, probabilities.shape[1]))

"""A method of one's own: a frozen dataclass with `start`, used by name as `own_method:Hill`.

Run `python examples/own_method.py`, or with this folder on PYTHONPATH: `keyhole tune --method own_method:Hill`.
"""

import sys
from dataclasses import dataclass

import numpy as np

import keyhole as kh
from engine.random_streams import Purpose, rng
from engine.tuning_loop import SearchMethod


@dataclass(frozen=True)
class Hill(SearchMethod):
    """Hill climbing: Gaussian steps around the best so far."""

    sigma: float = 0.2
    """Standard deviation of a step, in units of theta."""

    def start(self, space, candidates, seed):
        return Climb(self.sigma, space.dim, seed)


class Climb:
    def __init__(self, sigma, dim, seed):
        self.sigma, self.seed, self.step = sigma, seed, 0
        self.best, self.loss = np.zeros(dim, np.float32), np.inf

    def ask(self, limit):
        steps = rng(self.seed, self.step, Purpose.PROBES).standard_normal((min(limit, 8), len(self.best)))
        return (self.best + self.sigma * steps * (self.step > 0)).astype(np.float32)[: 1 if self.step == 0 else None]

    def tell(self, thetas, feedback):
        self.step += 1
        losses = np.where(np.isnan(feedback.losses), np.inf, feedback.losses)
        if losses.min() < self.loss:
            self.best, self.loss = thetas[losses.argmin()], float(losses.min())

    def recommend(self):
        return self.best

    def state_dict(self):
        return {"step": self.step, "best": self.best, "loss": self.loss}

    def load_state_dict(self, state):
        self.step, self.best, self.loss = state["step"], state["best"], state["loss"]


if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else "runs/own"
    method = {"name": "own_method:Hill", "sigma": 0.1}
    found = kh.tune("mini:resnet", "mini:digits", method=method, budget=200, out=out).metrics
    print(f"{found['zero_shot_accuracy']:.3f} -> {found['accuracy']:.3f}")

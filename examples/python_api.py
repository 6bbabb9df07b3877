"""Tune, and read what the run left behind."""

import sys

import keyhole

out = sys.argv[1] if len(sys.argv) > 1 else "runs/api"
result = keyhole.tune(out, task="mini:digits", method={"name": "momentum", "k": 2}, budget=200)
print(f"{result['zero_shot_accuracy']:.3f} -> {result['accuracy']:.3f} for {result['evaluations']:.0f} evaluations")

artifact = keyhole.load(out)
print(artifact.meta["classes"][:3], artifact.arrays["context"].shape)

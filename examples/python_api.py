"""Tune, and read what the run left behind."""

import sys

import keyhole

out = sys.argv[1] if len(sys.argv) > 1 else "runs/api"
result = keyhole.tune(out, task="mini:digits", method={"name": "momentum", "k": 2}, budget=200)
print(f"{result['zero_shot_accuracy']:.3f} -> {result['accuracy']:.3f} for {result['evaluations']:.0f} evaluations")

classifier = keyhole.load(out)
test = keyhole.load_task("mini:digits").test
images = test.source.read(range(3))  # arrays here; also paths, encoded bytes, PIL images
labels, probabilities = classifier.predict(images)
print(labels, probabilities.max(-1).round(3), keyhole.evaluate(classifier, test).accuracy)

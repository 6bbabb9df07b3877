"""All of the Python API: tune, predict, save, load, evaluate; then the loop of one's own, every query booked."""

import keyhole as kh

task = kh.load_task("mini:digits", shots=16, seed=1)
box = kh.load_box("mini:resnet", task, device="cpu")  # a URI, or any object that keeps the BlackBox protocol
classifier = kh.tune(box, task, method="sketch", budget=100)  # out="runs/digits" keeps the run's folder, too
classifier.save("runs/mine")
classifier = kh.load("runs/mine", device="cpu")
images = task.test.source.read(range(3))  # uint8 arrays here; also paths, bytes, PIL images
labels, probabilities = classifier.predict(images)
print(labels, probabilities.max(-1).round(3), classifier.ledger["evaluations"])
print(f"sketch: {kh.evaluate(classifier, task.test).accuracy:.3f} on test images")

with kh.Session(box, task, prompt="text", budget=100, workers=0) as session:
    search = kh.method("momentum", k=2).start(session.space, candidates=session.candidates, seed=1)
    while session.affordable:
        thetas = search.ask(session.affordable)
        search.tell(thetas, session.evaluate(thetas))
    classifier = session.classifier(search.recommend())
print(f"momentum, by hand: {kh.evaluate(classifier, task.test).accuracy:.3f}")

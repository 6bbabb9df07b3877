"""Replicas follow the load, and every answer on the way is right."""

from __future__ import annotations

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bench.serving.load import closed_loop, written
from bench.serving.ways import free_port
from engine.classifier import Classifier
from serve.app import build


@pytest.mark.slow
@pytest.mark.ray
def test_a_second_replica_comes_under_load_and_answers_stay_right(ray_local, runs, photo):
    from ray import serve as ray_serve

    port, images = free_port(), [photo(seed) for seed in range(4)]
    _, expected = Classifier.load(runs["digits"]).predict(images)
    path, over = "/v1/models/digits/answers", threading.Event()

    def check() -> int:
        """Ask and compare until it is over; how often."""
        connection, asked = http.client.HTTPConnection("127.0.0.1", port, timeout=60), 0
        while not over.is_set():
            number = asked % len(images)
            connection.request("POST", path, images[number], {"Content-Type": "image/png"})
            answer = connection.getresponse()
            found = json.loads(answer.read())
            assert answer.status == 200, found
            np.testing.assert_allclose(found["answers"][0]["probabilities"], expected[number], atol=1e-5)
            asked += 1
        return asked

    def running() -> int:
        deployed = ray_serve.status().applications["scaled"].deployments["encoder-0"]
        return deployed.replica_states.get("RUNNING", 0)

    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        built = build({"artifacts": {"digits": [str(runs["digits"])]}, "replicas": "1-2"})
        ray_serve.run(built, name="scaled", route_prefix="/")
        assert running() == 1
        requests = [written(path, image, "image/png") for image in images]
        with ThreadPoolExecutor(3) as pool:
            try:
                checks = [pool.submit(check) for _ in range(2)]
                until, heard = time.monotonic() + 150, []
                while running() < 2 and time.monotonic() < until and not any(one.done() for one in checks):
                    heard.append(closed_loop(port, requests, clients=16, seconds=2.0).facts()["failed"])
                assert running() == 2
                heard.append(closed_loop(port, requests, clients=16, seconds=3.0).facts()["failed"])
            finally:
                over.set()
        assert not any(heard) and all(one.result() > 10 for one in checks)
    finally:
        ray_serve.shutdown()

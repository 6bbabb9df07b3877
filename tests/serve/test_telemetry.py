"""What is recorded of requests, and what is not."""

from __future__ import annotations

import asyncio
import base64
import collections
import http.client
import json
import logging
import re
import socket
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml
from fastapi.testclient import TestClient

from serve import metrics
from serve.app import local
from serve.batching import Batcher
from serve.deployments import application
from serve.metrics import METRICS, REGISTRY, Bounded
from serve.routes import make_api
from serve.settings import Directions, ServeSettings
from serve.telemetry import ACCESS, HUNG_UP, Access

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def client(serving, runs):
    return serving(pets=runs["digits"], shapes=runs["context-per-class"], marks=runs["labels"])


@pytest.fixture
def lines(caplog):
    """The access log so far, parsed."""
    caplog.set_level(logging.INFO, logger=ACCESS)
    return lambda: [json.loads(record.getMessage()) for record in caplog.records if record.name == ACCESS]


@pytest.fixture
def grown():
    """By how much a sample has grown since the last time it was asked for, or since the test began."""
    before = {key: value for key, value in samples()}

    def growth(name: str, **labels: str) -> float:
        key = name, tuple(sorted(labels.items()))
        now, then = dict(samples()).get(key, 0.0), before.get(key, 0.0)
        before[key] = now
        return now - then

    return growth


def samples():
    return [
        ((one.name, tuple(sorted(one.labels.items()))), one.value) for family in REGISTRY.collect()
        for one in family.samples
    ]  # fmt: skip


def test_requests_and_images_are_counted_by_artifact(client, photo, grown):
    answer = client.post("/models/pets", content=photo())
    assert answer.status_code == 200
    assert grown("keyhole_requests_total", route="/models/{name}", artifact="pets", code="200") == 1
    assert grown("keyhole_request_seconds_count", route="/models/{name}", code="200") == 1
    assert grown("keyhole_request_bytes_total") == len(photo())
    assert grown("keyhole_images_total", artifact="pets", outcome="answered") == 1
    assert grown("keyhole_answers_total", artifact="pets", label=answer.json()[0]["label"]) == 1
    assert grown("keyhole_batch_images_count") == 1 and grown("keyhole_batch_images_sum") == 1
    p = np.array([row["score"] for row in answer.json()])
    assert grown("keyhole_score_entropy_sum", artifact="pets") == pytest.approx(-(p * np.log(p)).sum() / np.log(10))
    assert client.post("/models/pets", content=b"\x89PNG\r\n\x1a\n").status_code == 400
    assert grown("keyhole_requests_total", route="/models/{name}", artifact="pets", code="400") == 1
    assert grown("keyhole_images_total", artifact="pets", outcome="bad_image") == 1
    assert grown("keyhole_score_entropy_count", artifact="pets") == 1, "of the first request alone"


def test_a_box_that_gives_labels_alone_has_no_entropy(client, photo, grown):
    assert client.post("/models/marks", content=photo()).status_code == 200
    assert grown("keyhole_images_total", artifact="marks", outcome="answered") == 1
    assert grown("keyhole_score_entropy_count", artifact="marks") == 0


def test_the_bare_template_says_nothing_of_the_tuned_prompt(client, photo, grown):
    assert client.post("/models/pets@zero-shot", content=photo()).status_code == 200
    assert grown("keyhole_images_total", artifact="pets", outcome="answered") == 1
    assert grown("keyhole_score_entropy_count", artifact="pets") == 0


def test_hostile_names_make_no_series(client, photo):
    client.post("/models/nobody", content=photo())
    client.get("/nowhere")
    before = {key for key, _ in samples()}
    for number in range(50):
        client.post(f"/models/name-{number}@{number}", content=photo())
        client.get(f"/nowhere/{number}")
        client.request(f"VERB{number}", "/models/pets")
    new = {key for key, _ in samples()} - before
    assert not any("name-" in str(key) or "VERB" in str(key) or "nowhere" in str(key) for key in new) and len(new) < 40


def test_bounded_labels():
    kept = Bounded(2)
    assert [kept.label(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]


def test_more_artifacts_than_series_become_one(client, photo, grown, monkeypatch):
    monkeypatch.setattr(metrics, "ARTIFACTS", Bounded(0))
    assert client.post("/models/pets", content=photo()).status_code == 200
    assert grown("keyhole_images_total", artifact="other", outcome="answered") == 1
    assert grown("keyhole_answers_total", artifact="other", label="other") == 1
    assert grown("keyhole_requests_total", route="/models/{name}", artifact="other", code="200") == 1


def test_an_access_line(client, photo, lines):
    image = photo()
    client.post("/models/pets", content=image, headers={"X-API-Key": "open sesame"})
    version = client.get("/v1/artifacts").json()["artifacts"][1]["live"]
    line = lines()[0]
    assert (line["method"], line["route"], line["status"]) == ("POST", "/models/{name}", 200)
    assert line["artifacts"] == [f"pets@{version}"] and (line["images"], line["bytes_in"]) == (1, len(image))
    assert 0 < line["seconds"] < 60 and line["bytes_out"] > 100 and "error" not in line and "refusals" not in line
    client.post("/models/pets", content=b"BM")
    assert lines()[-1]["refusals"] == {"bad_image": 1} and lines()[-1]["artifacts"] == []


def test_nothing_of_what_a_client_writes_is_logged(serving, runs, photo, caplog):
    caplog.set_level(logging.DEBUG)
    client = serving(pets=runs["digits"])
    secret = "sesame-4711"
    client.post(f"/models/{secret}?key={secret}", content=photo(), headers={"Authorization": f"Bearer {secret}"})
    client.post("/models/pets", json={"inputs": base64.b64encode(photo()).decode(), secret: secret})
    client.request(secret, f"/{secret}%0a{secret}", headers={"User-Agent": secret, "X-Request-ID": f"{secret} "})
    ours = [record.getMessage() for record in caplog.records if record.name.split(".")[0] in ("keyhole", "serve")]
    assert len(ours) == 3 and not any(secret in line or "\n" in line for line in ours)


@pytest.mark.parametrize("given", ["a-1_B.2", "x" * 100])
def test_a_sane_request_id_is_kept(client, lines, given):
    assert client.get("/v1/models", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given
    assert lines()[-1]["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 101, 'a"b', "a b", "../a", b"\xff\xfe"])
def test_another_request_id_is_replaced(client, lines, given):
    made = client.get("/v1/models", headers={"X-Request-ID": given}).headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", made) and lines()[-1]["request_id"] == made


def test_a_trace_goes_on_with_a_span_of_our_own(client, lines):
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    passed = client.get("/v1/models", headers={"traceparent": f"00-{trace}-{span}-01"}).headers["traceparent"]
    assert re.fullmatch(f"00-{trace}-[0-9a-f]{{16}}-01", passed) and span not in passed
    assert lines()[-1]["trace_id"] == trace
    for wrong in (f"00-{'0' * 32}-{span}-01", f"ff-{trace}-{span}-01", f"00-{trace}-{span}-01-more", "none"):
        passed = client.get("/v1/models", headers={"traceparent": wrong}).headers["traceparent"]
        assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", passed) and trace not in passed


class Failing:
    """An `Answering` that breaks."""

    async def ask(self, images, asks):
        raise ZeroDivisionError("in /somewhere/inside.py")


def test_an_unexpected_error_is_told_without_its_text(photo, lines, grown):
    client = TestClient(make_api(Failing()), raise_server_exceptions=False)
    answer = client.post("/models/pets", content=photo(), headers={"X-Request-ID": "mine"})
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "1" and "inside" not in answer.text
    assert answer.headers["X-Request-ID"] == "mine"
    assert (lines()[-1]["status"], lines()[-1]["error"]) == (503, "ZeroDivisionError")
    assert grown("keyhole_requests_total", route="/models/{name}", artifact="none", code="503") == 1


def test_who_hangs_up_is_counted_as_such(lines):
    async def endless(scope, receive, send):
        await asyncio.sleep(60)

    async def main():
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        asked = asyncio.create_task(Access(endless)(scope, None, None))
        await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(main())
    assert lines()[-1]["status"] == HUNG_UP


def test_health_checks_are_counted(serving, runs, grown):
    client = serving(pets=runs["digits"])
    assert client.get("/v2/health/ready").status_code == 200
    assert grown("keyhole_probes_total", outcome="encoded") == 1
    box = client.answering.encoder.box
    honest = box.encode
    box.encode = lambda pixels: honest(pixels) * np.nan
    answer = client.get("/v2/health/ready")
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "1"
    assert grown("keyhole_probes_total", outcome="failed") == 1


def test_shadows_are_counted_by_agreement(runs, photo, grown):
    artifacts = {"shapes": [str(runs["linear"]), str(runs["shared-context"])]}
    made = local(ServeSettings(artifacts=artifacts))
    try:
        (offer,) = asyncio.run(made.offers())
        shadow = offer.versions[0].version
        made.direct(Directions(artifacts=artifacts, traffic={"shapes": {"shadows": (shadow,)}}))
        client = TestClient(make_api(made))
        for seed in range(6):
            assert client.post("/models/shapes", content=photo(seed)).status_code == 200
        (told,) = asyncio.run(made.offers())[0].shadows
    finally:
        made.close()
    labels = {"artifact": "shapes", "version": shadow}
    agreed, not_agreed = (grown("keyhole_shadow_images_total", **labels, agreed=said) for said in ("true", "false"))
    assert (agreed, agreed + not_agreed) == (told.agreed, 6)


def test_what_waits_is_measured_when_a_batch_forms(grown):
    async def main():
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(lambda items: items, most=4, executor=pool)
            await batcher.submit(list(range(10)))

    asyncio.run(main())
    assert (grown("keyhole_batch_images_count"), grown("keyhole_batch_images_sum")) == (3, 10)
    assert REGISTRY.get_sample_value("keyhole_queue_images") == 0, "nothing waited for the last"


def test_names_are_prometheus_own():
    assert all(re.fullmatch("keyhole_[a-z_]+", metric.name) and metric.text for metric in METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_serve(ray_local, runs, photo):
    """A burst there: answered or 429, counted on Ray's port, with one request id in the answer and in the log."""
    from ray import serve as ray_serve

    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    (node,) = ray_local.nodes()
    said = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def ask(number: int) -> tuple[int, list[str], str | None]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/models/burst", photo(), {"X-Request-ID": f"burst-{number}"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers["X-Request-ID"].split(", "), answer.headers["Retry-After"]

    def counted(code: str) -> float:
        found = re.findall(rf'ray_keyhole_requests_total{{.*artifact="burst",code="{code}".*}} (\S+)', scraped())
        return sum(map(float, found))

    def scraped() -> str:
        with urllib.request.urlopen(said, timeout=10) as answer:
            return answer.read().decode()

    try:
        ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
        ray_serve.run(application(ServeSettings(artifacts={"burst": [str(runs["linear"])]}, queue=1, hops=1)))
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(ask, range(240)))
        statuses = collections.Counter(status for status, _, _ in answers)
        assert set(statuses) == {200, 429} and all((status == 429) == (after == "1") for status, _, after in answers)
        assert all(ids == [f"burst-{number}"] for number, (_, ids, _) in enumerate(answers))
        until = time.monotonic() + 30
        while (counted("200"), counted("429")) != (statuses[200], statuses[429]) and time.monotonic() < until:
            time.sleep(0.5)
        assert (counted("200"), counted("429")) == (statuses[200], statuses[429])
        lines = [
            line
            for file in (Path(ray_local._private.worker._global_node.get_session_dir_path()) / "logs").rglob("*.err")
            for line in file.read_text(errors="replace").splitlines() if '"burst-' in line
        ]  # fmt: skip
        assert sorted(json.loads(line)["status"] for line in lines) == sorted(statuses.elements())
    finally:
        ray_serve.shutdown()


def test_prometheus_and_the_dashboard_speak_of_these_metrics():
    """The rules take Ray's prefix off, and every name that the dashboard asks for is recorded."""
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    named, dropped = job["metric_relabel_configs"]
    suffixes = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}
    known = {metric.name + suffix: metric.labels for metric in METRICS for suffix in suffixes[metric.kind]}
    for name in known:
        assert re.fullmatch(named["regex"], f"ray_{name}").expand(named["replacement"].replace("$", "\\")) == name
    ours = {label for labels in known.values() for label in labels} | {"deployment", "replica", "le"}
    assert not any(re.fullmatch(dropped["regex"], label) for label in ours)
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert {metric.name for metric in METRICS} <= {"keyhole_request_bytes"} | {
        name.removesuffix("_total").removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        for expression in asked for name in re.findall(r"keyhole_\w+", expression)
    }  # fmt: skip
    for expression in asked:
        for name in re.findall(r"keyhole_\w+", expression):
            assert name in known, expression
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            assert set(labels.split(", ")) <= ours, expression

"""The page, in a real browser: clicked, typed at, dropped on, and refused."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from chromium import Chromium, found
from fastapi.testclient import TestClient

from engine.classifier import Classifier
from serve.answering import Answer, Ask
from serve.page import FILES
from serve.routes import make_api
from serve.schema import Offer, RefusedVersion, Version

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">"
CARDS = """[...document.querySelectorAll('article')].map(card => ({
    name: card.querySelector('h3').textContent, verdict: card.querySelector('.verdict')?.textContent,
    text: card.innerText, rows: [...card.querySelectorAll('li')].map(row => ({
        label: row.querySelector('bdi').textContent, shares: [...row.querySelectorAll('.bar')].map(bar => bar.textContent),
        lengths: [...row.querySelectorAll('.bar i')].map(bar => bar.style.getPropertyValue('--share')) })) }))"""
ANSWERED = "document.querySelector('article') || !document.querySelector('#error').hidden"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if (program := found()) is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    opened = Chromium(program, tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()


@pytest.fixture
def site(request):
    """The application on a port of this machine: `site(answering, ...)` gives its URL."""

    def start(answering, **settings) -> str:
        config = uvicorn.Config(
            make_api(answering, **settings),
            port=0,
            log_level="error",
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join(30)

        request.addfinalizer(end)
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return "http://127.0.0.1:{}/".format(server.servers[0].sockets[0].getsockname()[1])

    return start


@pytest.fixture
def opened(browser, request):
    """A tab with a page, once it says what is served: `opened(url, width=360)`."""

    def start(url: str, **look):
        tab = browser.open(url, **look)
        request.addfinalizer(tab.close)
        tab.until("document.querySelector('#choices-note').textContent !== 'Looking what is served …'")
        return tab

    return start


@pytest.fixture
def answering(serving, runs):
    return serving(pets=runs["digits"], shapes=runs["context-per-class"], frames=runs["pixels"]).answering


def choose(tab, *names: str) -> None:
    """Click on the boxes whose state is to change, so that these artifacts are chosen and no others."""
    boxes = tab.value("choices.map(({name, box}) => [name, box.checked])")
    for place, (name, checked) in enumerate(boxes):
        if checked != (name in names):
            tab.click("#choices input", place)


def ask(tab, image: bytes, folder: Path) -> list[dict]:
    """Pick a file with these bytes, click on the button, and read the cards."""
    file = folder / f"{hashlib.sha256(image).hexdigest()[:8]}.png"
    file.write_bytes(image)
    tab.pick("#file", file)
    tab.click("button.main")
    tab.until(ANSWERED)
    return tab.value(CARDS)


def shown(classes, probabilities) -> dict[str, str]:
    return {label: f"{100 * share:.1f} %" for label, share in zip(classes, probabilities, strict=True)}


def error_of(tab) -> str:
    return tab.value("document.querySelector('#error').innerText")


# ---------------------------------------------------------------------------------------------------------------------


def test_the_bars_are_what_the_classifier_predicts(site, opened, answering, runs, photo, tmp_path):
    tab, image = opened(url := site(answering)), photo()
    choose(tab, "shapes")
    tab.click("#bare")
    (card,) = ask(tab, image, tmp_path)
    classifier = Classifier.load(runs["context-per-class"])
    labels, probabilities = classifier.predict(image)
    assert card["name"] == "shapes" and card["verdict"] == labels[0]
    assert {row["label"]: row["shares"][0] for row in card["rows"]} == shown(classifier.classes, probabilities[0])
    lengths = [float(row["lengths"][0]) for row in card["rows"]]
    assert lengths == pytest.approx(sorted(probabilities[0])[::-1], abs=1e-5)
    loaded = tab.value("performance.getEntriesByType('resource').map(entry => entry.name.replace('blob:', ''))")
    assert len(loaded) >= 5 and all(name.startswith(url) for name in loaded)
    assert tab.complaints == []


def test_several_side_by_side_with_zero_shot(site, opened, answering, photo, tmp_path):
    tab, image = opened(site(answering)), photo(1)
    choose(tab, "pets", "frames")
    cards = ask(tab, image, tmp_path)
    assert sorted(card["name"] for card in cards) == ["frames", "pets"]
    for card in cards:
        tuned, bare = asyncio.run(
            answering.ask([image], [Ask(artifact=card["name"] + end) for end in ("", "@zero-shot")])
        )[0]
        both = [shown(answer.classes, answer.probabilities) for answer in (tuned, bare)]
        assert len(card["rows"]) == 5
        for row in card["rows"]:
            assert row["shares"] == [f"tuned {both[0][row['label']]}", f"zero-shot {both[1][row['label']]}"]
    tab.click("article:nth-child(1) button")
    assert len(tab.value(CARDS)[0]["rows"]) == 10
    choose(tab, "pets")
    tab.click("button.main")
    tab.until("document.querySelectorAll('article').length === 1")
    assert tab.complaints == []


def test_a_broken_image_is_refused_in_a_sentence_and_the_next_one_answered(site, opened, answering, photo, tmp_path):
    tab = opened(site(answering, max_body_bytes=50_000))
    assert ask(tab, b"\x89PNG\r\n\x1a\n and then nothing", tmp_path) == []
    broken = error_of(tab)
    assert broken.endswith(".") and broken[0].isupper() and "image" in broken
    assert ask(tab, b"%PDF-1.4", tmp_path) == [] and error_of(tab) not in ("", broken)
    assert ask(tab, photo(size=(300, 200)), tmp_path) == []
    assert error_of(tab) == "The body is longer than 50000 bytes; send fewer or smaller images."
    assert len(ask(tab, photo(), tmp_path)) == 1 and error_of(tab) == ""


def test_what_is_missing_is_said(site, opened, answering, photo, tmp_path):
    tab = opened(site(answering))
    tab.click("button.main")
    assert error_of(tab) == "Choose an image first."
    choose(tab)
    ask(tab, photo(), tmp_path)
    assert error_of(tab) == "Choose at least one artifact."


def test_labels_alone_and_no_zero_shot(serving, runs, site, opened, photo, tmp_path):
    tab, image = opened(site(serving(names=runs["labels"]).answering)), photo(3)
    (card,) = ask(tab, image, tmp_path)
    assert card["verdict"] == Classifier.load(runs["labels"]).predict(image)[0][0] and card["rows"] == []
    assert "labels without probabilities" in card["text"] and "No zero-shot answer: " in card["text"]


def test_by_keyboard_alone(site, opened, answering, photo, tmp_path):
    tab = opened(site(answering))
    (tmp_path / "a.png").write_bytes(photo())
    tab.pick("#file", tmp_path / "a.png")
    focused = []
    for _ in range(30):
        tab.press("Tab")
        focused.append(tab.value("document.activeElement.id || document.activeElement.className"))
        if tab.value("document.activeElement === choices[1].box"):
            tab.press(" ")
        if focused[-1] == "main":
            break
    assert focused[0] == "file" and focused[-2:] == ["bare", "main"]
    outline = tab.value("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    tab.press("Enter", "\r")
    tab.until(ANSWERED)
    assert len(tab.value(CARDS)) == 2
    assert tab.value("document.querySelector('[role=status]').textContent").startswith("2 answers in ")


def test_drop_and_paste(site, opened, answering, photo, tmp_path):
    tab = opened(site(answering))
    (tmp_path / "dropped.png").write_bytes(photo())
    tab.drop("#answers-note", tmp_path / "dropped.png")  # anywhere on the page
    tab.until("image && image.name === 'dropped.png'")
    data = json.dumps(list(photo(2)))
    tab.value(f"""(() => {{ const data = new DataTransfer();
        data.items.add(new File([new Uint8Array({data})], 'pasted.png', {{type: 'image/png'}}));
        document.dispatchEvent(new ClipboardEvent('paste', {{clipboardData: data}})); }})()""")
    assert tab.value("image.name") == "pasted.png"
    tab.until("document.querySelector('#preview').naturalWidth === 20")
    tab.click("button.main")
    tab.until(ANSWERED)
    assert len(tab.value(CARDS)) == 1 and tab.complaints == []


def test_a_key_is_asked_for_where_the_server_wants_one(site, opened, answering, photo, tmp_path):
    tab = opened(site(answering, keys=(hashlib.sha256(b"open sesame").digest(),)))
    tab.until("document.activeElement.id === 'key'")
    assert error_of(tab) == "The server asks for an API key."

    def give(key: str) -> None:
        tab.value("document.querySelector('#key').select()")
        tab.send("Input.insertText", text=key)
        tab.press("Enter", "\r")

    give("shut")
    tab.until("document.querySelector('#error').innerText === 'The server does not know this API key.'")
    give("open sesame")
    tab.until("choices.length === 3")
    assert len(ask(tab, photo(), tmp_path)) == 1 and error_of(tab) == ""
    assert "sesame" not in tab.value("document.body.innerText")
    code = tab.value("[...document.querySelectorAll('pre')].map(code => code.textContent)")
    assert all("KEYHOLE_API_KEY" in text for text in code)
    said = [run(*words, cwd=tmp_path, KEYHOLE_API_KEY="open sesame") for words in commands(code)]
    assert all("digit" in text for text in said), said


def test_the_same_request_in_curl_and_python(site, opened, answering, photo, tmp_path):
    tab, image = opened(site(answering)), photo()
    choose(tab, "shapes")
    (tmp_path / "it's $HOME.png").write_bytes(image)
    tab.pick("#file", tmp_path / "it's $HOME.png")
    code = tab.value("[...document.querySelectorAll('pre')].map(code => code.textContent)")
    by_curl, by_python = (run(*words, cwd=tmp_path) for words in commands(code))
    tuned, bare = asyncio.run(answering.ask([image], [Ask(artifact="shapes"), Ask(artifact="shapes@zero-shot")]))[0]
    decoder, found = json.JSONDecoder(), []
    while by_curl:
        answer, end = decoder.raw_decode(by_curl)
        found, by_curl = [*found, answer[0]["label"]], by_curl[end:]
    assert found == [tuned.label, bare.label]
    assert [line.split(" ", 1)[0] for line in by_python.splitlines()] == ["shapes", "shapes@zero-shot"]
    assert f"shapes {tuned.label} {tuned.probability:.4f}" in by_python


def commands(code: list[str]) -> list[tuple[str, ...]]:
    return [("bash", "-c", code[0].replace("curl", "curl -s")), (sys.executable, "-c", code[1])]


def run(*words: str, cwd: Path, **environ: str) -> str:
    told = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=120, env={**os.environ, **environ})
    assert told.returncode == 0, told.stderr + shlex.join(words)
    return told.stdout


# ---------------------------------------------------------------------------------------------------------------------


class Hostile:
    """An `Answering` all of whose names try to become HTML, and that has hundreds of classes."""

    CLASSES = (HOSTILE, "__proto__", "\u202egnp.exe", *(f"class {number}" for number in range(300)), "x" * 300)

    async def ask(self, images, asks):
        shares = np.full(len(self.CLASSES), 1 / len(self.CLASSES))
        facts = {"scores": None, "features": None, "artifact": "it", "version": "0" * 12, "model": HOSTILE}
        answer = Answer(label=HOSTILE, probability=shares[0], classes=self.CLASSES, probabilities=shares, **facts)
        return [[answer for _ in asks] for _ in images]

    async def offers(self):
        version = Version(
            version="0" * 12, box=HOSTILE, model=HOSTILE, classes=self.CLASSES, template="{}", method=HOSTILE,
            accuracy=0.5, zero_shot_accuracy=0.25, test_images=1, row_bytes=1,
        )  # fmt: skip
        refused = RefusedVersion(source=HOSTILE, reason=HOSTILE)
        names = ["it", HOSTILE, *(f"artifact-{number}" for number in range(20))]
        return [Offer(name=name, live="0" * 12, versions=(version,), refused=(refused,)) for name in names]

    async def ready(self, artifact=None):
        return None


def test_names_never_become_html(site, opened, photo, tmp_path):
    tab = opened(site(Hostile()), width=360)
    choose(tab, "it", HOSTILE)
    tab.click("#bare")
    cards = ask(tab, photo(), tmp_path)
    assert [card["name"] for card in cards] == ["it", HOSTILE] or error_of(tab) == ""
    assert cards[0]["verdict"] == HOSTILE and cards[0]["rows"][1]["label"] == "__proto__"
    tab.click("article:first-child button")
    assert len(tab.value(CARDS)[0]["rows"]) == len(Hostile.CLASSES)
    assert tab.value("document.title") == "Keyhole" and tab.value("document.querySelectorAll('img').length") == 2
    assert tab.value("document.documentElement.scrollWidth") <= 360
    tab.value("document.querySelector('#filter').focus()")
    tab.send("Input.insertText", text="act-1")
    assert tab.value("choices.filter(({box}) => box.checkVisibility()).length") == 11
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        tab.value("document.body.innerHTML = '<b>no</b>'")


LUMINANCE = """(colour => { const [r, g, b] = colour.match(/[0-9.]+/g).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; })"""
CONTRASTS = """(() => { const luminance = LUMINANCE, behind = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (!c.startsWith('rgba(0, 0, 0, 0')) return c; } return 'rgb(0,0,0)'; };
    const ratio = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
    const texts = [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
        [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
    return { texts: texts.map(e => [e.textContent.slice(0, 30), ratio(getComputedStyle(e).color, behind(e))]),
             bars: [...document.querySelectorAll('.bar i')].map(e => [e.parentElement.className,
                    ratio(getComputedStyle(e).backgroundColor, behind(e.parentElement))]) }; })()""".replace(
    "LUMINANCE", LUMINANCE
)


@pytest.mark.parametrize(("scheme", "width"), itertools.product(("light", "dark"), (360, 1200)))
def test_it_can_be_read(site, opened, answering, photo, tmp_path, scheme, width):
    tab = opened(site(answering), width=width, scheme=scheme)
    choose(tab, "pets", "shapes")
    tab.click("button.main")  # an error, too, is to be read
    contrasts = tab.value(CONTRASTS)["texts"]
    ask(tab, photo(), tmp_path)
    contrasts += tab.value(CONTRASTS)["texts"]
    bars = tab.value(CONTRASTS)["bars"]
    assert len(contrasts) > 40 and not [found for found in contrasts if found[1] < 4.5]
    assert len(bars) > 10 and not [found for found in bars if found[1] < 3]
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert (
        tab.value("getComputedStyle(document.body).backgroundColor")
        == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 27)"}[scheme]
    )
    tab.send("Accessibility.enable")
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    told = [(node["role"]["value"], node["name"]["value"]) for node in nodes if "name" in node and not node["ignored"]]
    roles = {"button", "checkbox", "searchbox", "textbox", "article", "heading", "region", "group", "image"}
    assert all(name.strip() for role, name in told if role in roles)
    assert {("button", "Classify"), ("article", "pets"), ("heading", "Answers"), ("group", "Artifacts")} <= set(told)


def test_its_files_need_no_key_and_allow_nothing_from_outside(answering):
    client = TestClient(make_api(answering, keys=(b"x",)))
    for path, (_, kind) in FILES.items():
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "http" not in policy
        assert client.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
        assert client.head(path).status_code == 200
    assert client.get("/v1/artifacts").status_code == 401

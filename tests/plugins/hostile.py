"""Requests as nobody should send them, drawn at random: a name, a method, a path, a body, headers.

For routes of every dialect: whatever the body is meant to be, it is wrong.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
HUGE = 300_000
"""Bytes of a body that is too large for a server that takes fewer."""
WORDS = ("", "null", "NaN", "-Infinity", "1e999", "1" * 5000, "true", "[]", "{}", '""', '"\\ud800"', '"\\u0000"', "0.5")
INPUTS = ("", "!", "http://169.254.169.254/latest", "file:///etc/passwd", "data:,", "data:image/png;base64,", "AAAA=A")
NAMES = (
    "nobody", "..", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "pets%0d%0aX-Evil:%201", "pets@", "@", "@@@",
    "pets@../x", "pets@ffff", "nobody@zero-shot", "%ff%fe", "%F0%9F%98%80", "pets%20", "~root", "C:%5Cboot.ini",
    "x" * 299, "x" * 301, "x" * 9000, "{name}", "$(id)", "';--",
)  # fmt: skip
IDS = ("a b", "x" * 5000, '"}\r', "../..", "\x7f", "1")


@dataclass(frozen=True, slots=True)
class Attack:
    """One request."""

    kind: str
    path: str
    content: bytes | Callable[[], AsyncIterator[bytes]] = b""
    """The body, or what makes the chunks of it."""
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    statuses: frozenset[int] = frozenset({400, 404, 405, 413, 415, 422})
    """What may come back."""


def png(width: int, height: int, data: bytes, *more: tuple[bytes, bytes], depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that says what it likes: chunks besides its own as (name, content)."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), *more, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _bombs() -> list[bytes]:
    """Small bodies that are large once they are unpacked, or say so."""
    zeros = zlib.compress(bytes(1_000_000), 9)
    long_text = zlib.compress(bytes(100 * 2**20), 9)
    tiff = b"II*\0" + struct.pack("<IH", 8, 3)
    for tag in (256, 257):
        tiff += struct.pack("<HHII", tag, 4, 1, 2**31)
    return [
        png(60_000, 60_000, zeros),
        png(2**31 - 1, 2**31 - 1, zeros),
        png(0, 0, zeros),
        png(8_001, 8_000, zeros, depth=1, colour=0),
        png(100, 100, zeros, (b"zTXt", b"a\0\0" + long_text)),
        png(100, 100, zeros, (b"iCCP", b"a\0\0" + long_text)),
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + b"\0" * 6 + b",\0\0\0\0\xff\xff\xff\xff\0\x08",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
        tiff + struct.pack("<HHII", 258, 3, 2**31, 8) + b"\0" * 4,
        b"II*\0" + struct.pack("<I", 4),
        b"MM\0*" + struct.pack(">I", 2**32 - 1),
        b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8 " + struct.pack("<I", 2**32 - 1),
        b"BM=1\nwidth=9\nheight=9\n\x0c" + bytes(900),  # of a format that is not taken, behind the mark of one that is
    ]


BOMBS = _bombs()
IN_JSON = {"content-type": "application/json"}


def attack(rng: np.random.Generator, route: str, name: str) -> Attack:
    """A hostile request for a route (OpenAPI's, perhaps with `{name}` and `{version}`) about an artifact."""
    kinds = (
        _cut,
        _noise,
        _bomb,
        _large,
        _chunked,
        _mistyped,
        _keyless,
        _unknown,
        _json,
        _nested,
        _inputs,
        _parts,
        _verb,
    )
    return kinds[rng.integers(len(kinds))](rng, route, route.replace("{name}", name).replace("{version}", "latest"))


def in_json(route: str, name: str, images: list[str]) -> dict:
    """What a route takes: images in base64 about an artifact. The first image, where it takes one."""
    if route.endswith("/infer"):
        tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images)], "data": images}
        return {"inputs": [tensor]}
    if route.endswith("/answers"):
        return {"images": images}
    if route.endswith("/embeddings"):
        return {"model": name, "input": images}
    if route.endswith("/decisions"):
        part = {"type": "input_image", "image_url": f"data:image/png;base64,{images[0]}"}
        asked = {
            "type": "choice",
            "instructions": "which?",
            "choices": [{"value": "digit one"}, {"value": "digit two"}],
        }
        return {"model": name, "input": [{"role": "user", "content": [part]}], "questions": [asked]}
    return {"inputs": images[0]}


def _image(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    pixels = rng.integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(stream, FORMATS[rng.integers(len(FORMATS))])
    return stream.getvalue()


def _carried(rng: np.random.Generator, kind: str, route: str, path: str, data: bytes) -> Attack:
    """Bytes where the route expects an image: as the body, or in base64."""
    if route in ("/models/{name}", "/v1/models/{name}/answers") and rng.random() < 0.7:
        return Attack(kind, path, data)
    images = [base64.b64encode(data).decode()] * int(rng.integers(1, 4))
    return Attack(kind, path, json.dumps(in_json(route, "pets", images)).encode(), IN_JSON)


def _cut(rng: np.random.Generator, route: str, path: str) -> Attack:
    whole = _image(rng)
    return _carried(rng, "truncated", route, path, whole[: rng.integers(1, len(whole) * 2 // 3)])


def _noise(rng: np.random.Generator, route: str, path: str) -> Attack:
    marks = (b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"RIFFxxxxWEBP", b"%!PS", b"{")
    data = marks[rng.integers(len(marks))] + rng.bytes(int(rng.integers(0, 3000)))
    return _carried(rng, "random", route, path, data)


def _bomb(rng: np.random.Generator, route: str, path: str) -> Attack:
    return _carried(rng, "bomb", route, path, BOMBS[rng.integers(len(BOMBS))])


def _large(rng: np.random.Generator, _route: str, path: str) -> Attack:
    told = {} if rng.random() < 0.5 else {"content-length": str(rng.choice([3, HUGE, 10**30]))}
    return Attack("large", path, b"\x89PNG" + bytes(HUGE), told)


def _chunked(rng: np.random.Generator, _route: str, path: str) -> Attack:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(HUGE // 10_000):
            yield b"[" * 10_000

    return Attack("chunked", path, chunks, IN_JSON if rng.random() < 0.5 else {}, statuses=frozenset({413}))


def _mistyped(rng: np.random.Generator, _route: str, path: str) -> Attack:
    kinds = (
        "text/plain",
        "application/xml",
        "multipart/form-data",
        "image",
        "a/" + "b" * 4000,
        "image/png; x=\xff",
        "{}",
    )
    return Attack("wrong type", path, b"<a/>", {"content-type": kinds[rng.integers(len(kinds))]})


def _keyless(rng: np.random.Generator, _route: str, path: str) -> Attack:
    keys = ({"x-api-key": ""}, {"x-api-key": "\xfc" * 9}, {"x-api-key": "k" * 9000}, {"authorization": "Bearer"})
    more = keys[rng.integers(len(keys))]
    return Attack("wrong key", path, _image(rng), {"x-api-key": "", **more}, statuses=frozenset({401}))


def _unknown(rng: np.random.Generator, route: str, _path: str) -> Attack:
    path = route.replace("{name}", NAMES[rng.integers(len(NAMES))]) if "{name}" in route else "/" + rng.bytes(4).hex()
    return Attack(
        "unknown name", path, _image(rng), {"x-request-id": IDS[rng.integers(len(IDS))], "traceparent": "00-"}
    )


def _json(rng: np.random.Generator, _route: str, path: str) -> Attack:
    draw = [WORDS[number] for number in rng.integers(len(WORDS), size=6)]
    texts = (
        draw[0],
        f'{{"inputs": {draw[0]}, "parameters": {draw[1]}}}',
        f'{{"inputs": "{base64.b64encode(_image(rng)).decode()}", "parameters": {{"top_k": {draw[1]}, "x": 1}}}}',
        f'{{"model": {draw[0]}, "input": [{draw[1]}, {draw[2]}], "{"k" * 5000}": {draw[3]}}}',
        f'{{"inputs": {draw[0]}, "inputs": {draw[1]}',
        f'{{"id": {draw[0]}, "inputs": [{{"name": "image", "shape": [{draw[1]}], "datatype": "BYTES", "data": [1]}}]}}',
        f'{{"model": {draw[0]}, "questions": [{{"type": "score", "levels": {draw[1]}}}], "input": {draw[2]}}}',
        f'{{"images": [{draw[0]}, {draw[1]}], "labels": [{draw[2]}], "template": {draw[3]}}}',
        "\xff\xfe{",
    )
    return Attack("absurd JSON", path, texts[rng.integers(len(texts))].encode("latin-1"), IN_JSON)


def _nested(rng: np.random.Generator, _route: str, path: str) -> Attack:
    opened = ('{"inputs":', "[", '{"a":[')[rng.integers(3)]
    depth = int(rng.integers(100, 20_000))
    return Attack("nested JSON", path, opened.encode() * depth, IN_JSON)


def _inputs(rng: np.random.Generator, route: str, path: str) -> Attack:
    body = json.dumps(in_json(route, "pets", [INPUTS[rng.integers(len(INPUTS))]] * int(rng.integers(1, 4))))
    return Attack("bad base64", path, body.encode(), IN_JSON)


def _parts(rng: np.random.Generator, _route: str, path: str) -> Attack:
    bodies = (
        b"", b"--b--", b"--b\r\n\r\n", b"--b\r\nContent-Disposition: form-data; name=\"\xff\"\r\n\r\nx\r\n--b",
        b'--b\r\nContent-Disposition: form-data; name="inputs"; filename="../../x"\r\n\r\n' + _image(rng)[:50],
        b"--b\r\n" + b"A: b\r\n" * 5000 + b"\r\n\r\n--b--", b"--b\r\nContent-Disposition: " + b"x" * 9000,
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n') * 2000 + b"--b--", rng.bytes(500),
    )  # fmt: skip
    boundary = ("; boundary=b", "; boundary=", "", "; boundary=" + "b" * 3000)[rng.integers(4)]
    return Attack(
        "bad multipart", path, bodies[rng.integers(len(bodies))], {"content-type": f"multipart/form-data{boundary}"}
    )


def _verb(rng: np.random.Generator, _route: str, path: str) -> Attack:
    verb = ("PUT", "DELETE", "TRACE", "PROPFIND", "X" * 300)[rng.integers(5)]
    return Attack("wrong method", path, b"{}", method=verb, statuses=frozenset({405}))

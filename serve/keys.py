"""API keys: who may ask. Kept as SHA-256, compared in constant time.

A file has one hash a line, in hex; what stands behind a # is a comment:

    5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8  # the shop

Make one with: printf %s "$KEY" | sha256sum. KEYHOLE_API_KEYS holds keys themselves, divided by commas.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path

from engine.errors import RecipeError

VARIABLE = "KEYHOLE_API_KEYS"


def load_keys(path: str | Path | None) -> tuple[bytes, ...]:
    """Hashes of the keys in a file and in the environment; empty: everybody may ask.

    Raises:
        RecipeError: The file cannot be read, holds no hash, or something else.
    """
    hashes = [
        hashlib.sha256(key.strip().encode()).digest() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()
    ]
    if path is None:
        return tuple(hashes)
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"keys {path}: cannot be read ({error}); name a file of SHA-256 hashes") from None
    found = [line for line in (line.partition("#")[0].strip() for line in lines) if line]
    for number, line in enumerate(found, 1):
        if not re.fullmatch(r"[0-9a-fA-F]{64}", line):
            raise RecipeError(f"keys {path}: entry {number} is no SHA-256 in hex; write one hash a line")
    if not found:
        raise RecipeError(
            f"keys {path}: it holds no key, so nobody could ask; write one hash a line, or leave keys out"
        )
    return (*hashes, *map(bytes.fromhex, found))


def allowed(key: bytes, hashes: tuple[bytes, ...]) -> bool:
    """Whether this is one of the keys; takes the same time whichever it is."""
    own = hashlib.sha256(key).digest()
    return bool(sum([hmac.compare_digest(own, other) for other in hashes]))

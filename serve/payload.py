"""Images as requests carry them -> encoded bytes. URLs are never fetched.

Knows nothing of models: whether the bytes are an image shows when they are decoded.
"""

from __future__ import annotations

import binascii

from serve.answering import Refusal

UNTYPED = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Types of a body that say nothing: Hugging Face's client sends none, curl's --data-binary the last."""


def from_base64(text: str) -> bytes | Refusal:
    """The bytes in standard base64, or in a data URI `data:image/png;base64,...`.

    >>> from_base64("data:image/png;base64,iVBORw==")
    b'\\x89PNG'
    """
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            return Refusal(code="bad_image", message="the data URI is not data:TYPE;base64,...; encode it in base64")
    elif text[:8].lower().startswith(("http://", "https://", "file://", "ftp://")):
        return Refusal(code="bad_image", message="URLs are not fetched; send the image itself, in base64")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # binascii.Error is one, and so is a letter beyond ASCII
        return Refusal(code="bad_image", message="not valid base64; encode the image's bytes in standard base64")


def media_type(content_type: str | None) -> str:
    """The type in a Content-Type header, without its parameters.

    >>> media_type("Image/PNG; name=a.png")
    'image/png'
    """
    return (content_type or "").split(";")[0].strip().lower()


def may_be_image(kind: str) -> bool:
    """Whether a body of this media type is taken for an encoded image."""
    return kind in UNTYPED or kind.startswith("image/")

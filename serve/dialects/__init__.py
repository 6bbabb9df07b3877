"""The forms of requests that other software sends, a room each. All of them ask `answering.Answering`.

A new dialect is a room with an APIRouter named `router`, and its name in `DIALECTS`.
"""

DIALECTS = ("own", "huggingface", "open_inference")
"""Rooms of this package, in the order in which their routes are tried."""

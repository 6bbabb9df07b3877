"""The forms of requests that other software sends, a room each. All of them ask `answering.Answering`.

A new dialect is a room with an APIRouter named `router`, and its name in `DIALECTS`; the form of its errors is in
error_forms.py.
"""

DIALECTS = ("own", "huggingface", "open_inference", "openai_models", "decisions", "embeddings")
"""Rooms of this package, in the order in which their routes are tried."""

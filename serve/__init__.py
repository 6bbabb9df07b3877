"""Answering over HTTP. Knows nothing of how prompts are tuned."""

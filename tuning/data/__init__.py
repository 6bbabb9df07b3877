"""Tasks: from a URI to images, labels and a few-shot sample."""

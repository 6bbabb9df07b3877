"""The engine: search a prompt through the keyhole, from answers alone.

Knows nothing of experiments, the command line or serving.
"""

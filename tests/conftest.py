"""Shared by all tests: one local Ray cluster a session, small run settings."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported anywhere
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest

os.environ["KEYHOLE_CACHE"] = tempfile.mkdtemp(prefix="keyhole-test-")  # not the user's
atexit.register(shutil.rmtree, os.environ["KEYHOLE_CACHE"], ignore_errors=True)
PLUGINS = str(Path(__file__).parent / "plugins")  # what Ray's workers must be able to import, too
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PLUGINS, os.environ.get("PYTHONPATH")]))


@pytest.fixture
def command(capsys):
    """The command line in this process: words in, (exit code, stdout, stderr) out."""
    from keyhole.cli import main

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        return (ended.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def ray_local():
    """A local cluster with more logical CPUs than the machine has."""
    import ray

    ray.init(
        address="local",
        num_cpus=6,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=200 * 2**20,
        namespace="test",
    )
    yield ray
    ray.shutdown()

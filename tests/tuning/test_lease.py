"""One writer per folder."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from engine.errors import ArtifactError
from tuning import lease
from tuning.lease import EXPIRES_S, LEASE, Lease

HOLD = "import sys, time; from pathlib import Path; from tuning.lease import Lease\nwith Lease(Path(sys.argv[1])):\n print('held', flush=True); time.sleep(60)"  # fmt: skip # noqa: E501


def holding(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_a_dead_one_is_followed(tmp_path, caplog):
    process = holding(tmp_path)
    try:
        with pytest.raises(ArtifactError, match=f"process {process.pid} on .* another --out"), Lease(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / LEASE).exists() and not caplog.text
    with Lease(tmp_path):
        assert "taken over" in caplog.text
    assert not list(tmp_path.iterdir())


def test_who_waits_gets_it(tmp_path, caplog):
    process = holding(tmp_path)
    threading.Timer(0.5, process.kill).start()
    reaper = threading.Thread(target=process.wait)
    reaper.start()
    with Lease(tmp_path, patience_s=60):
        assert "waiting for it to end" in caplog.text
    reaper.join()


def test_it_is_let_go_after_an_error_and_can_be_had_again(tmp_path):
    with pytest.raises(ValueError, match="mine"), Lease(tmp_path):
        with pytest.raises(ArtifactError, match="is being written"), Lease(tmp_path):
            pass
        raise ValueError("mine")
    with Lease(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"host": "elsewhere", "pid": 1}', "\x00\xff"])
def test_a_lease_that_says_nothing_of_this_host_lives_by_its_age(tmp_path, text, caplog):
    (tmp_path / LEASE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match="is being written by"), Lease(tmp_path):
        pass
    old = time.time() - EXPIRES_S - 1
    os.utime(tmp_path / LEASE, (old, old))
    with Lease(tmp_path):
        assert "taken over" in caplog.text


def test_a_number_given_out_again_is_another_process(tmp_path):
    with Lease(tmp_path):
        told = json.loads((tmp_path / LEASE).read_text())
    (tmp_path / LEASE).write_text(json.dumps({**told, "started": "1", "token": "x"}))
    with Lease(tmp_path):
        pass


def test_it_is_touched_as_long_as_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    with Lease(tmp_path):
        os.utime(tmp_path / LEASE, (1, 1))
        deadline = time.monotonic() + 20
        while (tmp_path / LEASE).stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert time.time() - (tmp_path / LEASE).stat().st_mtime < 60


def test_who_was_taken_for_dead_is_told(tmp_path):
    with Lease(tmp_path) as mine:
        mine.confirm()
        (tmp_path / LEASE).unlink()
        mine.confirm()  # nobody else: it is ours again
        (tmp_path / LEASE).write_text(json.dumps({"host": "elsewhere", "pid": 1}))
        with pytest.raises(ArtifactError, match="taken over by another process"):
            mine.confirm()
    assert (tmp_path / LEASE).exists(), "the other's lease is not removed"


def test_of_many_at_once_one_gets_it(tmp_path):
    """Also where a dead process left it: the folder is never two's."""
    process = holding(tmp_path)
    process.kill()
    process.wait()
    start, end, got, refused = threading.Barrier(8), threading.Barrier(8), [], []

    def try_it():
        start.wait()
        try:
            with Lease(tmp_path):
                got.append(1)
                end.wait()
        except ArtifactError:
            refused.append(1)
            end.wait()

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)


def test_a_folder_that_cannot_be_made_is_one_sentence():
    from pathlib import Path

    with pytest.raises(ArtifactError, match="cannot be written"), Lease(Path("/proc/nowhere/run")):
        pass

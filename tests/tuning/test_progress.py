"""What a run says while it goes on: lines of phases, neither too early nor too often, and a bar of any width."""

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import time
from types import SimpleNamespace

import pytest

from engine import phases
from tuning import progress
from tuning.progress import Progress


def step(evaluations: float):
    best = SimpleNamespace(val_accuracy=0.9)
    return SimpleNamespace(evaluations=evaluations, loss=0.5, best_loss=0.25, best=best, look=None, seconds=1.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_of_long_phases_alone_and_not_too_often(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SAID_AFTER_S", 0.2)
    monkeypatch.setattr(progress, "EVERY_S", 0.4)
    with Progress(10):
        with phases.phase("short"):
            pass
        with phases.phase("starting Ray"):
            time.sleep(0.3)
        with phases.phase("encoding test images", 100):
            for done in range(100):
                time.sleep(0.01)
                phases.advance(done)
    with phases.phase("after"):
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "starting Ray ..." and 2 <= len(lines) <= 4
    assert all(re.fullmatch(r"encoding test images: \d+ of 100, \d+ s left", line) for line in lines[1:])


def test_who_hears_phases_is_put_back(capsys):
    before = phases.logger.level, phases.logger.propagate, list(phases.logger.handlers)
    with pytest.raises(KeyError), Progress(10):
        raise KeyError
    assert (phases.logger.level, phases.logger.propagate, list(phases.logger.handlers)) == before


@pytest.mark.parametrize("columns", [30, 60, 80, 100, 200])
def test_nothing_is_wider_than_the_terminal(monkeypatch, columns):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "_columns", lambda: columns)
    with Progress(1000) as shown:
        with phases.phase("opening open_clip:ViT-B-32,laion2b_s34b_b79k and encoding images in 12 workers"):
            pass
        for evaluations in (1.0, 500.0, 1000.0):
            shown.step(step(evaluations))
        with phases.phase("reading the test split"):
            pass
    written = sys.stderr.getvalue()
    parts = [part.replace("\x1b[K", "") for part in re.split(r"[\r\n]", written)]
    assert max(map(len, parts)) <= columns and "1000/1000" in written
    assert ("best=0.2500" in written, "val=0.900" in written) == (columns >= 100, columns >= 60)
    assert re.search(r"1000/1000[^\r\n]*\n\r\x1b\[Kreading the test", written)  # the bar stays, on a line of its own


def test_the_word_of_ctrl_c_stands_on_a_line_of_its_own(tmp_path):
    pid, terminal = pty.fork()
    if pid == 0:
        words = ["tune", "--task", "toy:", "--box", "toy:", "--method", "momentum", "budget=100000"]
        os.execv(sys.executable, [sys.executable, "-m", "keyhole", *words, "--out", str(tmp_path / "run")])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 44, 0, 0))
    written, asked = b"", False
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how a closed terminal ends on Linux
            break
        written += part
        if b"/100000" in written and not asked:
            asked = True
            os.write(terminal, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    lines = [line.split("\r")[-1] for line in written.decode().replace("\r\n", "\n").split("\n")]
    assert "finishing this round, then writing the checkpoint ..." in lines
    assert f"interrupted; go on with: keyhole tune --resume {tmp_path / 'run'}" in lines
    bars = [part for part in re.split(r"[\r\n]", written.decode()) if "|" in part]
    assert bars and max(len(bar.removesuffix("^C")) for bar in bars) <= 44

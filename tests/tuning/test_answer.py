"""With --json stdout holds exactly one object, however a command ends. Each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOY = ("tune", "--task", "toy:", "--box", "toy:", "--method", "momentum", "--seed", "3", "checkpoint_s=0.01")
COMMAND = (sys.executable, "-m", "keyhole")


def begun(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen) -> tuple[int, dict, str]:
    """Exit code, the one object on stdout, stderr."""
    out, err = process.communicate(timeout=240)
    try:
        answer = json.loads(out)
    except ValueError:
        pytest.fail(f"stdout is no JSON: {out!r}\n{err[-2000:]}")
    assert isinstance(answer, dict) and out.count("\n") == 1
    return process.returncode, answer, err


def until(condition, process: subprocess.Popen, seconds: float = 180):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came to it"
        time.sleep(0.02)
    return found


def rounds(folder: Path, count: int) -> bool:
    history = folder / "history.jsonl"
    return history.exists() and history.read_text().count("\n") >= count


@pytest.mark.parametrize("what", ["methods", "prompts", "tasks", "boxes"])
def test_lists_are_objects(tmp_path, what):
    code, answer, _ = ended(begun(tmp_path, "list", what, "--json"))
    assert code == 0 and list(answer) == [what] and all(row["name"] for row in answer[what])


def test_success_though_everybody_writes_to_stdout(tmp_path):
    method = ("--method", "faulty_methods:Chatty", "--budget", "30", "--out", "run", "--json")
    code, answer, err = ended(begun(tmp_path, *TOY[:5], *method))
    assert code == 0 and answer == json.loads((tmp_path / "run" / "result.json").read_text())
    for writer in ("Python", "Python, where others look for it", "C", "a child"):
        assert f"from {writer}\n" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((*TOY, "--method", "momentun"), 2, "did you mean"),
        ((*TOY, "--frobnicate"), 2, "No such option"),
        ((*TOY[:5], "--method", "faulty_methods:Raises"), 1, "ZeroDivisionError: on purpose (a bug in Keyhole"),
        ((*TOY[:5], "--method", "faulty_methods:FullDisk"), 2, "No space left on device"),
        (("eval", "nothing"), 2, "nothing"),
        (("bench", "memory", "--imges", "3"), 2, "unrecognized arguments: --imges 3"),
        (("bench", "tasks", "--tasks", "mini:nope"), 2, "unknown task"),
        (("compare", "--methods", "momentun", "--out", "c"), 2, "did you mean"),
    ],
)
def test_errors_are_objects(tmp_path, arguments, code, words):
    told, answer, err = ended(begun(tmp_path, *arguments, "--json"))
    assert told == code and words in answer["error"]
    assert ("Traceback" in err) == (code == 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_where_to_go_on(tmp_path, number):
    process = begun(tmp_path, *TOY, "--budget", "100000", "--out", "run", "--json")
    until(lambda: rounds(tmp_path / "run", 5), process)
    process.send_signal(number)
    code, answer, err = ended(process)
    assert code == 130 and answer["resume"] == "run" and "--resume run" in answer["error"] and "Traceback" not in err
    assert (tmp_path / "run" / "checkpoint").is_dir()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_interrupted_before_it_began_to_count(tmp_path, number):
    process = begun(tmp_path, "bench", "memory", "--json")
    os.set_blocking(process.stderr.fileno(), False)
    until(lambda: b"torch" in Path(f"/proc/{process.pid}/maps").read_bytes(), process)
    process.send_signal(number)
    code, answer, err = ended(process)
    assert code == 130 and answer == {"error": "interrupted"} and "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_comparison_says_where_to_go_on(tmp_path, number):
    settings = ("--tasks", "toy:", "--boxes", "toy:", "--methods", "momentum", "--seeds", "1,2", "--budget", "100000")
    process = begun(tmp_path, "compare", *settings, "checkpoint_s=0.01", "--parallel", "0", "--out", "c", "--json")
    until(lambda: any(rounds(run, 5) for run in (tmp_path / "c" / "trials").glob("*")), process)
    process.send_signal(number)
    code, answer, _ = ended(process)
    assert code == 130 and answer["resume"] == "c" and answer["finished"] == 0


def test_a_bench_is_an_object(tmp_path):
    small = ("--images", "30", "--classes", "3", "--width", "8", "--k", "2", "--memory", "4", "--budget", "10")
    code, answer, _ = ended(begun(tmp_path, "bench", "memory", *small, "--json"))
    assert code == 0 and answer["peak_gb"] > 0


@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_a_stdout_without_room_or_reader(tmp_path, json_too):
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [*COMMAND, "list", "tasks", *json_too],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and "No space left" in process.stderr
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        process = subprocess.run(
            [*COMMAND, "list", "tasks", *json_too],
            cwd=tmp_path,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert process.returncode in (1, 2) and process.stderr.count("\n") <= 1 and "Traceback" not in process.stderr


# ---------------------------------------------------------------------------------------------------------------------
# With Ray


def workers_of(process: subprocess.Popen) -> list[int]:
    """Process ids of a run's own actors: those that descend from it."""
    parents, actors = {}, []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_Worker"):
                actors.append(pid)
        except OSError:
            continue

    def descends(pid: int) -> bool:
        return pid == process.pid or (pid in parents and descends(parents[pid]))

    return list(filter(descends, actors))


@pytest.mark.ray
def test_a_lost_worker_leaves_one_object(tmp_path):
    process = begun(tmp_path, *TOY, "--budget", "3000", "--workers", "2", "--out", "run", "--json")
    until(lambda: rounds(tmp_path / "run", 5), process)
    os.kill(until(lambda: workers_of(process), process)[0], signal.SIGKILL)
    code, answer, err = ended(process)
    assert code == 0 and answer["retries"] >= 1 and answer["workers"] == 2, err


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_on_ray_says_where_to_go_on(tmp_path, number):
    process = begun(tmp_path, *TOY, "--budget", "100000", "--workers", "1", "--out", "run", "--json")
    until(lambda: rounds(tmp_path / "run", 5), process)
    process.send_signal(number)
    code, answer, err = ended(process)
    assert code == 130 and answer["resume"] == "run" and "Traceback" not in err, err

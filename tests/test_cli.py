"""The command line as a user runs it: in a process of its own."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.artifact import Artifact
from engine.files import unwritable
from keyhole.cli import main

SMALL = ("tune", "--task", "toy:", "--box", "toy:", "--method", "momentum", "--budget", "60", "--seed", "3")
TIMES = {"seconds", "workers", "retries", "duplicates", "bytes", "fingerprint"}


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """The command line in this process: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def facts(folder):
    """What "the same bits" covers: the prompt, and history and result without times, retries and worker counts."""
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    result = json.loads((folder / "result.json").read_text())
    return (
        (folder / "artifact" / "prompt.safetensors").read_bytes(),
        [{key: value for key, value in line.items() if key not in TIMES} for line in history],
        {key: value for key, value in result.items() if key not in TIMES},
        result["fingerprint"]["canary"],
    )


def test_tune_then_eval(tmp_path, capsys):
    code, out, _ = run(capsys, *SMALL, "--out", str(tmp_path / "run"), "--json")
    result = json.loads(out)
    assert (
        code == 0 and result["evaluations"] <= 60 and result == json.loads((tmp_path / "run/result.json").read_text())
    )
    assert result["accuracy"] > result["zero_shot_accuracy"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "artifact", "history.jsonl", "recipe.yaml", "result.json",
    ]  # fmt: skip
    code, out, _ = run(capsys, "eval", str(tmp_path / "run"), "--json")
    assert json.loads(out)["accuracy"] == result["accuracy"]
    assert json.loads(out)["zero_shot_accuracy"] == result["zero_shot_accuracy"]


def test_result_has_every_field_of_the_contract(tmp_path, capsys):
    _, out, _ = run(capsys, *SMALL, "--out", str(tmp_path / "run"), "--json")
    fields = (
        "task box method prompt head shots seed budget evaluations pairs test_pairs sequences image_encodes retries "
        "duplicates bytes cost test_images test_images_of zero_shot_accuracy accuracy val_accuracy train_loss "
        "base_accuracy new_accuracy seconds workers fingerprint version"
    )
    assert set(json.loads(out)) == set(fields.split())


def test_a_pixel_prompt_is_read_back_to_the_same_accuracy(tmp_path, capsys):
    settings = ("--shots", "2", "prompt.name=text+pixels", "prompt.grid=3", "method.radius=0.1", "--budget", "30")
    code, out, err = run(capsys, "tune", "--method", "momentum", *settings, "--out", str(tmp_path / "run"), "--json")
    assert code == 0, err
    read = json.loads(run(capsys, "eval", str(tmp_path / "run"), "--json")[1])
    assert read["accuracy"] == json.loads(out)["accuracy"] != read["zero_shot_accuracy"]


@pytest.mark.parametrize("method", ["zero-shot", "head:linear", "nevergrad:DiagonalCMA"])
def test_other_methods_leave_the_same_folder(tmp_path, capsys, method):
    folder = str(tmp_path / "run")
    code, out, err = run(capsys, *SMALL[:5], "--method", method, "--budget", "30", "--out", folder, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["evaluations"] <= 30
    assert json.loads(run(capsys, "eval", folder, "--json")[1])["accuracy"] == result["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--method", "momentun"), "did you mean 'momentum'"),
        (("--method", "nevergrad:Diagonal"), "nevergrad"),
        (("--method", "head:liner"), "did you mean 'head:linear'"),
        (("--budget", "-5"), "budget=-5"),
        (("--budget", "0.5"), "allow more"),
        (("--shots", "5000"), "5000"),
        (("--task", "mini:digit"), "digits"),
        (("--box", "tooy:"), "did you mean 'toy'"),
        (("--box", "open_clip:ViT-B-32,/no/such/weights.safetensors"), "weights.safetensors"),
        (("--out", "/proc/nowhere/run"), "cannot be written"),
        (("--workers", "-2"), "workers=-2"),
        (("bugdet=5",), "unknown recipe key 'bugdet', did you mean 'budget'"),
        (("method.radios=5",), "did you mean 'radii'"),
        (("no-such-recipe.yaml",), "cannot be read"),
        (("--frobnicate",), "No such option"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *SMALL[:5], *arguments)
    assert code == 2 and not out
    assert words in err and err.startswith("error: ") and err.count("\n") == 1, err
    code, out, err = run(capsys, *SMALL[:5], *arguments, "--json")
    assert code == 2 and words in json.loads(out)["error"]


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu", "x" * 80])
@pytest.mark.parametrize("box", ["mini:resnet", "toy:"])
def test_a_device_that_is_not_there(tmp_path, capsys, monkeypatch, device, box):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    code, out, err = run(capsys, *SMALL[:3], "--box", box, "--device", device, "--out", str(tmp_path / "run"))
    assert code == 2 and not out and err.count("\n") == 1 and len(err) < 250
    assert "is not there: this process has cpu" in err


@pytest.mark.ray
def test_a_gpu_that_no_node_has_is_told_at_once(tmp_path, capsys):
    """In a process of its own, whose Ray can be told to have no GPU."""
    process = start(tmp_path, *SMALL, "--workers", "1", "pool.gpus=1", "--out", "run", CUDA_VISIBLE_DEVICES="")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 3 and "at most" in err and "0 GPUs; lower" in err, err


def pictures(folder, per_class: int = 8) -> str:
    """A folder task of two classes of JPEG files; returns its URI."""
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            noise = np.random.default_rng(number).integers(-20, 20, (40, 40, 3))
            picture = Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{number}.jpg", quality=95)
    return f"folder:{folder}"


@pytest.mark.parametrize("harm", ["cut short", "empty", "no image", "missing", "huge"])
@pytest.mark.parametrize("how", [(), ("--plan",)])
def test_a_bad_test_image_is_found_before_the_budget_is_spent(tmp_path, capsys, monkeypatch, harm, how):
    from engine.boxes.toy import ToyBox
    from tuning.data import folders

    task = pictures(tmp_path / "images")
    shown = folders.folder(str(tmp_path / "images")).test.source
    bad = Path(shown.source.paths[shown.rows[-1]])
    listed = bad.read_bytes()
    if harm == "missing":  # between being listed and being read
        looked = folders.Files
        monkeypatch.setattr(folders, "Files", lambda paths: bad.unlink(missing_ok=True) or looked(paths))
    elif harm == "huge":
        Image.new("1", (9000, 8000)).save(bad, "PNG")
    else:
        bad.write_bytes({"cut short": listed[:-200], "empty": b"", "no image": b"hello" * 100}[harm])
    monkeypatch.setattr(ToyBox, "answer", lambda *_: pytest.fail("asked the box"))
    code, out, err = run(
        capsys, "tune", "--task", task, "--box", "toy:", "--shots", "1", "--budget", "20",
        "--out", str(tmp_path / "run"), *how,
    )  # fmt: skip
    assert code == 2 and not out and err.count("\n") == 1
    assert str(bad) in err and not (tmp_path / "run").exists()


def test_a_part_of_the_test_split_is_read_and_said(tmp_path, capsys):
    out = str(tmp_path / "run")
    code, said, _ = run(capsys, *SMALL, "test_images=120", "--out", out)
    assert code == 0 and "on 120 of 500 test images" in said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["test_images"], result["test_images_of"]) == (120, 500) and result["test_pairs"] == 2 * 120
    assert Artifact.load(out).meta["metrics"]["test_images"] == 120
    part = json.loads(run(capsys, "eval", out, "--test-images", "120", "--json")[1])
    whole = json.loads(run(capsys, "eval", out, "--json")[1])
    assert (part["images"], part["images_of"], whole["images"], whole["images_of"]) == (120, 500, 500, 500)
    assert part["accuracy"] == result["accuracy"] != whole["accuracy"]
    assert "test images" not in run(capsys, *SMALL, "test_images=500", "--out", str(tmp_path / "all"))[1]
    assert "test_images=0" in run(capsys, *SMALL, "test_images=0", "--out", str(tmp_path / "none"))[2]


@pytest.mark.parametrize(("method", "asked"), [("sketch", 9), ("momentum", 4)])
def test_a_small_budget_says_what_it_can_and_cannot_do(tmp_path, capsys, caplog, method, asked):
    for budget, can in ((2, "no candidates"), (4, "1 candidate "), (100, None)):
        arguments = ("tune", "--task", "toy:", "--box", "toy:", "--method", method, f"budget={budget}", "shots=4")
        caplog.clear()
        code, _, err = run(capsys, *arguments, "--out", str(tmp_path / str(budget)))
        words = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert code == 0 and len(words) == (can is not None), err
        note = json.loads(run(capsys, *arguments, "--plan", "--json")[1])["note"]
        if can is None:
            assert note is None
            continue
        assert words == [note] and can in note and f"{method} asks {asked} in its first round" in note
        enough = int(note.partition("Give a budget of ")[2].split()[0])
        assert json.loads(run(capsys, *arguments, f"budget={enough}", "--plan", "--json")[1])["note"] is None
        history = (tmp_path / str(budget) / "history.jsonl").read_text().splitlines()
        assert json.loads(history[-1])["evaluations"] <= 1 + int(can[0] == "1")


def test_a_begun_run_is_not_overwritten(tmp_path, capsys):
    run(capsys, *SMALL, "--out", str(tmp_path / "run"))
    code, _, err = run(capsys, *SMALL, "--out", str(tmp_path / "run"))
    assert code == 2 and "it is finished" in err
    code, out, _ = run(capsys, "tune", "--resume", str(tmp_path / "run"), "--json")
    assert code == 0 and json.loads(out)["seed"] == 3


def test_plan_sends_nothing_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, *SMALL, "--plan", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["evaluations"] == 60 and plan["pairs"] == 60 * plan["training_images"]
    assert plan["images_go_to"] == "this cluster only" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("prompt", ["text", "pixels"])
def test_a_plan_reads_a_few_images_and_tells_the_time_of_all(tmp_path, capsys, monkeypatch, prompt):
    from engine.images import Encoded

    decoded, image = [], Encoded.image
    monkeypatch.setattr(Encoded, "image", lambda self: decoded.append(self.name) or time.sleep(0.005) or image(self))
    task = pictures(tmp_path / "images", per_class=150)
    names = "red: digit one\nblue: digit two\n"
    (tmp_path / "images" / "classnames.txt").write_text(names)
    code, out, err = run(
        capsys, "tune", "--task", task, "--shots", "60", "--method", "momentum", f"prompt.name={prompt}",
        "--budget", "1000", "test_images=100", "--plan", "--json",
    )  # fmt: skip
    assert code == 0, err
    plan = json.loads(out)
    assert len(decoded) <= 64 and plan["training_images"] == 120
    assert (plan["test_images"], plan["test_images_of"], plan["test_pairs"]) == (100, 120, 200)
    assert plan["encoding_seconds"] >= 0.005 * 128 and plan["test_seconds"] >= 0.005 * 100 and plan["seconds"] > 0


def test_lists_and_doctor(capsys):
    assert "momentum" in run(capsys, "list", "methods")[1]
    assert {row["name"] for row in json.loads(run(capsys, "list", "tasks", "--json")[1])["tasks"]} >= {
        "mini:digits",
        "toy:",
    }
    assert "text" in run(capsys, "list", "prompts")[1] and "open_clip:" in run(capsys, "list", "boxes")[1]
    code, out, _ = run(capsys, "doctor", "--box", "mini:resnet", "--json")
    found = json.loads(out)
    assert code == 0 and found["healthy"] and "context" in found["accepts"] and found["mini:resnet"].startswith("whole")


def start(tmp_path, *arguments: str, **more: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **more}
    return subprocess.Popen(
        [sys.executable, "-m", "keyhole", *arguments],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    assert condition()


LONG = ("--task", "toy:", "--box", "toy:", "--seed", "3", "checkpoint_s=0.01")


@pytest.mark.parametrize("method", ["sketch", "momentum", "nevergrad:DiagonalCMA"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, capsys, method, number):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = ("--method", method, "--budget", "1500", *LONG)
    process = start(tmp_path, "tune", *settings, "--out", str(broken))
    history = broken / "history.jsonl"
    wait_for(lambda: history.exists() and history.read_text().count("\n") > 20, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert not (broken / "result.json").exists(), "the run ended before it could be interrupted"
    if number != signal.SIGKILL:
        assert process.returncode == 130 and "--resume" in err
    assert run(capsys, "tune", "--resume", str(broken))[0] == 0
    assert run(capsys, "tune", *settings, "--out", str(whole))[0] == 0
    assert facts(broken) == facts(whole)


def test_a_killed_run_of_default_size_resumes_to_the_same_bits(tmp_path, capsys, caplog):
    """A context per class on real images: `sketch` holds tens of megabytes, and secants beyond one checkpoint."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = ("--task", "mini:digits", "--method", "sketch", "--budget", "500", "--workers", "0", "checkpoint_s=0.2")
    process = start(tmp_path, "tune", *settings, "--out", str(broken))
    state, written = broken / "checkpoint" / "state.safetensors", set()

    def rewritten():
        if state.exists():
            written.add(state.stat().st_mtime_ns)
        return len(written) > 2

    wait_for(rewritten, process)
    process.kill()
    process.communicate(timeout=60)
    assert not (broken / "result.json").exists(), "the run ended before it could be killed"
    assert run(capsys, "tune", "--resume", str(broken))[0] == 0
    assert "left by a process that has died: taken over" in caplog.text
    assert run(capsys, "tune", *settings, "--out", str(whole))[0] == 0
    assert facts(broken) == facts(whole)
    assert sorted(path.name for path in broken.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_a_second_run_into_the_same_folder_is_refused(tmp_path, capsys):
    process = start(tmp_path, "tune", "--budget", "100000", *LONG, "--out", str(tmp_path / "run"))
    try:
        wait_for((tmp_path / "run" / "checkpoint").exists, process)
        for arguments in ((*SMALL, "--out", str(tmp_path / "run")), ("tune", "--resume", str(tmp_path / "run"))):
            code, out, _ = run(capsys, *arguments, "--json")
            assert code == 2 and f"is being written by process {process.pid}" in json.loads(out)["error"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130 and not (tmp_path / "run" / "lease.json").exists()


def test_a_full_disk_is_one_object_and_can_be_gone_on_from(tmp_path, capsys, monkeypatch):
    def full(self, *given):
        raise unwritable(tmp_path / "run", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    run(capsys, *SMALL, "--out", str(tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr("engine.checkpoint.save_state", full)
        code, out, _ = run(capsys, *SMALL, "--out", str(tmp_path / "run"), "--json")
    assert code == 2 and "No space left on device" in json.loads(out)["error"]
    assert f"keyhole tune --resume {tmp_path / 'run'}" in json.loads(out)["error"]
    assert run(capsys, "tune", "--resume", str(tmp_path / "run"), "--json")[0] == 0
    assert facts(tmp_path / "run") == facts(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "[]"])
def test_resuming_what_is_no_run_or_a_damaged_one(tmp_path, capsys, text):
    code, _, err = run(capsys, "tune", "--resume", str(tmp_path))
    assert code == 2 and "holds no run" in err
    (tmp_path / "result.json").write_text(text)
    code, out, _ = run(capsys, "tune", "--resume", str(tmp_path), "--json")
    assert code == 2 and "is not the result of a run" in json.loads(out)["error"]


def test_a_warm_start_begins_where_the_other_run_ended(tmp_path, capsys):
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    before = json.loads(run(capsys, *SMALL, "--out", first, "--json")[1])
    after = json.loads(run(capsys, *SMALL, "--from", first, "--out", second, "--json")[1])
    assert after["train_loss"] < before["train_loss"] and after["zero_shot_accuracy"] == before["zero_shot_accuracy"]
    code, _, err = run(capsys, *SMALL, "prompt.tokens=2", "--from", first, "--out", str(tmp_path / "third"))
    assert code == 2 and "does not fit this run" in err


def test_a_context_per_class_is_tuned_read_back_continued_and_shared_with_new_classes(tmp_path, capsys):
    base, new, warm = (str(tmp_path / name) for name in ("base", "new", "warm"))
    digits = ("tune", "--task", "mini:digits", "--method", "sketch", "--budget", "40", "shots=2", "--json")
    tuned = json.loads(run(capsys, *digits, "half=base", "--out", base)[1])
    context = Artifact.load(base).arrays["context"]
    assert context.ndim == 3 and len(context) == 5
    assert json.loads(run(capsys, "eval", base, "--json")[1])["accuracy"] == tuned["accuracy"]
    # Classes that it was not tuned for get the mean of the contexts.
    read = json.loads(run(capsys, "eval", base, "--task", "mini:color", "--json")[1])
    artifact = Artifact.load(base)
    artifact.arrays["context"] = context.mean(0)
    artifact.save(new)
    assert json.loads(run(capsys, "eval", new, "--task", "mini:color", "--json")[1])["accuracy"] == read["accuracy"]
    after = json.loads(run(capsys, *digits, "half=base", "--from", base, "--out", warm)[1])
    assert after["train_loss"] <= tuned["train_loss"]
    assert Artifact.load(warm).arrays["context"].shape == context.shape


def test_zero_shot_is_the_template_whatever_the_tokens(tmp_path, capsys):
    base = ("tune", "--task", "mini:digits", "--budget", "8", "shots=1", "--json")
    template = json.loads(run(capsys, *base, "--method", "zero-shot", "--out", str(tmp_path / "zero"))[1])
    tuned = json.loads(run(capsys, *base, "--method", "sketch", "--out", str(tmp_path / "tuned"))[1])
    assert tuned["zero_shot_accuracy"] == template["accuracy"] != tuned["accuracy"]
    assert tuned["test_pairs"] == 2 * template["test_pairs"]


def test_a_head_joins_a_prompt(tmp_path, capsys):
    code, out, err = run(capsys, *SMALL, "head=clip-adapter", "--out", str(tmp_path / "run"), "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["head"] == "clip-adapter" and result["evaluations"] <= 60
    assert json.loads(run(capsys, "eval", str(tmp_path / "run"), "--json")[1])["accuracy"] == result["accuracy"]


@pytest.mark.ray
@pytest.mark.parametrize("method", ["sketch", "momentum"])
def test_the_same_bits_for_any_workers_and_after_a_kill(tmp_path, capsys, ray_local, method):
    """ARCHITECTURE.md's promise, on the embedded model: workers 0, 1, 2, 3, and 2 with one killed in the middle."""
    from tuning.recipe import make_recipe
    from tuning.run import Tuning

    def tuned(name: str, workers: int, kill: bool = False):
        recipe = make_recipe({"method": method, "budget": 60, "workers": workers, "shots": 4, "pool": {"chunk": 1}})
        tuning = Tuning(recipe, tmp_path / name)
        for step in tuning:
            if kill and step.step == 5:
                os.kill(worker_pids(ray_local)[0], signal.SIGKILL)
        return facts(tmp_path / name), tuning.result["retries"]

    expected, _ = tuned("serial", 0)
    for workers in (1, 2, 3):
        assert tuned(f"ray{workers}", workers)[0] == expected
    while worker_pids(ray_local):  # those of the run before, which would be killed in its place
        time.sleep(0.1)
    after, retries = tuned("killed", 2, kill=True)
    assert after == expected and retries >= 1


def worker_pids(ray) -> list[int]:
    """Processes of the live `_Worker` actors of this session."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read()
        except OSError:
            continue
        if command.startswith(b"ray::_Worker"):
            found.append(int(pid))
    return found


@pytest.mark.slow
def test_a_killed_raylet_is_one_sentence_and_nothing_is_lost(tmp_path, capsys):
    """Ray ends with its raylet; the run says so, keeps its checkpoint, and goes on elsewhere to the same bits."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings = ("--method", "momentum", "--budget", "6000", *LONG)
    process = start(tmp_path, "tune", *settings, "--workers", "1", "--out", str(broken))
    history = broken / "history.jsonl"
    wait_for(lambda: history.exists() and history.read_text().count("\n") > 20, process)
    os.kill(raylet_of(process.pid), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3 and "raylet" in err.splitlines()[-1] and "--resume" in err.splitlines()[-1], err
    assert "Traceback" not in err
    assert run(capsys, "tune", "--resume", str(broken), "--workers", "0")[0] == 0
    assert run(capsys, "tune", *settings, "--out", str(whole))[0] == 0
    assert facts(broken) == facts(whole)


def raylet_of(driver: int) -> int:
    """The process id of the raylet that a driver has started."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == driver and "raylet/raylet" in (entry / "cmdline").read_text():
                    return int(entry.name)
    raise AssertionError(f"process {driver} has no raylet")

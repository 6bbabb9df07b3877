import json

from bench import memory

SMALL = ["--images", "300", "--classes", "30", "--width", "16", "--k", "8", "--memory", "16", "--budget", "40"]


def test_a_small_run_tells_its_memory_and_improves(capsys):
    assert memory.main([*SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best_loss"] < found["loss"] and found["evaluations"] <= 40
    assert 0 < found["before_gb"] <= found["peak_gb"] < 4
    assert found["searching_s"] > 0 and found["answering_s"] > 0


def test_a_peak_above_the_limit_is_told_by_the_exit_code(capsys):
    assert memory.main([*SMALL, "--limit", "0.001"]) == 1
    assert "peak_gb" in capsys.readouterr().out

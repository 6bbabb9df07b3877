from bench import workers


def test_shares_are_shares_and_stand_in_the_table():
    found = workers.run("mini:digits", "mini:resnet", ["momentum"], budget=20, chunk=2, turns=1)
    row = found["momentum"]
    assert 0.2 < row["encoder_of_worker"] < 1 and 0.2 < row["worker_of_loop"] < 1 and row["worker_ms"] > 0
    assert "`momentum`" in workers.table(found)

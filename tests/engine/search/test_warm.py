import numpy as np

from engine import search
from engine.protocols import Feedback
from engine.search.warm import Warm
from engine.search_space import Space

ORIGIN = np.linspace(-1, 1, 6).astype(np.float32)


def told(run, goal, rounds=20):
    for _ in range(rounds):
        thetas = run.ask(4)
        run.tell(thetas, Feedback(losses=((thetas - goal) ** 2).sum(1).astype(float)))
    return run


def test_begins_at_the_origin_and_walks_the_same_way_around_it():
    plain = told(search.make("momentum").start(Space(dim=6), 100, 1), 0.5)
    warm = told(Warm(search.make("momentum").start(Space(dim=6), 100, 1), ORIGIN), 0.5 + ORIGIN)
    assert (Warm(search.make("momentum").start(Space(dim=6), 100, 1), ORIGIN).ask(4)[0] == ORIGIN).all()
    np.testing.assert_allclose(warm.recommend(), plain.recommend() + ORIGIN, atol=1e-5)


def test_resumes_to_the_same_bits():
    warm = told(Warm(search.make("momentum").start(Space(dim=6), 100, 1), ORIGIN), 0.5)
    again = Warm(search.make("momentum").start(Space(dim=6), 100, 1), ORIGIN)
    again.load_state_dict(warm.state_dict())
    assert again.ask(4).tobytes() == warm.ask(4).tobytes()

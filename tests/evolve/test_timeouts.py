"""How long work may take: learnt, robust, and as asked for."""

import numpy as np
import pytest

from heterosis.evolve.workers.timeouts import ENOUGH, FIRST, LEAST, TimeLimit


def test_what_is_asked_for_is_for_the_search_documents() -> None:
    limit = TimeLimit(100, 60.0)
    for _ in range(20):
        limit.learn(10, 1000.0, 0.0)
    assert limit(100) == 60
    assert limit(25) == 60
    assert limit(250) == 150


def test_there_is_one_before_anything_is_learnt() -> None:
    limit = TimeLimit(100)
    for _ in range(ENOUGH - 1):
        limit.learn(100, 10.0, 1.0)
    assert limit(10) == FIRST
    assert limit(300) == 3 * FIRST


@pytest.mark.parametrize("documents", [8, 100, 1000])
def test_a_chunk_of_any_size_has_ten_times_what_it_takes(documents: int) -> None:
    """A merge of 40 s and 2 s for each document, learnt from pieces of very different size."""
    limit, rng = TimeLimit(100), np.random.default_rng(0)
    for n in rng.integers(1, 200, size=50):
        continued = n % 3 == 0  # the candidate was in memory
        limit.learn(int(n), 2.0 * n + 40 * (not continued), 40.0 * (not continued))
    assert limit(documents) == pytest.approx(10 * (40 + 2 * documents))


def test_a_few_that_hung_for_long_hardly_move_it() -> None:
    limit, hung = TimeLimit(100), TimeLimit(100)
    for k in range(100):
        limit.learn(100, 100.0, 0.0)
        hung.learn(100, 1e5 if k % 33 == 0 else 100.0, 0.0)
    assert hung(100) == limit(100) == 1000


def test_small_work_is_not_cut_off_by_a_busy_machine() -> None:
    limit = TimeLimit(100)
    for _ in range(ENOUGH):
        limit.learn(100, 0.01, 0.001)
    assert limit(100) == LEAST


def test_heavy_tails_are_let_through() -> None:
    """Of log-normal times with sigma 1, at most one in a thousand is cut off (and then tried again)."""
    limit, rng = TimeLimit(100), np.random.default_rng(1)
    times = 60 * np.exp(rng.standard_normal(5000))
    cut = 0
    for seconds in times:
        cut += seconds > limit(100)
        limit.learn(100, seconds, 0.0)
    assert cut <= 5

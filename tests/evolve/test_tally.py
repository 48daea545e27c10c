"""What results amount to, as they come, beside the same from all of them at once."""

import random
import statistics
from collections import Counter
from typing import Any

import pytest

from heterosis.evolve.record.tally import LEADERS, Tally, best_of, leading
from heterosis.evolve.record.trial import Ask, Trial


def a_trial(number: int, rng: random.Random) -> Trial:
    ask = Ask(99 - number, "search", "a candidate", "r", {}, 0)  # asked in the opposite order
    if rng.random() < 0.2:
        return Trial(number, ask, None, rng.choice(["NaN", "it died"]))
    score = rng.choice([-0.5, 0.0, 0.25, 0.5])
    times = {"merge": rng.random(), "forward": rng.random()} if rng.random() < 0.8 else {}
    return Trial(number, ask, score, None, times, (-score,), pruned=rng.random() < 0.3)


def naive(trials: list[Trial]) -> dict[str, Any]:
    complete = [t for t in trials if t.score is not None and not t.pruned]
    timed = [t for t in trials if t.seconds]
    times = [sum(t.seconds.values()) for t in ([t for t in timed if t in complete] or timed)]
    return {
        "best": max(complete, key=lambda t: (t.score, -t.ask.number), default=None),
        "complete": len(complete),
        "pruned": sum(t.pruned for t in trials),
        "failed": sum(t.score is None for t in trials),
        "causes": Counter(t.cause for t in trials if t.cause),
        "seconds": {k: sum(t.seconds.get(k, 0.0) for t in trials) for k in ("merge", "forward") if timed},
        "median_seconds": statistics.median(times) if times else None,
    }


def test_is_that_of_all_results_at_any_moment() -> None:
    for seed in range(20):
        rng, tally, trials = random.Random(seed), Tally(), list[Trial]()
        for number in range(30):
            assert {name: getattr(tally, name) for name in naive(trials)} == naive(trials)
            trials.append(a_trial(number, rng))
            tally.add(trials[-1])


def test_of_equals_the_first_asked_is_raced_against_whichever_came_first() -> None:
    first, second = (Ask(number, "search", "c", "r", {}, 0) for number in (3, 4))
    came = [Trial(0, second, 0.5), Trial(1, first, 0.5), Trial(2, second, 0.9, pruned=True)]
    assert best_of(came) == came[1]
    assert best_of(came[2:]) is None


def test_ranks_sort_the_best_first() -> None:
    scores = [0.0, None, -0.5, 0.5, 0.0]
    trials = [Trial(k, Ask(9 - k, "search", "c", "r", {}, 0), score) for k, score in enumerate(scores)]
    scored = [t for t in trials if t.score is not None]
    assert [t.number for t in sorted(scored, key=lambda t: t.rank)] == [3, 4, 0, 2]
    with pytest.raises(AssertionError):
        _ = trials[1].rank


def test_leaders_are_the_best_of_as_many_recipes() -> None:
    scores = [0.5, 0.9, 0.9, 0.1, 0.7, 0.8, 0.6, 0.4]
    asks = [Ask(k, "search", "c", f"recipe {k % 7}", {}, 0) for k in range(8)]  # the last is the first's
    trials = [Trial(k, ask, score) for k, (ask, score) in enumerate(zip(asks, scores, strict=True))]
    expected = [trials[k] for k in (1, 2, 5, 4, 6)]
    assert LEADERS == 5
    for seed in range(10):
        tally, shuffled = Tally(), random.Random(seed).sample(trials, 8)
        for trial in shuffled:
            tally.add(trial)
        assert tally.leaders == leading(shuffled) == expected

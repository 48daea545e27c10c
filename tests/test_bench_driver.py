"""The driver's benchmark: its arithmetic, and one short search."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's script, imported as it is run."""
    import runpy

    sys.path.insert(0, str(SCRIPTS))
    yield runpy.run_path(str(SCRIPTS / "bench_driver.py"))
    sys.path.remove(str(SCRIPTS))


def test_a_clock_takes_inner_parts_out_of_outer_ones(bench: Any) -> None:
    from driver_bench.clock import Clock, between

    time = 0.0

    def pass_(seconds: float) -> None:
        nonlocal time
        time += seconds

    clock = Clock(lambda: (time, 10 * time))
    pass_(1)
    with clock.part("outer"):
        pass_(2)
        with clock.part("inner"):
            pass_(4)
        pass_(8)
    earlier = clock.read()
    assert earlier == {"other": (1, 10), "outer": (10, 100), "inner": (4, 40)}
    with clock.part("inner"):
        pass_(16)
    assert between(earlier, clock.read(), 2) == {"other": (0, 0), "outer": (0, 0), "inner": (8, 80)}


def test_shares_of_the_workers_time(bench: Any) -> None:
    from driver_bench.utilisation import Piece, barrier_share, ideal_share, shares

    times = [1.0, 3.0, 1.0, 1.0]
    assert barrier_share(times, 2) == 6 / (2 * (3 + 1))
    assert ideal_share(times, 2) == 6 / (2 * 3)  # one worker takes the long one, the other the three short ones
    # The first waits a second before its next piece, which takes half of the time that it was away.
    pieces = [Piece(0.0, 3.0, 3.0), Piece(0.0, 1.0, 1.0), Piece(2.0, 4.0, 1.0)]
    found = shares(pieces, 2)
    assert found["searching"] == (2 + 1) / (2 * 2)
    assert found["whole"] == 5 / (2 * 4)
    assert found["handing_ms"] == pytest.approx(1000 / 3, abs=0.01)


def test_a_candidates_time_is_its_own(bench: Any) -> None:
    from driver_bench.sleeper import seconds_of

    times = sorted(seconds_of(f"recipe {number}", 4.0) for number in range(4000))
    assert seconds_of("recipe 7", 4.0) == seconds_of("recipe 7", 4.0)
    assert sum(times) / 4000 == pytest.approx(4.0, rel=0.1)
    assert times[3960] > 8 * times[2000]


def test_the_driver_is_measured(bench: Any, tmp_path: Path) -> None:
    from driver_bench import cost

    lines = list(cost.measure("random", [10, 20], tmp_path / "zoos", tmp_path))
    assert [line["trials"] for line in lines] == [10, 20]
    for line in lines:
        assert min(line[f"{part}_ms"][0] for part in ("ask", "record", "save")) > 0
    table = list(bench["tables"](lines))
    assert len({row.count("|") for row in table if row}) == 1

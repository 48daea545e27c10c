"""What scripts/chaos.py judges by, on searches with stand-ins for workers; it runs real ones itself."""

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def content() -> Iterator[Any]:
    """The script's module of that name."""
    from importlib import import_module

    sys.path.insert(0, str(SCRIPTS))
    yield import_module("chaos_run.content")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def folders(toy_config: Callable[..., dict[str, Any]], make_pools: Any, tmp_path_factory: Any) -> dict[str, Path]:
    """A search that was not disturbed, and one whose driver died twice and whose workers end in another order.

    Scores are coarse, so that ties have to be decided.
    """
    root, pools = tmp_path_factory.mktemp("chaos"), make_pools()

    def judge(ask: Any, part: str) -> float:
        return round(float(pools.hill(ask, part)), 1)

    def run(name: str, workers: int, crash_after: int | None = None) -> Path:
        options = {"trials": 24, "racing": True, "optimizer": "cma", "ordered": 4, "workers": workers}
        pool = pools(judge, last_first=workers > 1, crash_after=crash_after, luck=0.0)
        search(EvolveConfig.parse(yaml.safe_dump(toy_config(**options))), root / name, make_pool=pool)
        return root / name

    for crash_after in (20, 9):
        with pytest.raises(pools.crash):
            run("disturbed", 3, crash_after)
    return {"undisturbed": run("undisturbed", 1), "disturbed": run("disturbed", 3)}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["disturbed"], tmp_path / "run"))


def edit(path: Path, line: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of a line."""
    lines = path.read_text().splitlines()
    data = json.loads(lines[line])
    change(data)
    path.write_text("".join(f"{text}\n" for text in (*lines[:line], json.dumps(data), *lines[line + 1 :])))


def test_a_disturbed_search_comes_to_the_same(content: Any, folders: dict[str, Path]) -> None:
    read = {name: content.Content.read(f, content.read_trials(f, None)) for name, f in folders.items()}
    assert list(content.differences(read["undisturbed"], read["disturbed"])) == []
    assert (folders["disturbed"] / "attempts.jsonl").exists()
    for folder in folders.values():
        assert content.scored_twice(folder) == []
        assert content.told_twice(content.read_trials(folder, None)) == []


def test_differences_are_seen(content: Any, folders: dict[str, Path], copied: Path) -> None:
    undisturbed, trials = folders["undisturbed"], content.read_trials(copied, None)
    expected = content.Content.read(undisturbed, content.read_trials(undisturbed, None))

    def seen() -> list[str]:
        found = content.Content.read(copied, trials[:-1])
        return [line.partition(":")[0] for line in content.differences(expected, found)]

    assert seen() == ["trials"]
    edit(copied / "asks.jsonl", 7, lambda ask: ask.update(rivals=[]))
    assert seen() == ["asks", "trials"]
    edit(copied / "scores.jsonl", 3, lambda line: line["scores"]["documents"]["toy_choice"].popitem())
    assert seen() == ["asks", "scores", "trials"]
    recipe = yaml.safe_load((copied / "best.yaml").read_text())
    (copied / "best.yaml").write_text(yaml.safe_dump({**recipe, "dtype": "float16"}))
    assert seen() == ["asks", "scores", "trials", "outcome"]


def test_what_is_there_twice_is_seen(content: Any, copied: Path) -> None:
    scores = copied / "scores.jsonl"
    first = scores.read_text().splitlines()[0]
    with scores.open("a") as file:
        file.write(first + "\n")
    assert len(content.scored_twice(copied)) == len(json.loads(first)["scores"]["documents"]["toy_choice"])
    trials = content.read_trials(copied, None)
    assert content.told_twice([*trials, trials[5]]) == [
        f"study: candidate {trials[5].user_attrs['ask']} has 2 results"
    ]
    assert content.behind(copied, trials) == []
    assert len(content.behind(copied, trials[:-1])) == 1


def test_a_record_only_grows(content: Any, copied: Path) -> None:
    trials, scores = content.read_trials(copied, None), copied / "scores.jsonl"
    watch = content.Watch(copied)
    watch.look()
    watch.look_at_trials(trials[:3])
    with scores.open("a") as file:
        file.write('{"torn')
    watch.look()
    watch.look_at_trials(trials)
    assert watch.faults == []
    watch.look_at_trials(trials[:-1])
    assert watch.faults == [f"study: of {len(trials)} trials, some have changed or are gone"]
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[1:]))
    watch.look()
    assert watch.faults[1:] == ["scores.jsonl: lines that were there have changed or are gone"]


def test_who_is_not_to_be_lost_again(content: Any, tmp_path: Path) -> None:
    def attempt(ask: int, met: int, *, blamed: bool) -> str:
        return json.dumps({"ask": ask, "part": "search", "met": met, "cause": "died: x", "blamed": blamed}) + "\n"

    def scored(ask: int, *documents: int) -> str:
        scores = {"documents": {"task": {str(d): {"acc,none": 1.0} for d in documents}}, "forward_seconds": 0.0}
        return json.dumps({"ask": ask, "part": "search", "scores": scores}) + "\n"

    assert content.in_doubt(tmp_path) == (set(), 0)
    # 4 has got further since, 5 has not, 6 was lost by no fault of its own.
    tried = [attempt(4, 0, blamed=True), attempt(5, 2, blamed=True), attempt(6, 0, blamed=False)]
    (tmp_path / "attempts.jsonl").write_text("".join([*tried, attempt(6, 0, blamed=False)]))
    (tmp_path / "scores.jsonl").write_text(scored(4, 1, 2, 3) + scored(5, 1, 2))
    assert content.in_doubt(tmp_path) == ({5}, 2)
    assert content.causes(tmp_path) == {"died": 4}


@pytest.mark.usefixtures("content")
def test_the_kills_are_spread_over_the_search_and_its_parts() -> None:
    from chaos_run.disturber import plan

    kills = plan(99, 500, random.Random(1))
    assert [k.kind for k in kills].count("driver") == [k.kind for k in kills].count("raylet") == 33
    assert [k.after for k in kills] == sorted(k.after for k in kills)
    assert kills[0].after < 50
    assert 450 < kills[-1].after < 500
    assert plan(99, 500, random.Random(1)) == kills != plan(99, 500, random.Random(2))

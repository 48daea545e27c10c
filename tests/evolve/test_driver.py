"""Whole searches with a pool that scores by formula: budgets, crashes, failures, finals, refusals."""

import csv
import functools
import json
import logging
import os
import re
import shutil
import signal
import types
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints, is_typeddict

import optuna
import pytest
import yaml
from typer.testing import CliRunner

from heterosis import cli
from heterosis.errors import InputError
from heterosis.evaluate.scores import Scores
from heterosis.evolve import driver, session, warm_start
from heterosis.evolve import run as run_module
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import SearchFailed, search
from heterosis.evolve.faults import RunStopped
from heterosis.evolve.judging.statistics import paired_difference
from heterosis.evolve.logs import logging_to
from heterosis.evolve.optimizers.surrogates.bayesian import BayesianOptimizer
from heterosis.evolve.preflight.preflight import preflight
from heterosis.evolve.record.folder import RunFolder
from heterosis.evolve.record.record import Record, read_asks, read_trials
from heterosis.evolve.record.storage import study_url
from heterosis.evolve.record.summary_file import Summary
from heterosis.evolve.record.trial import Ask
from heterosis.evolve.results.export import export_trial
from heterosis.evolve.results.summary import closing_table, gains_of
from heterosis.evolve.results.table import TableWriter
from heterosis.evolve.workers import cluster
from heterosis.evolve.workers.pool import Failure, Setup
from heterosis.merge import merge_models
from heterosis.merge.methods import PerInput, Program, Uniform, base, merge_method, methods
from heterosis.merge.methods.combine import combine

from ..inline_pool import InlinePool

PARTS = {"search": 20, "selection": 20, "holdout": 30}
BASELINES = ["ann", "bob", "uniform"]


@pytest.fixture
def run(toy_config: Callable[..., dict[str, Any]], pools: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Search with one worker: ``run(judge=..., trials=12)``; keys of the config or of the pool."""

    def go(
        folder: str = "run",
        judge: Any = pools.hill,
        pool: dict[str, Any] | None = None,
        device: str = "cpu",
        **config: Any,
    ) -> Any:
        plain = toy_config(**{"workers": 1, "racing": False, "optimizer": "cma", **config})
        plain["genome"] = {key: value for key, value in plain["genome"].items() if value is not None}
        text = yaml.safe_dump(plain)
        make_pool = pools(judge, **(pool or {}))
        return search(EvolveConfig.parse(text), tmp_path / folder, make_pool=make_pool, device=device)

    return go


@pytest.fixture
def config_of(toy_config: Callable[..., dict[str, Any]]) -> Callable[..., EvolveConfig]:
    return lambda **changes: EvolveConfig.parse(yaml.safe_dump(toy_config(**changes)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def proposals(folder: Path) -> list[tuple[str, dict[str, float]]]:
    return [(ask.kind, dict(ask.values)) for ask in read_asks(folder)]


@pytest.mark.parametrize(
    ("optimizer", "racing", "workers"), [("cma", False, 1), ("cma", True, 4), ("gp", True, 1)]
)
def test_a_budget_of_documents_is_kept_and_used(run: Any, optimizer: str, racing: bool, workers: int) -> None:
    options = {"racing": racing, "optimizer": optimizer, "workers": workers, "finalists": 1, "trials": 100}
    summary = run(max_documents=500, **options)
    assert summary["status"] == "finished"
    # The report takes 3 or 4 models on 30 documents; what was left would not have done for another candidate, a
    # mean, and so many finalists more.
    assert 500 - 30 - 20 * (2 + 3) < summary["documents"]["scored"] <= 500
    # More of them later; the run goes on.
    more = run(max_documents=700, **options)
    assert summary["documents"]["scored"] + 50 < more["documents"]["scored"] <= 700


def test_a_budget_of_documents_keeps_no_room_for_who_can_be_left_out_of_the_finals(run: Any) -> None:
    """Without races too."""
    summary = run(judge=lambda ask, part: 0.3, max_documents=240, trials=60, optimizer="random", racing=False)
    assert summary["trials"]["complete"] > 3
    assert summary["documents"]["scored"] <= 240


def test_a_budget_of_documents_decides_like_that_of_trials(config_of: Any) -> None:
    # 20 documents for the search, 4 * 30 for the finals: (360 - 120) / (0.6 * 20) = 20 trials.
    few, many = (preflight(config_of(trials=100, max_documents=most)) for most in (360, 100_000))
    assert (few.expected_trials, many.expected_trials) == (20, 100)
    assert len(few.baselines()) == 3 < len(many.baselines())
    assert few.most_finalists == many.most_finalists - 4
    assert not few.warnings
    # Two parents, their uniform merge and a candidate take up to 80.
    (warning,) = preflight(config_of(max_documents=199)).warnings
    assert warning.startswith("max_documents: 199 may leave nothing for candidates")
    with pytest.raises(InputError, match="max_documents: must be at least 140, 20 for the search and 120 for"):
        preflight(config_of(max_documents=139))


def test_a_budget_of_documents_pays_for_the_finals_of_those_that_are_compared_with(
    run: Any, config_of: Any
) -> None:
    # Both parents, their uniform merge and a candidate meet 20 selection documents each, too.
    assert preflight(config_of(trials=100, max_documents=440, objective="gain")).expected_trials == 20
    with pytest.warns(UserWarning, match="max_documents: 279 may leave nothing .* up to 80, the finals 200"):
        few = run("few", max_documents=279, objective="gain")
    enough = run("enough", max_documents=280, objective="gain")
    assert [few["trials"]["complete"], enough["trials"]["complete"]] == [3, 4]
    with pytest.raises(InputError, match="max_documents: must be at least 220, 20 for the search and 200 for"):
        preflight(config_of(max_documents=219, objective="gain"))


def places_unlike(value: Any, kind: Any, place: str = "") -> list[str]:
    """Places where a JSON value has other keys than its TypedDict says, or another kind of value."""
    of, inner = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        known = get_type_hints(kind)
        wrong = [f"{place}.{key}" for key in value.keys() ^ known.keys()]
        both = value.keys() & known.keys()
        return wrong + [x for key in both for x in places_unlike(value[key], known[key], key)]
    if of in (list, dict):
        entries = value.values() if of is dict else value
        return [x for entry in entries for x in places_unlike(entry, inner[-1], place)]
    if of is Literal:
        return [] if value in inner else [place]
    if of is UnionType:
        fits = [places_unlike(value, k, place) for k in inner if (value is None) == (k is type(None))]
        return fits[0] if fits else [place]
    fitting = kind in (Any, type(None)) or isinstance(value, (int, float) if kind is float else kind)
    return [] if fitting else [place]


def test_a_run_leaves_what_the_design_says(run: Any, pools: Any, tmp_path: Path) -> None:
    from mergekit.config import MergeConfiguration

    heads: list[str] = []

    def look(pool: Any) -> None:
        best = tmp_path / "run/best.yaml"
        head = best.read_text().splitlines()[0] if best.exists() else ""
        if head and head not in heads[-1:]:
            heads.append(head)

    summary = run(trials=24, pool={"on_wait": look})
    folder = tmp_path / "run"

    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["trials"] == {"complete": 24, "pruned": 0, "failed": 0, "budget": 24}
    assert places_unlike(summary, Summary) == []
    assert summary["parents"].keys() == {"ann", "bob"}
    assert summary["baselines"].keys() == {"uniform"}
    for result in (*summary["parents"].values(), *summary["baselines"].values()):
        assert result["search"] is not None
        assert result["holdout"] is not None
    # Searched: 24 candidates; selection: the finalists; held out: champion and 3 baselines.
    finalists = len(summary["finalists"])
    assert 1 <= finalists <= 5 + 3
    assert summary["documents"] == PARTS | {
        "scored": 24 * 20 + finalists * 20 + 4 * 30,
        "holdout_reused": False,
    } | {"budget": None}
    assert summary["seconds"]["forward"] == pytest.approx(24 * 0.0008, abs=1e-3)
    assert {"heterosis", "torch", "transformers", "lm_eval", "seed"} <= summary["environment"].keys()

    asks = list(read_asks(folder))
    assert [a.name for a in asks[:3]] == BASELINES
    assert [a.kind for a in asks[3:]] == ["search"] * 20 + ["mean"]
    assert [number for number, part in pools.asked if part == "search"] == list(range(24))

    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [int(row["trial"]) for row in rows] == list(range(24))
    # `best.yaml` was replaced at every improvement, and only then.
    records, best = [], float("-inf")
    for row in rows:
        if float(row["score"]) > best:
            best = float(row["score"])
            records.append(f"trial {row['trial']}:")
    assert [re.search(r"trial \d+:", head)[0] for head in heads][: len(records)] == records  # type: ignore[index]

    text = (folder / "best.yaml").read_text()
    assert text.startswith(f"# heterosis trial {summary['champion']['trial']}: ")
    assert summary["outcome"] in text
    plain = yaml.safe_load(text)
    MergeConfiguration.model_validate(plain)
    assert plain["heterosis"]["seed"] == 3
    models = plain["heterosis"]["models"]
    assert {Path(name).name for name in models} == {"ann", "bob", "toy-base"}
    assert all(re.fullmatch("[0-9a-f]{64}", model["sha256"]) for model in models.values())
    champion = asks[int(rows[summary["champion"]["trial"]]["ask"])]
    assert plain["slices"] == yaml.safe_load(champion.recipe)["slices"]
    assert export_trial(folder, None) == text
    assert yaml.safe_load(export_trial(folder, 0))["merge_method"] == "passthrough"

    split = json.loads((folder / "splits.json").read_text())
    assert {part: len(split[part]["toy_choice"]) for part in PARTS} == PARTS
    assert len({d for part in PARTS for d in split[part]["toy_choice"]}) == sum(PARTS.values())
    lines = read_lines(folder / "scores.jsonl")
    assert len(lines) == 24 + finalists + 4
    assert EvolveConfig.load(folder / "config.yaml").trials == 24
    assert pools.made[0].closed


@pytest.mark.parametrize(
    ("trials", "workers", "optimizer"),
    [(3, 1, "cma"), (3, 2, "cma"), (7, 3, "cma"), (20, 1, "random"), (21, 3, "cma")],
)
def test_the_budget_is_exact(
    run: Any, pools: Any, tmp_path: Path, trials: int, workers: int, optimizer: str
) -> None:
    summary = run(trials=trials, workers=workers, optimizer=optimizer)
    assert summary["trials"]["complete"] == trials
    assert [n for n, part in pools.asked if part == "search"] == list(range(trials))
    assert [a.name for a in read_asks(tmp_path / "run")][:3] == BASELINES[:trials]


@pytest.mark.parametrize("kind", ["model", "file"])
def test_what_is_no_run_folder_is_left_alone(run: Any, tmp_path: Path, kind: str) -> None:
    other = tmp_path / ("run/config.json" if kind == "model" else "run")
    other.parent.mkdir(exist_ok=True)
    other.write_text("{}")
    says = r"holds other things and no run \(config.json\)" if kind == "model" else "is not a folder"
    with pytest.raises(InputError, match=f"run: {says}; choose another --run-dir"):
        run()
    assert [p.name for p in other.parent.iterdir()] == [other.name]


def test_an_empty_folder_is_taken_and_stays_where_the_search_cannot_begin(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()

    def refuse(*_: object) -> None:
        raise InputError("of a test")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_baselines", refuse)
        with pytest.raises(InputError, match="of a test"):
            run()
    assert list((tmp_path / "run").iterdir()) == []
    assert run()["status"] == "finished"


def test_the_seed_decides(run: Any, tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(folder, trials=12, seed=seed)
    assert proposals(tmp_path / "a") == proposals(tmp_path / "b")
    assert proposals(tmp_path / "a") != proposals(tmp_path / "c")


def test_the_search_climbs(run: Any, tmp_path: Path) -> None:
    """Later proposals are better than the first ones: the optimizer is told what it is told."""
    run(trials=60)
    scores = [float(row["score"]) for row in csv.DictReader((tmp_path / "run/trials.csv").open())]
    assert sum(scores[-10:]) / 10 > sum(scores[3:13]) / 10 + 0.1


class Counted(list[Any]):
    """A list that counts the entries that are read by loops and slices."""

    read = 0

    def __iter__(self) -> Any:
        Counted.read += len(self)
        return super().__iter__()

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        Counted.read += len(found) if isinstance(key, slice) else 1
        return found


@pytest.mark.parametrize("options", [{}, {"racing": True, "hours": 1.0}, {"ordered": 2}, {"objective": "worst"}])
def test_results_are_not_looked_through_for_every_candidate(
    run: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The driver's work for a candidate is the same after any number of them."""
    make = Record.__init__

    def counted(self: Record, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self.trials = Counted(self.trials)

    read: list[int] = []
    tell = Record.tell

    def note(self: Record, *args: Any, **kwargs: Any) -> Any:
        read.append(Counted.read)
        return tell(self, *args, **kwargs)

    monkeypatch.setattr(Record, "__init__", counted)
    monkeypatch.setattr(Record, "tell", note)
    monkeypatch.setattr(session, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(session, "SAVE_SHARE", 0)
    Counted.read = 0
    run(trials=70, **options)
    assert read[30] - read[20] == read[60] - read[50] < 30


class TestResume:
    @pytest.fixture(scope="class")
    @staticmethod
    def undisturbed(toy_config: Any, tmp_path_factory: pytest.TempPathFactory, make_pools: Any) -> Any:
        """A whole run: its summary, what was asked, and what was proposed."""
        folder, pools = tmp_path_factory.mktemp("whole") / "run", make_pools()
        config = EvolveConfig.parse(
            yaml.safe_dump(toy_config(workers=1, racing=False, optimizer="cma", trials=24))
        )
        return search(config, folder, make_pool=pools()), pools.asked, proposals(folder)

    @pytest.mark.parametrize("crash_after", [0, 2, 9, 22, 25, 28])
    def test_loses_and_repeats_nothing(
        self, run: Any, pools: Any, tmp_path: Path, undisturbed: Any, crash_after: int
    ) -> None:
        whole, asked, proposed = undisturbed
        with pytest.raises(pools.crash):
            run(trials=24, pool={"crash_after": crash_after})
        assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "stopped"
        for name in ("asks.jsonl", "scores.jsonl", "results.jsonl"):  # what a power cut may leave of the next line
            with (tmp_path / "run" / name).open("a") as file:
                file.write('{"number": 99, "kind": "sea')
        summary = run(trials=24)

        first = pools.made[0].asked
        unfinished = [(n, part) for n, part, _ in first[crash_after:]]
        assert pools.asked == [*asked[:crash_after], *unfinished, *asked[crash_after:]]
        assert proposals(tmp_path / "run") == proposed
        for key in ("status", "trials", "champion", "parents", "gain_over_best_parent", "documents"):
            assert summary[key] == whole[key]
        assert [ask.number for ask in read_asks(tmp_path / "run")] == list(range(24))
        scored = [(line["ask"], line["part"]) for line in read_lines(tmp_path / "run/scores.jsonl")]
        assert len(scored) == len(set(scored)) == len(asked) > 28

    @pytest.mark.parametrize(("workers", "crash_after"), [(1, 9), (1, 25), (4, 2), (4, 13), (4, 22)])
    def test_loses_no_scores_to_a_power_cut(
        self, run: Any, pools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, crash_after: int
    ) -> None:
        """A power cut takes with it what was written to a file since it was last waited for."""
        on_disk: dict[str, int] = {}
        wait = os.fsync

        def fsync(descriptor: int) -> None:
            wait(descriptor)
            on_disk[str(Path(f"/proc/self/fd/{descriptor}").readlink())] = os.fstat(descriptor).st_size

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(pools.crash):
            run(trials=24, workers=workers, pool={"crash_after": crash_after})
        for name in ("asks.jsonl", "scores.jsonl", "results.jsonl"):
            path = tmp_path.resolve() / "run" / name
            with path.open("rb+") as file:
                file.truncate(on_disk.get(str(path), 0))
        finished = len(list(read_lines(tmp_path / "run/scores.jsonl")))
        assert finished == crash_after
        results = len(read_lines(tmp_path / "run/results.jsonl"))
        assert all(ask.after <= results for ask in read_asks(tmp_path / "run"))  # it replays
        summary = run(trials=24, workers=workers)

        assert summary["trials"] == {"complete": 24, "pruned": 0, "failed": 0, "budget": 24}
        scored = [(line["ask"], line["part"]) for line in read_lines(tmp_path / "run/scores.jsonl")]
        assert len(scored) == len(set(scored))
        told = [line["ask"] for line in read_lines(tmp_path / "run/results.jsonl")]
        assert sorted(told) == [ask.number for ask in read_asks(tmp_path / "run")] == list(range(24))

    @pytest.mark.parametrize("at", [1, 6])
    def test_scores_on_the_disk_are_told_without_scoring_again(
        self, run: Any, pools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
    ) -> None:
        tell = Record.tell

        def die(self: Record, ask: Ask, *args: Any, **kwargs: Any) -> Any:
            if ask.number == at:
                raise pools.crash
            return tell(self, ask, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Record, "tell", die)
            with pytest.raises(pools.crash):
                run(trials=10)
        summary = run(trials=10)
        assert summary["trials"]["complete"] == 10
        assert [n for n, part in pools.asked if part == "search"] == list(range(10))
        run("whole", trials=10)
        assert proposals(tmp_path / "run") == proposals(tmp_path / "whole")

    @pytest.mark.parametrize("after", ["selection", "holdout"])
    def test_in_the_finals_goes_on_with_their_shortlist(self, run: Any, pools: Any, after: str) -> None:
        """Later ones are better on selection documents. Of the budget the held-out documents take what is left."""

        def judge(ask: Ask, part: str) -> float:
            if not ask.is_candidate:
                return 0.2
            return 0.5 if part == "search" else 0.1 * ask.number

        options = {"judge": judge, "racing": True, "max_documents": 380, "finalists": 3, "trials": 100}
        options |= {"optimizer": "random", "genome": {"layer_granularity": 1}}
        whole = run("whole", **options, pool={"luck": 1.0})
        asked = pools.made.pop().asked
        crash_after = 1 + next(i for i, (_, part, _) in enumerate(asked) if part == after)
        with pytest.raises(pools.crash):
            run(**options, pool={"luck": 1.0, "crash_after": crash_after})
        summary = run(**options, pool={"luck": 1.0})
        assert pools.made[-1].asked == asked[crash_after:]
        for key in ("status", "champion", "finalists", "documents", "ended_by"):
            assert summary[key] == whole[key]

    def test_with_the_budget_of_earlier_finals_counts_what_was_scored_since(self, run: Any, pools: Any) -> None:
        def judge(ask: Ask, part: str) -> float:
            return pools.hill(ask, part) + (ask.number >= 10)

        run(trials=10, judge=judge)
        with pytest.raises(pools.crash):
            run(trials=14, judge=judge, pool={"crash_after": 2})
        assert run(trials=10, judge=judge)["champion"]["trial"] >= 10

    @pytest.mark.parametrize("better", [True, False])
    def test_extended_after_held_out_documents_were_met_says_so(
        self, run: Any, pools: Any, tmp_path: Path, better: bool
    ) -> None:
        def judge(ask: Ask, part: str) -> float:
            return pools.hill(ask, part) + (better and ask.number >= 10)

        with pytest.raises(pools.crash):
            run(trials=10, pool={"crash_after": 10 + 1 + 1})  # who is alone meets some selection documents
        assert {line["ask"] for line in read_lines(tmp_path / "run/scores.jsonl") if line["part"] == "holdout"}
        summary = run(judge=judge, trials=14)
        assert (summary["champion"]["trial"] >= 10) == better
        assert summary["documents"]["holdout_reused"] == better

    def test_with_several_workers_keeps_the_budget(self, run: Any, pools: Any, tmp_path: Path) -> None:
        for crash_after in (1, 4, 6, 5):
            with pytest.raises(pools.crash):
                run(trials=24, workers=3, pool={"crash_after": crash_after})
        assert run(trials=24, workers=3)["trials"]["complete"] == 24
        asks = [ask.number for ask in read_asks(tmp_path / "run")]
        assert asks == list(range(24))
        trials = [int(row["ask"]) for row in csv.DictReader((tmp_path / "run/trials.csv").open())]
        assert sorted(trials) == asks

    def test_of_a_finished_run_only_reports(self, run: Any, pools: Any) -> None:
        first = run(trials=8)
        assert run(trials=8) == first
        assert len(pools.made) == 1

    def test_writes_the_report_that_a_killed_driver_has_not(
        self, run: Any, pools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*_: Any, **__: Any) -> None:
            raise pools.crash

        report = tmp_path / "run/report.html"
        for trials in (8, 10):  # there is none, and there is one of a smaller budget
            with monkeypatch.context() as patch:
                patch.setattr(driver, "write_report", crash)
                with pytest.raises(pools.crash):
                    run(trials=trials)
            before = report.read_text() if report.exists() else None
            assert run(trials=trials)["status"] == "finished"
            assert report.read_text() != before
        assert len(pools.made) == 2

    def test_finds_the_study_that_a_killed_driver_has_made(
        self, run: Any, pools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*_: Any) -> None:
            raise pools.crash

        with monkeypatch.context() as patch:
            patch.setattr(run_module, "Referee", crash)  # what is next
            with pytest.raises(pools.crash):
                run(trials=8)
        run(trials=8)
        assert len(optuna.get_all_study_names(f"sqlite:///{tmp_path / 'run/study.db'}")) == 1

    def test_extends(self, run: Any, pools: Any, tmp_path: Path) -> None:
        first = run(trials=24)
        assert not first["documents"]["holdout_reused"]
        summary = run(trials=40)
        assert summary["trials"]["complete"] == 40
        assert summary["documents"]["holdout_reused"]
        assert "Held-out documents were used before" in summary["outcome"]
        asks = list(read_asks(tmp_path / "run"))
        assert [a.number for a in asks if a.kind == "mean"] == [23, 39]
        searched = [n for n, part in pools.asked if part == "search"]
        assert searched == list(range(40))

    def test_a_damaged_study_is_written_again(self, run: Any, tmp_path: Path) -> None:
        run(trials=12)
        study = tmp_path / "run/study.db"
        study.write_bytes(b"no database")
        with pytest.raises(
            InputError, match=r"run/study.db: cannot be opened: .*; remove it, it is written again$"
        ):
            run(trials=14)
        study.unlink()
        run(trials=14)
        assert len(optuna.load_study(study_name=None, storage=f"sqlite:///{study}").trials) == 14

    def test_leaves_logging_as_it_was(self, run: Any) -> None:
        ours = logging.getLogger("heterosis")
        before = ours.level, ours.propagate, optuna.logging.get_verbosity()
        run(trials=12)
        assert (ours.level, ours.propagate, optuna.logging.get_verbosity()) == before

    def test_logs_of_several_runs_do_not_end_each_other(self, tmp_path: Path) -> None:
        ours = logging.getLogger("heterosis")
        before = ours.level, ours.propagate
        first, second = (logging_to(tmp_path / name) for name in ("first", "second"))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        ours.info("goes on")
        second.__exit__(None, None, None)
        assert "goes on" in (tmp_path / "second").read_text()
        assert (ours.level, ours.propagate) == before

    def test_keeps_the_champion_while_nothing_more_is_scored(self, run: Any, pools: Any, tmp_path: Path) -> None:
        """Who the best is on search documents is not the champion here."""
        seen = []

        def judge(ask: Ask, part: str) -> float:
            return pools.hill(ask, part) if part == "search" else 1 - 0.01 * ask.number

        def look(pool: Any) -> None:
            seen.append(json.loads((tmp_path / "run/summary.json").read_text()))

        options = {"judge": judge, "pool": {"on_wait": look, "luck": 0.0, "crash_after": 0}}
        finished = run(judge=judge, trials=24, pool={"luck": 0.0})
        best = (tmp_path / "run/best.yaml").read_text()
        assert best.splitlines()[1].startswith("# The champion.")
        with pytest.raises(pools.crash):
            run(trials=40, **options)
        assert (seen[0]["status"], seen[0]["trials"]["budget"]) == ("running", 40)
        assert (seen[0]["champion"], seen[0]["outcome"]) == (finished["champion"], finished["outcome"])
        assert json.loads((tmp_path / "run/summary.json").read_text()) == finished
        assert (tmp_path / "run/best.yaml").read_text() == best
        with pytest.raises(pools.crash):
            run(trials=40, judge=judge, pool={"luck": 0.0, "crash_after": 1})
        assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "stopped"
        assert "# Best so far on the search documents.\n" in (tmp_path / "run/best.yaml").read_text()

    def test_takes_no_old_summary_for_that_of_what_was_scored(
        self, run: Any, pools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A session dies between best.yaml and the summary; the next scores nothing."""

        def judge(ask: Ask, part: str) -> float:
            return pools.hill(ask, part) if part == "search" else 1 - 0.01 * ask.number

        def die(*arguments: Any) -> None:
            raise pools.crash

        finished = run(judge=judge, trials=24, pool={"luck": 0.0})
        with monkeypatch.context() as patch:
            patch.setattr(TableWriter, "write", die)
            with pytest.raises(pools.crash):
                run(trials=40, judge=judge, pool={"luck": 0.0})
        with pytest.raises(pools.crash):
            run(trials=40, judge=judge, pool={"luck": 0.0, "crash_after": 0})
        again = run(trials=24, judge=judge, pool={"luck": 0.0})
        assert again["status"] == "finished"
        assert again["trials"]["complete"] > finished["trials"]["complete"]
        best = (tmp_path / "run/best.yaml").read_text()
        assert best.startswith(f"# heterosis trial {again['champion']['trial']}: ")
        assert "# The champion." in best

    @pytest.mark.parametrize("limit", [{"max_documents": 700}, {"hours": 0.01}])
    def test_the_same_command_has_nothing_to_do(self, run: Any, pools: Any, limit: dict[str, float]) -> None:
        """Whichever budget has ended the run. Another one of more trials has nothing to do either."""
        pool = {"seconds": 3.0} if "hours" in limit else {}
        finished = run(trials=1000, pool=pool, **limit)
        assert sum(finished["trials"][state] for state in ("complete", "pruned", "failed")) < 1000
        assert run(trials=2000, pool={**pool, "crash_after": 0}, **limit) == finished
        (name, value), *_ = limit.items()
        with pytest.raises(pools.crash):
            run(trials=1000, pool={**pool, "crash_after": 0}, **{name: 2 * value})


def test_a_method_of_a_script_is_refused_before_workers_start(
    config_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_METHODS", {**methods()})

    def mymix(*, weight: PerInput) -> Program:
        return Program(combine.bind(weight))

    mymix.__module__ = "__main__"
    merge_method("mymix", paper="", base="required", search={"weight": Uniform(0, 1)})(mymix)
    monkeypatch.setattr(cluster, "_start", None)
    with pytest.raises(InputError, match="'mymix' must be in a module that workers can import, but"):
        search(config_of(genome={"merge_method": ["ties", "mymix"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class TestFailures:
    def test_are_recorded_with_their_cause(self, run: Any, pools: Any, tmp_path: Path) -> None:
        def judge(ask: Ask, part: str) -> Any:
            return Failure("it is NaN") if ask.number in (4, 6) else pools.hill(ask, part)

        summary = run(judge=judge, trials=12)
        assert summary["status"] == "finished"
        assert summary["trials"] == {"complete": 10, "pruned": 0, "failed": 2, "budget": 12}
        assert summary["failures"] == {"it is NaN": 2}
        assert pools.asked.count((4, "search")) == 1
        rows = list(csv.DictReader((tmp_path / "run/trials.csv").open()))
        assert [row["ask"] for row in rows if row["cause"] == "it is NaN" and not row["score"]] == ["4", "6"]

    def test_a_score_that_is_nan_is_one(self, run: Any, tmp_path: Path) -> None:
        """Here the documents have another metric than the one that is asked for."""
        with pytest.raises(SearchFailed, match=r"the parent ann cannot be scored: its score is NaN: a task gives"):
            run(trials=12, tasks=[{"name": "toy_choice", "metric": "acc_norm"}])
        assert "nan" not in (tmp_path / "run/summary.json").read_text().lower().replace("its score is nan", "")

    @pytest.mark.parametrize("part", ["selection", "holdout"])
    def test_of_documents_without_the_metric(self, run: Any, pools: Any, part: str) -> None:
        def forget(pool: Any) -> None:
            ((job, _), *_) = pool._running
            pool.metric = "other,none" if job.part == part else None

        with pytest.raises(SearchFailed, match=f"a task gives its metric for none of the {part} documents"):
            run(trials=12, pool={"on_wait": forget}, finalists=3)

    def test_that_may_pass_are_tried_once_more(self, run: Any, pools: Any) -> None:
        tries: dict[int, int] = {}

        def judge(ask: Ask, part: str) -> Any:
            tries[ask.number] = tries.get(ask.number, 0) + (part == "search")
            if ask.number == 4 or (ask.number == 6 and tries[6] == 1):
                return Failure("the worker died", retry=True)
            return pools.hill(ask, part)

        summary = run(judge=judge, trials=12)
        assert summary["failures"] == {"the worker died": 1}
        assert summary["trials"]["failed"] == 1
        assert (tries[4], tries[6], tries[5]) == (2, 2, 1)

    def test_of_a_parent_stop_the_run(self, run: Any, pools: Any, tmp_path: Path) -> None:
        def judge(ask: Ask, part: str) -> Any:
            return Failure("bad weights") if ask.name == "bob" else pools.hill(ask, part)

        with pytest.raises(SearchFailed, match="parent bob cannot be scored: bad weights"):
            run(judge=judge)
        assert {n for n, _ in pools.asked} == {0, 1, 2}
        assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "stopped"

    def test_of_a_parent_that_pass_cost_no_trials(self, run: Any, pools: Any, tmp_path: Path) -> None:
        def judge(ask: Ask, part: str) -> Any:
            return Failure("the disk is full") if ask.name == "bob" else pools.hill(ask, part)

        for failed in (1, 2, 3):
            with pytest.raises(SearchFailed, match="parent bob cannot be scored: the disk is full"):
                run(judge=judge, trials=4)
            assert len(read_lines(tmp_path / "run/results.jsonl")) == 2 + failed
        summary = run(trials=4)
        assert summary["status"] == "finished"
        assert (summary["trials"]["complete"], summary["trials"]["failed"]) == (4, 3)
        names = [ask.name for ask in read_asks(tmp_path / "run")]
        assert names == ["ann", "bob", "uniform", "bob", "bob", "bob", "candidate 6"]
        assert run(trials=6)["trials"]["complete"] == 6

    def test_of_too_many_candidates_stop_the_run(self, run: Any, pools: Any) -> None:
        def judge(ask: Ask, part: str) -> Any:
            return Failure("a cause") if ask.kind == "search" and ask.number % 4 else pools.hill(ask, part)

        with pytest.raises(SearchFailed, match=r"8 of \d+ candidates failed.*max_failure_rate of 0.5.*a cause"):
            run(judge=judge, trials=40)
        assert pools.made[0].closed
        assert run("patient", judge=judge, trials=20, failures={"max_failure_rate": 0.9})["status"] == "finished"

    def test_of_all_candidates_are_no_result(self, run: Any, pools: Any, tmp_path: Path) -> None:
        """However few: what is told of held-out documents would be the uniform merge's."""

        def judge(ask: Ask, part: str) -> Any:
            broken = ask.kind == "search" and len(pools.made) <= 2
            return Failure(f"cause {ask.number}") if broken else pools.hill(ask, part)

        for _ in range(2):  # it stays so, if nothing more is asked
            with pytest.raises(SearchFailed, match=r"all 4 candidates failed; the last: cause 6; .* larger"):
                run(judge=judge, trials=7)
            summary = json.loads((tmp_path / "run/summary.json").read_text())
            assert summary["status"] == "stopped"
            assert summary["outcome"].startswith("Unfinished: ")
            assert {part for _, part in pools.asked} == {"search"}
        mended = run(judge=judge, trials=9)
        assert (mended["status"], mended["trials"]["failed"]) == ("finished", 4)
        assert not mended["documents"]["holdout_reused"]

    def test_of_finalists_leave_the_others(self, run: Any, pools: Any) -> None:
        lost: list[int] = []

        def judge(ask: Ask, part: str) -> Any:
            if part == "selection" and (not lost or ask.number in lost):
                lost.append(ask.number)
                return Failure("no more")
            return 1.0 if ask.kind == "search" else 0.0

        summary = run(judge=judge)
        assert len(set(lost)) == 1
        assert summary["champion"]["trial"] not in lost
        assert not {f["trial"] for f in summary["finalists"]}.intersection(lost)

    def test_of_the_only_finalist_lets_the_next_one_in(self, run: Any, pools: Any) -> None:
        """One that works on search documents and never on others is not to make the search worthless."""
        lost: list[int] = []

        def judge(ask: Ask, part: str) -> Any:
            if part == "selection" and (not lost or ask.number in lost):
                lost.append(ask.number)
                return Failure("no more")
            return pools.hill(ask, part)

        summary = run(judge=judge, trials=15, finalists=1, racing=False)
        assert summary["champion"]["trial"] not in lost
        assert summary["champion"]["name"].startswith("candidate")

    def test_of_all_finalists_stop_the_run(self, run: Any, pools: Any) -> None:
        def judge(ask: Ask, part: str) -> Any:
            return Failure("no more") if part == "selection" else pools.hill(ask, part)

        with pytest.raises(SearchFailed, match="selection"):
            run(judge=judge)


class TestStopping:
    @pytest.mark.parametrize("after", [1, 5, 11])
    def test_an_interrupt_finishes_what_runs(self, run: Any, pools: Any, tmp_path: Path, after: int) -> None:
        def interrupt(pool: Any) -> None:
            if pool.finished == after:
                signal.raise_signal(signal.SIGINT)

        handler = signal.getsignal(signal.SIGINT)
        summary = run(trials=10, pool={"on_wait": interrupt})
        assert (summary["status"], summary["stopped"]) == ("stopped", "interrupted")
        assert pools.made[0].finished == after + 1
        assert pools.made[0].closed
        assert signal.getsignal(signal.SIGINT) is handler
        assert run(trials=10)["status"] == "finished"
        assert [n for n, part in pools.asked if part == "search"] == list(range(10))

    def test_a_terminal_that_closes_stops_it_unless_that_is_ignored(self, run: Any) -> None:
        def close(pool: Any) -> None:
            if pool.finished == 4:
                signal.raise_signal(signal.SIGHUP)

        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        try:
            assert run(pool={"on_wait": close})["stopped"] == "interrupted"
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
            assert run("other", pool={"on_wait": close})["status"] == "finished"
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)

    def test_nobody_has_to_watch(self, config_of: Any, pools: Any, tmp_path: Path) -> None:
        class Terminal:
            """It is gone after some results."""

            def __init__(self) -> None:
                self.shown = 0

            def __getattr__(self, event: str) -> Callable[..., None]:
                return self._show

            def _show(self, *_: Any) -> None:
                self.shown += 1
                if self.shown > 5:
                    raise BrokenPipeError("Broken pipe")

        terminal = Terminal()
        config = config_of(workers=1, trials=10)
        summary = search(config, tmp_path / "run", make_pool=pools(pools.hill), progress=terminal)
        assert (summary["status"], terminal.shown) == ("finished", 6)
        assert "progress is no longer shown: Broken pipe" in (tmp_path / "run/run.log").read_text()

    def test_an_interrupt_of_the_baselines_changes_nothing_later(self, run: Any, tmp_path: Path) -> None:
        def interrupt(pool: Any) -> None:
            signal.raise_signal(signal.SIGINT)

        options = {"trials": 14, "racing": True, "genome": STAGES, "optimizer": "auto"}
        run("whole", **options)
        assert run(pool={"on_wait": interrupt}, **options)["status"] == "stopped"
        run(**options)
        assert proposals(tmp_path / "run") == proposals(tmp_path / "whole")
        ends = [json.loads((tmp_path / name / "run.json").read_text())["stage_ends"] for name in ("run", "whole")]
        assert ends[0] == ends[1]

    def test_a_second_interrupt_stops_at_once(self, run: Any, pools: Any) -> None:
        def interrupt(pool: Any) -> None:
            if pool.finished == 4:
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            run(pool={"on_wait": interrupt})
        assert pools.made[0].finished == 4
        assert run()["trials"]["complete"] == 10

    @pytest.mark.parametrize("racing", [False, True])
    def test_hours_leave_time_for_the_finals(
        self, run: Any, monkeypatch: pytest.MonkeyPatch, racing: bool
    ) -> None:
        clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
        monkeypatch.setattr(session, "time", clock)

        def tick(pool: Any) -> None:
            clock.now += pool.next_seconds

        options: dict[str, Any] = {
            "trials": 500,
            "hours": 1.0,
            "racing": {"enabled": racing, "by": "metric"},
            "pool": {"on_wait": tick, "seconds": 60.0},
            "documents": {"search": 32, "selection": 24, "holdout": 24},
        }
        summary = run(**options)
        assert summary["status"] == "finished"
        assert 10 < summary["trials"]["complete"] < 60
        assert summary["seconds"]["total"] <= 3600
        assert summary["champion"]["holdout"] is not None
        # The same command has no time left: it only reports what is known, and holds nothing out again.
        again = run(**options)
        assert again["trials"] == summary["trials"]
        assert again["champion"] == summary["champion"]
        assert not again["documents"]["holdout_reused"]
        # With more time it goes on from there.
        more = run(**options | {"hours": 1.5})
        assert more["trials"]["complete"] > summary["trials"]["complete"]
        changed = more["champion"]["trial"] != summary["champion"]["trial"]
        assert more["documents"]["holdout_reused"] == changed

    @pytest.mark.parametrize("copied", [False, True])
    @pytest.mark.parametrize("when", ["scoring", "waiting"])
    def test_a_folder_that_is_moved_is_not_written_to(
        self, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, copied: bool
    ) -> None:
        """Nor is a copy in its place. Of either, the search goes on."""
        here, there, copy = tmp_path / "run", tmp_path / "there", {}
        beat = session.Session.beat

        def move(*_: Any) -> None:
            here.rename(there)
            if copied:
                shutil.copytree(there, here)
                copy.update({path: path.read_bytes() for path in here.iterdir() if path.name != "live.json"})

        def waiting(pool: Any) -> None:
            if when == "scoring" and pool.finished == 5:
                move()

        def beating(self: session.Session, *args: int) -> None:
            if when == "waiting" and len(self.run.record.trials) == 5 and not there.exists():
                self._pulse._next = 0.0
                move()
            beat(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(session.Session, "beat", beating)
            with pytest.raises(RunStopped, match="run: was moved or replaced while a search ran in it"):
                run(pool={"on_wait": waiting})
        assert here.exists() == copied
        assert {path: path.read_bytes() for path in copy} == copy
        assert run("there")["trials"]["complete"] == 10


class TestFinals:
    def test_selection_chooses_and_holdout_reports(self, run: Any, tmp_path: Path) -> None:
        """Search prefers later candidates a little, selection the 2nd best; the best parent is search's."""

        def judge(ask: Ask, part: str) -> float:
            if ask.kind == "parent":
                return {"search": (4.999, 5), "holdout": (3, 2)}[part][ask.number]
            if ask.kind == "baseline":
                return 2.5
            later = 6 + 0.003 * ask.number
            return {"search": later, "selection": 10 if ask.number == 8 else 5, "holdout": 4.5}[part]

        summary = run(judge=judge, trials=10, finalists=3)
        asks = {a.number: a for a in read_asks(tmp_path / "run")}
        assert summary["champion"]["name"] == asks[8].name
        names = [asks[f["trial"]].name for f in summary["finalists"]]
        assert {asks[8].name, asks[9].name} <= set(names)
        assert not set(BASELINES).intersection(names)  # beaten on the search documents
        assert asks[3].name not in names
        selection = [f["selection"] for f in summary["finalists"]]
        assert selection == sorted(selection, reverse=True)
        assert summary["gain_over_best_parent"]["parent"] == "bob"  # held out, ann is better
        assert " On held-out documents ann is the better parent: " in summary["outcome"]

        scores = {
            (line["ask"], line["part"]): Scores.from_json(json.dumps(line["scores"])).values(
                "toy_choice", "acc,none"
            )
            for line in read_lines(tmp_path / "run/scores.jsonl")
        }
        for key, other in (("gain_over_best_parent", 1), ("gain_over_uniform", 2)):
            expected = paired_difference(scores[8, "holdout"], scores[other, "holdout"])
            assert summary[key]["holdout"] == pytest.approx(expected.mean, abs=1e-5)
            assert summary[key]["ci95"] == pytest.approx([expected.low, expected.high], abs=1e-5)
            assert expected.high > expected.low
        assert {ask for ask, part in scores if part == "holdout"} == {0, 1, 2, 8}
        assert "beats the best parent" in summary["outcome"]

    @pytest.mark.parametrize("name", ["ann", "uniform"])
    def test_a_champion_that_was_not_searched_is_no_signal(self, run: Any, name: str) -> None:
        summary = run(judge=lambda ask, part: 2.0 if ask.name == name else 0.0)
        assert summary["champion"]["name"] == name
        assert summary["outcome"].startswith("No signal")
        assert name in summary["outcome"]

    def test_a_parent_that_is_not_the_best_one_in_search_may_be_the_champion(self, run: Any) -> None:
        def judge(ask: Ask, part: str) -> float:
            if ask.kind != "parent":
                return 0.3
            return 0.57 if (ask.name == "ann") == (part == "search") else 0.5

        summary = run(judge=judge, trials=3, pool={"luck": 1.2})
        gain = summary["gain_over_best_parent"]
        assert (summary["champion"]["name"], gain["parent"]) == ("bob", "ann")
        says = f"nothing better than the parent bob, which is not the best one in search: {gain['holdout']:+.4f}"
        assert says in summary["outcome"]
        assert [label for label, *_ in gains_of(summary)] == ["best parent", "uniform merge"]

    def test_the_best_parent_as_the_champion_gains_over_the_uniform_merge(self, run: Any) -> None:
        summary = run(judge=lambda ask, part: float(ask.name == "ann"), trials=3)
        assert summary["champion"]["name"] == summary["gain_over_best_parent"]["parent"] == "ann"
        assert [label for label, *_ in gains_of(summary)] == ["uniform merge"]

    @pytest.mark.parametrize(("gain", "says"), [(-1.0, "is worse than"), (0.0, "cannot be told from")])
    def test_a_champion_that_does_not_hold_is_said_to(self, run: Any, gain: float, says: str) -> None:
        def judge(ask: Ask, part: str) -> float:
            mine = ask.kind == "search"
            return float(mine) if part != "holdout" else gain * mine

        assert says in run(judge=judge)["outcome"]

    @pytest.mark.parametrize("lost", ["ann", "candidate 4"])
    def test_no_report_without_what_it_compares(self, run: Any, pools: Any, lost: str) -> None:
        """A parent that drops out of the finals would make a weaker one the best; the next session tries again."""

        def judge(ask: Ask, at: str) -> float | Failure:
            if ask.name == lost and at == "holdout" and len(pools.made) == 1:
                return Failure("the worker died", retry=True)
            return 2.0 if ask.name == "candidate 4" else 1.0

        with pytest.raises(SearchFailed, match=f"{lost} could not be scored on the holdout documents"):
            run(judge=judge)
        summary = run(judge=judge)
        assert summary["status"] == "finished"
        assert summary["champion"]["name"] == "candidate 4"
        assert summary["gain_over_best_parent"]["ci95"][0] > 0

    def test_best_yaml_is_mended_after_a_crash(self, run: Any, pools: Any, tmp_path: Path) -> None:
        with pytest.raises(pools.crash):
            run(pool={"crash_after": 5})
        (tmp_path / "run/best.yaml").unlink()
        with pytest.raises(pools.crash):
            run(pool={"crash_after": 0})
        scored = {line["ask"] for line in read_lines(tmp_path / "run/scores.jsonl")}
        asks = [a for a in read_lines(tmp_path / "run/asks.jsonl") if a["number"] in scored]
        best = max(asks, key=lambda a: pools.hill(Ask(**a), "search"))
        assert f": {best['name']}," in (tmp_path / "run/best.yaml").read_text()


class TestRecipesThatTravel:
    """A recipe says how it was found, and so does the card of the model that it gives."""

    def test_the_champions_card_tells_how_it_was_validated(self, run: Any, tmp_path: Path) -> None:
        summary = run(trials=24, racing=True)
        best = tmp_path / "run/best.yaml"
        search = yaml.safe_load(best.read_text())["heterosis"]["search"]
        assert search["trial"] == summary["champion"]["trial"]
        assert search["candidates"] == 24
        assert search["stopped_early"] == summary["trials"]["pruned"] > 0
        assert search["tasks"] == {"toy_choice": "acc,none"}
        assert search["documents"] == PARTS
        assert search["held_out"]["merge"] == summary["champion"]["holdout"]
        assert search["held_out"]["others"].keys() == {"ann", "bob", "uniform"}
        assert search["outcome"] == summary["outcome"]
        assert search["versions"].keys() == {"heterosis", "torch", "transformers", "lm_eval"}
        assert search["config"] == EvolveConfig.load(tmp_path / "run/config.yaml").fingerprint()

        merged = merge_models(best, tmp_path / "merged")
        card = (merged / "README.md").read_text()
        assert "- Searched on 20 documents of `toy_choice` (`acc,none`)." in card
        assert "- Validated on 30 documents" in card
        assert f"| **This merge** | {summary['champion']['holdout']:.4f} |" in card
        assert f"| ann | {summary['parents']['ann']['holdout']:.4f} |" in card
        assert " ".join(summary["outcome"].split()) in card.replace("\\", "")
        # The folder's own recipe gives the same model again, and says the same of the search.
        again = merge_models(merged / "recipe.yaml", tmp_path / "again")
        weights = "model.safetensors"
        assert (again / weights).read_bytes() == (merged / weights).read_bytes()
        assert yaml.safe_load((again / "recipe.yaml").read_text())["heterosis"]["search"] == search

    def test_nothing_is_said_of_what_was_not_validated(self, run: Any, pools: Any, tmp_path: Path) -> None:
        with pytest.raises(pools.crash):
            run(pool={"crash_after": 8})
        unfinished = yaml.safe_load((tmp_path / "run/best.yaml").read_text())["heterosis"]["search"]
        assert not {"held_out", "outcome"} & unfinished.keys()
        summary = run()
        trial = next(n for n in (3, 4) if n != summary["champion"]["trial"])
        other = yaml.safe_load(export_trial(tmp_path / "run", trial))["heterosis"]["search"]
        assert other["trial"] == trial
        assert not {"held_out", "outcome"} & other.keys()
        champion = export_trial(tmp_path / "run", summary["champion"]["trial"])
        assert yaml.safe_load(champion)["heterosis"]["search"]["outcome"] == summary["outcome"]


class TestRacing:
    def test_stops_what_is_beaten_and_lists_it(self, run: Any, pools: Any, tmp_path: Path) -> None:
        summary = run(trials=24, racing=True)
        trials = summary["trials"]
        assert trials["complete"] + trials["pruned"] == 24
        assert trials["pruned"] > 4
        whole = run("whole", trials=24)
        assert summary["documents"]["scored"] < whole["documents"]["scored"]
        rows = list(csv.DictReader((tmp_path / "run/trials.csv").open()))
        for row in rows:
            assert (int(row["documents"]) < 20) == (row["pruned"] == "1")
        # The uniform merge comes first; the parents, clearly worse, race against it, and among themselves later.
        assert [(row["name"], row["pruned"]) for row in rows[:3]] == [("uniform", "0"), ("ann", "1"), ("bob", "1")]
        assert all(result["estimated"][:1] == ["search"] for result in summary["parents"].values())
        (row, *_) = closing_table(summary)
        assert (row[0], row[1][0], row[3][0]) == ("ann", "~", "0")
        for result in (summary["champion"], *summary["parents"].values()):
            by_task = result["by_task"].values()
            assert sum(own["holdout"] for own in by_task) == pytest.approx(result["holdout"], abs=1e-5)
        pruned = {int(row["trial"]) for row in rows if row["pruned"] == "1"}
        assert summary["champion"]["trial"] not in pruned
        assert pruned & {f["trial"] for f in summary["finalists"]} <= {1, 2}
        assert summary["gain_over_best_parent"]["parent"] in ("ann", "bob")
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'run/study.db'}")
        states = [t.state.name for t in study.get_trials()]
        assert states.count("PRUNED") == trials["pruned"]

    @pytest.mark.parametrize(("workers", "ordered", "races"), [(3, 0, False), (2, 0, True), (3, 4, True)])
    def test_baselines_race_unless_workers_would_wait(
        self, run: Any, tmp_path: Path, workers: int, ordered: int, races: bool
    ) -> None:
        """In the ordered mode the number of workers changes nothing."""
        run(trials=8, racing=True, workers=workers, ordered=ordered)
        asks = [ask for ask in read_asks(tmp_path / "run") if ask.kind != "search"]
        assert [ask.name for ask in asks] == (["uniform", "ann", "bob"] if races else BASELINES)
        assert any(ask.incumbent is not None for ask in asks) == races

    def test_an_estimate_is_near_the_truth(self, run: Any, pools: Any, tmp_path: Path) -> None:
        run(trials=24, racing=True)
        asks = {ask.number: ask for ask in read_asks(tmp_path / "run")}
        for row in csv.DictReader((tmp_path / "run/trials.csv").open()):
            if row["pruned"] == "1":
                assert float(row["score"]) == pytest.approx(pools.hill(asks[int(row["ask"])], "search"), abs=0.1)

    @pytest.mark.parametrize("crash_after", [4, 10, 17, 30])
    def test_goes_on_where_it_was(self, run: Any, pools: Any, tmp_path: Path, crash_after: int) -> None:
        whole = run("whole", trials=24, racing=True)
        asked = pools.asked
        with pytest.raises(pools.crash):
            run(trials=24, racing=True, pool={"crash_after": crash_after})
        summary = run(trials=24, racing=True)
        for key in ("trials", "champion", "documents", "gain_over_best_parent"):
            assert summary[key] == whole[key]
        assert proposals(tmp_path / "run") == proposals(tmp_path / "whole")
        first, rest = (pool.asked for pool in pools.made[1:])
        both = [(n, part) for n, part, _ in (*first[:crash_after], *rest)]
        assert both == asked


class TestOrdered:
    @pytest.mark.parametrize(
        "options",
        [
            {"trials": 24, "optimizer": "cma"},
            {"trials": 24, "optimizer": "random"},
            {"max_documents": 600},
            {"max_documents": 600, "objective": "worst"},
        ],
    )
    def test_gives_the_same_for_any_number_of_workers(
        self, run: Any, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        found = []
        for workers in (1, 2, 4):
            folder = f"workers{workers}"
            # Later candidates finish first, as fast ones may.
            more = {"workers": workers, "ordered": 4, "racing": True, "pool": {"last_first": True}}
            summary = run(folder, **{"trials": 200, **options, **more})
            asked = [(a.name, a.recipe, a.rivals) for a in read_asks(tmp_path / folder)]
            found.append((asked, summary["champion"]["name"], summary["documents"]["scored"]))
        assert found[0] == found[1] == found[2]
        assert len(found[0][0]) < 60, "the documents are what ended the search"

    def test_goes_on_where_it_was(self, run: Any, pools: Any, tmp_path: Path) -> None:
        options: dict[str, Any] = {"trials": 24, "workers": 3, "ordered": 4}
        run("whole", **options)
        for crash_after in range(9, 18):  # a generation is six
            with pytest.raises(pools.crash):
                run(f"run{crash_after}", **options, pool={"crash_after": crash_after})
            run(f"run{crash_after}", **options)
            assert proposals(tmp_path / f"run{crash_after}") == proposals(tmp_path / "whole")


class TestTheSameRecipe:
    GENOME: ClassVar[dict[str, Any]] = {
        "merge_method": "karcher",
        "base_model": None,
        "layer_granularity": 0,
        "ranges": {"max_iter": [2, 4]},
    }

    def test_is_scored_once(self, run: Any, pools: Any, tmp_path: Path) -> None:
        summary = run(genome=self.GENOME, trials=15, optimizer="random")
        recipes = [ask.recipe for ask in read_asks(tmp_path / "run") if ask.kind == "search"]
        assert len(recipes) == 15 - len(BASELINES)
        assert len(set(recipes)) <= 3
        (pool,) = pools.made
        scored = Counter((recipe, part) for _, part, recipe in pool.asked)
        assert set(scored.values()) == {1}
        with (tmp_path / "run" / "trials.csv").open() as file:
            scores = {(recipes_of(tmp_path / "run")[int(r["ask"])], r["score"]) for r in csv.DictReader(file)}
        assert len(scores) == len(set(recipes)) + len(BASELINES)
        assert summary["documents"]["scored"] == sum(PARTS[part] for _, part in scored)

    def test_counts_when_a_run_goes_on(self, run: Any, pools: Any, tmp_path: Path) -> None:
        options: dict[str, Any] = {"genome": self.GENOME, "trials": 15, "optimizer": "random"}
        run("whole", **options)
        with pytest.raises(pools.crash):
            run(**options, pool={"crash_after": 5})
        run(**options)
        assert proposals(tmp_path / "run") == proposals(tmp_path / "whole")
        assert len(read_lines(tmp_path / "run" / "scores.jsonl")) == len(
            read_lines(tmp_path / "whole" / "scores.jsonl")
        )

    def test_counts_in_the_order_of_asking(self, run: Any, tmp_path: Path) -> None:
        found = []
        for workers in (1, 2, 4):
            options: dict[str, Any] = {"trials": 24, "ordered": 4, "racing": True, "optimizer": "random"}
            run(f"{workers}", genome=self.GENOME, workers=workers, pool={"last_first": True}, **options)
            with (tmp_path / f"{workers}" / "trials.csv").open() as file:
                found.append({(r["ask"], r["score"], r["documents"]) for r in csv.DictReader(file)})
        assert found[0] == found[1] == found[2]


def recipes_of(folder: Path) -> dict[int, str]:
    return {ask.number: ask.recipe for ask in read_asks(folder)}


class TestObjectives:
    @staticmethod
    def judged(ask: Ask, part: str, task: str) -> float:
        """One task wants weights of 1, the other of 0."""
        weights = [v for k, v in ask.values.items() if k.startswith("weight")] or [0.5]
        towards = sum(weights) / len(weights)
        return towards if task == "toy_choice" else 1 - towards

    def test_a_front_is_found_and_exported(self, run: Any, tmp_path: Path) -> None:
        tasks = ["toy_choice", "toy_generate"]
        summary = run(trials=30, objective="pareto", tasks=tasks, optimizer="random", judge=self.judged)
        assert len(summary["front"]) >= 4
        gains = [row["gains"] for row in summary["front"]]
        assert not any(all(a[t] <= b[t] for t in tasks) and a != b for a in gains for b in gains), (
            "none is worse in everything than another"
        )
        assert max(g["toy_choice"] for g in gains) > max(g["toy_choice"] for g in gains[:1])
        for row in summary["front"]:
            text = (tmp_path / "run" / row["recipe"]).read_text()
            assert text.startswith(f"# heterosis trial {row['trial']}: ")
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'run/study.db'}")
        assert len(study.directions) == 2

    def test_of_an_earlier_front_nothing_stays(self, run: Any, tmp_path: Path) -> None:
        options: dict[str, Any] = {"objective": "pareto", "tasks": ["toy_choice", "toy_generate"]}
        options |= {"optimizer": "random", "judge": self.judged, "finalists": 2}
        fronts = []
        for trials in (12, 60):
            summary = run(trials=trials, **options)
            fronts.append({row["recipe"] for row in summary["front"]})
            assert {f"front/{path.name}" for path in (tmp_path / "run/front").iterdir()} == fronts[-1]
        assert fronts[0] - fronts[1], "some have gone"

    def test_the_worst_task_counts(self, run: Any, tmp_path: Path) -> None:
        """Parents have 0.5 of both; the smallest gain is largest in the middle."""
        summary = run(trials=30, objective="worst", tasks=["toy_choice", "toy_generate"], judge=self.judged)
        champion = next(a for a in read_asks(tmp_path / "run") if a.name == summary["champion"]["name"])
        assert abs(self.judged(champion, "", "toy_choice") - 0.5) < 0.1
        assert summary["gains_by_task"].keys() == {"toy_choice", "toy_generate"}

    def test_a_constraint_keeps_the_champion_near_the_parents(self, run: Any, tmp_path: Path) -> None:
        tasks = [{"name": "toy_choice", "weight": 3.0}, "toy_generate"]
        free = run("free", trials=30, tasks=tasks, judge=self.judged)
        bound = run("bound", trials=30, tasks=tasks, judge=self.judged, constraints={"toy_generate": 0.05})
        assert free["gains_by_task"]["toy_generate"] < -0.2
        assert bound["gains_by_task"]["toy_generate"] > -0.1
        assert bound["gains_by_task"]["toy_choice"] > -0.05


class TestBatchSize:
    """Found out once in a run where the config leaves it open, and the same ever after."""

    def test_is_probed_once(self, run: Any, pools: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        probed: list[str] = []

        def probe(setup: Setup, recipe: str, *, address: str | None) -> int:
            probed.append(recipe)
            return 64

        monkeypatch.setattr(session, "probed_batch_size", probe)
        run_on_gpu = functools.partial(run, batch_size="auto", device="cuda")
        first = run_on_gpu(trials=5)
        again = run_on_gpu(trials=8)
        assert first["environment"] == again["environment"]
        assert first["environment"]["batch_size"] == 64
        assert [pool.setup.batch_size for pool in pools.made] == [64, 64]
        assert len(probed) == 1
        assert yaml.safe_load(probed[0])["merge_method"]
        assert "batch_size: 64" in (tmp_path / "run/run.log").read_text()

    def test_that_cannot_be_found_leaves_no_folder(
        self, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def probe(*_: Any, **__: Any) -> int:
            raise InputError("batch_size: auto: out of memory")

        monkeypatch.setattr(session, "probed_batch_size", probe)
        with pytest.raises(InputError, match="batch_size: auto"):
            run(batch_size="auto", device="cuda")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("asked", "found"), [({"batch_size": "auto"}, 16), ({"batch_size": 4}, 4), ({"backend": "hf"}, 16)]
    )
    def test_is_known_on_a_cpu(self, run: Any, pools: Any, asked: dict[str, Any], found: int) -> None:
        summary = run(trials=3, **asked)
        assert summary["environment"]["batch_size"] == found == pools.made[0].setup.batch_size
        assert summary["environment"].get("backend") == asked.get("backend")


def test_another_backend_gives_the_same_search(toy_config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Races and chat templates included."""
    scores = []
    for backend in ("resident", {"name": "hf", "args": {"dtype": "float32"}}):
        plain = toy_config(workers=1, trials=4, optimizer="random", backend=backend, apply_chat_template=True)
        plain["documents"] = {"search": 16, "selection": 4, "holdout": 4}
        folder = tmp_path / f"run-{len(scores)}"
        search(EvolveConfig.parse(yaml.safe_dump(plain)), folder, make_pool=InlinePool)
        rows = csv.DictReader((folder / "trials.csv").open())
        scores.append([(row["name"], row["pruned"], row["documents"], float(row["score"])) for row in rows])
    assert scores[0] == scores[1]


class TestRefusals:
    def test_a_chat_without_a_template(self, run: Any, make_llama: Any, toy_models: Any, tmp_path: Path) -> None:
        mine = make_llama(tmp_path / "mine", seed=6, noise_from=toy_models["base"])
        (mine / "chat_template.jinja").unlink()
        genome = {"models": [str(mine), str(toy_models["bob"])]}
        with pytest.raises(InputError, match="mine has no chat template; write apply_chat_template: false"):
            run(genome=genome, apply_chat_template=True)
        assert not (tmp_path / "run").exists()

    def test_another_config(self, run: Any, tmp_path: Path) -> None:
        run()
        before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
        with pytest.raises(InputError, match=r"batch_size: 8, was 16") as error:
            run(batch_size=8)
        assert len(error.value.faults) == 1
        assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before

    def test_a_folder_that_is_in_use(self, run: Any, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path / "run")
        with pytest.raises(InputError, match="another search is running"):
            run()
        folder.close()
        assert run()["status"] == "finished"

    def test_another_environment(self, run: Any, pools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        run(trials=5)
        version = run_module.version
        with monkeypatch.context() as patch:
            patch.setattr(run_module, "version", lambda name: "9.9" if name == "lm-eval" else version(name))
            with pytest.raises(InputError, match=r"lm_eval: [\d.]+ then, 9\.9 now"):
                run(trials=8)
        assert len(pools.made) == 1
        assert run(trials=8)["trials"]["complete"] == 8

    def test_other_documents(self, run: Any, toy_tasks: Path) -> None:
        run(trials=5)
        rows = toy_tasks / "rows.json"
        before = rows.read_text()
        try:
            rows.write_text(before.replace("cat", "dog"))
            with pytest.raises(InputError, match="toy_choice: its documents changed since"):
                run(trials=8)
        finally:
            rows.write_text(before)

    def test_another_config_of_a_model(self, run: Any, make_llama: Any, toy_models: Any, tmp_path: Path) -> None:
        mine = make_llama(tmp_path / "mine", seed=5, noise_from=toy_models["base"])
        genome = {"models": [str(mine), str(toy_models["bob"])]}
        run(trials=5, genome=genome)
        config = mine / "config.json"
        before = config.read_text()
        config.write_text(json.dumps(json.loads(before) | {"rope_theta": 7.0}))
        with pytest.raises(InputError, match="mine: another config or tokenizer"):
            run(trials=8, genome=genome)
        config.write_text(before)
        assert run(trials=8, genome=genome)["trials"]["complete"] == 8

    def test_other_weights(self, run: Any, make_llama: Any, toy_models: Any, tmp_path: Path) -> None:
        mine = make_llama(tmp_path / "mine", seed=5, noise_from=toy_models["base"])
        genome = {"models": [str(mine), str(toy_models["bob"])]}
        run(trials=5, genome=genome)
        weights = mine / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        with pytest.raises(InputError, match="models: "):
            run(trials=8, genome=genome)

    @pytest.mark.parametrize(
        "storage", ["nonsense", "sqlite:////nowhere/at/all.db", "postgresql://me:secret@host/x"]
    )
    def test_a_storage_that_does_not_work(self, toy_config: Any, pools: Any, tmp_path: Path, storage: str) -> None:
        config = EvolveConfig.parse(yaml.safe_dump(toy_config()))
        with pytest.raises(InputError, match="--storage") as error:
            search(config, tmp_path / "run", storage=storage, make_pool=pools())
        assert len(error.value.faults) == 1
        assert "secret" not in str(error.value)
        assert not (tmp_path / "run").exists()


def test_another_storage_holds_the_study(toy_config: Any, pools: Any, tmp_path: Path) -> None:
    config = EvolveConfig.parse(yaml.safe_dump(toy_config(workers=1)))
    storage = f"sqlite:///{tmp_path}/elsewhere.db"
    search(config, tmp_path / "run", storage=storage, make_pool=pools())
    assert not (tmp_path / "run/study.db").exists()
    (name,) = optuna.get_all_study_names(storage)
    assert len(optuna.load_study(study_name=name, storage=storage).trials) == 10
    written = "".join(p.read_text(errors="ignore") for p in (tmp_path / "run").iterdir())
    assert "elsewhere" not in written


@pytest.mark.parametrize("name", ["run ? %20 #1", "läufe {0} & 100%/run?mode=memory"])
def test_a_folder_of_any_name_holds_its_study(run: Any, tmp_path: Path, name: str) -> None:
    run(name, trials=4)
    assert len(list(tmp_path.rglob("*.db"))) == 1
    study = study_url(tmp_path / name)
    (known,) = optuna.get_all_study_names(study)
    assert len(optuna.load_study(study_name=known, storage=study).trials) == 4
    assert (tmp_path / name / "study.db").exists()
    assert run(name, trials=5)["trials"]["complete"] == 5


def test_a_folder_whose_name_is_no_text_is_refused(run: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"udcff: must have a name that is UTF-8 text; choose another --run-dir"):
        run("run-\udcff")
    assert list(tmp_path.iterdir()) == []


def test_options_replace_the_config(toy_config: Any, pools: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(toy_config()))
    search(os.fspath(path), tmp_path / "run", trials=4, workers=2, seed=9, make_pool=pools())
    config = EvolveConfig.load(tmp_path / "run/config.yaml")
    assert (config.trials, config.workers, config.seed) == (4, 2, 9)
    assert pools.made[0].size == 2


def test_a_search_from_a_parent_begins_with_its_weights_and_a_usual_density(run: Any, tmp_path: Path) -> None:
    """A parent is the point that drops nothing, which says nothing of the density of a merge."""

    def judge(ask: Ask, part: str) -> float:
        return 5 if ask.name == "ann" else 2

    run(judge=judge, trials=5, genome={"merge_method": "ties", "layer_granularity": 0}, optimizer="gp")
    first = next(ask for ask in read_asks(tmp_path / "run") if ask.kind == "search")
    assert {name: round(float(value), 3) for name, value in first.values.items()} == {
        "weight/ann": 1.0,
        "weight/bob": 0.0,
        "density": 0.5,
    }


@pytest.mark.parametrize("others", [[0.0, 1.0], [0.5, 0.5]], ids=["parent", "uniform"])
def test_a_model_begins_around_the_second_best_too(run: Any, tmp_path: Path, others: list[float]) -> None:
    """By turns with the best: which of two is ahead may be chance, and they may lie in different valleys."""
    known = {"ann": 0.9, "bob": 0.8 if others[0] < 0.5 else 0.3, "uniform": 0.5}
    run(
        judge=lambda ask, part: known.get(ask.name, 0.1),
        trials=13,
        genome={"layer_granularity": 0},
        optimizer={"name": "gp", "sigma0": 0.01},
    )
    asks = [ask for ask in read_asks(tmp_path / "run") if ask.kind == "search"]
    weights = [list(ask.values.values()) for ask in asks]
    for own, other in zip(weights[:6:2], weights[1:6:2], strict=True):
        assert own == pytest.approx([1.0, 0.0], abs=0.04)
        assert other == pytest.approx(others, abs=0.04)


STAGES = {"layer_granularity": 0, "control_points": [1, 2]}


class TestStages:
    def test_the_finer_one_starts_from_the_best_before(self, run: Any, tmp_path: Path) -> None:
        summary = run(trials=43, genome=STAGES, optimizer={"name": "cma", "sigma0": 0.01})
        assert summary["status"] == "finished"
        asks = [a for a in read_asks(tmp_path / "run") if a.kind == "search"]
        coarse, fine = ([a for a in asks if a.stage == stage] for stage in (0, 1))
        assert {len(a.values) for a in coarse} == {2}
        assert {len(a.values) for a in fine} == {4}
        rows = list(csv.DictReader((tmp_path / "run/trials.csv").open()))
        scores = {int(row["ask"]): float(row["score"]) for row in rows}
        best = max(coarse, key=lambda a: scores[a.number])
        first = fine[0].values  # steps of 0.01 of the range around the best
        for name, value in best.values.items():
            near = [v for own, v in first.items() if own.startswith(f"{name}/")]
            assert near == pytest.approx([min(max(value, 0.15), 1.35)] * 2, abs=0.08)
        assert summary["optimizers"].keys() == {"0", "1"}

    def test_go_on_where_they_were(self, run: Any, pools: Any, tmp_path: Path) -> None:
        run("whole", trials=24, genome=STAGES)
        for crash_after in (8, 9):
            with pytest.raises(pools.crash):
                run(trials=24, genome=STAGES, pool={"crash_after": crash_after})
        run(trials=24, genome=STAGES)
        assert proposals(tmp_path / "run") == proposals(tmp_path / "whole")

    def test_an_extended_run_keeps_what_was_chosen(self, run: Any, tmp_path: Path) -> None:
        run(trials=12, genome=STAGES)
        before = json.loads((tmp_path / "run/run.json").read_text())
        summary = run(trials=20, genome=STAGES)
        after = json.loads((tmp_path / "run/run.json").read_text())
        assert after["stage_ends"] == before["stage_ends"]
        assert after["optimizers"] == before["optimizers"]
        assert summary["trials"]["complete"] == 20

    def test_layer_paths_alone(self, run: Any, tmp_path: Path) -> None:
        genome = dict.fromkeys(("layer_granularity", "base_model", "merge_method")) | {"layer_paths": True}
        summary = run(trials=14, genome=genome, optimizer="random")
        assert summary["status"] == "finished"
        searched = [a for a in read_asks(tmp_path / "run") if a.kind == "search"]
        assert all(yaml.safe_load(a.recipe)["merge_method"] == "passthrough" for a in searched)
        assert len({a.recipe for a in searched}) > 5

    def test_layer_paths_go_through_the_best_merge_before(self, run: Any, pools: Any, tmp_path: Path) -> None:
        def judge(ask: Ask, part: str) -> float:
            return pools.hill(ask, part) if ask.stage == 0 or ask.kind != "search" else 2.0

        genome = {"layer_granularity": 0, "layer_paths": {"after": "parameters"}}
        options: dict[str, Any] = {"trials": 19, "genome": genome, "judge": judge}
        with pytest.raises(pools.crash):
            run(**options, pool={"crash_after": 14})
        summary = run(**options)
        assert summary["status"] == "finished"
        asks = list(read_asks(tmp_path / "run"))
        rows = csv.DictReader((tmp_path / "run/trials.csv").open())
        scores = {int(row["ask"]): float(row["score"]) for row in rows}
        best = max((a for a in asks if a.kind == "search" and a.stage == 0), key=lambda a: scores[a.number])
        later = [a for a in asks if a.stage == 1]
        assert len(later) == 8
        for ask in later:
            first, path = yaml.safe_load_all(ask.recipe)
            assert first["models"] == yaml.safe_load(best.recipe)["models"]
            assert path["merge_method"] == "passthrough"
        assert summary["champion"]["trial"] >= 11
        assert len(list(yaml.safe_load_all((tmp_path / "run/best.yaml").read_text()))) == 2

    @pytest.mark.parametrize("method", ["ties", "task_arithmetic"])
    def test_layer_paths_go_through_a_baseline_that_no_candidate_beats(
        self, run: Any, tmp_path: Path, method: str
    ) -> None:
        """Whether the space of parameters has it, or not."""

        def judge(ask: Ask, part: str) -> float:
            return {"parent": 0.3, "baseline": 0.45}.get(ask.kind, 0.42 if ask.stage == 0 else 0.6)

        genome = {"layer_granularity": 0, "merge_method": method, "layer_paths": {"after": "parameters"}}
        assert run(trials=16, genome=genome, judge=judge)["status"] == "finished"
        asks = list(read_asks(tmp_path / "run"))
        (uniform,) = (yaml.safe_load(a.recipe)["models"] for a in asks if a.name == "uniform")
        later = [next(yaml.safe_load_all(a.recipe)) for a in asks if a.stage == 1]
        assert len(later) > 2
        weights = [[m["parameters"]["weight"] for m in models] for models in (uniform, later[0]["models"])]
        assert weights == [[0.5, 0.5]] * 2

    def test_a_later_stage_starts_from_a_baseline_that_no_candidate_beats(self, run: Any, tmp_path: Path) -> None:
        def judge(ask: Ask, part: str) -> float:
            return {"parent": 0.3, "baseline": 0.6}.get(ask.kind, 0.4)

        genome = {"layer_granularity": None, "control_points": [1, 2]}
        run(trials=18, genome=genome, judge=judge, optimizer={"name": "cma", "sigma0": 1e-3})
        first = next(a for a in read_asks(tmp_path / "run") if a.stage == 1)
        assert len(first.values) == 4
        assert list(first.values.values()) == pytest.approx([0.5] * 4, abs=0.02)

    def test_a_random_start_is_random(self, run: Any, tmp_path: Path) -> None:
        firsts = []
        for name, random in (("sensible", False), ("random", True)):
            run(name, trials=5, random_init=random, optimizer={"name": "cma", "sigma0": 1e-3})
            first = next(a for a in read_asks(tmp_path / name) if a.kind == "search")
            firsts.append(list(first.values.values()))
        assert max(abs(one - other) for one, other in zip(*firsts, strict=True)) > 0.1


class TestWarmStart:
    def test_takes_the_best_of_a_run_and_a_recipe(self, run: Any, tmp_path: Path) -> None:
        first = run("first", trials=12)
        recipe = tmp_path / "mine.yaml"
        recipe.write_text((tmp_path / "first/best.yaml").read_text())
        run("second", trials=12, seed=9, warm_start=[str(tmp_path / "first"), str(recipe)])
        asks = list(read_asks(tmp_path / "second"))
        warm = [a for a in asks if a.name.startswith("warm start")]
        assert warm[0].name == f"warm start first {first['champion']['trial']}"
        assert len(warm) == 3, "the recipe is the run's champion, once more"
        assert all(a.kind == "baseline" and a.incumbent is not None for a in warm)
        assert len(asks) == 12

    def test_starts_from_the_best_of_them(self, run: Any, tmp_path: Path, pools: Any) -> None:
        run("first", trials=60)
        cold = run("cold", trials=12, seed=9, optimizer={"name": "cma", "sigma0": 0.02})
        warm = run(
            "warm",
            trials=12,
            seed=9,
            optimizer={"name": "cma", "sigma0": 0.02},
            warm_start=str(tmp_path / "first"),
        )
        assert warm["champion"]["search"] > cold["champion"]["search"]
        searched = [a for a in read_asks(tmp_path / "warm") if a.kind == "search"]
        assert min(pools.hill(a, "search") for a in searched) > 0.5

    @pytest.mark.parametrize("order", [("bad", "good"), ("good", "bad")])
    def test_of_equal_names_keep_their_points(
        self, order: Any, run: Any, pools: Any, toy_models: dict[str, Path], tmp_path: Path
    ) -> None:
        for name, weight in (("bad", 0.05), ("good", 0.7)):
            recipe: dict[str, Any] = {"merge_method": "task_arithmetic", "base_model": str(toy_models["base"])}
            recipe |= {"models": [{"model": str(toy_models[m])} for m in ("ann", "bob")], "dtype": "bfloat16"}
            recipe["parameters"] = {"weight": weight}
            (tmp_path / name).mkdir()
            (tmp_path / name / "best.yaml").write_text(yaml.safe_dump(recipe))

        def judge(ask: Ask, part: str) -> float:
            return 0.9 if ask.name == "warm start good-best" else pools.hill(ask, part) - 1

        paths = [str(tmp_path / name / "best.yaml") for name in order]
        summary = run(
            "second", trials=12, warm_start=paths, optimizer={"name": "cma", "sigma0": 0.01}, judge=judge
        )
        assert {"warm start good-best", "warm start bad-best"} <= set(summary["baselines"])
        searched = [a for a in read_asks(tmp_path / "second") if a.kind == "search"]
        weights = [v for a in searched for name, v in a.values.items() if name.startswith("weight")]
        assert min(weights) > 0.5, "the search starts around the better one"

    def test_takes_of_equals_those_asked_first(self, run: Any, tmp_path: Path) -> None:
        """Which results come first may differ each time."""
        options = {"luck": 0.0, "last_first": True}
        summary = run("first", trials=12, workers=4, judge=lambda ask, part: 0.5, pool=options)
        trials = read_trials(tmp_path / "first")
        assert [t.ask.number for t in trials[:3]] != [0, 1, 2]
        champion, *others = [int(name.split()[-1]) for name, _ in warm_start._recipes(tmp_path / "first", "of")]
        assert champion == summary["champion"]["trial"]
        asked = sorted((t for t in trials if t.number != champion), key=lambda t: t.ask.number)
        assert others == [t.number for t in asked[:2]]

    def test_that_has_searched_on_what_is_held_out_is_told(self, run: Any, tmp_path: Path) -> None:
        run("first", trials=12)
        same = run("same", trials=12, seed=9, warm_start=str(tmp_path / "first"))
        assert not same["documents"]["holdout_reused"]
        sizes = {"search": 10, "selection": 10, "holdout": 40}
        with pytest.warns(UserWarning, match=r"first has searched on \d+ of toy_choice's 40 documents"):
            other = run("other", trials=12, documents=sizes, warm_start=str(tmp_path / "first/best.yaml"))
        assert other["documents"]["holdout_reused"]
        assert "Held-out documents were used before." in other["outcome"]

    def test_of_a_run_without_its_recipes_is_refused(self, run: Any, tmp_path: Path) -> None:
        run("first", trials=12)
        (tmp_path / "first/asks.jsonl").unlink()
        with pytest.raises(InputError, match=r"warm_start: .*first/asks.jsonl: lacks candidate \d+, which"):
            run("second", warm_start=str(tmp_path / "first"))

    def test_of_other_models_is_refused(self, run: Any, tmp_path: Path) -> None:
        recipe = tmp_path / "other.yaml"
        recipe.write_text("merge_method: passthrough\nmodels: [{model: org/other}]\n")
        with pytest.raises(InputError, match=r"other\.yaml: merges org/other, which is none of the config's"):
            run(warm_start=str(recipe))

    def test_of_a_model_of_nobody_is_refused(self, run: Any, tmp_path: Path) -> None:
        recipe = tmp_path / "other.yaml"
        recipe.write_text("merge_method: passthrough\nmodels: [{model: ~nosuchuser/other}]\n")
        with pytest.raises(InputError, match=r"warm_start: .*other\.yaml: ~nosuchuser/other: no home folder of "):
            run(warm_start=str(recipe))

    def test_is_not_read_again_when_a_run_goes_on(self, run: Any, pools: Any, tmp_path: Path) -> None:
        run("first", trials=12)
        options = {"warm_start": str(tmp_path / "first"), "seed": 9}
        with pytest.raises(pools.crash):
            run(trials=12, pool={"crash_after": 6}, **options)
        shutil.rmtree(tmp_path / "first")
        summary = run(trials=14, **options)
        assert (summary["status"], summary["trials"]["complete"]) == ("finished", 14)

    def test_of_a_recipe_that_is_a_baseline_warns_of_nothing(self, toy_config: Any, tmp_path: Path) -> None:
        """The uniform merge is no point of the space, and is scored in any case."""
        plain = toy_config(genome={"merge_method": "ties"})
        (uniform,) = (b for b in preflight(EvolveConfig.from_dict(plain)).baselines() if b.name == "uniform")
        (tmp_path / "mean.yaml").write_text(uniform.recipe.to_yaml())
        checked = preflight(EvolveConfig.from_dict(plain | {"warm_start": str(tmp_path / "mean.yaml")}))
        assert uniform.values is None
        assert checked.warnings == ()
        assert [baseline.name for baseline in checked.baselines()] == BASELINES

    def test_may_have_any_path(self, toy_config: Any, tmp_path: Path, toy_models: dict[str, Path]) -> None:
        recipe = tmp_path / "x+y+z.yaml"
        config = EvolveConfig.from_dict(toy_config(warm_start=str(recipe)))
        with pytest.raises(InputError, match=r"x\+y\+z.yaml: no such run folder or recipe file"):
            preflight(config)
        recipe.write_text(
            f"merge_method: linear\nmodels: [{{model: {toy_models['ann']}, parameters: {{weight: 2}}}}]"
        )
        assert preflight(config).baselines()[-1].name == "warm start x+y+z"

    def test_of_no_point_of_the_space_is_told(
        self, toy_config: Any, tmp_path: Path, toy_models: dict[str, Path]
    ) -> None:
        recipe = tmp_path / "twice.yaml"
        recipe.write_text(
            f"merge_method: passthrough\nmodels: [{{model: {toy_models['ann']}}}]\nparameters: {{scale: 2}}\n"
        )
        checked = preflight(EvolveConfig.parse(yaml.safe_dump(toy_config(warm_start=str(recipe)))))
        assert "warm start twice" in [baseline.name for baseline in checked.baselines()]
        assert any(text.startswith("warm start twice: is no point of this space") for text in checked.warnings)

    @pytest.mark.parametrize(("path", "says"), [("nowhere.yaml", "nowhere.yaml"), (".", "not a run folder")])
    def test_of_what_is_neither_is_refused(self, run: Any, tmp_path: Path, path: str, says: str) -> None:
        with pytest.raises(InputError, match=says):
            run(warm_start=str(tmp_path / path))
        assert not (tmp_path / "run").exists()


def test_a_baseline_that_is_scored_later_changes_no_proposal(run: Any, tmp_path: Path) -> None:
    fails = True

    def judge(ask: Any, part: str) -> Any:
        if ask.name == "uniform":
            return Failure("of a test") if fails else 0.5
        return 0.9 - sum((v - 0.7) ** 2 for k, v in ask.values.items() if k.startswith("weight")) / 4

    with suppress(SearchFailed):  # nothing is said without the uniform merge
        run(trials=20, judge=judge, optimizer="gp", pool={"luck": 0.02})
    assert len(list(read_asks(tmp_path / "run"))) > 15
    fails = False
    run(trials=24, judge=judge, optimizer="gp", pool={"luck": 0.02})
    assert "another point today" not in (tmp_path / "run/run.log").read_text()


def test_a_model_keeps_what_the_coarser_stage_found(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Gaussian process is told the results of the stage before, at their points in the finer space."""
    from heterosis.evolve import stages

    told: list[list[tuple[int, tuple[float, ...]]]] = []

    class Listening:
        def __init__(self, **options: Any) -> None:
            self._optimizer = stages_get_optimizer("random")(**options)
            told.append([])

        def tell(self, x: Any, losses: Any, detail: Any = None) -> None:
            told[-1].append((len(x), tuple(losses)))
            self._optimizer.tell(x, losses, detail)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._optimizer, name)

    stages_get_optimizer = stages.get_optimizer
    monkeypatch.setattr(stages, "get_optimizer", lambda name: Listening)
    run(trials=13, genome=STAGES, optimizer="gp")
    rows = list(csv.DictReader((tmp_path / "run/trials.csv").open()))
    coarse = [float(row["score"]) for row in rows if row["kind"] == "search" and row["stage"] == "0"]
    later = [-losses[0] for length, losses in told[1] if length == 4]
    own = sum(row["kind"] == "search" and row["stage"] == "1" for row in rows)
    assert later[-len(coarse) - own : -own] == pytest.approx(coarse)


TWO_TASKS: dict[str, Any] = {"tasks": [{"name": "toy_choice", "metric": "acc"}, {"name": "toy_generate"}]}


def levels(known: dict[str, tuple[float, float]], other: tuple[float, float]) -> Callable[[Ask, str, str], float]:
    """A judge of both tasks, by the candidate's name."""
    return lambda ask, part, task: known.get(ask.name, other)[task == "toy_generate"]


class TestConstraints:
    @pytest.mark.parametrize("racing", [False, True])
    def test_who_breaks_one_less_is_not_stopped_by_who_breaks_it_more(self, run: Any, racing: bool) -> None:
        """The uniform merge has the larger sum, and loses more than it may; the candidates keep to it."""
        judge = levels({"ann": (0.9, 0.0), "bob": (0.1, 0.9), "uniform": (0.75, 0.98)}, (0.88, 0.4))
        limits = {"toy_choice": 0.08, "toy_generate": 0.6}
        documents = {"search": 40, "selection": 18, "holdout": 20}
        options = {"constraints": limits, "documents": documents, "trials": 8, "racing": racing}
        summary = run(judge=judge, pool={"luck": 0.0}, **options, **TWO_TASKS)
        assert summary["champion"]["name"].startswith("candidate")
        assert summary["violated"] == []

    @pytest.mark.parametrize("racing", [False, True])
    def test_the_best_parent_is_a_parent_where_all_break_one(self, run: Any, racing: bool) -> None:
        judge = levels({"ann": (0.9, 0.1), "bob": (0.1, 0.9), "uniform": (0.5, 0.95)}, (0.88, 0.5))
        limits = {"toy_choice": 0.05, "toy_generate": 0.45}
        options = {"constraints": limits, "documents": {"search": 40, "selection": 18, "holdout": 20}, "trials": 6}
        summary = run(judge=judge, pool={"luck": 0.05}, racing=racing, **options, **TWO_TASKS)
        assert summary["gain_over_best_parent"]["parent"] in ("ann", "bob")

    def test_of_a_group_holds_for_each_of_its_tasks(self, config_of: Any, toy_tasks: Path, tmp_path: Path) -> None:
        (tmp_path / "group.yaml").write_text("group: toys\ntask: [toy_choice, toy_generate]\n")
        more = {"include_path": [str(toy_tasks), str(tmp_path)], "tasks": ["toys"]}
        checked = preflight(config_of(constraints={"toys": 0.1}, **more))
        assert checked.objective.constraints == {"toy_choice": 0.1, "toy_generate": 0.1}
        assert preflight(config_of(objective="pareto", **more)).objective.names == ("toy_choice", "toy_generate")

    def test_of_no_task_are_refused(self, config_of: Any) -> None:
        with pytest.raises(
            InputError, match=r"constraints.toy_chioce: is not one of the tasks; did you mean 'toy_ch"
        ):
            preflight(config_of(constraints={"toy_chioce": 0.1}))
        with pytest.raises(InputError, match="objective: pareto needs at least two tasks"):
            preflight(config_of(objective="pareto"))


def test_a_metric_without_weight_keeps_its_direction(config_of: Any, toy_tasks: Path, tmp_path: Path) -> None:
    low = (toy_tasks / "toy_generate.yaml").read_text().replace("toy_generate", "toy_low")
    (tmp_path / "toy_low.yaml").write_text(low.replace("higher_is_better: true", "higher_is_better: false"))
    for file in (*toy_tasks.glob("*.py"), *toy_tasks.glob("*.json*")):
        (tmp_path / file.name).write_text(file.read_text())
    tasks = [{"name": "toy_choice", "metric": "acc"}, {"name": "toy_low", "weight": 0}]
    config = config_of(tasks=tasks, include_path=[str(toy_tasks), str(tmp_path)], constraints={"toy_low": 0.05})
    assert preflight(config).objective.lower == {"toy_low"}


def test_parents_that_meet_more_documents_are_no_poison(run: Any, pools: Any, tmp_path: Path) -> None:
    """Sessions that end there, however many, are not held against a parent, which has its result."""
    known = {"ann": 0.3, "bob": 0.305, "uniform": 0.9}

    def judge(ask: Ask, part: str) -> float:
        return known.get(ask.name, 0.85)

    def stop(pool: Any) -> None:
        (job, _), *_ = pool._running
        results = tmp_path / "run/results.jsonl"
        told = len(read_lines(results)) if results.exists() else 0
        if (job.ask.kind, job.part) == ("parent", "search") and told >= 3:
            raise pools.crash

    documents = {"search": 40, "selection": 15, "holdout": 20}
    options = {"racing": {"by": "metric"}, "trials": 5, "documents": documents}
    for _ in range(6):
        with pytest.raises(pools.crash):
            run(judge=judge, pool={"on_wait": stop}, **options)
    assert run(judge=judge, **options)["status"] == "finished"


def test_a_smaller_budget_ends_a_run_in_its_first_stage(run: Any, pools: Any) -> None:
    genome = {"layer_granularity": None, "control_points": [1, 2]}
    with pytest.raises(pools.crash):
        run(trials=60, genome=genome, pool={"crash_after": 8})
    assert run(trials=12, genome=genome)["trials"]["complete"] == 12


def test_a_run_goes_on_with_the_baselines_that_it_began_with(
    run: Any, pools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the budget is now."""
    with pytest.raises(pools.crash):
        run(trials=60, pool={"crash_after": 30})
    names = run(trials=40)["baselines"].keys()
    assert {"uniform", "dare_linear"} <= names
    assert "would propose another point" not in caplog.text


def test_a_cause_that_cannot_be_written_is_written_all_the_same(run: Any, tmp_path: Path) -> None:
    def judge(ask: Ask, part: str) -> float | Failure:
        return Failure("cannot parse 'caf\ud83d'") if ask.number == 4 else 0.5

    assert run(judge=judge)["failures"] == {"cannot parse 'caf?'": 1}


def test_of_two_means_the_better_one_is_a_finalist(run: Any, tmp_path: Path) -> None:
    """A run that is extended has two."""

    def judge(ask: Ask, part: str) -> float:
        means = [a for a in read_asks(tmp_path / "run") if a.kind == "mean"]
        return {"search": 0.5, "mean": 0.5 if len(means) == 1 else 0.2}.get(ask.kind, 0.1)

    options = {"judge": judge, "pool": {"luck": 1.0}, "finalists": 1}
    run(trials=24, **options)
    finalists = {f["trial"] for f in run(trials=28, **options)["finalists"]}
    assert 23 in finalists
    assert 27 not in finalists


def test_one_folder_in_two_spellings_is_one_model(toy_config: Any, toy_models: Any) -> None:
    ann = str(toy_models["ann"])
    for other in (ann + "/", str(toy_models["ann"].parent / "." / "x" / ".." / "ann")):
        with pytest.raises(InputError, match="models: each may be listed once"):
            EvolveConfig.parse(yaml.safe_dump(toy_config(genome={"models": [ann, other]})))


def test_a_uniform_merge_is_not_compared_with_itself(run: Any) -> None:
    summary = run(judge=lambda ask, part: 0.9 if ask.name == "uniform" else 0.3)
    assert summary["champion"]["name"] == "uniform"
    assert summary["gain_over_uniform"] is None
    assert summary["gain_over_best_parent"]["holdout"] > 0


def test_the_outcome_names_constraints_that_a_baseline_breaks(run: Any) -> None:
    judge = levels({"ann": (0.9, 0.1), "bob": (0.1, 0.9), "uniform": (0.85, 0.85)}, (0.1, 0.1))
    documents = {"search": 40, "selection": 18, "holdout": 20}
    summary = run(
        judge=judge, pool={"luck": 0.0}, constraints={"toy_choice": 0.0}, documents=documents, **TWO_TASKS
    )
    assert summary["champion"]["name"] == "uniform"
    assert summary["outcome"].startswith("No signal")
    assert "It breaks the constraint on toy_choice there." in summary["outcome"]


def test_an_estimate_is_exported_as_one(run: Any, tmp_path: Path) -> None:
    run(racing=True, trials=24)
    rows = list(csv.DictReader((tmp_path / "run/trials.csv").open()))
    stopped = next(row for row in rows if row["pruned"] == "1")
    head = export_trial(tmp_path / "run", int(stopped["trial"])).splitlines()[0]
    assert ", about " in head
    assert head.endswith(f"on the search documents, of which it has met {stopped['documents']}.")


@pytest.mark.parametrize(
    ("limit", "ended_by"),
    [({}, None), ({"max_documents": 300}, "max_documents"), ({"max_documents": 700}, "max_documents")],
)
def test_what_ended_a_search_is_told(
    run: Any, tmp_path: Path, limit: dict[str, int], ended_by: str | None
) -> None:
    """Where a budget has room for the optimizer's mean, and where it has none."""
    assert run(trials=12 if not limit else 100, **limit)["ended_by"] == ended_by
    said = CliRunner().invoke(cli.app, ["status", str(tmp_path / "run")]).stdout.splitlines()[0]
    assert (f", ended by {ended_by}, " in said) == bool(limit)


def test_the_optimizer_is_asked_for_its_mean_once(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is fitted for it."""
    mean, asked = BayesianOptimizer.mean, []

    def ask(self: BayesianOptimizer) -> Any:
        asked.append(mean(self))
        return asked[-1]

    monkeypatch.setattr(BayesianOptimizer, "mean", ask)
    run(trials=20, optimizer="gp")
    assert len(asked) == 1


def test_documents_of_the_finals_are_in_the_summary_at_once(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(session, "SAVE_SHARE", 0)
    seen = []

    def look(pool: Any) -> None:
        (job, _), *_ = pool._running
        if job.part == "holdout":
            seen.append(json.loads((tmp_path / "run/summary.json").read_text())["documents"]["scored"])

    total = run(pool={"on_wait": look})["documents"]["scored"]
    assert seen == [total - 30 * left for left in range(len(seen), 0, -1)]


def test_one_folder_of_tasks_is_no_list_of_letters(
    toy_config: Any, toy_tasks: Path, pools: Any, tmp_path: Path
) -> None:
    config = EvolveConfig.parse(yaml.safe_dump(toy_config(include_path=[], workers=1, trials=4)))
    for number, folder in enumerate((str(toy_tasks), toy_tasks)):
        made = pools(pools.hill)
        summary = search(config, tmp_path / f"run{number}", include_path=folder, make_pool=made)
        assert summary["status"] == "finished"


def test_parents_stop_beyond_doubt_only(run: Any, tmp_path: Path) -> None:
    """However bold the races of candidates are: nobody is called the best parent by mistake."""

    def judge(ask: Ask, part: str) -> float:
        return {"parent": 0.36, "baseline": 0.4}.get(ask.kind, 0.38)

    def met(alpha: float) -> dict[str, list[int]]:
        racing, found = {"first": 10, "factor": 1.3, "alpha": alpha, "by": "metric"}, dict[str, list[int]]()
        sizes = {"search": 50, "selection": 10, "holdout": 20}
        run(f"run{alpha}", judge, {"luck": 1.0}, racing=racing, trials=14, documents=sizes)
        for row in csv.DictReader((tmp_path / f"run{alpha}/trials.csv").open()):
            found.setdefault(row["kind"], []).append(int(row["documents"]))
        return found

    bold, usual = met(0.9), met(0.05)
    assert bold["parent"] == usual["parent"]
    assert sum(bold["search"]) < sum(usual["search"])


def test_parents_that_went_on_have_the_score_of_all_they_met(run: Any, tmp_path: Path) -> None:
    """Both lose to the uniform merge soon; then they race each other to the end."""

    def judge(ask: Ask, part: str) -> float:
        return {"parent": 0.3, "baseline": 0.48}.get(ask.kind, 0.3)

    sizes = {"search": 40, "selection": 10, "holdout": 20, "seed": 4}
    summary = run(judge=judge, pool={"luck": 1.5}, racing={"by": "metric"}, trials=5, documents=sizes)
    assert [t.pruned for t in read_trials(tmp_path / "run") if t.ask.kind == "parent"] == [True, True]
    for parent in summary["parents"].values():
        assert parent["estimated"] == []
        assert parent["search"] == parent["by_task"]["toy_choice"]["search"]

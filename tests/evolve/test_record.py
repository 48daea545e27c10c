"""The record: what is durable when, and what other programs find in the Optuna study."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from heterosis.errors import InputError
from heterosis.evaluate.answers import Answer
from heterosis.evaluate.scores import Scores
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search
from heterosis.evolve.record.record import Record, read_asks
from heterosis.evolve.record.summary_file import read_summary
from heterosis.evolve.report import write_report
from heterosis.evolve.results.export import export_trial
from heterosis.evolve.results.table import read_outlines
from heterosis.evolve.space.dimensions import Dimension
from heterosis.evolve.watching.standing import Watcher

AWKWARD = 0.1 + 0.2  # one of the floats that need 17 digits
DIMENSIONS = [
    Dimension("weight/a/layers.0-9", 0.0, 1.5, 0.5, "weight", "a"),
    Dimension("weight/b/layers.0-9", -1.5, 1.5, 0.5, "weight", "b"),
]
VALUES = {"weight/a/layers.0-9": AWKWARD, "weight/b/layers.0-9": -1e-17}
ANSWERS = {"toy": {3: Answer("it is\u2028x", "x"), 7: Answer("é")}}
SCORES = Scores({"toy": {3: {"acc,none": 1 / 3}, 7: {"acc,none": AWKWARD}}}, 0.5)


def open_record(folder: Path) -> Record:
    return Record(folder, f"sqlite:///{folder}/study.db", "toys", DIMENSIONS)


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="toys", storage=f"sqlite:///{folder}/study.db")


def write_study(record: Record) -> None:
    while record.write_study():
        pass


def test_survives_to_the_last_bit(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    parent = record.ask("parent", "a", "merge_method: passthrough\n", {})
    record.tell(parent, 0.25, (-0.25,))
    candidate = record.ask("search", "candidate é\u2028\n", "recipe: |\n  lines\n", VALUES)
    record.add_scores(candidate, "search", SCORES)
    record.tell(candidate, AWKWARD, (-AWKWARD,), pruned=True, documents=2, seconds={"merge": 1.5, "forward": 2.0})
    late = record.ask("search", "late", "r", VALUES)
    record.tell(late, None, cause="it died")
    open_ = record.ask("search", "open", "r", VALUES)

    again = open_record(tmp_path)
    assert again.asks == record.asks
    assert again.trials == record.trials
    assert [t.score for t in again.trials] == [0.25, AWKWARD, None]
    assert [t.complete for t in again.trials] == [True, False, False]
    assert again.trials[2].cause == "it died"
    assert [ask.after for ask in again.asks.values()] == [0, 1, 2, 3]
    assert again.open_asks == [open_]
    assert again.scores(candidate, "search") == SCORES
    assert again.scores(candidate, "holdout") is None
    assert again.documents_scored() == 2


def test_answers_are_kept_with_the_scores(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    ask = record.ask("search", "one", "r", VALUES)
    record.add_scores(ask, "search", SCORES)
    record.add_scores(ask, "holdout", replace(SCORES, answers=ANSWERS))
    again = open_record(tmp_path)
    found = again.scores(ask, "holdout")
    assert found is not None
    assert found.answers == ANSWERS
    assert again.scores(ask, "search") == SCORES


def test_chunks_are_joined_and_none_is_kept_twice(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    ask = record.ask("search", "one", "r", VALUES, stage=1, rivals=[0, 2])
    record.add_scores(ask, "search", SCORES)
    more = Scores({"toy": {1: {"acc,none": 0.0}}}, 0.25)
    record.add_scores(ask, "search", more)
    with pytest.raises(ValueError, match=r"toy: documents \[1\] are scored in both"):
        record.add_scores(ask, "search", more)
    for found in (record, open_record(tmp_path)):
        assert found.scores(ask, "search") == SCORES.merged(more)
        assert found.documents_scored() == 3
        assert (found.asks[0].stage, found.asks[0].rivals, found.asks[0].incumbent) == (1, (0, 2), 0)


def test_several_losses(tmp_path: Path) -> None:
    record = Record(tmp_path, f"sqlite:///{tmp_path}/study.db", "toys", DIMENSIONS, 2)
    record.tell(record.ask("search", "one", "r", VALUES), 0.5, (-0.5, 0.25))
    record.tell(record.ask("search", "two", "r", VALUES), None, cause="NaN")
    again = Record(tmp_path, f"sqlite:///{tmp_path}/study.db", "toys", DIMENSIONS, 2)
    assert again.trials == record.trials
    write_study(again)
    assert study_of(tmp_path).trials[0].values == [0.5, -0.25]


def test_the_study_is_an_ordinary_one(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    record.tell(record.ask("search", "one", "r", VALUES), 0.5, (-0.5,))
    record.tell(record.ask("search", "two", "r", VALUES | {"weight/a/layers.0-9": 1.0}), AWKWARD, (-AWKWARD,))
    record.tell(record.ask("search", "three", "r", VALUES), None, cause="NaN", seconds={"merge": 60.0})
    write_study(record)

    study = study_of(tmp_path)
    assert study.best_trial.number == 0
    assert study.trials[0].params == VALUES
    assert study.trials[1].value == AWKWARD
    assert study.trials[0].distributions["weight/b/layers.0-9"].low == -1.5
    assert study.trials[2].state.name == "FAIL"
    assert study.trials[2].user_attrs["cause"] == "NaN"
    assert [t.user_attrs["name"] for t in study.trials] == ["one", "two", "three"]
    assert [t.duration.total_seconds() for t in study.trials if t.duration is not None] == [0.0, 0.0, 60.0]


def tell(record: Record, count: int) -> None:
    for _ in range(count):
        score = 0.1 * len(record.trials)
        record.tell(record.ask("search", f"{len(record.asks)}", "r", VALUES), score, (-score,))


def test_the_study_follows_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = open_record(tmp_path)
    tell(record, 3)
    assert study_of(tmp_path).trials == []
    assert [record.write_study() for _ in range(4)] == [True, True, False, False]
    assert [t.user_attrs["ask"] for t in study_of(tmp_path).trials] == [0, 1, 2]
    monkeypatch.setattr("heterosis.evolve.record.record.BEHIND", 2)
    tell(record, 5)
    assert record.study.written == 6  # but not farther behind than that


def test_a_study_that_a_crash_left_behind_catches_up(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    tell(record, 4)
    record.write_study()
    again = open_record(tmp_path)
    assert again.trials == record.trials
    tell(again, 1)
    write_study(again)
    assert [t.user_attrs["ask"] for t in study_of(tmp_path).trials] == [0, 1, 2, 3, 4]
    assert [t.value for t in study_of(tmp_path).trials] == [t.score for t in again.trials]


def test_a_study_waits_for_a_stage_whose_space_is_not_known_yet(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    tell(record, 2)
    again = Record(tmp_path, f"sqlite:///{tmp_path}/study.db", "toys", [])
    write_study(again)
    assert study_of(tmp_path).trials == []
    again.study.add_dimensions(DIMENSIONS)
    write_study(again)
    assert len(study_of(tmp_path).trials) == 2


def test_a_study_with_results_that_the_folder_lacks_is_refused(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    tell(record, 2)
    write_study(record)
    (tmp_path / "results.jsonl").unlink()
    with pytest.raises(InputError, match=r"results.jsonl: the study has 2 results, but this file only 0; restore"):
        open_record(tmp_path)


def test_attempts_and_checksums_are_kept(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    ask = record.ask("search", "one", "r", VALUES)
    record.add_attempt(ask, "search", "the worker died", blamed=True)
    record.add_scores(ask, "search", SCORES, "0123")
    record.add_attempt(ask, "search", "its node was lost", blamed=False)
    again = open_record(tmp_path)
    assert again.attempts == record.attempts
    assert [(a.ask, a.met, a.blamed) for a in again.attempts] == [(0, 0, True), (0, 2, False)]
    assert again.scores(ask, "search") == SCORES
    (line,) = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert json.loads(line)["checksum"] == "0123"


@pytest.mark.parametrize("torn", ["{", '{"number": 1, "name": "caf\xc3', '{"number": 9, "kind": "search"}'])
def test_a_torn_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    record = open_record(tmp_path)
    first = record.ask("search", "first", "r", VALUES)
    record.add_scores(first, "search", SCORES)
    record.tell(first, 0.25, (-0.25,))
    for name in ("asks.jsonl", "scores.jsonl", "results.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(torn.encode("latin-1"))

    again = open_record(tmp_path)
    assert list(again.asks.values()) == [first]
    second = again.ask("search", "second", "r", VALUES)
    again.add_scores(second, "search", SCORES)
    again.tell(second, 0.5, (-0.5,))
    assert list(read_asks(tmp_path)) == [first, second]
    for name in ("asks.jsonl", "scores.jsonl", "results.jsonl"):
        assert len([json.loads(line) for line in (tmp_path / name).read_text().splitlines()]) == 2


def test_what_a_crash_leaves_open(
    toy_config: Any, pools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate is on the disk before it is handed out, and its scores before its result."""
    folder, seen = tmp_path / "run", []
    tell = Record.tell

    def on_wait(pool: Any) -> None:
        on_disk = {ask.number for ask in read_asks(folder)}
        assert {number for number, _, _ in pool.asked} <= on_disk
        seen.append(len(on_disk))

    def checked(self: Record, ask: Any, *args: Any, **kwargs: Any) -> Any:
        lines = (folder / "scores.jsonl").read_text().splitlines()
        assert ask.number in [json.loads(line)["ask"] for line in lines]
        seen.append(-1)
        return tell(self, ask, *args, **kwargs)

    monkeypatch.setattr(Record, "tell", checked)
    whole = EvolveConfig.parse(yaml.safe_dump(toy_config(workers=2, trials=6)))
    search(whole, folder, make_pool=pools(on_wait=on_wait))
    assert seen.count(-1) == 6
    assert len(seen) > 6


def test_every_kind_of_dimension_is_one_of_optunas(tmp_path: Path) -> None:
    dimensions = [
        Dimension("tol", 1e-6, 1.0, 1e-3, "tol", None, log=True),
        Dimension("max_iter", 1, 9, 3, "max_iter", None, integer=True),
        Dimension("merge_method", 0, 1, "ties", "merge_method", None, choices=("ties", "sce")),
    ]
    values = {"tol": 0.01, "max_iter": 4, "merge_method": "sce"}
    record = Record(tmp_path, f"sqlite:///{tmp_path}/study.db", "toys", dimensions)
    record.tell(record.ask("search", "one", "r", values), 0.5, (-0.5,))
    write_study(record)
    (trial,) = study_of(tmp_path).trials
    assert trial.params == values
    assert trial.distributions == {
        "tol": FloatDistribution(1e-6, 1.0, log=True),
        "max_iter": IntDistribution(1, 9),
        "merge_method": CategoricalDistribution(("ties", "sce")),
    }
    again = Record(tmp_path, f"sqlite:///{tmp_path}/study.db", "toys", dimensions)
    assert again.trials[0].ask.values == values


RECORDED = ("asks.jsonl", "attempts.jsonl", "scores.jsonl", "results.jsonl")


def small_record(folder: Path) -> None:
    record = open_record(folder)
    ask = record.ask("search", "one", "r", VALUES)
    record.add_attempt(ask, "search", "the worker died", blamed=True)
    record.add_scores(ask, "search", SCORES)
    record.tell(ask, 0.5, (-0.5,), documents=2)


@pytest.mark.parametrize("line", ["{}", "null", "[]", "7", "\xff", '{"number": 1', "the one before"])
@pytest.mark.parametrize("name", RECORDED)
def test_a_damaged_line_is_named(tmp_path: Path, name: str, line: str) -> None:
    """Also where it is JSON; an attempt may be the same as the one before."""
    small_record(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole + (whole if line == "the one before" else line.encode("latin-1") + b"\n"))
    if (name, line) == ("attempts.jsonl", "the one before"):
        assert len(open_record(tmp_path).attempts) == 2
        return
    with pytest.raises(InputError) as caught:
        open_record(tmp_path)
    assert caught.value.faults == (f"{path}: line 2 is damaged; restore it, or choose another --run-dir",)


def test_a_candidate_that_was_cut_out_is_missed(tmp_path: Path) -> None:
    """Else the next one would be given the number of one that is there."""
    record = open_record(tmp_path)
    for name in ("one", "two", "three"):
        record.ask("search", name, "r", VALUES)
    path = tmp_path / "asks.jsonl"
    first, _, third = path.read_text().splitlines(keepends=True)
    path.write_text(first + third)
    with pytest.raises(InputError, match=r"asks.jsonl: line 2 is damaged; restore it"):
        open_record(tmp_path)


@pytest.mark.parametrize("name", RECORDED)
def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    small_record(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(InputError) as caught:
        open_record(tmp_path)
    (fault,) = caught.value.faults
    assert fault == f"{tmp_path / name}: cannot be read: Is a directory; restore it, or choose another --run-dir"


def config(toy_config: Any, trials: int) -> EvolveConfig:
    return EvolveConfig.parse(yaml.safe_dump(toy_config(trials=trials, workers=1)))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("asks.jsonl", None, "lacks candidate 0, which scores.jsonl has; restore it"),
        ("scores.jsonl", None, "lacks scores of candidate 0, which results.jsonl has; restore it"),
        ("scores.jsonl", "{\n", "line 1 is damaged; restore it"),
        ("results.jsonl", None, "the study has 4 results, but this file only 0; restore it"),
        ("run.json", None, "is missing, though candidates were tried; restore it"),
        ("run.json", "{", "is damaged; restore it"),
        ("run.json", '{"stage_ends": 4}', "is damaged; restore it"),
        ("config.yaml", None, "is missing, though candidates were tried; restore it"),
        ("summary.json", "{", "is damaged; remove it, and the same evolve command writes it again"),
        ("summary.json", "[]", "is damaged; remove it"),
        ("summary.json", '{"status": "running"}', "is damaged; remove it"),
    ],
)
def test_a_run_that_lacks_a_file_is_refused(
    toy_config: Any, pools: Any, tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    """With the file's name and what to do, before anything is scored."""
    folder = tmp_path / "run"
    search(config(toy_config, 4), folder, make_pool=pools())
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(InputError) as caught:
        search(config(toy_config, 6), folder, make_pool=pools())
    (fault,) = caught.value.faults
    assert fault.startswith(f"{path}: {says}")
    assert len(pools.made) == 1


def test_what_a_run_leaves_for_people_is_written_again(toy_config: Any, pools: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    summary = search(config(toy_config, 4), folder, make_pool=pools())
    (folder / "trials.csv").unlink()
    with pytest.raises(InputError, match=r"trials.csv: is missing; remove summary.json too, and the same evolve"):
        read_outlines(folder)
    (folder / "summary.json").unlink()
    with pytest.raises(InputError, match=r"summary.json: is missing; the same evolve command writes it again"):
        read_summary(folder)
    again = search(config(toy_config, 4), folder, make_pool=pools())
    assert again["champion"] == summary["champion"]
    assert len(pools.asked) == len(pools.made[0].asked)
    assert [trial.score for trial in read_outlines(folder)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trials.csv", b""),
        ("trials.csv", b"\xff\n"),
        ("trials.csv", b"trial,score\n0,0.5\n"),
        ("trials.csv", b"last line"),
        ("trials.csv", None),
        ("best.yaml", b""),
        ("best.yaml", b"\xff"),
        ("best.yaml", b"models: [\n"),
        ("best.yaml", None),
    ],
)
def test_a_damaged_one_is_named_and_the_remedy_holds(
    toy_config: Any, pools: Any, tmp_path: Path, name: str, content: bytes | None
) -> None:
    """With None, a folder is in its place."""
    folder = tmp_path / "run"
    search(config(toy_config, 4), folder, make_pool=pools())
    path = folder / name
    before = path.read_bytes()
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(before + b"9,x,search,,,,,,,,,\n" if content == b"last line" else content)
    what = "cannot be read: Is a directory" if content is None else "is damaged"
    readers: list[Any] = [lambda: write_report(folder)]
    readers.append(Watcher(folder).look if name == "trials.csv" else lambda: export_trial(folder, None))
    for read in readers:
        with pytest.raises(InputError) as caught:
            read()
        assert caught.value.faults == (
            f"{path}: {what}; remove it and summary.json, and the same evolve command writes it again",
        )
    path.rmdir() if content is None else path.unlink()
    (folder / "summary.json").unlink()
    search(config(toy_config, 4), folder, make_pool=pools())
    assert path.read_bytes() == before
    assert write_report(folder).exists()

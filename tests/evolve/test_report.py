"""The report: what it says of real run folders, that it holds what others wrote as text only, and how it looks."""

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from heterosis import cli
from heterosis.errors import InputError
from heterosis.evaluate.scores import PROBABILITY
from heterosis.evolve import driver
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search
from heterosis.evolve.record.trial import Ask
from heterosis.evolve.report import load_tasks, write_report
from heterosis.evolve.report.charts import axis
from heterosis.evolve.report.data import gather
from heterosis.evolve.report.shape import shapes_of
from heterosis.evolve.report.words import edges, number, signed
from heterosis.evolve.results.summary import closing_table, outcome_sentence
from heterosis.merge.recipe.recipe import ModelRef, Recipe

STYLE = Path(__file__).parents[2] / "evolve/report/templates/style.css"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;{{7*7}}" + 150 * "x"

Go = Callable[..., Path]


@pytest.fixture(scope="module")
def go(toy_config: Any, make_pools: Any, tmp_path_factory: pytest.TempPathFactory) -> Go:
    """Search with a pool of formulas; returns the run folder. After ``stop`` results the driver dies."""

    def run(
        judge: Any = make_pools.hill, stop: int | None = None, storage: str | None = None, **config: Any
    ) -> Path:
        folder = tmp_path_factory.mktemp("report") / "run"
        settings = {"workers": 1, "racing": False, "optimizer": "random", "trials": 12, **config}
        text = yaml.safe_dump(toy_config(**settings))
        pools = make_pools()
        try:
            search(EvolveConfig.parse(text), folder, make_pool=pools(judge, crash_after=stop), storage=storage)
        except pools.crash:
            assert stop is not None
        return folder

    return run


@pytest.fixture(scope="module")
def finished(go: Go, make_pools: Any) -> Path:
    """A run with two tasks, one of which all models answer alike, and candidates enough to tell parameters."""

    def judge(ask: Ask, part: str, task: str) -> float:
        return float(make_pools.hill(ask, part)) if task == "toy_choice" else 0.5

    return go(judge, trials=30, tasks=["toy_choice", "toy_generate"])


@pytest.fixture(scope="module")
def hostile(go: Go, toy_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a model whose name is HTML, very long, and documents that would break out of any element."""
    model = tmp_path_factory.mktemp("hostile") / HOSTILE
    model.symlink_to(toy_models["ann"])
    folder = go(genome={"models": [str(model), str(toy_models["bob"])]})
    kept = json.loads((folder / "documents.json").read_text())
    for text in kept["texts"]["toy_choice"].values():
        text["question"] = "</script><script>alert(2)</script>\ud800\u202eevil" + 300 * "y"
        text["choices"] = [HOSTILE, "</li></ul><iframe src=//evil>"]
        text["answer"] = HOSTILE
    (folder / "documents.json").write_text(json.dumps(kept))
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    for line in lines:
        for answers in line["scores"].get("answers", {}).values():
            answers.update({d: [f"</dd><script>alert(3)</script>{HOSTILE}", HOSTILE] for d in answers})
    (folder / "scores.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_report(folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


class Page(HTMLParser):
    """A page taken apart: its elements, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


# ------------------------------------------------------------------ a finished run


def test_a_search_leaves_a_report_that_says_what_it_found(finished: Path) -> None:
    page = page_of(finished)
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["outcome"] in page.text
    assert "Better than its parents" in page.text
    for name in ("ann", "bob", "uniform", "toy_choice", "toy_generate", "task_arithmetic"):
        assert name in page.text
    assert (finished / "best.yaml").read_text() in page.text
    assert f"heterosis merge {finished / 'best.yaml'} merged-run" in page.text
    assert "heterosis evaluate merged-run --tasks toy_choice,toy_generate" in page.text
    assert "heterosis push merged-run YOUR-NAME/run" in page.text
    for digest in summary["environment"]["models"].values():
        assert digest in page.text
    assert not any(digest in page.text for digest in summary["environment"]["settings"].values())
    headings = {attributes.get("id") for attributes in page.named("h2")}
    assert headings == {"scores", "documents", "convergence", "depth", "parameters", "recipe", "provenance"}
    for link in page.named("a"):
        assert (link["href"] or "").removeprefix("#") in headings


def test_numbers_are_those_of_the_scores(finished: Path) -> None:
    report = gather(finished)
    summary = report.summary
    lines = [json.loads(line) for line in (finished / "scores.jsonl").read_text().splitlines()]

    def scores(name: str, task: str) -> dict[str, float]:
        ask = next(t.ask.number for t in report.trials if t.ask.name == name)
        found = [e["scores"]["documents"][task] for e in lines if (e["ask"], e["part"]) == (ask, "holdout")]
        return {
            document: value
            for own in found
            for document, metrics in own.items()
            for key, value in metrics.items()
            if key != PROBABILITY
        }

    assert report.duels is not None
    parent = summary["gain_over_best_parent"]["parent"]
    assert report.duels.tasks[1].won > 0
    assert report.duels.tasks[1].lost > 0
    total = 0.0
    for duel in report.duels.tasks:
        mine, theirs = scores(summary["champion"]["name"], duel.task), scores(parent, duel.task)
        assert duel.won == sum(mine[d] > theirs[d] for d in mine)
        assert duel.lost == sum(mine[d] < theirs[d] for d in mine)
        assert duel.won + duel.lost + duel.tied == len(mine) == 30
        assert duel.gain.low < duel.gain.mean < duel.gain.high
        clearest = max(mine, key=lambda d: mine[d] - theirs[d])
        assert duel.wins[0].document == int(clearest)
        assert (duel.wins[0].mine, duel.wins[0].theirs) == (mine[clearest], theirs[clearest])
        total += duel.gain.mean
    assert total == pytest.approx(summary["gain_over_best_parent"]["holdout"], abs=1e-5)
    for task in report.tasks:
        for row in task.rows:
            if "holdout" in row.parts:
                values = scores(row.contender.name, task.name).values()
                assert row.parts["holdout"].mean == pytest.approx(sum(values) / 30)
                assert row.parts["holdout"].n == 30


def test_examples_can_be_read(finished: Path, toy_tasks: Path) -> None:
    """What documents ask is kept in the run folder, so that the report needs no tasks."""
    rows = json.loads((toy_tasks / "rows.json").read_text())
    report = gather(finished)
    assert report.duels is not None
    page = page_of(finished)
    shown = 0
    for duel in report.duels.tasks:
        for example in (*duel.wins, *duel.losses):
            row = rows[example.document]
            text = report.text(duel.task, example.document)
            assert text is not None
            assert text.question == row["question"]
            assert row["question"] in page.text
            if duel.task == "toy_choice":
                assert list(text.choices) == row["choices"]
                assert text.answer == row["choices"][row["label"]]
            shown += 1
    assert shown >= 4


def test_examples_show_what_both_models_answered(finished: Path, go: Go) -> None:
    report, page = gather(finished), page_of(finished)
    assert report.duels is not None
    champion = report.summary["champion"]["name"]
    for duel in report.duels.tasks:
        for example in (*duel.wins, *duel.losses):
            for name, answer in ((champion, example.my_answer), (report.duels.parent, example.their_answer)):
                assert answer is not None
                assert answer.said == f"{name} on {example.document}"
                assert answer.said in page.text
    unfinished = go(stop=8)
    write_report(unfinished)
    assert "Champion answers" in page.text
    assert (
        "Champion answers" not in page_of(unfinished).text
    )  # compared on search documents, of which none are kept


def test_runs_of_before_answers_were_kept(copied: Path) -> None:
    lines = [json.loads(line) for line in (copied / "scores.jsonl").read_text().splitlines()]
    for line in lines:
        line["scores"].pop("answers", None)
    (copied / "scores.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    write_report(copied)
    page = page_of(copied)
    assert "Document by document" in page.text
    assert "Champion answers" not in page.text


def test_texts_that_were_not_kept_can_be_asked_of_the_tasks(copied: Path) -> None:
    (copied / "documents.json").unlink()
    report = CliRunner().invoke(cli.app, ["report", str(copied)])
    assert report.exit_code == 0
    assert "was not kept in this run folder" in page_of(copied).text
    assert "each taken by itself" in page_of(copied).text
    question = json.loads((Path(gather(copied).config.include_path[0]) / "rows.json").read_text())
    example = gather(copied).duels.tasks[0].wins[0]  # type: ignore[union-attr]
    assert question[example.document]["question"] not in page_of(copied).text

    write_report(copied, tasks=load_tasks(copied))
    assert "was not kept" not in page_of(copied).text
    assert question[example.document]["question"] in page_of(copied).text


def test_tasks_that_cannot_be_loaded_cost_the_examples_only(copied: Path) -> None:
    (copied / "documents.json").unlink()
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["include_path"] = ["/no/such/folder"]
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(cli.app, ["report", str(copied), "--load-tasks", "-o", str(copied / "other.html")])
    assert done.exit_code == 0
    assert done.stdout.strip() == str(copied / "other.html")
    assert f"report: {copied / 'report.html'}" in CliRunner().invoke(cli.app, ["status", str(copied)]).stdout
    assert "warning: include_path: '/no/such/folder' is not a folder" in done.stderr
    assert "was not kept" in (copied / "other.html").read_text()


def test_what_rounds_to_zero_has_no_minus() -> None:
    tiny = -1e-6
    assert (number(tiny), signed(tiny)) == ("0.000", "+0.000")
    result = {"search": tiny, "selection": None, "holdout": tiny}
    gain = {"parent": "ann", "holdout": tiny, "ci95": [tiny, 0.1]}
    summary: dict[str, Any] = {
        "status": "finished",
        "parents": {"ann": result},
        "baselines": {},
        "champion": {"name": "candidate 7", "trial": 7, **result},
        "gain_over_best_parent": gain,
        "documents": {},
    }
    assert closing_table(summary)[0] == ("ann", "0.0000", "", "0.0000")
    assert "-0.0000" not in outcome_sentence(summary)


# ------------------------------------------------------------------ every outcome


def fixed(parent: float, uniform: float, found: float | dict[str, float]) -> Callable[[Ask, str], float]:
    """What parents, the uniform merge, and candidates score, these by part of the documents."""

    def judge(ask: Ask, part: str) -> float:
        if ask.kind == "parent":
            return parent
        if ask.kind == "baseline":
            return uniform
        return found[part] if isinstance(found, dict) else found

    return judge


@pytest.mark.parametrize(
    ("judge", "conclusion", "words"),
    [
        (fixed(0.3, 0.4, 0.6), "better", "Better than its parents"),
        (fixed(0.9, 0.4, 0.6), "parent", "No signal"),
        (fixed(0.3, 0.9, 0.6), "baseline", "A fixed recipe did best"),
        (fixed(0.5, 0.4, {"search": 0.9, "selection": 0.9, "holdout": 0.5}), "unclear", "interval contains zero"),
        (fixed(0.5, 0.4, {"search": 0.9, "selection": 0.9, "holdout": 0.2}), "worse", "Worse than a parent"),
    ],
    ids=["better", "parent", "baseline", "unclear", "worse"],
)
def test_says_what_a_run_came_to(go: Go, judge: Any, conclusion: str, words: str) -> None:
    folder = go(judge, trials=6)
    report, page = gather(folder), page_of(folder)
    assert report.conclusion == conclusion
    assert words in page.text
    assert json.loads((folder / "summary.json").read_text())["outcome"] in page.text
    assert (report.duels is None) == (conclusion == "parent")
    assert "Too few candidates to say" in page.text


def test_parents_that_lost_to_the_uniform_merge_are_in_it(go: Go) -> None:
    """They stopped early on the search documents, and were scored on all held-out ones."""
    report = gather(go(fixed(0.3, 0.45, 0.6), racing=True))
    assert {t.ask.name for t in report.trials if t.pruned} >= {"ann", "bob"}
    assert {"ann", "bob"} <= {row.contender.name for row in report.tasks[0].rows if "holdout" in row.parts}
    gain = report.summary["gain_over_best_parent"]
    assert report.duels is not None
    assert gain is not None
    assert (report.duels.parent, report.duels.part) == (gain["parent"], "holdout")
    assert report.known.texts["toy_choice"]


def test_where_all_are_equal_some_documents_are_shown(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of all then somebody wants to see what was asked and answered."""
    monkeypatch.setattr("tests.evolve.conftest._noise", lambda *seed: 0.0)
    with pytest.warns(UserWarning, match="toy_choice: parents and uniform merge score 0.5 on every document"):
        folder = go(lambda ask, part: 0.6 if ask.kind == "search" and part != "holdout" else 0.5)
    read = json.loads((folder / "documents.json").read_text())
    assert len(read["texts"]["toy_choice"]) == 3
    page = page_of(folder)
    assert "Equal" in page.text
    assert "was not kept" not in page.text


def test_blanks_at_the_ends_of_answers_can_be_seen() -> None:
    assert edges(" 42\n") == "␣42↵\n"
    assert edges("a b") == "a b"
    assert edges("  ") == "␣␣"


def test_a_run_that_has_scored_nothing(go: Go) -> None:
    folder = go(stop=0)
    assert not (folder / "report.html").exists()
    write_report(folder)
    page = page_of(folder)
    assert "Nothing scored yet" in page.text
    assert "No candidate has been scored yet." in page.text


def test_a_run_that_is_not_at_its_end(go: Go) -> None:
    """Whoever looks meanwhile compares on the search documents, and is told that this flatters."""
    folder = go(stop=8)
    write_report(folder)
    page = page_of(folder)
    assert "Stopped before the end" in page.text
    assert "The best so far against the best parent" in page.text
    assert "the comparison flatters it" in page.text
    assert "best so far: trial" in page.text

    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    write_report(folder)
    assert "Still running" in page_of(folder).text
    os.utime(folder / "summary.json", (0, 0))
    write_report(folder)
    assert "Stopped before the end" in page_of(folder).text
    assert "There is no sign of the search any more" in page_of(folder).text


def test_failures_and_constraints_are_told(go: Go, make_pools: Any) -> None:
    from heterosis.evolve.workers.pool import Failure

    def judge(ask: Ask, part: str) -> float | Failure:
        return Failure("NaN <b>in</b> layer 3") if ask.number == 5 else float(make_pools.hill(ask, part))

    page = page_of(go(judge, tasks=["toy_choice"], constraints={"toy_choice": 0.25}))
    assert "NaN <b>in</b> layer 3" in page.text
    assert "1 failed" in page.text
    assert "may lose 0.25" in page.text


def towards(ask: Ask, part: str, task: str) -> float:
    """One task wants large weights, the other small ones."""
    weights = [v for k, v in ask.values.items() if k.startswith("weight")] or [0.5]
    mean = sum(weights) / len(weights)
    return mean if task == "toy_choice" else 1 - mean


def test_a_front_is_shown_with_its_recipes(go: Go) -> None:
    folder = go(towards, trials=24, objective="pareto", tasks=["toy_choice", "toy_generate"])
    report, page = gather(folder), page_of(folder)
    summary = report.summary
    assert {p.recipe for p in report.front if p.on_front} == {entry["recipe"] for entry in summary["front"]}
    for entry in summary["front"]:
        assert entry["recipe"] in page.text
        point = next(p for p in report.front if p.recipe == entry["recipe"])
        assert point.gains == pytest.approx(entry["gains"], abs=1e-5)
    assert any(
        "Gains over the best parent in toy_choice" in (a.get("aria-label") or "") for a in page.named("svg")
    )


# ------------------------------------------------------------------ what others wrote


def test_names_and_documents_are_text_only(hostile: Path) -> None:
    page = page_of(hostile)
    assert HOSTILE in page.text
    assert "</script><script>alert(2)</script>" in page.text
    assert "</dd><script>alert(3)</script>" in page.text
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "iframe", "object", "embed", "link", "base", "form"}
    assert len(page.named("script")) == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "{{7*7}}" in page.text, "names are not templates"


def test_loads_nothing(finished: Path) -> None:
    source = (finished / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    for tag, attributes in page.elements:
        for name in ("src", "srcset", "data", "action", "poster", "xlink:href"):
            assert name not in attributes, tag
        assert (attributes.get("href") or "#").startswith("#")
    style = "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)
    assert script is not None
    assert "fetch" not in script[1]
    policy = next(a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(source.encode()) < 400_000


def test_a_storage_is_used_and_never_shown(go: Go, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    folder = go(trials=23, storage=url)
    assert gather(folder, storage=url).importance.shares
    assert "not in the run folder" in gather(folder).importance.missing
    broken = gather(folder, storage="postgresql://me:secret@localhost:1/none").importance.missing
    assert broken == "The study cannot be read from its storage."
    assert "elsewhere.db" not in (folder / "report.html").read_text()


# ------------------------------------------------------------------ writing it


def test_what_goes_wrong_with_it_does_not_fail_a_run(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(driver, "write_report", fail)
    folder = go(trials=4)
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    assert "the report could not be written: RuntimeError: no ink;" in (folder / "run.log").read_text()
    assert not (folder / "report.html").exists()


def test_refuses_what_is_no_run_folder(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        write_report(copied, tmp_path / "no/such/folder/x.html")
    before = (copied / "report.html").read_bytes()
    split = (copied / "splits.json").rename(copied / "elsewhere.json")
    with pytest.raises(InputError, match="not a saved split"):
        write_report(copied)
    split.rename(copied / "splits.json")
    asks = (copied / "asks.jsonl").read_text().splitlines(keepends=True)
    (copied / "asks.jsonl").write_text("".join(asks[:3]))
    with pytest.raises(InputError, match="lacks candidate 3, which results"):
        write_report(copied)
    assert (copied / "report.html").read_bytes() == before


# ------------------------------------------------------------------ parameters


def test_finds_the_parameter_that_matters(go: Go) -> None:
    def judge(ask: Ask, part: str) -> float:
        return 1 - (float(ask.values["weight/bob"]) - 0.7) ** 2 if ask.values else 0.2

    report = gather(go(judge, trials=45, genome={"layer_granularity": 0, "merge_method": "ties"}))
    shares = report.importance.shares
    assert len(shares) == 3
    assert next(iter(shares)) == "weight/bob"
    assert shares["weight/bob"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)


def short(ref: ModelRef) -> str:
    return ref.path


def test_a_gradient_over_depth_is_what_layers_get() -> None:
    recipe = Recipe.parse(
        """
        merge_method: ties
        base_model: base
        models:
        - {model: a, parameters: {weight: [0, 1], density: 0.5}}
        - model: b
          parameters: {weight: [{filter: mlp, value: [1, 0, 1]}, {value: 0.25}]}
        parameters: {normalize: true, lambda: 0.9}
        """
    )
    (shape,) = shapes_of(recipe, short, 5)
    assert (shape.layers, shape.stepped, shape.path) == (5, False, ())
    assert shape.constants == {"normalize": "True", "lambda": "0.9"}
    found = {(s.parameter, s.model, s.filter): s.values for s in shape.series}
    assert found == {
        ("density", "a", None): (0.5,) * 5,
        ("weight", "a", None): (0.0, 0.25, 0.5, 0.75, 1.0),
        ("weight", "b", "mlp"): (1.0, 0.5, 0.0, 0.5, 1.0),
        ("weight", "b", None): (0.25,) * 5,
    }
    (unknown,) = shapes_of(recipe, short, None)
    assert unknown.layers is None
    assert unknown.series[1].values[-1] == 1.0


def test_slices_are_steps_and_models_may_be_missing_in_some() -> None:
    recipe = Recipe.parse(
        """
        merge_method: task_arithmetic
        base_model: base
        slices:
        - sources:
          - {model: a, layer_range: [0, 1], parameters: {weight: 0.3}}
          - {model: base, layer_range: [0, 1]}
          parameters: {lambda: 0.5}
        - sources:
          - {model: b, layer_range: [1, 3], parameters: {weight: -0.4}}
          - {model: base, layer_range: [1, 3]}
          parameters: {lambda: 0.6}
        """
    )
    (shape,) = shapes_of(recipe, short, 99)
    assert (shape.layers, shape.stepped) == (3, True)
    found = {(s.parameter, s.model): s.values for s in shape.series}
    assert found == {
        ("lambda", None): (0.5, 0.6, 0.6),
        ("weight", "a"): (0.3, None, None),
        ("weight", "b"): (None, -0.4, -0.4),
    }


def test_a_path_names_each_layer_and_its_factor(go: Go) -> None:
    recipe = Recipe.parse(
        """
        merge_method: passthrough
        slices:
        - sources: [{model: a, layer_range: [0, 2]}]
        - sources:
          - model: b
            layer_range: [1, 2]
            parameters: {scale: [{filter: o_proj, value: 0.7}, {filter: down_proj, value: 0.7}, {value: 1.0}]}
        """
    )
    (shape,) = shapes_of(recipe, short, 2)
    assert [(s.model, s.layer, s.scale) for s in shape.path] == [("a", 0, None), ("a", 1, None), ("b", 1, 0.7)]

    genome = {"layer_granularity": 0, "layer_paths": {"after": "parameters"}}
    page = page_of(go(lambda ask, part: 0.2 + ask.stage if ask.values else 0.2, trials=8, genome=genome))
    assert "Stage champion: merged by task_arithmetic" in page.text
    assert "Merged by passthrough. Each layer is taken from one model." in page.text


# ------------------------------------------------------------------ how it looks


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.booleans())
def test_an_axis_holds_its_values_and_has_round_marks(values: list[float], whole: bool) -> None:
    found = axis(values, whole=whole)
    assert found.low < found.high
    assert all(found.low <= value <= found.high for value in values)
    labels = [label for _, label in found.ticks]
    assert len(set(labels)) == len(labels) <= 9
    assert all(0 <= at <= 100 for at, _ in found.ticks)
    for at, label in found.ticks:
        value = float(label.replace(",", ""))
        assert found.at(value) == pytest.approx(at, abs=0.02)
        assert not whole or value == int(value)


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_what_is_behind_them(scheme: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.DOTALL)
    colour = dict(re.findall(r"--(\w+(?:-\w+)?): (#\w{6})", blocks[scheme == "dark"]))
    for text, behind in (("ink", "page"), ("soft", "page"), ("soft", "card"), ("accent", "card"), ("bad", "card")):
        assert contrast(colour[text], colour[behind]) >= 4.5, (text, behind)
    for text, behind in (("accent", "tint"), ("warn", "warn-tint"), ("bad", "warn-tint"), ("ink", "grid")):
        assert contrast(colour[text], colour[behind]) >= 4.5, (text, behind)
    for model in range(8):
        assert contrast(colour[f"m{model}"], colour["card"]) >= 3, model


PROBE = """
const frame = document.querySelector("iframe"), page = frame.contentDocument, root = page.documentElement;
page.querySelectorAll("details").forEach(d => { d.open = true; });
const clipped = e => e.closest("pre, .scroll, nav, .gist, .text");
const beyond = e => e.getBoundingClientRect().right > WIDTH + 1 && !clipped(e);
const out = [...page.querySelectorAll("body *")].filter(beyond);
document.body.textContent = JSON.stringify({
  width: root.scrollWidth, out: out.map(e => e.outerHTML.slice(0, 120)),
  background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
  buttons: [...page.querySelectorAll("button")].filter(b => !b.hidden).length,
  dots: page.querySelectorAll(".dot").length });
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed: apt-get install chromium")
@pytest.mark.parametrize(
    ("run", "scheme", "width"),
    [
        ("finished", "light", 390),
        ("finished", "dark", 390),
        ("finished", "light", 1280),
        ("finished", "dark", 1280),
        ("hostile", "dark", 390),
    ],
)
def test_in_a_browser(request: pytest.FixtureRequest, tmp_path: Path, run: str, scheme: str, width: int) -> None:
    """No message on the console, nothing wider than the screen, and colours as the reader wants them."""
    folder: Path = request.getfixturevalue(run)
    report = html.escape((folder / "report.html").read_text(encoding="utf-8"))
    # In a frame, as a window cannot be as narrow as a phone.
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(
        f'<meta charset="utf-8"><body><iframe style="border:0;width:{width}px;height:900px" srcdoc="{report}">'
        f"</iframe><script>onload = () => {{ {PROBE.replace('WIDTH', str(width))} }}</script>"
    )
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options += [f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", "--window-size=1400,1000"]
    options.append(f"--user-data-dir={tmp_path / 'profile'}")
    shown = subprocess.run(
        [CHROMIUM, *options, wrapper.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    found = json.loads(html.unescape(re.search(r"<body>(.*?)</body>", shown.stdout, re.DOTALL)[1]))  # type: ignore[index]
    assert found["out"] == []
    assert found["width"] <= width
    assert found["background"] == {"light": "rgb(246, 245, 241)", "dark": "rgb(18, 22, 20)"}[scheme]
    assert found["buttons"] == 5
    assert found["dots"] >= 12


def test_the_command_of_the_recipe_asks_as_the_search_did() -> None:
    from heterosis.evolve.config import EvolveConfig
    from heterosis.evolve.report import page

    asked: dict[str, Any] = {"num_fewshot": 2, "fewshot_as_multiturn": False, "max_length": 64, "seed": 3}
    asked |= {"models": ["a", "b"], "merge_method": "linear", "tasks": ["sums"], "system_instruction": "Be brief."}
    config = EvolveConfig.from_dict(asked)
    environment = {"environment": {"batch_size": 8}}
    report = SimpleNamespace(config=config, name="run", folder=Path("runs/run"), summary=environment, modules=())
    command = dict(page._commands(report))["Evaluate"]
    assert command.endswith(
        "--num-fewshot 2 --apply-chat-template --no-fewshot-as-multiturn --system-instruction 'Be brief.' "
        "--max-length 64 --seed 3 --batch-size 8"
    )

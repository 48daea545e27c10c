"""The page, from a report's data and the templates."""

import base64
import hashlib
import shlex
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from heterosis.evaluate.splits import PARTS
from heterosis.evolve.report.candidates import convergence, front_chart, scatters
from heterosis.evolve.report.charts import Whisker, axis
from heterosis.evolve.report.data import Report
from heterosis.evolve.report.over_depth import depth_view
from heterosis.evolve.report.words import PART_NAMES, edges, number, plural, signed
from heterosis.evolve.results.summary import closing_table, gains_of
from heterosis.merge.recipe.command import merge_command
from heterosis.words import duration

_MOST_BARS = 24
_CONCLUSIONS = {
    "empty": "Nothing scored yet",
    "parent": "No signal",
    "baseline": "No signal",
    "better": "Better than its parents",
    "unclear": "No clear difference",
    "worse": "Worse than a parent",
}
_OBJECTIVES = {"weighted": "weighted sum", "gain": "mean gain", "worst": "smallest gain", "pareto": "every task"}


def render(report: Report) -> str:
    """The page."""
    style, script = _asset("style.css"), _asset("copy.js")
    page = _environment().get_template("page.html")
    return page.render(
        report=report,
        summary=report.summary,
        badge=_badge(report),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
        objective=_OBJECTIVES[report.summary["maximised"]["kind"]],
        gains=_gains(report),
        table=closing_table(report.summary),
        parts=PARTS,
        part_names=PART_NAMES,
        task_axes=[_task_axis(report, i) for i in range(len(report.tasks))],
        convergence=convergence(report),
        shapes=[depth_view(shape, report.config.genome.model_names) for shape in report.shapes],
        bars=list(report.importance.shares.items())[:_MOST_BARS],
        hidden_bars=max(0, len(report.importance.shares) - _MOST_BARS),
        scatters=list(scatters(report)),
        fronts=[front_chart(report, *pair) for pair in report.pairs()] if report.front else [],
        commands=_commands(report),
        failures=report.summary["failures"],
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("heterosis.evolve.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "duration": duration,
        "plural": plural,
        "edges": edges,
    }
    return environment


@cache
def _asset(name: str) -> str:
    return files("heterosis.evolve.report").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """The script as a content security policy allows it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _badge(report: Report) -> str:
    running = report.summary["status"] == "running" and not report.lost
    if report.conclusion == "unfinished":
        return "Still running" if running else "Stopped before the end"
    return _CONCLUSIONS[report.conclusion]


def _gains(report: Report) -> dict[str, Any] | None:
    """The gains held out over the best parent and the uniform merge, on one axis with zero."""
    found = [
        (f"{label}, {name}" if name else label, gain["holdout"], gain["ci95"][0], gain["ci95"][1])
        for label, name, gain in gains_of(report.summary)
    ]
    if not found or report.conclusion in ("empty", "unfinished"):
        return None
    scale = axis([0.0, *(v for _, *values in found for v in values)])
    rows = [
        (name, mean, low, high, Whisker(scale.at(low), scale.at(mean), scale.at(high), "holdout", ""))
        for name, mean, low, high in found
    ]
    return {"axis": scale, "rows": rows, "zero": scale.at(0.0)}


def _task_axis(report: Report, index: int) -> dict[str, Any]:
    """Every contender's whiskers on one task, on one axis."""
    task = report.tasks[index]
    ends = [end for row in task.rows for i in row.parts.values() for end in (i.low, i.high)]
    scale = axis(ends)
    rows = []
    for row in task.rows:
        whiskers = [
            Whisker(
                scale.at(interval.low),
                scale.at(interval.mean),
                scale.at(interval.high),
                part,
                f"{PART_NAMES[part]}: {number(interval.mean)} ({number(interval.low)} to {number(interval.high)})",
            )
            for part, interval in row.parts.items()
        ]
        last = next((row.parts[part] for part in reversed(PARTS) if part in row.parts), None)
        rows.append((row, whiskers, last))
    return {"task": task, "axis": scale, "rows": rows}


def _commands(report: Report) -> list[tuple[str, str]]:
    """What to do with the recipe, with the command for it."""
    config, out = report.config, f"merged-{report.name}"
    evaluate = ["heterosis", "evaluate", out, "--tasks", ",".join(task.name for task in config.tasks)]
    for path in config.include_path:
        evaluate += ["--include-path", path]
    if config.num_fewshot is not None:
        evaluate += ["--num-fewshot", str(config.num_fewshot)]
    if config.apply_chat_template:
        evaluate.append("--apply-chat-template")
        evaluate += [] if config.fewshot_as_multiturn else ["--no-fewshot-as-multiturn"]
    if config.system_instruction is not None:
        evaluate += ["--system-instruction", config.system_instruction]
    if config.max_length is not None:
        evaluate += ["--max-length", str(config.max_length)]
    if config.seed:
        evaluate += ["--seed", str(config.seed)]  # of few-shot examples
    if isinstance(batch_size := report.summary["environment"]["batch_size"], int):
        evaluate += ["--batch-size", str(batch_size)]
    return [
        ("Merge", merge_command(str(report.folder / "best.yaml"), out, report.modules)),
        ("Evaluate", shlex.join(evaluate)),
        ("Publish", shlex.join(["heterosis", "push", out, f"YOUR-NAME/{report.name}"])),
    ]

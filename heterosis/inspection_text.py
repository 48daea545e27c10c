"""What ``heterosis inspect`` has found out, as lines of text."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from heterosis.words import brief, count, duration, size, some, table

if TYPE_CHECKING:
    from heterosis.evolve.preflight.inspection import SearchReport
    from heterosis.merge.compatibility import Compatibility
    from heterosis.merge.distances import Distances, Geometry
    from heterosis.merge.inspection import PlanRow, RecipeReport

_PAIRS_SHOWN = 3  # columns of cosines beside the norms of a layer; with more models, the least of them


def recipe_lines(report: "RecipeReport") -> Iterator[str]:
    legend = [f"{name}: {reference}" for name, reference in report.models.items() if name != reference]
    yield from legend
    for i, plan in enumerate(report.plans):
        if legend or i:
            yield ""
        if plan.name is not None:
            yield f"stage {plan.name}, computed while it is read: {plan.method}"
        common = _common_numbers(plan.rows)
        header = ("tensor", "shape", "dtype", "method", "inputs", "base", "numbers")
        yield from table(header, (_cells(row, common) for row in plan.rows))
        if common:
            yield f"everywhere: {_numbers(common)}"
        yield f"{plan.tensors} tensors, {count(plan.parameters)} parameters"
    last = report.plans[-1]
    yield ""
    yield f"reads {size(last.bytes_read)}, writes {size(last.bytes_written)}"
    yield f"memory: {size(report.buffer_bytes)} for buffers at most, {size(last.adapter_bytes)} for adapters"
    fits = "" if report.disk_bytes <= report.free_bytes else ": TOO LITTLE, choose another place"
    yield f"disk: {size(report.disk_bytes)} needed, {size(report.free_bytes)} free in {report.place}{fits}"


def model_lines(report: "Compatibility") -> Iterator[str]:
    yield from table(
        (
            "model",
            "type",
            "layers",
            "tensors",
            "parameters",
            "dtype",
            "rows",
            "unused",
            "tokens",
            "head",
            "template",
        ),
        (
            (
                facts.name,
                facts.model_type or "-",
                ", ".join(
                    str(n) if len(facts.layers) == 1 else f"{stack} {n}" for stack, n in facts.layers.items()
                ),
                str(facts.tensors),
                count(facts.parameters),
                ", ".join(facts.dtypes),
                _or_dash(facts.rows),
                _or_dash(facts.unused_rows),
                _or_dash(facts.tokens),
                facts.head,
                "chat" if facts.chat_template else "-",
            )
            for facts in report.models
        ),
    )
    if report.differences:
        yield ""
        yield from (f"{difference.weight:6}  {difference}" for difference in report.differences)
    yield ""
    yield report.verdict


def distance_lines(report: "Distances") -> Iterator[str]:
    names = report.models
    yield f"task vectors from {report.base}: norms relative to it, and cosines"
    yield from table(
        ("", "norm", *names),
        (
            (name, _number(norm), *map(_number, cosines))
            for name, norm, cosines in zip(names, report.overall.norms, report.overall.cosines, strict=True)
        ),
    )
    yield ""
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    shown = pairs if len(pairs) <= _PAIRS_SHOWN else []
    columns = [f"cos {names[i]}, {names[j]}" for i, j in shown] or ["least cosine"]
    yield from table(
        ("layer", *(f"norm {name}" for name in names), *columns),
        (_layer_cells(name, layer, pairs, shown) for name, layer in report.layers.items()),
    )
    if report.skipped:
        yield f"left out, since not all have it in one shape: {some(report.skipped, 1)}"


def search_lines(report: "SearchReport") -> Iterator[str]:
    depth = ", then ".join(report.depth)
    methods = f" of {' or '.join(report.methods)}" if report.methods else ""
    yield f"search{methods}: {report.dimensions} numbers, {depth}"
    yield from table(
        ("parameter", "low", "high", "dimensions"),
        ((name, f"{low:g}", f"{high:g}", str(n)) for name, (low, high, n) in report.ranges.items()),
    )
    yield ""
    limits = [f"{report.trials} in all"]
    limits += [f"at most {report.hours:g} h"] if report.hours else []
    limits += [f"at most {report.max_documents:,} documents"] if report.max_documents else []
    yield f"first trials: {', '.join(report.baselines)}; {', '.join(limits)}"
    yield ""
    yield from table(
        ("task", "weight", "metric", "better", "documents", "search", "selection", "held out"),
        (
            (
                t.name,
                f"{t.weight:g}",
                t.metric,
                t.better,
                *map(str, (t.documents, t.search, t.selection, t.holdout)),
            )
            for t in report.tasks
        ),
    )
    chat = "in the chat template" if report.chat else "as plain text"
    yield f"objective: {report.objective}; prompts {chat}"
    yield ""
    yield (
        f"a candidate: {report.tensors} tensors, {count(report.parameters)} parameters, "
        f"reads {size(report.bytes_read)}, meets {report.resources.documents} documents at most"
    )
    if report.backend != "resident":
        yield f"scored by {report.backend}"
    yield from _resource_lines(report)


def _resource_lines(report: "SearchReport") -> Iterator[str]:
    takes, tried = report.resources, report.rehearsal
    each = (
        f"{takes.workers} worker{'s' * (takes.workers != 1)} of {takes.threads} thread{'s' * (takes.threads != 1)}"
    )
    memory = (
        f"about {size(takes.memory)} needed, {size(takes.memory_free)} free" if takes.memory else "not checked"
    )
    yield f"memory: {memory}; {each}"
    merged = f"{size(takes.disk_merged)} for the champion, once merged"
    free = f"{size(takes.disk_free)} free in {takes.place}"
    yield f"disk: about {size(takes.disk)} for the run folder, {merged}, {free}"
    if tried is None or takes.candidate is None or takes.seconds is None:
        yield "time: no candidate was tried"
        return
    yield (
        f"tried on {tried.documents} documents: merging {tried.merge:.2f} s, scoring {tried.per_document:.3f} s a "
        f"document; so a candidate takes {duration(takes.candidate)}"
    )
    for task in tried.tried:
        answered = "" if task.answered is None else f"; it answered {brief(task.answered.said)}"
        asked = f" to {brief(task.asked)}, where {brief(task.right)} is right" if answered and task.asked else ""
        yield f"  {task.task}: {task.score:.4g}{answered}{asked}"
    finals = f"{report.trials} candidates and the finals, as much as {takes.finals:.0f}"
    end = (datetime.now() + timedelta(seconds=takes.seconds)).strftime("%a %d %b, %H:%M")
    yield f"time: {duration(takes.seconds)} at most for {finals}; begun now, it ends by {end}"


# --- cells ------------------------------------------------------------------------------------------------------


def _cells(row: "PlanRow", common: Mapping[str, object]) -> tuple[str, ...]:
    own = {name: value for name, value in row.numbers.items() if name not in common}
    shape = "×".join(map(str, row.shape)) or "scalar"
    return row.name, shape, row.dtype, row.method, ", ".join(row.inputs), row.base or "", _numbers(own)


def _common_numbers(rows: Sequence["PlanRow"]) -> dict[str, object]:
    """What is the same wherever a method is used."""
    using = [row.numbers for row in rows if row.numbers]
    first = using[0] if using else {}
    return {name: value for name, value in first.items() if all(row.get(name) == value for row in using)}


def _numbers(numbers: Mapping[str, object]) -> str:
    return " ".join(f"{name}={_setting(value)}" for name, value in numbers.items())


def _setting(value: object) -> str:
    if isinstance(value, list):
        parts = list(map(_setting, value))
        return parts[0] if len(set(parts)) == 1 else ",".join(parts)
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _layer_cells(
    name: str, layer: "Geometry", pairs: Sequence[tuple[int, int]], shown: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    cosines = [layer.cosines[i][j] for i, j in pairs]
    known = [cosine for cosine in cosines if cosine is not None]
    last = cosines if shown else [min(known, default=None)]
    return (name, *map(_number, layer.norms), *map(_number, last if pairs else [None]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.4f}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)

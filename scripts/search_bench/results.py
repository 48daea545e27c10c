"""Raw results, a JSON line for each run of a contender, and the curves and tables made of them."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.circumstances import circumstances
from scipy.special import stdtrit

Line = dict[str, Any]
Estimate = tuple[float, float]  # mean, half of its 95 % interval

OURS, RIVAL = "heterosis", "mergekit-evolve"


class Results:
    """Runs by zoo, contender and seed; of several in a file the last counts.

    Args:
        path: A file of JSON lines, read and appended to; None keeps them in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lines: dict[tuple[str, str, int], Line] = {}
        if path and path.exists():
            for text in path.read_text().splitlines():
                self._keep(json.loads(text))

    def _keep(self, line: Line) -> None:
        self._lines[line["zoo"], line["contender"], line["seed"]] = line

    def add(self, zoo: str, contender: str, seed: int, **more: Any) -> None:
        line = {"zoo": zoo, "contender": contender, "seed": seed, **more, **circumstances()}
        self._keep(line)
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def has(self, zoo: str, contender: str, seed: int, definition: str) -> bool:
        """Whether a run was measured; all results of a zoo have to be of one definition."""
        others = {line.get("definition", definition) for line in self._lines.values() if line["zoo"] == zoo}
        if others - {definition}:
            raise SystemExit(f"{self._path}: holds results of another zoo {zoo!r}; give --json another file")
        return (zoo, contender, seed) in self._lines

    def zoos(self) -> list[str]:
        return list(dict.fromkeys(zoo for zoo, _, _ in self._lines))

    def contenders(self, zoo: str) -> list[str]:
        return list(dict.fromkeys(contender for z, contender, _ in self._lines if z == zoo))

    def runs(self, zoo: str, contender: str) -> dict[int, Line]:
        """The runs of a contender, by seed."""
        return {seed: line for (z, c, seed), line in sorted(self._lines.items()) if (z, c) == (zoo, contender)}

    def curve(self, zoo: str, contender: str) -> list[tuple[float, float, float]]:
        """Documents, mean true score of what would be returned, half of its 95 % interval over seeds.

        From where every seed has something to return; at every number of documents where that of a seed changes.
        """
        curves = [run["curve"] for run in self.runs(zoo, contender).values() if run["curve"]]
        if not curves:
            return []
        begin = max(curve[0]["documents"] for curve in curves)
        places = sorted({point["documents"] for curve in curves for point in curve if point["documents"] >= begin})
        return [(place, *estimate([_at(curve, place)["true"] for curve in curves])) for place in places]

    def reaches(self, zoo: str, contender: str, score: float) -> float | None:
        """Documents from which on the mean curve is at a score or above; None if it ends below."""
        reached = None
        for documents, true, _ in reversed(self.curve(zoo, contender)):
            if true < score:
                break
            reached = documents
        return reached

    def ablated(self, zoo: str) -> list[str]:
        """Heterosis with something changed."""
        return [contender for contender in self.contenders(zoo) if is_ablation(contender)]

    def within(self, zoo: str, contender: str, documents: float) -> dict[int, float]:
        """The true score of what is returned after so many documents, by seed, where there is anything yet."""
        runs = self.runs(zoo, contender).items()
        begun = {seed: run["curve"] for seed, run in runs if run["curve"]}
        return {s: _at(c, documents)["true"] for s, c in begun.items() if c[0]["documents"] <= documents}

    def ends(self, zoo: str, contender: str, key: str = "true") -> dict[int, float]:
        """The last point's value, by seed."""
        return {seed: run["curve"][-1][key] for seed, run in self.runs(zoo, contender).items() if run["curve"]}


def is_ablation(contender: str) -> bool:
    return contender.startswith(f"{OURS} ")


def estimate(values: Sequence[float]) -> Estimate:
    """A mean, and half of its 95 % t interval."""
    if len(values) < 2:
        return mean(values), math.nan
    return mean(values), float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))


def _at(curve: Sequence[Line], documents: float) -> Line:
    return [point for point in curve if point["documents"] <= documents][-1]


# --- tables -----------------------------------------------------------------------------------------------------


def tables(results: Results) -> Iterator[str]:
    """Markdown: for each zoo the ends and what it took to get there, then the goal."""
    for zoo in results.zoos():
        yield from ("", *_zoo_table(results, zoo))
    yield from ("", *_goal_table(results))
    if any(map(results.ablated, results.zoos())):
        yield from ("", *_ablation_table(results))


def _zoo_table(results: Results, zoo: str) -> Iterator[str]:
    everybody = results.contenders(zoo)
    contenders = [contender for contender in everybody if not is_ablation(contender)]
    known = next(iter(results.runs(zoo, everybody[0]).values()))["known"]
    baselines = ", ".join(f"{name} {score:.3f}" for name, score in known.items())
    yield f"**{zoo}** ({baselines})"
    yield ""
    target = _target(results, zoo)
    columns = ["true score at the end", f"over {RIVAL}", "search score less true score"]
    columns += [f"documents to {target:.3f}", "times fewer"] if target is not None else []
    yield from _head("contender", "seeds", "documents", *columns)
    theirs = results.ends(zoo, RIVAL)
    for contender in contenders:
        true, search = (results.ends(zoo, contender, key) for key in ("true", "search"))
        if not true:
            continue
        gaps = [search[seed] - true[seed] for seed in true]
        paired = [true[seed] - theirs[seed] for seed in true if seed in theirs]
        over = _text(estimate(paired), "+") if paired and contender != RIVAL else ""
        spent = mean(results.ends(zoo, contender, "documents").values())
        row = [contender, str(len(true)), f"{spent:.0f}", _text(estimate(list(true.values()))), over]
        row.append(_text(estimate(gaps), "+"))
        if target is not None:
            reached = results.reaches(zoo, contender, target)
            row += [f"{reached:.0f}", f"{_full(results, zoo) / reached:.1f}"] if reached else ["not reached", ""]
        yield "| " + " | ".join(row) + " |"
    claims = list(_claims(results, zoo))
    if claims:
        yield ""
        yield from claims


def _claims(results: Results, zoo: str) -> Iterator[str]:
    """What heterosis' reports say, beside what is true."""
    for contender in results.contenders(zoo):
        points = [run["curve"][-1] for run in results.runs(zoo, contender).values() if run["curve"]]
        stated = [p for p in points if p.get("gain_over_best_parent")]
        if not stated:
            continue
        right = sum(p["gain_over_best_parent"][1] > 0 for p in stated)
        covered = sum(
            p["gain_over_best_parent"][1] <= p["true_gain_over_best_parent"] <= p["gain_over_best_parent"][2]
            for p in stated
        )
        yield (
            f"{contender}: {right} of {len(stated)} reports claim a gain over the best parent; {covered} of their "
            "intervals contain the true gain."
        )


def _goal_table(results: Results) -> Iterator[str]:
    """The goal: a fifth of the documents, and a higher end."""
    yield from _head(
        "zoo", f"{RIVAL} at the end", "reached after", "times fewer", "end of ours, paired difference"
    )
    for zoo in results.zoos():
        target, theirs, ours = _target(results, zoo), results.ends(zoo, RIVAL), results.ends(zoo, OURS)
        if target is None or not ours:
            continue
        reached = results.reaches(zoo, OURS, target)
        fewer = f"{_full(results, zoo) / reached:.1f}" if reached else "not reached"
        after = f"{reached:.0f}" if reached else ""
        paired = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        yield f"| {zoo} | {target:.3f} | {after} | {fewer} | {_text(estimate(paired), '+') if paired else ''} |"


def _ablation_table(results: Results) -> Iterator[str]:
    """Heterosis changed in one thing, and as it is, on the same seeds within the same number of documents."""
    yield from _head("zoo", OURS, "documents", "seeds", "true score", "less as it is, paired difference")
    for zoo in results.zoos():
        for name in results.ablated(zoo):
            budget = min(run["budget"] for run in results.runs(zoo, name).values())
            changed, plain = results.within(zoo, name, budget), results.within(zoo, OURS, budget)
            seeds = sorted(changed.keys() & plain.keys())
            if not seeds:
                continue
            score = _text(estimate([changed[seed] for seed in seeds]))
            paired = _text(estimate([changed[seed] - plain[seed] for seed in seeds]), "+")
            row = [zoo, name.removeprefix(f"{OURS} "), f"{budget}", f"{len(seeds)}", score, paired]
            yield f"| {' | '.join(row)} |"


def _target(results: Results, zoo: str) -> float | None:
    theirs = results.ends(zoo, RIVAL)
    return mean(theirs.values()) if theirs else None


def _full(results: Results, zoo: str) -> float:
    return mean(results.ends(zoo, RIVAL, "documents").values())


def _text(value: Estimate, sign: str = "") -> str:
    return f"{value[0]:{sign}.3f} ± {value[1]:.3f}"


def _head(*columns: str) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "| " + " | ".join("---" for _ in columns) + " |"

"""How well searches find merges: real merges of small models, at equal numbers of documents scored.

    python scripts/bench_search.py --check                         (trains the zoos, describes them)
    python scripts/bench_search.py --seeds 10 --json FILE          (measures what FILE lacks)
    python scripts/bench_search.py --json FILE --tables --plot SVG (measures nothing)
    python scripts/bench_search.py --zoo-seed 1 --json FILE        (the same with other models; another FILE)
    python scripts/bench_search.py --coverage 2000 --json FILE     (how honest its intervals are; another FILE)

The zoos are trained where they are not in --folder: minutes on one core. The zoo french_math is the quickstart's
language model with its adapters (scripts/fetch_base_model.py fetches it), on fewer documents. The curves are the
true score (on documents that no search has) of what a contender would return, by the documents it has scored till
then. The GA needs pymoo.
"""

import argparse
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from search_bench.contenders import CONTENDERS
from search_bench.coverage import coverage_table, read_coverage, repeat
from search_bench.french_math import Example, ExampleScorer, example_home
from search_bench.ours import ABLATIONS, BUDGETS, make_split, searches
from search_bench.plot import curves_plot
from search_bench.results import OURS, Results, tables
from search_bench.scoring import Scorer, Unscorable
from search_bench.zoos import ZOOS, Home, home

from heterosis.merge import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--zoos", nargs="+", choices=(*ZOOS, Example.name), default=list(ZOOS))
    parser.add_argument("--contenders", nargs="+", choices=(OURS, *CONTENDERS), default=[OURS, *CONTENDERS])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=100, help="full evaluations, which set the budget")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="of heterosis' curve, likewise")
    parser.add_argument("--folder", type=Path, default=Path("runs/search-bench"), help="of the zoos")
    parser.add_argument(
        "--zoo-seed", type=int, default=0, help="added to the seeds that the zoos are trained from"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="raw results, read and appended to")
    parser.add_argument("--tables", action="store_true", help="measure nothing; print the tables of --json")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="measure nothing; draw the curves in --json")
    parser.add_argument(
        "--check", type=int, nargs="?", const=200, metavar="N", help="describe zoos by N random merges"
    )
    parser.add_argument(
        "--coverage", type=int, metavar="N", help="repeat a cheap search; --json is a file of its own"
    )
    parser.add_argument(
        "--ablate",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"heterosis without {', '.join(ABLATIONS)}; or NAME={{key: value}} for another change of its config",
    )
    options = parser.parse_args()
    if options.json is None and (options.tables or options.plot or options.coverage is not None):
        parser.error("--tables, --plot and --coverage need --json")
    measures = not (options.tables or options.plot or options.coverage is not None)
    has_rivals = options.check or ("mergenetic" in options.contenders and not options.ablate)
    if measures and has_rivals and find_spec("pymoo") is None:
        parser.error("mergenetic's GA needs pymoo: pip install pymoo, or leave mergenetic out of --contenders")
    torch.set_num_threads(1)
    if options.coverage is not None:
        done = read_coverage(options.json)
        # CMA-ES, whose proposals cost nothing: intervals are to hold whoever found the champion.
        seeds = (seed for seed in range(options.coverage) if seed not in done)
        repeat(seeds, options.folder, options.json, {"optimizer": "cma"})
        print("\n".join(coverage_table(read_coverage(options.json).values())))
        return
    results = Results(options.json)
    if options.tables or options.plot:
        if options.plot:
            options.plot.write_text(curves_plot(results))
        if options.tables:
            print("\n".join(tables(results)))
        return
    for name in options.zoos:
        scorer = (
            Scorer(_home(name, options.folder, options.zoo_seed))
            if name in ZOOS
            else ExampleScorer(example_home(options.folder))
        )
        if options.check:
            check(scorer, options.check)
            continue
        facts = known(scorer)
        for seed in range(options.seeds):
            measure(scorer, seed, options, results, facts)
            scorer.forget()
    if not options.check:
        print("\n".join(tables(results)))


def _home(name: str, folder: Path, seed: int) -> Home:
    """A zoo as it was fixed, or with other models: the same lessons from other weights."""
    zoo = ZOOS[name]
    return home(replace(zoo, seed=zoo.seed + seed), folder / f"seed-{seed}") if seed else home(zoo, folder)


def measure(
    scorer: Scorer | ExampleScorer,
    seed: int,
    options: argparse.Namespace,
    results: Results,
    facts: dict[str, float],
) -> None:
    """Run every contender, and heterosis without its ingredients, where the results lack it."""
    zoo = scorer.place.zoo
    split = make_split(scorer.place, seed)
    per_evaluation = split.size("search")
    budget = options.evaluations * per_evaluation
    wanted: dict[str, dict[str, Any]] = {OURS: {}} if OURS in options.contenders and not options.ablate else {}
    for text in options.ablate:
        ingredient, _, change = text.partition("=")
        wanted[f"{OURS} without {ingredient}" if not change else f"{OURS} with {ingredient}"] = (
            yaml.safe_load(change) if change else ABLATIONS[ingredient]
        )
    names = [name for name in options.contenders if name in CONTENDERS and not options.ablate]
    for name in [*names, *wanted]:
        if results.has(zoo.name, name, seed, zoo.definition):
            continue
        begun = time.monotonic()
        if name in wanted:
            curve = list(searches(scorer, seed, budget, wanted[name], options.budgets))
        else:
            curve = follow(scorer, name, seed, split.search, options.evaluations)
        seconds = round(time.monotonic() - begun, 1)
        more = {"known": facts, "definition": zoo.definition, "budget": budget, "run_seconds": seconds}
        results.add(zoo.name, name, seed, curve=curve, **more)
        last = curve[-1] if curve else {"search": 0.0, "true": 0.0, "documents": 0}
        print(
            f"{zoo.name} {name} {seed}: search {last['search']:.3f}, true {last['true']:.3f} after "
            f"{last['documents']} documents, {seconds:.0f} s",
            flush=True,
        )


def follow(
    scorer: Scorer | ExampleScorer, name: str, seed: int, documents: dict[str, list[int]], evaluations: int
) -> list[dict[str, Any]]:
    """A contender's curve: a point for each recipe that it would have returned, and one at the end."""
    each = sum(map(len, documents.values()))
    best, improved = -1.0, []
    search = CONTENDERS[name](scorer.place, seed)
    recipe = next(search)
    for evaluation in range(1, evaluations + 1):
        score: float | None
        try:
            scored = scorer.score(recipe, documents)
            score = sum(sum(of.values()) / len(of) for of in scored.values()) / len(scored)
        except Unscorable:
            score = None
        if score is not None and score > best:
            best = score
            improved.append((evaluation * each, score, recipe))
        try:
            recipe = search.send(score)
        except StopIteration:
            break
    if not improved:
        return []
    curve = [
        {"documents": documents, "search": score, "true": scorer.true_score(recipe)}
        for documents, score, recipe in (improved[-1:] if scorer.place.zoo.ends_only else improved)
    ]
    return [*curve, {**curve[-1], "documents": evaluation * each}]


def known(scorer: Scorer | ExampleScorer) -> dict[str, float]:
    """True scores of what needs no search."""
    place, recipes = scorer.place, {}
    for path in (place.base, *place.experts):
        recipes[Path(path).name] = {"merge_method": "passthrough", "models": [{"model": path}]}
    models = [{"model": path, "parameters": {"weight": 1 / len(place.experts)}} for path in place.experts]
    recipes["uniform"] = {"merge_method": "linear", "models": models, "parameters": {"normalize": True}}
    return {
        name: round(scorer.true_score(Recipe.model_validate({**r, "dtype": place.zoo.dtype}).to_yaml()), 4)
        for name, r in recipes.items()
    }


def check(scorer: Scorer | ExampleScorer, count: int) -> None:
    """Print what the models and random merges of a zoo can do."""
    place = scorer.place
    print(f"{place.zoo.name}: {place.zoo.purpose}; {place.zoo.method}", flush=True)
    print("  " + ", ".join(f"{name} {score:.3f}" for name, score in known(scorer).items()), flush=True)
    for name in ("random", "mergenetic"):  # of layers' groups; of whole models, improving
        search, scores = CONTENDERS[name](place, 0), []
        recipe, begun = next(search), time.monotonic()
        for _ in range(count):
            try:
                scores.append(scorer.true_score(recipe))
            except Unscorable:
                scores.append(0.0)
            recipe = search.send(scores[-1])
        best = sorted(scores, reverse=True)
        print(
            f"  {count} of {name}: best {best[0]:.3f}, 10th {best[min(count, 10) - 1]:.3f}, "
            f"median {best[count // 2]:.3f}; "
            f"{(time.monotonic() - begun) / count:.2f} s each on the true documents",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""Time of one candidate of the quickstart: merging in place, forward passes, everything else.

    python scripts/bench_candidate.py [--candidates 5]

Beside it, the time inside the model's calls of plain lm-eval, on the same model and documents, alternating.
Prints medians. Needs the base model (scripts/fetch_base_model.py).
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.preflight.preflight import preflight
from heterosis.evolve.workers.pool import Evaluation, Setup
from heterosis.evolve.workers.worker import Worker
from heterosis.merge import Recipe, merge_models


def plain_lm_eval(folder: Path, config: EvolveConfig, documents: dict[str, list[int]]) -> float:
    """Seconds inside the model's calls of lm-eval's own evaluation of a merged folder."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    seconds = 0.0

    class TimedHFLM(HFLM):  # type: ignore[misc]
        def generate_until(self, *args: Any, **kwargs: Any) -> Any:
            return timed(super().generate_until, *args, **kwargs)

        def loglikelihood(self, *args: Any, **kwargs: Any) -> Any:
            return timed(super().loglikelihood, *args, **kwargs)

    def timed(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal seconds
        begun = time.perf_counter()
        result = call(*args, **kwargs)
        seconds += time.perf_counter() - begun
        return result

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lm = TimedHFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=config.batch_size)
    manager = TaskManager(include_path=list(config.include_path), include_defaults=False)
    samples = {task: sorted(ids) for task, ids in documents.items()}
    simple_evaluate(lm, tasks=list(samples), samples=samples, task_manager=manager, bootstrap_iters=0)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    config = EvolveConfig.load(args.config)
    checked = preflight(config)
    documents = {task: sorted(ids) for task, ids in checked.split.search.items()}
    worker = Worker(Setup(config, checked.split, threads=args.threads))
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {"merge": [], "forward": [], "other": [], "plain lm-eval": []}
    for i in range(args.candidates + 1):
        point = np.clip(checked.space.initial + 0.1 * rng.standard_normal(len(checked.space.dimensions)), 0.0, 1.0)
        recipe = checked.space.decode(checked.space.values(point)).to_yaml()
        result = worker.score(recipe, documents)
        assert isinstance(result, Evaluation), result
        with tempfile.TemporaryDirectory() as name:
            folder = merge_models(Recipe.parse(recipe), Path(name) / "merged")
            plain = plain_lm_eval(folder, config, documents)
        if i:  # the first compiles, builds the model and the requests
            for key, seconds in result.seconds.items():
                times[key].append(seconds)
            times["plain lm-eval"].append(plain)
    medians = {key: statistics.median(values) for key, values in times.items()}
    print(f"{sum(map(len, documents.values()))} documents, {args.threads} thread(s), {args.candidates} candidates")
    for key, value in medians.items():
        print(f"{key:14} {value:7.3f} s   {100 * value / medians['forward']:6.1f} % of forward")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak resident memory of this process {peak:.2f} GiB")


if __name__ == "__main__":
    main()

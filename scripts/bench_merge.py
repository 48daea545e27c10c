"""Time and memory of merging, beside the floor (reading every input once, writing the output once) and mergekit.

    python scripts/bench_merge.py [--size 2.2GB] [--rounds 3] [--methods ties linear] [--mergekit] [--threads 2]

Makes checkpoints of Llama shapes, a base and fine-tunes of it in bfloat16, in --folder, where they stay for the
next time. Every measurement is a process of its own, and the programs take turns. Seconds are those of the merge
alone; imports, and what compiling costs at first use, are printed apart. Files are read through the page cache,
which the first round warms. Prints medians, and ratios to the floor of the same run.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BUFFER = 8 * 2**20

# (hidden, intermediate, layers, vocabulary) by the bytes of a model in bfloat16
SHAPES = {
    "10MB": (192, 512, 4, 8000),
    "100MB": (512, 1408, 8, 16000),
    "270MB": (768, 2048, 12, 32000),
    "2.2GB": (2048, 5632, 22, 32000),
    "4.3GB": (2048, 5632, 44, 32000),
    "8GB": (3072, 8192, 32, 32000),
}
WEIGHTED = {"weight": 0.4}
TRIMMED = {"weight": 0.4, "density": 0.5}
# method -> (number of fine-tunes, parameters for each, parameters for the merge, base_model among the inputs)
METHODS: dict[str, tuple[int, dict[str, Any], dict[str, Any], bool]] = {
    "passthrough": (1, {}, {}, False),
    "linear": (3, WEIGHTED, {}, False),
    "slerp": (1, {}, {"t": 0.4}, True),
    "nuslerp": (2, WEIGHTED, {}, False),
    "multislerp": (3, WEIGHTED, {}, False),
    "karcher": (3, {}, {}, False),
    "task_arithmetic": (3, WEIGHTED, {}, True),
    "ties": (3, TRIMMED, {}, True),
    "dare_linear": (3, TRIMMED, {}, True),
    "dare_ties": (3, TRIMMED, {}, True),
    "della": (3, TRIMMED, {}, True),
    "della_linear": (3, TRIMMED, {}, True),
    "breadcrumbs": (3, TRIMMED, {}, True),
    "breadcrumbs_ties": (3, TRIMMED, {}, True),
    "sce": (3, {}, {"select_topk": 0.5}, True),
    "model_stock": (3, {}, {}, True),
    "nearswap": (1, {}, {"t": 0.001}, True),
    "arcee_fusion": (1, {}, {}, True),
    "ram": (3, {}, {}, True),
    "ramplus_tl": (3, {}, {}, True),
}


# --- checkpoints ------------------------------------------------------------------------------------------------


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    hidden, inner, layers, vocabulary = SHAPES[size]
    kv = hidden // 8
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}"
        named |= {
            f"{layer}.self_attn.{p}_proj.weight": (n, hidden) for p, n in zip("qkv", (hidden, kv, kv), strict=True)
        }
        named |= {
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"{layer}.mlp.up_proj.weight": (inner, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, inner),
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
        }
    return named | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def make_models(folder: Path, size: str, count: int) -> list[Path]:
    """A base and ``count`` fine-tunes: normal weights of deviation 0.02, changed by a tenth of it."""
    import torch
    from safetensors.torch import save_file

    hidden, inner, layers, vocabulary = SHAPES[size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    models = [folder / size / name for name in ("base", *(f"tune{i}" for i in range(1, count + 1)))]
    for k, model in enumerate(models):
        if (model / "config.json").exists():
            continue
        model.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for i, (name, shape) in enumerate(shapes(size).items()):
            weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(i))
            if k:
                weight += 0.002 * torch.randn(shape, generator=torch.Generator().manual_seed(1000 * k + i))
            tensors[name] = weight.bfloat16()
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        (model / "config.json").write_text(json.dumps(config))
    return models


def recipe(method: str, models: list[Path], dtype: str) -> dict[str, Any]:
    count, per_input, per_merge, has_base = METHODS[method]
    base, *tunes = map(str, models)
    listed = [{"model": tune, "parameters": per_input} for tune in tunes[:count]]
    if has_base and method in ("slerp", "nearswap", "arcee_fusion"):
        listed = [{"model": base}, *listed]
    data: dict[str, Any] = {"merge_method": method, "models": listed, "parameters": per_merge, "dtype": dtype}
    return data | ({"base_model": base, "out_dtype": "bfloat16"} if has_base else {"out_dtype": "bfloat16"})


def inputs(method: str, models: list[Path]) -> list[Path]:
    count, _, _, has_base = METHODS[method]
    return [*models[: int(has_base)], *models[1 : count + 1]]


# --- one measurement, in a process of its own -------------------------------------------------------------------


def run_floor(files: list[Path], out: Path, threads: int) -> dict[str, float]:
    """Read every file once, and write as many bytes as the first has, ``threads`` parts at a time."""
    import mmap
    from concurrent.futures import ThreadPoolExecutor

    size = files[0].stat().st_size
    out.unlink(missing_ok=True)
    target = os.open(out, os.O_RDWR | os.O_CREAT)
    os.truncate(target, size)
    sources = [os.open(file, os.O_RDONLY) for file in files]

    def part(k: int) -> None:
        buffer = mmap.mmap(-1, BUFFER)  # page-aligned
        for start in range(k * BUFFER, size, threads * BUFFER):
            length = min(BUFFER, size - start)
            view = memoryview(buffer)[:length]
            for source in sources:
                os.preadv(source, [view], start)
            os.pwrite(target, view, start)

    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))
    return {"seconds": time.perf_counter() - begun}


def run_heterosis(data: Mapping[str, Any], out: Path, threads: int, limit: int | None) -> dict[str, float]:
    begun = time.perf_counter()
    from heterosis.merge.api import merge_models
    from heterosis.merge.executor import DEFAULT_MEMORY_LIMIT
    from heterosis.merge.recipe import Recipe

    imports = time.perf_counter() - begun
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    merge_models(
        Recipe.model_validate(data),
        out,
        threads=threads,
        memory_limit=limit or DEFAULT_MEMORY_LIMIT,
        overwrite=True,
    )
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "imports": imports, "MiB": (peak - before) / 1024}


def run_mergekit(data: Mapping[str, Any], out: Path) -> dict[str, float]:
    begun = time.perf_counter()
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    imports = time.perf_counter() - begun
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(data), str(out), options)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "imports": imports, "MiB": (peak - before) / 1024}


def measured(arguments: list[str]) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--child", *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = re.findall(r"^measured: (.*)$", done.stdout, re.MULTILINE)
    if not lines:
        raise SystemExit(f"{' '.join(arguments[:2])} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(lines[-1])
    return result


def child(arguments: list[str]) -> None:
    kind, out, data, threads, limit = arguments
    match kind:
        case "floor":
            result = run_floor([Path(p) / "model.safetensors" for p in json.loads(data)], Path(out), int(threads))
        case "heterosis":
            result = run_heterosis(json.loads(data), Path(out), int(threads), int(limit) or None)
        case _:
            result = run_mergekit(json.loads(data), Path(out))
    print("measured:", json.dumps(result))


# --- the table --------------------------------------------------------------------------------------------------


def rounds(
    options: argparse.Namespace, models: list[Path], scratch: Path
) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(program, method, measurement), the programs taking turns."""
    threads, limit = str(options.threads), str(options.memory_limit * 2**20)
    for k in range(options.rounds + 1):
        for method in options.methods:
            data = json.dumps(recipe(method, models, options.dtype))
            files = json.dumps(list(map(str, inputs(method, models))))
            runs = [("floor", files), ("heterosis", data)]
            if options.mergekit and k == 1:  # it takes minutes for some methods, and its own spread is small
                runs.append(("mergekit", data))
            for program, what in runs:
                result = measured([program, str(scratch / program), what, threads, limit])
                if k:  # the first round warms caches, and compiles
                    yield program, method, result
                else:
                    print(f"  first {program} {method}: {result['seconds']:.2f} s", file=sys.stderr, flush=True)
                shutil.rmtree(scratch / program, ignore_errors=True)


def main() -> None:
    if "--child" in sys.argv:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="2.2GB")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--memory-limit", type=int, default=0, metavar="MIB", help="0: the default")
    parser.add_argument("--mergekit", action="store_true")
    options = parser.parse_args()
    models = make_models(options.folder, options.size, max(METHODS[m][0] for m in options.methods))
    scratch = options.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    for program, method, result in rounds(options, models, scratch):
        results.setdefault((program, method), []).append(result)
    print("| method | floor s | heterosis s | of the floor | MiB | mergekit s | MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for method in options.methods:
        floor, ours = results["floor", method], results["heterosis", method]
        cells = [statistics.median(r["seconds"] for r in runs) for runs in (floor, ours)]
        ratio = statistics.median(o["seconds"] / f["seconds"] for o, f in zip(ours, floor, strict=True))
        theirs = results.get(("mergekit", method))
        other = f"{theirs[0]['seconds']:.1f} | {theirs[0]['MiB']:.0f}" if theirs else "| "
        memory = max(r["MiB"] for r in ours)
        print(f"| {method} | {cells[0]:.2f} | {cells[1]:.2f} | {ratio:.2f} | {memory:.0f} | {other} |")
    imports = statistics.median(r["imports"] for (p, _), runs in results.items() if p == "heterosis" for r in runs)
    print(f"\nimports {imports:.2f} s; {options.size} a model, {options.threads} threads, dtype {options.dtype}")


if __name__ == "__main__":
    main()

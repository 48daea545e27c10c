"""Write docs/parity.md: what the parity tests compare with mergekit, and what they found.

    python scripts/make_parity_page.py

A test checks that the file in the repository is what this writes.
"""

import ast
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # last, as the top-level folder `evaluate` has the name of another package

from tests.parity import matrix, noise  # noqa: E402
from tests.parity.zoo import ARCHITECTURES  # noqa: E402

PAGE = ROOT / "docs" / "parity.md"
DIFFERENCES = ROOT / "tests" / "parity" / "test_differences.py"
HEAD = """\
# Parity with mergekit

Generated from `tests/parity/` by `scripts/make_parity_page.py`.

{count} recipes go through mergekit 0.1.5 and through heterosis, over tiny random models, and are compared tensor
by tensor (`tests/parity/test_matrix.py`). They cover every pair of method, form of recipe, architecture and dtypes
that can be: {pairs} pairs. Distances are in *units*: units in the last place, of the coarser of the dtypes of the
arithmetic and of the output, at the size of the summands (the base, and the inputs times their weights).

- Ours are within {near:g} units of naive references in float64 (`tests/reference/`) for {most:.1%} of a model's
  elements, and none is farther than {ours:g}. Inputs and task vectors are rounded to the recipe's dtype, all else
  is exact there.
- mergekit's are within {near:g} units of ours for {most:.1%}, and none is farther than {theirs:g}, but for
  the methods and dtypes [below](#where-mergekit-rounds-more).
- Not compared is what rounding decides: entries as large as a cut, votes that almost cancel, values at a
  threshold. That is at most {undecided:.0%} of a model's elements, and usually less than 5 %.
- Random masks cannot be the same. Both programs drop as many entries as they should, restore the norm and do not
  shift the mean, within five standard deviations. Our masks are also those of the reference, element by element,
  whatever the threads and the memory.
- Mixtral's experts are compared after they were put together as mergekit writes them. Methods that look at a whole
  tensor see one expert here and all experts of a layer there; those are compared with the reference alone.
  Filters, too, see the names of the files here (`block_sparse_moe.experts.0.w1`) and those of the fused tensors
  there (`mlp.experts.gate_up_proj`).
- mergekit cannot write the config of a frankenmerge whose `layer_types` no longer fit (Qwen2, Qwen3, Gemma 2);
  what is compared are the tensors it wrote before.
"""


def render() -> str:
    """The whole page."""
    possible, impossible = matrix.all_pairs()
    head = HEAD.format(
        count=len(matrix.cases()),
        pairs=len(possible),
        near=noise.NEAR,
        most=1 - noise.SHARE,
        ours=noise.OUR_FARTHEST,
        theirs=noise.THEIR_FARTHEST,
        undecided=noise.UNDECIDED,
    )
    parts = [head, *_differences(), *_noise(), *_levels(), *_impossible(impossible), *_coverage()]
    return "\n".join(parts)


def _differences() -> Iterator[str]:
    """The tests' own first sentences."""
    yield "## Where heterosis differs\n"
    yield "Where mergekit is wrong or leaves something open, and what implementations get wrong, the answer"
    yield "stands in `tests/parity/test_differences.py`:\n"
    tree = ast.parse(DIFFERENCES.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            text = " ".join((ast.get_docstring(node) or "").split())
            yield f"- {text} (`{node.name}`)"
    yield ""


def _noise() -> Iterator[str]:
    yield "## Where mergekit rounds more\n"
    yield (
        "mergekit computes in the dtype of the merge, step by step; we compute in float32 and round at the end. "
        "Distances from the reference, in units:\n"
    )
    rows = [
        (f"`{method}`", dtype, f"{found.measured:g}", f"{found.limit:g}", found.why)
        for (method, dtype), found in noise.NOISY.items()
    ]
    yield _table(("method", "arithmetic", "found", "allowed", "why"), rows)
    yield "Elements that `arcee_fusion` takes from the other model than exact arithmetic does:\n"
    rows = [
        (f"`{method}`", dtype, f"{found.measured:.1%}", f"{found.limit:.0%}", found.why)
        for (method, dtype), found in noise.MISTAKEN.items()
    ]
    yield _table(("method", "arithmetic", "found", "allowed", "why"), rows)


def _levels() -> Iterator[str]:
    yield "## What varies\n"
    yield _table(("form", "recipes with"), [(f"`{name}`", meaning) for name, meaning in matrix.FORMS.items()])
    rows = [
        (f"`{name}`", f"`{made.model}`", ", ".join(n for n in matrix.MODELS if n in made.untied) or "none")
        for name, made in ARCHITECTURES.items()
    ]
    yield _table(("architecture", "class", "models with a head of their own"), rows)
    rows = [
        (f"`{name}`", ", ".join(kind.stored), kind.dtype or "not given", kind.out_dtype or "not given")
        for name, kind in matrix.DTYPES.items()
    ]
    yield _table(("dtypes", "stored (base first)", "`dtype`", "`out_dtype`"), rows)


def _impossible(pairs: dict[matrix.Pair, str]) -> Iterator[str]:
    yield "## Pairs that cannot be\n"
    rows = [(f"`{one}`", f"`{other}`", reason) for (_, one, _, other), reason in pairs.items()]
    yield _table(("one", "other", "why"), rows)


def _coverage() -> Iterator[str]:
    yield "## Coverage\n"
    yield "Recipes with both; a dash stands for a pair that cannot be.\n"
    counts = matrix.coverage(matrix.cases())
    levels = matrix.levels()
    for i, j in combinations(range(len(levels)), 2):
        if len(levels[i]) < len(levels[j]):
            i, j = j, i
        yield f"### {matrix.FACTORS[i]} and {matrix.FACTORS[j]}\n"
        rows = []
        for one in levels[i]:
            pairs = [(i, one, j, other) if i < j else (j, other, i, one) for other in levels[j]]
            rows.append((one, *(str(counts.get(pair) or "-") for pair in pairs)))
        yield _table((matrix.FACTORS[i], *levels[j]), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()

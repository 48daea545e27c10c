"""Write docs/methods.md from the registry of merge methods.

    python scripts/make_methods_table.py

A test checks that the file in the repository is what this writes.
"""

import inspect
import re
from pathlib import Path

from heterosis.merge.methods import Method, Parameter, Within, get_method, methods

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
HEAD = """\
# Merge methods

Generated from the methods' own docstrings and signatures by `scripts/make_methods_table.py`.

In formulas, `x_j` is model j's tensor, `b` the base model's, `d_j = x_j - b` a task vector, and `w_j` is `weight`.
Each tensor is merged by itself. A parameter *per model* stands under a model's `parameters`, or above for all
models; one *per merge* stands under the recipe's or a slice's. Numbers outside their range are refused. *Searched*
is where `heterosis evolve` looks unless `genome.ranges` says otherwise.
"""
BASES = {
    "required": "needed",
    "optional": "optional",
    "input": "needed, as one of the models",
    "ignored": "no role",
}
KINDS = {float: "number", int: "whole number", bool: "true or false"}


def render() -> str:
    """The whole page."""
    rows = [
        (
            f"[{m.name}](#{m.name})",
            BASES[m.base],
            _inputs(m),
            ", ".join(f"`{name}`" for name in m.search) or "nothing",
        )
        for m in methods().values()
    ]
    overview = _table(("method", "`base_model`", "models", "searched"), rows)
    return "\n".join([HEAD, overview, *map(_section, methods().values())])


def _section(method: Method) -> str:
    text, meanings = _docstring(method)
    rows = [
        (
            f"`{p.name}`",
            f"{KINDS[p.kind]}, per {'model' if p.per_input else 'merge'}",
            _default(p),
            f"`{p.within.rule(p.name)}`" if p.within != Within() else "",
            _searched(method, p),
            meanings.get(p.argument, ""),
        )
        for p in method.parameters.values()
    ]
    table = _table(("parameter", "kind", "default", "range", "searched", "meaning"), rows) if rows else ""
    facts = f"Base model: {BASES[method.base]}. Models: {_inputs(method)}. Published: <{method.paper}>.\n"
    formula, *more = text
    parts = [f"## {method.name}\n", f"{formula}\n", facts, *([table] if table else []), *(f"{p}\n" for p in more)]
    return "\n".join(parts)


def _inputs(method: Method) -> str:
    low, high = method.inputs
    beside = " beside the base" if method.base == "required" else ""
    return (f"{low}" if high == low else f"{low} or more" if high is None else f"{low} to {high}") + beside


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "must be given"
    value = parameter.default[0] if parameter.per_input else parameter.default
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def _searched(method: Method, parameter: Parameter) -> str:
    search = method.search.get(parameter.name)
    return f"{search.low:g} to {search.high:g}" if search else ""


def _docstring(method: Method) -> tuple[list[str], dict[str, str]]:
    """The paragraphs of a method's docstring, formula first, and what it says about each argument."""
    paragraphs: list[str] = []
    meanings: dict[str, str] = {}
    for block in (inspect.getdoc(method.function) or "").split("\n\n"):
        title, _, rest = block.partition(":\n")
        if title == "Args":
            entries = re.split(r"^    (?=\w+: )", rest, flags=re.MULTILINE)
            meanings |= {name: meaning for name, _, meaning in (entry.partition(": ") for entry in entries)}
        elif title not in ("Raises", "Returns"):
            paragraphs.append(block)
    if found := re.search(r"\s*Arguments as of ``(\w+)``\.", paragraphs[0]):
        paragraphs[0] = paragraphs[0].replace(found[0], "")
        meanings |= _docstring(get_method(found[1]))[1]
    return [_markdown(p) for p in paragraphs], {name: _markdown(m) for name, m in meanings.items()}


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def main() -> None:
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()

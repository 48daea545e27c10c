"""The matrix of recipes: every pair of method, form of recipe, architecture and dtypes that can be.

A greedy covering array: rows are added until every pair of two factors' levels is in one. Pairs that cannot be
have their reason in `impossible`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any, NamedTuple, TypeAlias

import torch

from heterosis.merge.methods import Method, Parameter, get_method, methods

from .zoo import ARCHITECTURES, MODELS, Architecture, Zoo

Setting = Any  # of a recipe
Recipe = dict[str, Any]

# Two values for each parameter: recipes have them on their own, as the ends of gradients, and under filters.
VALUES: dict[str, tuple[Any, Any]] = {
    "alpha": (0.5, 0.2),
    "density": (0.6, 0.45),
    "eps": (1e-6, 1e-8),
    "epsilon": (0.05, 0.15),
    "filter_wise": (True, False),
    "gamma": (0.05, 0.1),
    "lambda": (1.2, 0.8),
    "max_iter": (3, 5),
    "normalize_weights": (False, True),
    "nuslerp_flatten": (False, True),
    "nuslerp_row_wise": (True, False),
    "r": (0.4, 0.1),
    "scale": (0.8, 1.1),
    "select_topk": (0.6, 0.35),
    "tol": (1e-4, 1e-5),
    "weight": (0.4, 0.7),
}
# Of what depends on the method: where to go between two models, and how far.
STEPS: dict[str, tuple[float, float]] = {"slerp": (0.3, 0.8), "nearswap": (0.02, 0.05)}


class Dtypes(NamedTuple):
    """The dtypes of stored tensors (base first), of the recipe's ``dtype`` and ``out_dtype``."""

    stored: tuple[str, ...]
    dtype: str | None = None
    out_dtype: str | None = None

    def stored_by(self, name: str) -> torch.dtype:
        """The dtype of a model's stored tensors."""
        kind = self.stored[MODELS.index(name) % len(self.stored)]
        return getattr(torch, kind)  # type: ignore[no-any-return]


B16, F16, F32 = "bfloat16", "float16", "float32"
MIXED = (B16, F16, F32)
DTYPES = {
    "bf16": Dtypes((B16,)),
    "f16": Dtypes((F16,)),
    "f32": Dtypes((F32,)),
    "mixed": Dtypes(MIXED),
    "bf16, dtype f32": Dtypes((B16,), F32),
    "f32, dtype bf16": Dtypes((F32,), B16),
    "mixed, dtype f16": Dtypes(MIXED, F16),
    "f32, out_dtype bf16": Dtypes((F32,), None, B16),
    "bf16, out_dtype f32": Dtypes((B16,), None, F32),
    "mixed, dtype f32, out_dtype f16": Dtypes(MIXED, F32, F16),
}


# --- forms ------------------------------------------------------------------------------------------------------


def scalar(first: Any, second: Any, made: Architecture) -> Setting:
    return first


def text(first: Any, second: Any, made: Architecture) -> Setting:
    """Numbers that YAML 1.1 takes for texts, and words for booleans."""
    if isinstance(first, bool):
        return "yes" if first else "off"
    return str(first) if isinstance(first, int) else f"{first:e}"


def gradient(first: Any, second: Any, made: Architecture) -> Setting:
    return [first, second, first]


def filters(first: Any, second: Any, made: Architecture) -> Setting:
    layer = {"filter": f"{made.stack}.1.", "value": first}
    return [{"filter": made.part, "value": second}, layer, {"value": second}]


def nested(first: Any, second: Any, made: Architecture) -> Setting:
    return [{"filter": made.part, "value": [first, second]}, {"filter": "*", "value": [second, first, first]}]


Write: TypeAlias = Callable[[Any, Any, Architecture], Setting]


FORMS: dict[str, str] = {
    "required": "only what must be given",
    "scalars": "a number for each parameter",
    "text": "numbers and booleans as texts",
    "gradient": "a gradient for each parameter",
    "filters": "a list of filters for each",
    "nested": "filters with gradients",
    "levels": "model, slice and global levels that fall through to each other",
    "slices": "two slices with bases and parameters of their own",
    "ranges": "a frankenmerge of repeated and uneven ranges",
    "modules": "under `modules`, with parameters there",
    "tokenizer": "different vocabularies, united, the base's or a model's",
    "adapter": "one of the models is a base with a LoRA adapter",
}
_WHOLE: dict[str, Write] = {
    "scalars": scalar,
    "text": text,
    "gradient": gradient,
    "filters": filters,
    "nested": nested,
    "modules": scalar,
    "tokenizer": scalar,
    "adapter": scalar,
}
# Names of layers repeat, and their numbers are uneven; the first layer of T5, which differs, comes once and first.
_RANGES = (((0, 2), (0, 2)), ((1, 3), (1, 3)), ((2, 3), (1, 2)))
_HALVES = (((0, 2), (0, 2)), ((2, 3), (2, 3)))
_TOKENIZERS: tuple[Recipe, ...] = (
    {"tokenizer_source": "union"},
    {"tokenizer_source": "base"},
    {"tokenizer": {"source": "union", "pad_to_multiple_of": 8}},
)


@dataclass(frozen=True)
class Case:
    """One recipe of the matrix.

    Attributes:
        number: Its place; it varies what is not a factor.
        method: The first factor.
        form: The second.
        architecture: The third.
        dtypes: The fourth.
    """

    number: int
    method: str
    form: str
    architecture: str
    dtypes: str

    @property
    def factors(self) -> tuple[str, str, str, str]:
        return self.method, self.form, self.architecture, self.dtypes

    def __str__(self) -> str:
        return "-".join(factor.replace(", ", "-").replace(" ", ":") for factor in self.factors)

    def recipe(self, zoo: Zoo) -> Recipe:
        """The recipe, over models of the zoo."""
        return _Writer(self, zoo).recipe()


class _Writer:
    """Writes a case's recipe."""

    def __init__(self, case: Case, zoo: Zoo) -> None:
        self._case, self._zoo = case, zoo
        self._method = get_method(case.method)
        self._dtypes = DTYPES[case.dtypes]
        self._architecture = ARCHITECTURES[case.architecture]
        self._listed, self._base = _inputs(self._method, case)

    def recipe(self) -> Recipe:
        form = self._case.form
        stacked = {"levels": self._levels, "slices": self._slices, "ranges": self._ranges}
        body = stacked.get(form, self._whole)()
        if form == "modules":
            parameters = body.pop("parameters", {})
            part = {"models": body.pop("models"), "parameters": parameters}
            body["modules"] = dict.fromkeys(self._architecture.modules, part)
        if form == "tokenizer":
            source = _TOKENIZERS[self._case.number % len(_TOKENIZERS)]
            if source == {"tokenizer_source": "base"} and self._base is None:
                source = {"tokenizer_source": self._model(self._listed[-1])}
            body |= source
        head: Recipe = {"merge_method": self._case.method}
        if self._base is not None:
            head["base_model"] = self._model(self._base)
        dtypes = {"dtype": self._dtypes.dtype, "out_dtype": self._dtypes.out_dtype}
        return head | body | {key: dtype for key, dtype in dtypes.items() if dtype}

    def _whole(self) -> Recipe:
        """All models whole, with every parameter in one form."""
        write = _WHOLE.get(self._case.form)
        body: Recipe = {"models": [{"model": self._model(name)} for name in self._listed]}
        if write is None:  # each takes the same
            shared = {p.name: self._value(p) for p in self._method.parameters.values() if p.required}
            return body | ({"parameters": shared} if shared else {})
        for entry, own in zip(body["models"], self._own_settings(write), strict=True):
            if own:
                entry["parameters"] = own
        shared = self._shared_settings(write)
        return body | ({"parameters": shared} if shared else {})

    def _levels(self) -> Recipe:
        """The first model's own settings match some tensors, the slice's some others, the global ones the rest."""
        whole = [name for name in self._listed if name != self._base] + [self._base] * (self._base is not None)
        made = self._architecture
        sources: list[Recipe] = [{"model": self._model(name), "layer_range": [0, 3]} for name in whole if name]
        own = {p.name: {"filter": made.part, "value": VALUES[p.name][1]} for p in self._method.per_input.values()}
        if own:
            sources[0]["parameters"] = own
        slice_ = {
            p.name: [
                {"filter": f"{made.stack}.2.", "value": list(self._values(p))},
                {"filter": "no such", "value": self._values(p)[1]},
            ]
            for p in self._method.parameters.values()
        }
        everywhere = {p.name: self._value(p) for p in self._method.parameters.values()}
        return self._stacked([{"sources": sources, "parameters": slice_}]) | {"parameters": everywhere}

    def _slices(self) -> Recipe:
        """The second slice has another base, whose model the first one has as an ordinary source."""
        slices = []
        for i, ranges in enumerate(_HALVES):
            base = self._base
            listed = self._sources()
            if i and base is not None:
                base = "c"
                listed = [name for name in self._sources() if name not in ("c", self._base)] + ["c"]
                if self._method.base != "input" and len(listed) < len(self._sources()):
                    listed.insert(0, "base")
            entry = self._slice(listed, ranges)
            write = (scalar, gradient)[i]
            entry["parameters"] = self._shared_settings(write) | self._required(write, swapped=i == 0)
            if base != self._base:
                entry["base_model"] = self._model(str(base))
            slices.append(entry)
        return self._stacked(slices)

    def _ranges(self) -> Recipe:
        slices = [self._slice(self._sources(), ranges, i) for i, ranges in enumerate(_RANGES)]
        parameters = self._shared_settings(gradient) | self._required(nested)
        return self._stacked(slices) | ({"parameters": parameters} if parameters else {})

    def _stacked(self, slices: list[Recipe]) -> Recipe:
        """Slices of the only stack of layers, or of each module's."""
        if self._architecture.modules == ("default",):
            return {"slices": slices}
        empty = [
            {**entry, "sources": [{**source, "layer_range": [0, 0]} for source in entry["sources"]]}
            for entry in slices
        ]
        stacks = {module: {"slices": slices} for module in self._architecture.modules}
        return {"modules": stacks | {"shared": {"slices": empty}}}

    def _slice(self, listed: Sequence[str], ranges: Sequence[tuple[int, int]], turn: int = 0) -> Recipe:
        if len(listed) == 1:  # each slice from another model
            listed = [("a", "b", "base")[turn]]
        return {
            "sources": [
                {"model": self._model(name), "layer_range": list(ranges[min(k, 1)])}
                for k, name in enumerate(listed)
            ]
        }

    def _sources(self) -> list[str]:
        """The models of a slice, the base among them."""
        base = [self._base] if self._base is not None and self._base not in self._listed else []
        return [*self._listed, *base]

    def _model(self, name: str) -> str:
        dtype = self._dtypes.stored_by(name)
        if self._case.form == "adapter" and name == "a":
            return self._zoo.adapted(self._case.architecture, name, dtype)
        return self._zoo.model(self._case.architecture, name, dtype, spoken=self._case.form == "tokenizer")

    def _own_settings(self, write: Write) -> Iterator[Recipe]:
        """Each listed model's; every other one has its values the other way round."""
        for k, name in enumerate(self._listed):
            ignored = name == self._base and self._method.base != "ignored"
            parameters = () if ignored else self._method.per_input.values()
            yield {p.name: self._written(p, write, swapped=k % 2 == 1) for p in parameters}

    def _shared_settings(self, write: Write) -> Recipe:
        return {p.name: self._written(p, write) for p in self._method.per_merge.values()}

    def _required(self, write: Write, *, swapped: bool = False) -> Recipe:
        """What every model has alike."""
        return {
            p.name: self._written(p, write, swapped=swapped)
            for p in self._method.per_input.values()
            if p.required or p.name in ("scale", "density")
        }

    def _written(self, parameter: Parameter, write: Write, *, swapped: bool = False) -> Setting:
        first, second = self._values(parameter)
        return write(*((second, first) if swapped else (first, second)), self._architecture)

    def _value(self, parameter: Parameter) -> Any:
        return self._values(parameter)[0]

    def _values(self, parameter: Parameter) -> tuple[Any, Any]:
        if parameter.name in ("normalize", "rescale"):
            return not parameter.default, parameter.default
        if parameter.name == "t":
            return STEPS[self._case.method]
        return VALUES[parameter.name]


def _inputs(method: Method, case: Case) -> tuple[list[str], str | None]:
    """The models that are listed, and the base; what a method leaves open varies."""
    odd = case.number % 2 == 1
    if method.inputs == (1, 1):
        return ["a"], None
    if method.base == "input":
        return (["a", "base"], ["base", "a"])[odd], "base"
    listed = ["a", "b"] if method.inputs[1] == 2 or case.number % 3 else ["a", "b", "c"]
    if method.base == "ignored":
        base = "base" if case.form == "tokenizer" else None
        return (["base", *listed] if base else listed), base
    if method.base == "optional" and (odd or case.form == "slices"):
        return listed, None
    return (listed if odd else ["base", *listed]), "base"


# --- the covering array -----------------------------------------------------------------------------------------

FACTORS = ("method", "form", "architecture", "dtypes")
Pair = tuple[int, str, int, str]  # two factors and their levels


def levels() -> tuple[tuple[str, ...], ...]:
    return tuple(methods()), tuple(FORMS), tuple(ARCHITECTURES), tuple(DTYPES)


def impossible(one: str, other: str) -> str | None:
    """Why two levels cannot be in one recipe; None if they can."""
    method = methods().get(one)
    with_parameters = ("scalars", "text", "gradient", "filters", "nested", "levels")
    if method is not None and not method.parameters and other in with_parameters:
        return "the method has no parameters"
    if one in ("della", "della_linear") and other == "gpt_neox":
        return "mergekit fails on tensors without dimensions, which these old files hold"
    if (one, other) == ("adapter", "gpt_neox"):
        return "mergekit saves the adapted model with transformers 5, without the buffers that it requires then"
    return None


def pairs_of(row: Sequence[str]) -> Iterator[Pair]:
    for i, j in combinations(range(len(row)), 2):
        yield i, row[i], j, row[j]


def all_pairs() -> tuple[list[Pair], dict[Pair, str]]:
    """The pairs that can be, and those that cannot with the reason."""
    possible, not_so = [], {}
    for (i, these), (j, those) in combinations(enumerate(levels()), 2):
        for one, other in product(these, those):
            reason = impossible(one, other)
            if reason is None:
                possible.append((i, one, j, other))
            else:
                not_so[i, one, j, other] = reason
    return possible, not_so


@cache
def cases() -> tuple[Case, ...]:
    """The recipes: for a pair that is not covered yet, the row that covers most others with it."""
    possible, not_so = all_pairs()
    missing = dict.fromkeys(possible)
    used: Counter[str] = Counter()
    rows: list[tuple[str, ...]] = []
    while missing:
        i, one, j, other = next(iter(missing))
        fixed = {i: one, j: other}
        candidates = product(*([fixed[k]] if k in fixed else level for k, level in enumerate(levels())))
        valid = [row for row in candidates if not any(pair in not_so for pair in pairs_of(row))]

        def merit(row: tuple[str, ...]) -> tuple[int, int]:
            return sum(pair in missing for pair in pairs_of(row)), -sum(used[level] for level in row)

        best = max(valid, key=merit)
        rows.append(best)
        used.update(best)
        for pair in pairs_of(best):
            missing.pop(pair, None)
    return tuple(Case(number, *row) for number, row in enumerate(rows))


def coverage(array: Sequence[Case]) -> Mapping[Pair, int]:
    """How many recipes each pair is in."""
    return Counter(pair for case in array for pair in pairs_of(case.factors))

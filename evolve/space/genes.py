"""Genes: which parameters of the merge methods are searched, and where."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heterosis.evolve.config.genome import Genome
from heterosis.evolve.config.ranges import REST, Span

if TYPE_CHECKING:
    from heterosis.merge.methods import Method

# Dimensions that are no parameters of a method: which method it is, and which models take part.
METHOD = "merge_method"
TAKE = "take"


@dataclass(frozen=True)
class Gene:
    """A parameter of one or several merge methods, which share its values.

    Attributes:
        name: What its dimensions' names begin with: the parameter, and after an ``@`` the methods, where others
            search it somewhere else.
        parameter: As a recipe spells it.
        per_model: Whether each model has values of its own.
        integer: Whether only whole numbers count.
        methods: The methods' names.
        spans: Where it is searched, by what that holds for (see ``Genome.ranges``), and under ``*`` for the rest.
    """

    name: str
    parameter: str
    per_model: bool
    integer: bool
    methods: tuple[str, ...]
    spans: Mapping[str, Span]

    def span(self, model: str, filter_: str) -> Span:
        """Where it is searched for a model (a short name or none) and a filter: the most specific entry."""
        places = (f"{model}/{filter_}", model, filter_)
        return next((self.spans[place] for place in places if place in self.spans), self.spans[REST])


def genes_of(genome: Genome, methods: Sequence["Method"]) -> tuple[Gene, ...]:
    """The parameters that methods search, and those that ranges are given for.

    Parameters of the same name are one gene if ``ranges`` says where it is searched or all methods search it in
    one place. Weights always are: what is a sensible weight differs by method, but all take any. Elsewhere a
    common range would hold values that are nonsense to one of the methods, as slerp's ``t`` is to nearswap.
    """
    names = [name for method in methods for name in method.search]
    found: list[Gene] = []
    for name in dict.fromkeys((*names, *genome.ranges)):
        of_models = [m for m in methods if name in m.per_input]
        of_merge = [m for m in methods if name in m.per_merge]
        found += _genes(genome, name, of_models, own=True, alone=not of_merge)
        found += _genes(genome, name, of_merge, own=False, alone=not of_models)
    return tuple(found)


def _genes(genome: Genome, name: str, methods: Sequence["Method"], *, own: bool, alone: bool) -> Iterator[Gene]:
    """The genes of a parameter that all these methods have: of models or of the merge, or else of both."""
    given = genome.ranges.get(name, {})
    groups: dict[Span | None, list[Method]] = {}
    for method in methods:
        usual = method.search.get(name)
        span = None if usual is None or REST in given else Span(usual.low, usual.high)
        if span is not None and name == "weight" and genome.allow_negative_weights:
            reach = max(abs(span.low), abs(span.high))
            span = Span(-reach, reach)
        groups.setdefault(span, []).append(method)
    ranged = [span for span in groups if span is not None]
    if name == "weight" and ranged:
        union = Span(min(span.low for span in ranged), max(span.high for span in ranged))
        groups = {union: [method for span in ranged for method in groups[span]]}
    groups = {span: sharing for span, sharing in groups.items() if span is not None or given}
    for span, sharing in groups.items():
        spec = (sharing[0].per_input if own else sharing[0].per_merge)[name]
        spans = dict(given) if span is None else {REST: span, **given}
        if REST not in spans:
            default = float(spec.default[0] if own else spec.default)
            spans[REST] = Span(default, default)
        users = tuple(method.name for method in sharing)
        label = name if alone and len(groups) == 1 else f"{name}@{'+'.join(users)}"
        yield Gene(label, name, own and genome.is_per_model(name), spec.kind is int, users, spans)

"""Encodings of layer paths: how values stand for runs of layers, and back.

A path by *segments* goes from a model's first layer to a model's last, in a few runs of layers. From one to the
next it may jump (skip layers, or go back to repeat some), move over to another model, or change the factor on what
layers add; where it does none of that it is a whole model. A path by *indicators* passes through all layers of all
models in order, some number of times, and takes those that are switched on.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Protocol

from heterosis.evolve.config.layer_paths import LayerPaths
from heterosis.evolve.config.ranges import Span
from heterosis.evolve.space.dimensions import Dimension, Value


@dataclass(frozen=True)
class Run:
    """Layers ``[start, stop)`` of a model, one after the other.

    Attributes:
        model: Its short name.
        start: First layer.
        stop: Behind the last.
        scale: Factor on what each of them adds to the residual stream.
    """

    model: str
    start: int
    stop: int
    scale: float = 1.0


Path = tuple[Run, ...]


def joined(runs: Iterable[Run]) -> Path:
    """The same layers in as few runs as can be."""
    result: list[Run] = []
    for run in runs:
        if run.start == run.stop:
            continue
        last = result[-1] if result else None
        if last and (last.model, last.stop, last.scale) == (run.model, run.start, run.scale):
            result[-1] = Run(run.model, last.start, run.stop, run.scale)
        else:
            result.append(run)
    return tuple(result)


class Encoding(Protocol):
    """How values stand for paths."""

    @property
    def layers(self) -> Mapping[str, int]:
        """The number of layers of each model, by its short name; a search starts with the first model whole."""
        ...

    def dimensions(self) -> Iterator[Dimension]: ...

    def path(self, values: Mapping[str, Value]) -> Path:
        """The path that values stand for, in as few runs as can be: there is one for all values."""
        ...

    def values(self, path: Path) -> dict[str, Value]:
        """The values that stand for a path, if there are such; else others."""
        ...


@dataclass(frozen=True)
class Segments:
    """Runs of layers, each of which goes on where the last one ended unless it jumps; the last goes to the end.

    Attributes:
        layers: As of `Encoding`.
        section: Of the config.
        scale: Where factors are searched; None without.
    """

    layers: Mapping[str, int]
    section: LayerPaths
    scale: Span | None

    def dimensions(self) -> Iterator[Dimension]:
        names, deepest = tuple(self.layers), max(self.layers.values())
        initial = self.values(whole(self.layers))
        reach = self.section.reach or max(1, deepest // 4)

        def integer(parameter: str, low: int, high: int) -> Dimension:
            name = f"{parameter}/{j}"
            return Dimension(name, low, high, initial[name], parameter, None, integer=True)

        for j in range(1, self.section.segments + 1):
            if j > 1:
                # A switch of its own keeps most candidates of a search without most jumps, few of which do good.
                yield integer("active", 0, 1)
                yield integer("jump", -reach, reach)
            if len(names) > 1:
                yield Dimension(f"model/{j}", 0, len(names) - 1, names[0], "model", None, choices=names)
            if j < self.section.segments and deepest > 1:
                yield integer("layers", 1, deepest)
            if self.scale:
                yield _factor(f"scale/{j}", self.scale, None)

    def path(self, values: Mapping[str, Value]) -> Path:
        least, most = limits(self.layers, self.section)
        only, segments = next(iter(self.layers)), self.section.segments
        runs: list[Run] = []
        at = taken = 0
        for j in range(1, segments + 1):
            model = str(values.get(f"model/{j}", only))
            end = self.layers[model]
            if j > 1:  # to where the path, if this jump is the last, is neither too long nor too short
                jump = int(values[f"jump/{j}"]) if values[f"active/{j}"] else 0
                at = max(at + jump, 0, end - (most - taken))
                at = min(at, end, end - (least - taken))
            stop = min(at + int(values.get(f"layers/{j}", 1)), end) if j < segments else end
            runs.append(Run(model, at, stop, float(values.get(f"scale/{j}", 1.0))))
            taken, at = taken + stop - at, stop
        return joined(runs)

    def values(self, path: Path) -> dict[str, Value]:
        # The last run is divided evenly into the segments that are left.
        segments, (*runs, last) = self.section.segments, path
        pieces = max(1, segments - len(runs))
        ends = [last.start + round(k * (last.stop - last.start) / pieces) for k in range(pieces + 1)]
        runs += [Run(last.model, start, stop, last.scale) for start, stop in pairwise(ends)]
        values: dict[str, Value] = {}
        for j, run in enumerate(runs[:segments], start=1):
            if j > 1:
                values[f"jump/{j}"] = jump = run.start - runs[j - 2].stop
                values[f"active/{j}"] = int(jump != 0)
            if len(self.layers) > 1:
                values[f"model/{j}"] = run.model
            if j < segments and max(self.layers.values()) > 1:
                values[f"layers/{j}"] = max(1, run.stop - run.start)
            if self.scale:
                values[f"scale/{j}"] = run.scale
        return values


@dataclass(frozen=True)
class Indicators:
    """All layers of all models in order, several times over, each used or not (the paper's encoding).

    Attributes:
        layers: As of `Encoding`.
        section: Of the config.
        scale: Where factors are searched; None without.
    """

    layers: Mapping[str, int]
    section: LayerPaths
    scale: Span | None

    @cached_property
    def _slots(self) -> dict[str, tuple[str, int]]:
        """The layer at each place of the line, by how names of dimensions end."""
        return {
            f"{k}/{model}/layers.{i}": (model, i)
            for k, model in product(range(1, self.section.repeats + 1), self.layers)
            for i in range(self.layers[model])
        }

    def dimensions(self) -> Iterator[Dimension]:
        initial = self.values(whole(self.layers))
        for slot, (model, _) in self._slots.items():
            yield Dimension(f"use/{slot}", 0, 1, initial[f"use/{slot}"], "use", model, integer=True)
            if self.scale:
                yield _factor(f"scale/{slot}", self.scale, model)

    def path(self, values: Mapping[str, Value]) -> Path:
        least, most = limits(self.layers, self.section)
        on = [slot for slot in self._slots if values[f"use/{slot}"]]
        off = [slot for slot in self._slots if slot not in on]  # the first model's come first
        used = {*on[:most], *off[: max(0, least - len(on))]}
        return joined(
            Run(model, i, i + 1, float(values.get(f"scale/{slot}", 1.0)))
            for slot, (model, i) in self._slots.items()
            if slot in used
        )

    def values(self, path: Path) -> dict[str, Value]:
        wanted = [(run.model, i, run.scale) for run in path for i in range(run.start, run.stop)]
        values: dict[str, Value] = {}
        taken = 0
        for slot, layer in self._slots.items():  # each layer at the first place that has it
            use = taken < len(wanted) and wanted[taken][:2] == layer
            values[f"use/{slot}"] = int(use)
            if self.scale:
                values[f"scale/{slot}"] = wanted[taken][2] if use else 1.0
            taken += use
        return values


def whole(layers: Mapping[str, int]) -> Path:
    """The first model as it is."""
    name, count = next(iter(layers.items()))
    return (Run(name, 0, count),)


def limits(layers: Mapping[str, int], section: LayerPaths) -> tuple[int, int]:
    """How many layers a path has at least, and at most."""
    least = max(1, min(layers.values()) // 2) if section.min_layers is None else section.min_layers
    most = max(layers.values()) * 3 // 2 if section.max_layers is None else section.max_layers
    return least, most


def _factor(name: str, span: Span, model: str | None) -> Dimension:
    return Dimension(name, span.low, span.high, 1.0, "scale", model, log=span.log)

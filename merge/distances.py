"""How far models are from their base and from each other: norms of task vectors, and the angles between them.

Tensors are read block by block, several at a time, in memory that depends on neither their sizes nor the models'.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from heterosis.errors import InputError
from heterosis.merge.computing.finite import is_finite
from heterosis.merge.computing.input_blocks import STREAMING_BLOCK
from heterosis.merge.kernels import Inputs
from heterosis.merge.models.layout import place_of
from heterosis.merge.models.names import renamed
from heterosis.merge.models.sources import Model, TensorSource
from heterosis.merge.statistics import Statistics
from heterosis.merge.workspace import Workspace

Matrix = NDArray[np.float64]

OUTSIDE = "outside layers"


@dataclass(frozen=True)
class Geometry:
    """Of the task vectors of some tensors.

    Attributes:
        base_norm: Of the base's values.
        norms: Of the task vectors relative to it, one for each model; None where the base is all zeros.
        cosines: Of the angles between them, ``[m, m]``; None where one is all zeros.
    """

    base_norm: float
    norms: tuple[float | None, ...]
    cosines: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Distances:
    """Between models and their base.

    Attributes:
        base: Its name.
        models: Their names, in the order of all vectors and matrices.
        overall: Over all tensors.
        layers: Over each layer, by its name, and over what is outside of layers.
        skipped: Tensors that not all models have in one shape.
    """

    base: str
    models: tuple[str, ...]
    overall: Geometry
    layers: Mapping[str, Geometry]
    skipped: tuple[str, ...]


def task_vector_distances(base: Model, models: Mapping[str, Model], *, threads: int = 1) -> Distances:
    """Measure the task vectors, the models minus their base.

    Args:
        base: What they were fine-tuned from.
        models: By name.
        threads: Tensors worked on at the same time; results do not depend on it.

    Raises:
        InputError: If they have no tensor in common, or NaN or infinity in one.
    """
    own = [renamed(model, base).tensors for model in models.values()]
    names, skipped = _common(base, own)
    if not names:
        raise InputError(f"{base.ref}: has no tensor in common with {', '.join(models)}; name another base")
    workspace = Workspace()

    def measure(name: str) -> Matrix:
        sources = [base.tensors[name], *(tensors[name] for tensors in own)]
        gram = _gram(sources, workspace)
        if not np.isfinite(gram).all():
            raise InputError(_fault(name, dict(zip((str(base.ref), *models), sources, strict=True))))
        return gram

    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="distances") as pool:
        grams = dict(zip(names, pool.map(measure, names), strict=True))
    groups: dict[str, list[Matrix]] = {}
    for name in sorted(names, key=_order):
        groups.setdefault(_group(name), []).append(grams[name])
    return Distances(
        str(base.ref),
        tuple(models),
        _geometry(grams.values()),
        {group: _geometry(members) for group, members in groups.items()},
        tuple(skipped),
    )


def _common(base: Model, models: Sequence[Mapping[str, TensorSource]]) -> tuple[list[str], list[str]]:
    """Names of floating tensors that all have in one shape, and of those that only some have so."""
    names: list[str] = []
    skipped: list[str] = []
    for name in dict.fromkeys(name for tensors in (base.tensors, *models) for name in tensors):
        sources = [tensors.get(name) for tensors in (base.tensors, *models)]
        known = [source for source in sources if source is not None]
        if not all(source.dtype.is_floating_point for source in known):
            continue
        same = len(known) == len(sources) and len({source.shape for source in known}) == 1
        (names if same else skipped).append(name)
    return names, skipped


def _gram(sources: Sequence[TensorSource], workspace: Workspace) -> Matrix:
    """Dot products of the base and of the task vectors, ``[1 + m, 1 + m]``."""
    numel = math.prod(sources[0].shape)
    if numel == 0:
        return np.zeros((len(sources), len(sources)))
    wide = any(source.dtype == torch.float64 for source in sources)
    work = torch.float64 if wide else torch.float32

    def blocks(row_length: int = 1, start: int = 0) -> Iterator[tuple[int, Inputs]]:
        assert (row_length, start) == (1, 0)  # as dot products ask
        for start in range(0, numel, STREAMING_BLOCK):
            stop = min(start + STREAMING_BLOCK, numel)
            vectors = workspace.buffers("vectors", stop - start, (work,) * len(sources))
            for j, (source, vector) in enumerate(zip(sources, vectors, strict=True)):
                if j and source.identity == sources[0].identity:
                    vector.zero_()
                    continue
                source.read(start, stop, vector)
                if j:
                    vector.sub_(vectors[0])
            yield start, Inputs(tuple(vector.numpy() for vector in vectors))

    dtype = torch.empty(0, dtype=work).numpy().dtype
    return np.array(Statistics(blocks, dtype, len(sources), sources[0].shape, (), workspace).gram())


def _fault(name: str, sources: Mapping[str, TensorSource]) -> str:
    """Why the task vectors of a tensor have no lengths."""
    broken = [model for model, source in sources.items() if not is_finite(source)]
    if not broken:
        return f"{name}: differs by more than its dtype can hold; leave out the model that is far away"
    return f"{' and '.join(broken)}: {name} has NaN or infinity; use another model"


def _geometry(grams: Iterable[Matrix]) -> Geometry:
    total = np.apply_along_axis(math.fsum, 0, np.stack(list(grams)))
    base = math.sqrt(total[0, 0])
    lengths = [math.sqrt(entry) for entry in total.diagonal()[1:]]
    cosines = tuple(
        tuple(
            min(1.0, max(-1.0, float(total[1 + i, 1 + j]) / (a * b))) if a and b else None
            for j, b in enumerate(lengths)
        )
        for i, a in enumerate(lengths)
    )
    return Geometry(base, tuple(length / base if base else None for length in lengths), cosines)


def _group(name: str) -> str:
    place = place_of(name)
    return OUTSIDE if place is None else f"{place.stack}.{place.index}".removeprefix(".")


def _order(name: str) -> tuple[bool, str, int]:
    place = place_of(name)
    return (True, "", 0) if place is None else (False, place.stack, place.index)

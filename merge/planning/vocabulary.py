"""Vocabularies side by side: every model's embedding and head with a row for each id of the output.

A row comes from the model itself if it has the token. Else it is the one that the recipe names; else the only
one there is; else the base model's; else the mean of those there are; else zeros. Ids that are no token, such as
padding, follow the same rules with a row counting as a model's own if the id is no token there either; and what
no model has is the mean of the rows of the model's tokens.
"""

import math
import warnings
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from heterosis.errors import InputError, did_you_mean
from heterosis.merge.models.sources import TensorSource
from heterosis.merge.recipe.recipe import ModelToken, TokenRow, ZeroRow
from heterosis.merge.recipe.reference import ModelRef

Rows = NDArray[np.int64]

# What stands for the number of a model where a row is none of any model's.
_ZEROS, _OWNERS_MEAN, _OWN_MEAN = -1, -2, -3
_BLOCK = 2**18  # elements read at once for a mean over all rows


class ModelTokens(NamedTuple):
    """A model's tokens with their ids, and how many rows its embedding has."""

    ids: Mapping[str, int]
    rows: int

    def row(self, token: str) -> int:
        """The token's row, -1 without one."""
        row = self.ids.get(token, -1)
        return row if row < self.rows else -1


class _NamedRow(NamedTuple):
    """The row that a recipe names for a token: a model's, or zeros."""

    token: str
    model: ModelRef | None
    row: int
    force: bool


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The output's vocabulary, and where its rows are in each model.

    Attributes:
        size: Rows of the output's embedding.
        is_token: Which ids are tokens, ``[size]``.
        rows: Each model's own row for every id, -1 without one, ``[size]``.
        named: What the recipe says of single ids.
        base: The recipe's base model.
    """

    size: int
    is_token: NDArray[np.bool_]
    rows: Mapping[ModelRef, Rows]
    named: Mapping[int, _NamedRow]
    base: ModelRef | None

    def align(
        self,
        ref: ModelRef,
        name: str,
        sources: Mapping[ModelRef, TensorSource],
        base: ModelRef | None = None,
        others: Mapping[ModelRef, TensorSource] | None = None,
    ) -> TensorSource:
        """A model's embedding, head or head bias with the rows in the order of the output.

        Args:
            ref: The model, one of ``sources``.
            name: The output tensor's name.
            sources: This tensor of every model that is merged, ``[rows, *]``; they fill each other's gaps.
            base: The base model of these sources; None for the recipe's.
            others: This tensor of models that are not merged into it; they have the rows of tokens that are in
                none of ``sources``.

        Raises:
            InputError: If widths differ, or a row that the recipe names is in a model that is not merged here.
        """
        models = list(sources)
        first = sources[models[0]]
        for model, source in sources.items():
            if source.shape[1:] != first.shape[1:]:
                raise InputError(
                    f"{name}: shapes must match but for the number of rows, but got {list(first.shape)} in "
                    f"{models[0]} and {list(source.shape)} in {model}; merge one architecture only"
                )
            if self.rows[model].max(initial=-1) >= source.shape[0]:
                raise InputError(
                    f"{name}: must have as many rows as the embedding, but got {list(source.shape)} in {model}"
                )
        at = models.index(ref)
        owned = np.stack([self.rows[model] for model in models])
        model_of, row_of = self._fill(models, owned, base or self.base)
        every = list(sources.values())
        if others and np.any(empty := model_of == _ZEROS):
            more = np.where(empty, np.stack([self.rows[model] for model in others]), -1)
            their_model, their_row = self._fill([*others], more, self.base)
            model_of[empty] = np.where(their_model >= 0, their_model + len(models), their_model)[empty]
            row_of[empty] = their_row[empty]
            owned, every = np.concatenate([owned, more]), [*every, *others.values()]
        own = owned[at] >= 0
        for i, named in self.named.items():
            own[i] &= not named.force
            if named.model is None:
                model_of[i], row_of[i] = _ZEROS, i
            elif named.model in models:
                model_of[i], row_of[i] = models.index(named.model), named.row
            elif not own[i]:
                raise InputError(
                    f"tokenizer.tokens.{named.token}: {named.model} has the row, but is not merged into {name}; "
                    f"name another model, or list it among the sources"
                )
        model_of[own], row_of[own] = at, owned[at][own]
        if np.array_equal(row_of, np.arange(sources[ref].shape[0])) and np.all(model_of == at):
            return sources[ref]
        return _AlignedTensor(name, every, model_of, row_of, owned, self.is_token)

    def _fill(
        self, models: list[ModelRef], owned: NDArray[np.int64], base: ModelRef | None
    ) -> tuple[NDArray[np.int64], Rows]:
        """Of which model, and which, is the row that a model without one gets: two arrays ``[size]``."""
        has = owned >= 0
        owners = has.sum(axis=0)
        model_of = np.where(owners == 1, has.argmax(axis=0), _OWNERS_MEAN)
        if base in models:
            k = models.index(base)
            model_of[has[k] & (owners > 1)] = k
        model_of[owners == 0] = np.where(self.is_token, _ZEROS, _OWN_MEAN)[owners == 0]
        ids = np.arange(self.size)
        return model_of, np.where(model_of >= 0, owned[model_of.clip(0), ids], ids)


class _AlignedTensor:
    """Rows of several tensors in a new order (a `TensorSource`)."""

    def __init__(
        self,
        name: str,
        sources: list[TensorSource],
        model_of: NDArray[np.int64],
        row_of: Rows,
        owned: NDArray[np.int64],
        is_token: NDArray[np.bool_],
    ) -> None:
        self.name = name
        self.shape = (len(row_of), *sources[0].shape[1:])
        self.dtype = reduce(torch.promote_types, (source.dtype for source in sources))
        self._sources = sources
        self._width = math.prod(self.shape[1:])
        self._is_token = is_token
        # Runs of rows that lie in the same order in one source: where they begin, and there.
        breaks = (np.diff(model_of) != 0) | (np.diff(row_of) != 1)
        starts = np.concatenate([[0], np.flatnonzero(breaks) + 1]) if len(row_of) else np.zeros(0, np.int64)
        self._starts = np.append(starts, len(row_of))
        self._models, self._rows = model_of[starts], row_of[starts]
        averages = bool(np.isin(model_of, (_OWNERS_MEAN, _OWN_MEAN)).any())
        self.exact = not averages and all(source.exact for source in sources)
        self._averaged = np.flatnonzero(model_of == _OWNERS_MEAN)
        self._owned = owned[:, self._averaged]
        self._mean: torch.Tensor | None = None
        self.identity: Hashable = self._identity(model_of, row_of)

    def _identity(self, model_of: NDArray[np.int64], row_of: Rows) -> Hashable:
        used = np.arange(len(self._sources)) if len(self._averaged) else np.unique(model_of[model_of >= 0])
        numbers: dict[Hashable, int] = {}  # two models may share a tensor
        codes = np.full(len(self._sources), -1)
        for k in used:
            codes[k] = numbers.setdefault(self._sources[k].identity, len(numbers))
        digest = blake2b(digest_size=16)
        for array in (
            np.where(model_of >= 0, codes[model_of.clip(0)], model_of),
            row_of,
            codes[used],
            self._owned,
        ):
            digest.update(array.tobytes())
        digest.update(self._is_token.tobytes())
        return ("aligned", self.shape, self.dtype, digest.hexdigest(), tuple(numbers))

    def view(self, start: int, stop: int) -> torch.Tensor | None:
        """None: rows come from several places."""
        return None

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Fill the 1-D ``out`` with flat elements ``[start, stop)``, converted to its dtype."""
        assert out.shape == (stop - start,)
        run = int(np.searchsorted(self._starts, start // max(1, self._width), side="right")) - 1
        at = start
        while at < stop:
            end = min(stop, int(self._starts[run + 1]) * self._width)
            self._read_run(run, at, end, out[at - start : end - start])
            at, run = end, run + 1

    def _read_run(self, run: int, start: int, stop: int, out: torch.Tensor) -> None:
        model = int(self._models[run])
        if model >= 0:
            shift = int(self._rows[run] - self._starts[run]) * self._width
            self._sources[model].read(start + shift, stop + shift, out)
        elif model == _ZEROS:
            out.zero_()
        else:
            for row, low, high in _rows_of(start, stop, self._width):
                own = model == _OWN_MEAN
                values = self._own_mean()[low:high] if own else self._owners_mean(row, low, high, out.dtype)
                at = row * self._width - start
                out[at + low : at + high].copy_(values)

    def _owners_mean(self, row: int, low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
        """The mean, over the models that have it, of part of a row."""
        work = torch.float64 if torch.float64 in (dtype, self.dtype) else torch.float32
        total, part = torch.zeros(high - low, dtype=work), torch.empty(high - low, dtype=work)
        rows = self._owned[:, np.searchsorted(self._averaged, row)]
        for source, own in zip(self._sources, rows, strict=True):
            if own >= 0:
                start = int(own) * self._width
                source.read(start + low, start + high, part)
                total += part
        return total / int((rows >= 0).sum())

    def _own_mean(self) -> torch.Tensor:
        """The mean row of all tokens, in float64."""
        # Not a cached_property: until 3.12 those of all tensors share a lock. Threads that meet compute the same.
        if self._mean is None:
            self._mean = self._computed_mean()
        return self._mean

    def _computed_mean(self) -> torch.Tensor:
        total = torch.zeros(self._width, dtype=torch.float64)
        ids = np.flatnonzero(self._is_token)
        height = max(1, _BLOCK // max(1, self._width))
        for run in np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1):
            for first in range(0, len(run), height):
                rows = len(run[first : first + height])
                block = torch.empty(rows * self._width, dtype=torch.float64)
                start = int(run[first]) * self._width
                self.read(start, start + block.numel(), block)
                total += block.view(rows, self._width).sum(dim=0)
        return total / max(1, len(ids))


def _rows_of(start: int, stop: int, width: int) -> Iterator[tuple[int, int, int]]:
    """The rows that flat elements ``[start, stop)`` touch, and which part of each."""
    for row in range(start // width, -(-stop // width)):
        yield row, max(start - row * width, 0), min(stop - row * width, width)


def build_vocabulary(
    ids: Mapping[str, int],
    size: int,
    models: Mapping[ModelRef, ModelTokens],
    base: ModelRef | None,
    entries: Mapping[str, TokenRow],
) -> Vocabulary:
    """Find every model's rows.

    Args:
        ids: The output's tokens.
        size: Rows of the output, more than any id.
        models: The recipe's.
        base: The recipe's base model.
        entries: What the recipe says of single tokens, all of which are among ``ids``.

    Raises:
        InputError: If it names rows that there are not.
    """
    is_token = np.zeros(size, dtype=np.bool_)
    is_token[list(ids.values())] = True
    rows = {ref: _own_rows(ids, is_token, model) for ref, model in models.items()}
    faults: list[str] = []
    named = {}
    for token, entry in entries.items():
        try:
            if (row := _named_row(token, entry, models)) is not None:
                named[ids[token]] = row
        except ValueError as error:
            faults.append(f"tokenizer.tokens.{token}: {error}")
    if faults:
        raise InputError(*faults)
    empty = is_token & np.all([own < 0 for own in rows.values()], axis=0)
    empty[list(named)] = False
    nowhere = sorted((i, token) for token, i in ids.items() if empty[i]) if empty.any() else []
    if nowhere:
        shown = ", ".join(repr(token) for _, token in nowhere[:5]) + (", ..." if len(nowhere) > 5 else "")
        warnings.warn(f"tokenizer: no model has a row for {shown}; {len(nowhere)} rows are zeros", stacklevel=2)
    return Vocabulary(size, is_token, rows, named, base)


def _own_rows(ids: Mapping[str, int], is_token: NDArray[np.bool_], model: ModelTokens) -> Rows:
    rows = np.full(len(is_token), -1, dtype=np.int64)
    rows[list(ids.values())] = [model.ids.get(token, -1) for token in ids]
    rows[rows >= model.rows] = -1
    common = min(len(is_token), model.rows)
    used = np.fromiter(model.ids.values(), np.int64, len(model.ids))
    free = ~is_token[:common]
    free[used[used < common]] = False
    rows[:common][free] = np.flatnonzero(free)
    return rows


def _named_row(token: str, entry: TokenRow, models: Mapping[ModelRef, ModelTokens]) -> _NamedRow | None:
    source = entry.source
    if source is None:
        if entry.force:
            raise ValueError("'force' needs a 'source'; name a model")
        return None
    if isinstance(source, ZeroRow):
        return _NamedRow(token, None, 0, entry.force)
    ref = source.model if isinstance(source, ModelToken) else source
    if ref not in models:
        known = did_you_mean(str(ref), map(str, models))
        raise ValueError(f"source: {ref} is not one of the recipe's models{known}")
    if isinstance(source, ModelToken) and source.token_id is not None:
        row, count = source.token_id, models[ref].rows
        if not 0 <= row < count:
            raise ValueError(f"source.token_id: `0 <= token_id < {count}` must hold in {ref}, but got {row}")
    else:
        wanted = source.token if isinstance(source, ModelToken) else None
        row = models[ref].row(token if wanted is None else wanted)
        if row < 0:
            raise ValueError(f"source: {ref} has no row for {wanted or token!r}; name a model that has the token")
    return _NamedRow(token, ref, row, entry.force)

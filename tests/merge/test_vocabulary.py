"""Rows in the output's order of tokens, against a naive reading of the rules, row by row."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heterosis.errors import InputError
from heterosis.merge.computing.computation import Computation
from heterosis.merge.methods import get_method
from heterosis.merge.models.layout import comes_first, embedding_name, is_head, is_vocabulary
from heterosis.merge.models.sources import TensorSource
from heterosis.merge.plan import TensorOp
from heterosis.merge.planning.vocabulary import ModelTokens, Vocabulary, build_vocabulary
from heterosis.merge.recipe.recipe import ModelToken, TokenRow, ZeroRow
from heterosis.merge.recipe.reference import ModelRef
from heterosis.merge.workspace import Workspace

A, B, C = ModelRef("a"), ModelRef("b"), ModelRef("c")


@dataclass(frozen=True)
class Source:
    """A tensor in memory (a `TensorSource`)."""

    exact = True
    name: str
    values: torch.Tensor
    identity: Hashable

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def view(self, start: int, stop: int) -> torch.Tensor | None:
        return None

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        assert 0 <= start <= stop <= self.values.numel()
        assert out.shape == (stop - start,)
        out.copy_(self.values.reshape(-1)[start:stop])


def source(rows: int, width: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> Source:
    shape = (rows, width) if width else (rows,)
    return Source("embed", torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype), seed)


def read(tensor: TensorSource, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    out = torch.full((math.prod(tensor.shape),), torch.nan, dtype=dtype)
    tensor.read(0, len(out), out)
    return out.view(tensor.shape)


def naive(
    ids: Mapping[str, int],
    size: int,
    models: Mapping[ModelRef, ModelTokens],
    base: ModelRef | None,
    entries: Mapping[str, TokenRow],
    tables: Mapping[ModelRef, torch.Tensor],
    ref: ModelRef,
) -> torch.Tensor:
    """What `Vocabulary.align` should give, one row after another."""
    token_of = {i: token for token, i in ids.items()}

    def own(model: ModelRef, i: int) -> torch.Tensor | None:
        known, rows = models[model]
        padding = None if i in known.values() else i
        row = known.get(token_of[i]) if i in token_of else padding
        return tables[model][row].double() if row is not None and row < rows else None

    output = torch.zeros(size, *tables[ref].shape[1:], dtype=torch.float64)
    unknown = []
    for i in range(size):
        entry = entries.get(token_of.get(i, ""), TokenRow())
        having = {model: row for model in tables if (row := own(model, i)) is not None}
        if ref in having and not entry.force:
            output[i] = having[ref]
        elif isinstance(entry.source, ZeroRow):
            continue
        elif isinstance(entry.source, ModelToken):
            row = entry.source.token_id
            row = models[entry.source.model].ids[entry.source.token] if row is None else row
            output[i] = tables[entry.source.model][row]
        elif entry.source is not None:
            output[i] = having[entry.source]
        elif len(having) == 1:
            output[i] = next(iter(having.values()))
        elif base in having:
            output[i] = having[base]
        elif having:
            output[i] = sum(having.values()) / len(having)
        elif i not in token_of:
            unknown.append(i)
    if unknown and ids:
        output[unknown] = output[sorted(ids.values())].mean(dim=0)
    return output


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[dict[str, int], int, dict[ModelRef, ModelTokens], dict[str, TokenRow]]:
    names = st.sampled_from("qrstuvwxyz")
    numbered = st.lists(names, unique=True, max_size=8).flatmap(
        lambda tokens: st.permutations(range(len(tokens) + 3)).map(lambda order: dict(zip(tokens, order)))  # noqa: B905
    )
    ids = draw(numbered)
    size = max(ids.values(), default=-1) + 1 + draw(st.integers(0, 4))
    models = {ref: ModelTokens(draw(numbered), draw(st.integers(0, 12))) for ref in (A, B, C)}
    entries: dict[str, TokenRow] = {}
    for token in draw(st.lists(st.sampled_from(sorted(ids)), unique=True, max_size=3)) if ids else []:
        choices: list[TokenRow] = [TokenRow(source=ZeroRow())]
        for ref, model in models.items():
            choices += [TokenRow(source=ref)] * (model.row(token) >= 0)
            choices += [TokenRow(source=ModelToken(model=ref, token_id=model.rows - 1))] * (model.rows > 0)
            other = next((t for t in model.ids if model.row(t) >= 0), None)
            choices += [TokenRow(source=ModelToken(model=ref, token=other))] * (other is not None)
        entry = draw(st.sampled_from(choices))
        entries[token] = TokenRow(source=entry.source, force=draw(st.booleans()))
    return ids, size, models, entries


@pytest.mark.filterwarnings("ignore:tokenizer")
@settings(deadline=None, max_examples=300)
@given(vocabularies(), st.sampled_from([None, A, B]), st.sampled_from([0, 1, 3]), st.data())
def test_rows_are_those_of_the_rules(
    made: tuple[dict[str, int], int, dict[ModelRef, ModelTokens], dict[str, TokenRow]],
    base: ModelRef | None,
    width: int,
    data: st.DataObject,
) -> None:
    ids, size, models, entries = made
    sources = {ref: source(m.rows, width, seed) for seed, (ref, m) in enumerate(models.items())}
    vocabulary = build_vocabulary(ids, size, models, base, entries)
    for ref in models:
        tables = {model: s.values for model, s in sources.items()}
        aligned = vocabulary.align(ref, "embed", sources)
        assert aligned.shape == (size, *sources[ref].shape[1:])
        assert aligned.dtype == torch.float32
        wanted = naive(ids, size, models, base, entries, tables, ref)
        whole = read(aligned)
        torch.testing.assert_close(whole, wanted, rtol=1e-12, atol=1e-12)
        count = whole.numel()
        start = data.draw(st.integers(0, count))
        part = torch.full((data.draw(st.integers(start, count)) - start,), torch.nan, dtype=torch.float64)
        aligned.read(start, start + len(part), part)
        assert torch.equal(part, whole.reshape(-1)[start : start + len(part)])


def simple(ids: Mapping[str, int], rows: int | None = None) -> ModelTokens:
    return ModelTokens(ids, len(ids) if rows is None else rows)


XYZ = {"x": 0, "y": 1, "z": 2}


def test_a_model_with_the_output_s_own_tokens_is_read_directly() -> None:
    models = {A: simple(XYZ, 5), B: simple(XYZ, 5), C: simple({"y": 0, "x": 1, "z": 2}, 5)}
    sources = {A: source(5), B: source(5, seed=1), C: source(5, seed=2)}
    vocabulary = build_vocabulary(XYZ, 5, models, A, {})
    assert vocabulary.align(A, "embed", sources) is sources[A]
    assert vocabulary.align(B, "embed", sources) is sources[B]
    swapped = vocabulary.align(C, "embed", sources)
    assert torch.equal(read(swapped), sources[C].values[[1, 0, 2, 3, 4]].double())


def test_padding_stays_and_models_without_it_get_the_base_s() -> None:
    models = {A: simple(XYZ, 6), B: simple(XYZ, 3)}
    sources = {A: source(6), B: source(3, seed=1)}
    aligned = build_vocabulary(XYZ, 8, models, A, {}).align(B, "embed", sources)
    assert torch.equal(read(aligned)[3:6], sources[A].values[3:].double())
    own_mean = sources[B].values.double().mean(dim=0)
    torch.testing.assert_close(read(aligned)[6:], own_mean.expand(2, 3))


def test_identities_tell_values_apart() -> None:
    tables = {A: source(3), B: source(2, seed=1), C: source(3, seed=2)}

    def identity(ref: ModelRef, base: ModelRef | None = None, **tokens: dict[str, int]) -> Hashable:
        models = {ModelRef(name): simple(ids, 3 if name != "b" else 2) for name, ids in tokens.items()}
        sources = {model: tables[model] for model in models}
        return build_vocabulary(XYZ, 4, models, base, {}).align(ref, "embed", sources).identity

    two = {"x": 0, "y": 1}
    same = identity(B, a=XYZ, b=two)
    assert same == identity(B, A, a=XYZ, b=two) == identity(B, A, a=XYZ, b=two, c=XYZ)
    different = {
        same,
        identity(B, a={"x": 0, "y": 2, "z": 1}, b=two),
        identity(A, a=XYZ, b=two),
        identity(B, a=XYZ, b=two, c=XYZ),
        identity(B, C, a=XYZ, b=two, c=XYZ),
    }
    assert len(different) == 5


def test_models_that_share_a_tensor_and_tokens_have_one_identity() -> None:
    shared = source(4)
    models = {A: simple({"y": 0, "x": 1, "z": 2}, 4), B: simple({"y": 0, "x": 1, "z": 2}, 4)}
    vocabulary = build_vocabulary(XYZ, 4, models, A, {})
    first, second = (vocabulary.align(ref, "embed", {A: shared, B: shared}) for ref in (A, B))
    assert first.identity == second.identity


def test_dtypes_are_promoted_and_means_are_not_rounded_twice() -> None:
    models = {A: simple({"x": 0}), B: simple({"x": 0}), C: simple({})}
    sources = {A: source(1, dtype=torch.bfloat16), B: source(1, seed=1, dtype=torch.float16), C: source(0)}
    aligned = build_vocabulary({"x": 0}, 1, models, None, {}).align(C, "embed", sources)
    assert aligned.dtype == torch.float32
    mean = (sources[A].values.float() + sources[B].values.float()) / 2
    assert torch.equal(read(aligned, torch.float32), mean)
    assert torch.equal(read(aligned, torch.bfloat16), mean.bfloat16())


@pytest.mark.parametrize("compute", [torch.float32, torch.float16], ids=str)
def test_means_are_rounded_to_the_compute_dtype_alone(compute: torch.dtype) -> None:
    stored = torch.bfloat16 if compute == torch.float32 else compute
    tables = {ref: source(2, width=40, seed=seed, dtype=stored) for seed, ref in enumerate((A, B))}
    models = {
        A: ModelTokens({"q": 0, "r": 1}, 2),
        B: ModelTokens({"q": 0, "r": 1}, 2),
        C: ModelTokens({"q": 0}, 1),
    }
    vocabulary = build_vocabulary({"q": 0, "r": 1}, 2, models, None, {})
    aligned = vocabulary.align(C, "embed", {**tables, C: source(1, width=40, seed=2, dtype=stored)})
    arguments = {"weight": (0.3,), "normalize": False}
    op = TensorOp(
        "embed", (2, 40), torch.float32, compute, get_method("linear"), (aligned,), None, arguments, ((0, 0),)
    )
    merged = Computation(op, Workspace()).read(0, 80).view(2, 40)
    mean = (tables[A].values[1].float() + tables[B].values[1].float()) / 2
    assert torch.equal(merged[1], np.float32(0.3) * mean.to(compute).float())


def test_a_slice_may_have_a_base_of_its_own() -> None:
    models = {A: simple({"x": 0}), B: simple({"x": 0}), C: simple({}, 0)}
    sources = {A: source(1), B: source(1, seed=1), C: source(0)}
    vocabulary = build_vocabulary({"x": 0}, 1, models, A, {})
    assert torch.equal(read(vocabulary.align(C, "embed", sources)), sources[A].values.double())
    assert torch.equal(read(vocabulary.align(C, "embed", sources, B)), sources[B].values.double())


def test_a_token_that_only_models_of_other_slices_have_gets_their_row() -> None:
    ids = {"x": 0, "y": 1, "z": 2}
    models = {A: simple({"x": 0}), B: simple({"x": 0, "y": 1}), C: simple({"y": 0, "z": 1})}
    tables = {ref: source(model.rows, seed=i) for i, (ref, model) in enumerate(models.items())}
    vocabulary = build_vocabulary(ids, 3, models, None, {})
    alone = {ref: tables[ref] for ref in (A,)}
    aligned = read(vocabulary.align(A, "embed", alone, others={B: tables[B], C: tables[C]}))
    of = {ref: table.values.double() for ref, table in tables.items()}
    assert torch.equal(aligned[0], of[A][0])
    torch.testing.assert_close(aligned[1], (of[B][1] + of[C][0]) / 2, rtol=1e-6, atol=1e-6)
    assert torch.equal(aligned[2], of[C][1])
    # What is merged goes first: then others are not asked.
    both = {A: tables[A], B: tables[B]}
    assert torch.equal(read(vocabulary.align(A, "embed", both, others={C: tables[C]}))[1], of[B][1])


def test_a_mean_over_many_rows_is_read_in_blocks() -> None:
    rows = 3000
    ids = {str(i): i if i < 1000 else i + 7 for i in range(rows)}  # with holes, which nobody has
    table = source(rows, width=128)
    models = {A: simple({str(i): i for i in range(rows)})}
    aligned = build_vocabulary(ids, rows + 7, models, None, {}).align(A, "embed", {A: table})
    out = torch.empty(7 * 128)
    aligned.read(1000 * 128, 1007 * 128, out)
    torch.testing.assert_close(out.view(7, 128), table.values.double().mean(dim=0).float().expand(7, 128))


def build(entries: dict[str, TokenRow]) -> Vocabulary:
    return build_vocabulary(XYZ, 3, {A: simple(XYZ, 2), B: simple({"x": 0})}, A, entries)


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (TokenRow(source=C), "source: c is not one of the recipe's models"),
        (TokenRow(source=B), "source: b has no row for 'y'; name a model that has the token"),
        (TokenRow(source=ModelToken(model=B, token="q")), "source: b has no row for 'q'"),
        (TokenRow(source=ModelToken(model=A, token="z")), "source: a has no row for 'z'"),  # beyond its two rows
        (
            TokenRow(source=ModelToken(model=A, token_id=2)),
            "source.token_id: `0 <= token_id < 2` must hold in a, but got 2",
        ),
        (TokenRow(source=ModelToken(model=A, token_id=-1)), "source.token_id: `0 <= token_id < 2` must hold"),
        (TokenRow(force=True), "'force' needs a 'source'"),
    ],
)
def test_rows_that_there_are_not_are_refused(entry: TokenRow, fault: str) -> None:
    with pytest.raises(InputError) as caught:
        build({"y": entry, "x": TokenRow(source=C)})
    first, second = caught.value.faults
    assert first.startswith(f"tokenizer.tokens.y: {fault}")
    assert second.startswith("tokenizer.tokens.x: source: c is not")


def test_tokens_without_any_row_are_zeros_and_reported() -> None:
    with pytest.warns(UserWarning, match=r"no model has a row for 'z'; 1 rows are zeros"):
        vocabulary = build({})
    aligned = vocabulary.align(A, "embed", {A: source(2), B: source(1, seed=1)})
    assert read(aligned)[2].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.filterwarnings("ignore:tokenizer")
def test_a_row_in_a_model_that_is_not_merged_is_refused_where_it_is_needed() -> None:
    vocabulary = build({"y": TokenRow(source=A)})
    assert vocabulary.align(A, "embed", {A: source(2)}).shape == (3, 3)
    with pytest.raises(InputError, match=r"tokenizer\.tokens\.y: a has the row, but is not merged into head"):
        vocabulary.align(B, "head", {B: source(1)})


@pytest.mark.filterwarnings("ignore:tokenizer")
def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"embed: shapes must match but for the number of rows.*\[1, 4\] in b"):
        build({}).align(A, "embed", {A: source(2), B: source(1, width=4)})
    with pytest.raises(InputError, match=r"head: must have as many rows as the embedding, but got \[1, 3\] in a"):
        build({}).align(A, "head", {A: source(1), B: source(1)})


# --- which tensors ----------------------------------------------------------------------------------------------

TABLES = """
model.embed_tokens.weight lm_head.weight transformer.wte.weight wte.weight lm_head.bias
gpt_neox.embed_in.weight embed_out.weight backbone.embeddings.weight model.tok_embeddings.weight output.weight
bert.embeddings.word_embeddings.weight cls.predictions.bias cls.predictions.decoder.weight
cls.predictions.decoder.bias lm_head.decoder.weight lm_head.decoder.bias
shared.weight encoder.embed_tokens.weight decoder.embed_tokens.weight
model.decoder.embed_tokens.weight proj_out.weight language_model.model.embed_tokens.weight
language_model.lm_head.weight model.language_model.embed_tokens.weight
""".split()
OTHERS = """
transformer.wpe.weight bert.embeddings.position_embeddings.weight bert.embeddings.token_type_embeddings.weight
model.decoder.embed_positions.weight model.norm.weight lm_head.dense.weight lm_head.layer_norm.bias
cls.predictions.transform.dense.weight model.layers.0.attn.output.weight model.layers.0.lm_head.weight
vision_tower.embeddings.patch_embedding.weight mylm_head.weight
""".split()


@pytest.mark.parametrize("name", TABLES)
def test_tensors_with_a_row_for_each_token_are_known(name: str) -> None:
    assert is_vocabulary(name, (7, 4), 7)
    assert is_vocabulary(name, (7,), 7)
    assert not is_vocabulary(name, (8, 4), 7)
    assert not is_vocabulary(name, (), 7)
    embeds = name.split(".")[-2] in (
        "embed_tokens wte embed_in embeddings tok_embeddings word_embeddings shared".split()
    )
    assert (embedding_name([name]) == name) == embeds
    assert is_head(name) == (not embeds and name.endswith("weight"))
    assert comes_first(name) == embeds


@pytest.mark.parametrize(
    "name",
    "decoder.bias vocab_projector.weight generator_lm_head.bias output_projection.weight output.bias "
    "lm_head.linear.weight transformer.output_layer.weight".split(),
)
def test_names_of_single_architectures_are_known_by_their_rows_too(name: str) -> None:
    assert is_vocabulary(name, (7, 4), 7)
    assert not is_vocabulary(name, (8, 4), 7)
    assert not is_head(name)


@pytest.mark.parametrize("name", OTHERS)
def test_other_tensors_are_not(name: str) -> None:
    assert not is_vocabulary(name, (7, 4), 7)
    assert embedding_name([name]) is None
    assert not is_head(name)

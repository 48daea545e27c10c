"""Tokenizers and embeddings of whole merges, token by token: mergekit's ids of appended tokens vary by run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from .recipes import Mergekit, Tensors, located, ours

pytestmark = pytest.mark.filterwarnings("ignore")

MakeLlama = Callable[..., Path]

SPECIAL = ["<unk>", "<s>", "</s>"]
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
CALL = AddedToken("<call>", special=True)
TEMPLATES = {"base": "{{ messages }} of the base", "a": "{{ messages }} of a", "b": "{{ messages }} of a\n"}


def words(text: str, *added: AddedToken) -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordLevel({t: i for i, t in enumerate(SPECIAL + text.split())}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for token in added:
        tokenizer.add_tokens([token])
    return tokenizer


def bpe(text: str, *added: AddedToken) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([text] * 3, trainers.BpeTrainer(vocab_size=40, special_tokens=SPECIAL))
    tokenizer.add_tokens(list(added))
    return tokenizer


def unigram(text: str, *added: AddedToken) -> Tokenizer:
    pieces = [(token, -1.0 - i) for i, token in enumerate(text.split())]
    tokenizer = Tokenizer(models.Unigram([*((token, 0.0) for token in SPECIAL), *pieces], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_tokens(list(added))
    return tokenizer


TOKENIZERS: dict[str, dict[str, Tokenizer]] = {
    "words": {
        "base": words("cat dog bee ant", AddedToken("<x>", lstrip=True)),
        "a": words("dog zebra cat <s2>", AddedToken("<x>", rstrip=True), CALL),
        "b": words("ant cat fish zebra", CALL, AddedToken("<s2>", special=True)),
        "c": words("cat dog bee ant", AddedToken("<x>", lstrip=True)),
    },
    "bpe": {
        "base": bpe("the cat sat on the mat"),
        "a": bpe("a theme of cats and mats", CALL),
        "b": bpe("on the mattress sat a cat", AddedToken("<x>")),
        "c": bpe("the cat sat on the mat"),
    },
    "unigram": {
        "base": unigram("▁ c a t ▁cat"),
        "a": unigram("▁ o g d ▁dog t", CALL),
        "b": unigram("t a c ▁ ▁cat"),
        "c": unigram("▁ c a t ▁cat"),
    },
}


@pytest.fixture(scope="session")
def speakers(make_llama: MakeLlama) -> dict[str, dict[str, str]]:
    """Folders of models by name, for every kind of tokenizer."""
    made: dict[str, dict[str, str]] = {}
    for kind, tokenizers in TOKENIZERS.items():
        made[kind] = {}
        for seed, (name, tokenizer) in enumerate(tokenizers.items()):
            # c's embedding is padded; mergekit reads the rows of base and b as heads too.
            rows = tokenizer.get_vocab_size() + (3 if name == "c" else 0)
            options = {
                "layers": 1,
                "vocab": rows,
                "seed": seed,
                "dtype": torch.float32,
                "tied": name in ("b", "c"),
            }
            folder = make_llama(f"{kind}-{name}", **options)
            tokenizer.save(str(folder / "tokenizer.json"))
            (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
            (folder / "chat_template.jinja").write_text(TEMPLATES.get(name, "{{ 'of none other' }}"))
            made[kind][name] = str(folder)
    return made


def linear(names: str, base: str | None = None, **keys: Any) -> dict[str, Any]:
    weights = (0.5, 0.3, 0.9, 0.7)
    listed = [{"model": n, "parameters": {"weight": w}} for n, w in zip(names.split(), weights, strict=False)]
    return {"merge_method": "linear", "models": listed, **({"base_model": base} if base else {}), **keys}


def row(model: str, **token: Any) -> dict[str, Any]:
    return {"source": {"kind": "model_token", "model": model, **token}}


UNION = {"tokenizer_source": "union"}
NAMED = {
    "<call>": {"source": "a"},
    "fish": {"source": "b", "force": True},
    "zebra": row("base", token="cat") | {"force": True},
    "cat": row("a", token_id=1) | {"force": True},
    "<new>": row("b", token="fish"),
    "<none>": {"source": {"kind": "zero"}},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "union": ("words", linear("base a b", base="base", **UNION)),
    "union-without-base": ("words", linear("base a b", **UNION) | {"base_model": None}),
    "union-base-last": ("words", linear("a b base", base="base", **UNION)),
    "union-bpe": ("bpe", linear("base a b", base="base", **UNION)),
    "union-unigram": ("unigram", linear("base a b", base="base", **UNION)),
    "base": ("words", linear("base a b", base="base", tokenizer_source="base")),
    "base-bpe": ("bpe", linear("base a b", base="base", tokenizer={"source": "base"})),
    "a-model": ("words", linear("base a b", base="base", tokenizer_source="a")),
    "a-model-unigram": ("unigram", linear("base b", base="base", tokenizer={"source": "b"})),
    "named": ("words", linear("base a b", base="base", tokenizer={"source": "union", "tokens": NAMED})),
    "padded-to": ("words", linear("base a", base="base", tokenizer={"source": "base", "pad_to_multiple_of": 16})),
    "task-vectors": ("words", linear("a b", base="base", **UNION) | {"merge_method": "ties"}),
}


def table(tensors: Tensors, tokens: dict[str, int], name: str) -> torch.Tensor:
    return tensors[name][[tokens[token] for token in sorted(tokens)]]


@pytest.mark.parametrize("case", CASES)
def test_embeddings_agree_for_every_token(
    case: str, mergekit: Mergekit, speakers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    kind, recipe = CASES[case]
    found = located({k: v for k, v in recipe.items() if v is not None}, speakers[kind])
    for key in ("tokenizer_source", "source"):
        _locate_source(found, key, speakers[kind])
    theirs, mine = mergekit(found, tmp_path / "theirs"), ours(found, tmp_path / "ours")
    loaded = [AutoTokenizer.from_pretrained(tmp_path / side) for side in ("theirs", "ours")]
    tokens = [tokenizer.get_vocab() for tokenizer in loaded]
    assert tokens[0].keys() == tokens[1].keys()
    donor = TOKENIZERS[kind][
        "b" if case == "a-model-unigram" else "a" if case == "a-model" else "base"
    ].get_vocab()
    assert donor.items() <= tokens[1].items()
    added = [{t.content: t for t in tokenizer.added_tokens_decoder.values()} for tokenizer in loaded]
    assert added[0] == added[1]
    assert mine.keys() == theirs.keys() >= {"lm_head.weight"}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert mine[name].shape == theirs[name].shape
        torch.testing.assert_close(table(mine, tokens[1], name), table(theirs, tokens[0], name))
        torch.testing.assert_close(mine[name][len(tokens[1]) :], theirs[name][len(tokens[0]) :])
    for name in mine.keys() - {"model.embed_tokens.weight", "lm_head.weight"}:
        torch.testing.assert_close(mine[name], theirs[name])
    sizes = [
        json.loads((tmp_path / side / "config.json").read_text())["vocab_size"] for side in ("theirs", "ours")
    ]
    assert sizes[0] == sizes[1] == len(mine["lm_head.weight"])


def _locate_source(recipe: dict[str, Any], key: str, folders: dict[str, str]) -> None:
    """Write the folder where a model's name stands as the source of a tokenizer or of a token."""
    for value in [recipe, *filter(lambda v: isinstance(v, dict), recipe.values())]:
        if value.get(key) in folders and value.get(key) != "base":
            value[key] = folders[value[key]]
        for token in value.get("tokens", {}).values():
            if token.get("source") in folders if isinstance(token.get("source"), str) else False:
                token["source"] = folders[token["source"]]


@pytest.mark.parametrize("names", ["base a b", "a base", "base a"])
def test_the_most_frequent_chat_template_is_the_same(
    names: str, mergekit: Mergekit, speakers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    recipe = linear(names, base="base" if names != "base a b" else None, chat_template="auto", **UNION)
    found = located(recipe, speakers["words"])
    mergekit(found, tmp_path / "theirs")
    ours(found, tmp_path / "ours")
    templates = [AutoTokenizer.from_pretrained(tmp_path / side).chat_template for side in ("theirs", "ours")]
    if names == "base a b":
        assert templates == ["{{ messages }} of a"] * 2
    else:  # a tie, where mergekit's choice varies and ours is the base
        assert templates[1] == TEMPLATES["base"]


def test_padding_is_kept_where_mergekit_cuts_it_off(
    mergekit: Mergekit, speakers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    found = located(linear("base c", base="c", tokenizer_source="base"), speakers["words"])
    theirs, mine = mergekit(found, tmp_path / "theirs"), ours(found, tmp_path / "ours")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        cut = len(theirs[name])
        assert len(mine[name]) == cut + 3
        torch.testing.assert_close(mine[name][:cut], theirs[name])
    padding = mine["model.embed_tokens.weight"][-3:]
    torch.testing.assert_close(padding, _rows(speakers["words"]["c"])[-3:])  # only c has any


def _rows(folder: str) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(Path(folder) / "model.safetensors")["model.embed_tokens.weight"]

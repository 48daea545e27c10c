"""Tokenizers and embeddings of whole merges, token by token: mergekit's ids of appended tokens vary by run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from .recipes import Mergekit, Tensors, ours

pytestmark = pytest.mark.filterwarnings("ignore")

MakeLlama = Callable[..., Path]

SPECIAL = ["<unk>", "<s>", "</s>"]
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
CALL = AddedToken("<call>", special=True)
TEMPLATES = {"home": "{{ messages }} of home", "a": "{{ messages }} of a", "b": "{{ messages }} of a\n"}


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
        "home": words("cat dog bee ant", AddedToken("<x>", lstrip=True)),
        "a": words("dog zebra cat <s2>", AddedToken("<x>", rstrip=True), CALL),
        "b": words("ant cat fish zebra", CALL, AddedToken("<s2>", special=True)),
        "c": words("cat dog bee ant", AddedToken("<x>", lstrip=True)),
    },
    "bpe": {
        "home": bpe("the cat sat on the mat"),
        "a": bpe("a theme of cats and mats", CALL),
        "b": bpe("on the mattress sat a cat", AddedToken("<x>")),
        "c": bpe("the cat sat on the mat"),
    },
    "unigram": {
        "home": unigram("▁ c a t ▁cat"),
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
            rows = tokenizer.get_vocab_size() + (3 if name == "c" else 0)  # c's are padded
            options = {"layers": 1, "vocab": rows, "dtype": torch.float32, "tied": name in ("b", "c")}
            folder = make_llama(f"{kind}-{name}", seed=seed, **options)
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
    "zebra": row("home", token="cat") | {"force": True},
    "cat": row("a", token_id=1) | {"force": True},
    "<new>": row("b", token="fish"),
    "<none>": {"source": {"kind": "zero"}},
}
# Kind of tokenizers, recipe, and whose tokenizer keeps its ids (None: whichever mergekit takes).
CASES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "union": ("words", linear("home a b", "home", **UNION), "home"),
    "union-base-last": ("words", linear("a b home", "home", **UNION), "home"),
    "union-without-base": ("words", linear("home a b", **UNION), None),
    "union-bpe": ("bpe", linear("home a b", "home", **UNION), "home"),
    "union-unigram": ("unigram", linear("home a b", "home", **UNION), "home"),
    "base": ("words", linear("home a b", "home", tokenizer_source="base"), "home"),
    "base-bpe": ("bpe", linear("home a b", "home", tokenizer={"source": "base"}), "home"),
    "a-model": ("words", linear("home a b", "home", tokenizer_source="a"), "a"),
    "a-model-elsewhere": ("words", linear("home a", "home", tokenizer_source="b"), "b"),
    "a-model-unigram": ("unigram", linear("home b", "home", tokenizer={"source": "b"}), "b"),
    "named": ("words", linear("home a b", "home", tokenizer={"source": "union", "tokens": NAMED}), "home"),
    "padded-to": (
        "words",
        linear("home a", "home", tokenizer={"source": "base", "pad_to_multiple_of": 16}),
        "home",
    ),
    "task-vectors": ("words", linear("a b", "home", **UNION) | {"merge_method": "ties"}, "home"),
}


def located(value: Any, folders: dict[str, str]) -> Any:
    """A recipe with folders for models' names."""
    if isinstance(value, dict):
        named = {"model", "base_model", "source", "tokenizer_source"}
        return {
            key: folders.get(entry, entry) if key in named and isinstance(entry, str) else located(entry, folders)
            for key, entry in value.items()
        }
    return [located(entry, folders) for entry in value] if isinstance(value, list) else value


TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def table(tensors: Tensors, tokens: dict[str, int], name: str) -> torch.Tensor:
    return tensors[name][[tokens[token] for token in sorted(tokens)]]


@pytest.mark.parametrize("case", CASES)
def test_embeddings_agree_for_every_token(
    case: str, mergekit: Mergekit, speakers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    kind, recipe, keeper = CASES[case]
    found = located(recipe, speakers[kind])
    theirs, mine = mergekit(found, tmp_path / "theirs"), ours(found, tmp_path / "ours")
    loaded = [AutoTokenizer.from_pretrained(tmp_path / side) for side in ("theirs", "ours")]
    tokens = [tokenizer.get_vocab() for tokenizer in loaded]
    assert tokens[0].keys() == tokens[1].keys()
    if keeper is not None:
        assert TOKENIZERS[kind][keeper].get_vocab().items() <= tokens[1].items()
        added = [{t.content: t for t in tokenizer.added_tokens_decoder.values()} for tokenizer in loaded]
        assert added[0] == added[1]
    assert mine.keys() == theirs.keys()
    for name in mine:
        if name in TABLES:
            torch.testing.assert_close(table(mine, tokens[1], name), table(theirs, tokens[0], name))
            torch.testing.assert_close(mine[name][len(tokens[1]) :], theirs[name][len(tokens[0]) :])
        else:
            torch.testing.assert_close(mine[name], theirs[name])
    configs = [json.loads((tmp_path / side / "config.json").read_text()) for side in ("theirs", "ours")]
    assert configs[0]["vocab_size"] == configs[1]["vocab_size"] == len(mine[TABLES[0]])


def test_the_most_frequent_chat_template_is_the_same(
    mergekit: Mergekit, speakers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    found = located(linear("home a b", "home", chat_template="auto", **UNION), speakers["words"])
    mergekit(found, tmp_path / "theirs")
    ours(found, tmp_path / "ours")
    for side in ("theirs", "ours"):
        assert AutoTokenizer.from_pretrained(tmp_path / side).chat_template == "{{ messages }} of a"


def test_padding_is_kept_where_mergekit_cuts_it_off(
    mergekit: Mergekit, speakers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    found = located(linear("home c", "c", tokenizer_source="base"), speakers["words"])
    theirs, mine = mergekit(found, tmp_path / "theirs"), ours(found, tmp_path / "ours")
    own = load_file(Path(speakers["words"]["c"], "model.safetensors"))[TABLES[0]]
    for name in TABLES:
        cut = len(theirs[name])
        assert mine[name].shape == own.shape == (cut + 3, own.shape[1])
        torch.testing.assert_close(mine[name][:cut], theirs[name])
    torch.testing.assert_close(mine[TABLES[0]][-3:], own[-3:])  # only c has any

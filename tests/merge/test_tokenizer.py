"""Tokenizers of merges: files left as they are where possible, tokens appended without moving others."""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from heterosis.errors import InputError
from heterosis.merge.models.tokenizer import ModelTokenizer, is_tokenizer_file
from heterosis.merge.planning.output_tokenizer import output_tokenizer
from heterosis.merge.planning.vocabulary import Vocabulary
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef

SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
TEXTS = ["the cat sat on the mat", "a dog and a cat", "one two three plus four"] * 3
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}


def words(*tokens: str, ids: Mapping[str, int] | None = None, added: Iterable[AddedToken] = ()) -> Tokenizer:
    """A word-level tokenizer."""
    numbered = SPECIAL | {token: i for i, token in enumerate(tokens, 3)} if ids is None else dict(ids)
    tokenizer = Tokenizer(models.WordLevel(numbered, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for token in added:
        tokenizer.add_tokens([token])
    return tokenizer


def bpe(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIAL)))
    return tokenizer


def unigram(tokens: str) -> Tokenizer:
    vocab = [(token, 0.0) for token in SPECIAL] + [(token, -1.0 - i) for i, token in enumerate(tokens.split())]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


@dataclass
class Table:
    """A tensor of which only the shape is asked."""

    shape: tuple[int, ...]


@dataclass
class FakeModel:
    """A model with a tokenizer and the shape of an embedding (a `Model`)."""

    ref: ModelRef
    folder: Path
    tokenizer: ModelTokenizer
    tensors: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    resident_bytes: int = 0


class Models:
    """Models by name, each made from a tokenizer and a number of rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models: dict[ModelRef, FakeModel] = {}
        self.opened: list[str] = []
        self.vocabulary: Vocabulary | None = None  # of the last output

    def add(self, name: str, tokenizer: Tokenizer | None, rows: int | None = None, **config: Any) -> Path:
        folder = self.root / name
        folder.mkdir()
        (folder / "generation_config.json").write_text("{}")
        if tokenizer is not None:
            tokenizer.save(str(folder / "tokenizer.json"))
            (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG | config))
            rows = max(tokenizer.get_vocab().values()) + 1 if rows is None else rows
        self.put(name, ModelTokenizer.of_folder(folder), rows or 0, folder)
        return folder

    def put(self, name: str, tokenizer: ModelTokenizer, rows: int, folder: Path | None = None) -> None:
        ref = ModelRef(name)
        tensors = {"model.embed_tokens.weight": Table((rows, 4)), "model.norm.weight": Table((4,))}
        self.models[ref] = FakeModel(ref, folder or self.root, tokenizer, tensors)

    def open(self, ref: ModelRef) -> FakeModel:
        self.opened.append(str(ref))
        return self.models[ref]

    def output(self, names: str, base: str | None = None, **keys: Any) -> ModelTokenizer:
        """The tokenizer of a recipe over some of the models, such as ``"a b"``."""
        listed = [{"model": name} for name in names.split()]
        recipe = Recipe.model_validate(
            {"merge_method": "linear", "models": listed, **({"base_model": base} if base else {}), **keys}
        )
        mine = {ref: self.models[ref] for ref in reversed(recipe.referenced_models())}
        tokenizer, self.vocabulary = output_tokenizer(recipe, mine[recipe.donor], mine, self.open)
        return tokenizer

    def size_of(self, names: str, **keys: Any) -> int:
        """The rows of a recipe's output."""
        self.output(names, **keys)
        return self.size

    @property
    def size(self) -> int:
        """The rows of the last output."""
        assert self.vocabulary is not None
        return self.vocabulary.size


@pytest.fixture
def world(tmp_path: Path) -> Models:
    root = tmp_path / "models"
    root.mkdir()
    return Models(root)


def written(tokenizer: ModelTokenizer, folder: Path) -> Path:
    folder.mkdir()
    tokenizer.write(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if is_tokenizer_file(path.name)}


def ids_of(tokenizer: ModelTokenizer) -> dict[str, int]:
    """Token ids as users get them: written, loaded."""
    vocabulary = tokenizer.load().get_vocab()
    assert isinstance(vocabulary, dict)
    return vocabulary


# --- files as they are ------------------------------------------------------------------------------------------


def test_without_settings_the_donor_s_files_are_copied(world: Models, tmp_path: Path) -> None:
    folder = world.add("a", words("cat"))
    world.add("b", words("dog"))
    for name in ("tokenizer.model", "special_tokens_map.json", "vocab.json", "merges.txt", "qwen.tiktoken"):
        (folder / name).write_text(f"{{}}{name}")
    (folder / "tokenization_a.py").write_text("import os")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 }}")
    output = world.output("a b")
    assert world.vocabulary is None
    out = written(output, tmp_path / "out")
    assert contents(out) == contents(folder)
    assert len(contents(out)) == 7
    assert (out / "additional_chat_templates" / "rag.jinja").is_file()
    assert not (out / "generation_config.json").exists()


@pytest.mark.parametrize("source", ["base", "b", "union"])
def test_a_source_that_needs_no_more_tokens_is_copied(world: Models, tmp_path: Path, source: str) -> None:
    folders = {"a": world.add("a", words("cat", "dog")), "b": world.add("b", words("dog"))}
    output = world.output("b a", base="a", tokenizer_source=source)
    assert contents(written(output, tmp_path / "out")) == contents(folders["b" if source == "b" else "a"])
    assert world.size == (4 if source == "b" else 5)
    assert output.load().get_vocab() == output.tokens().ids


def test_any_model_may_be_the_source(world: Models, tmp_path: Path) -> None:
    world.add("a", words("cat", "dog"))
    far = world.add("far", words("dog", "cat"), rows=9)
    output = world.output("a", tokenizer_source="far")
    assert world.opened == ["far"]
    assert contents(written(output, tmp_path / "out")) == contents(far)
    assert world.vocabulary is not None
    assert world.vocabulary.rows[ModelRef("a")].tolist() == [0, 1, 2, 4, 3, -1, -1, -1, -1]


def test_a_model_without_a_tokenizer_gives_an_output_without_one(world: Models, tmp_path: Path) -> None:
    folder = world.add("a", None)
    output = world.output("a", chat_template="auto")
    assert output.chat_template is None
    assert list(written(output, tmp_path / "out").iterdir()) == []
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    assert ModelTokenizer.of_folder(folder).folder is None
    with pytest.raises(InputError, match="has none"):
        output.load()
    world.add("b", words("cat"))
    with pytest.warns(UserWarning, match="the merge has no tokenizer, as a has none; write tokenizer_source: b"):
        world.output("a b")


def test_embeddings_of_other_tokens_are_not_mixed_unsaid(world: Models) -> None:
    world.add("a", words("cat", "dog"))
    world.add("b", words("dog", "cat"))
    world.add("c", words("cat", "dog", "mat"))
    with pytest.warns(UserWarning, match=r"2 ids stand for other tokens in b than in a \(3 for 'dog' and 'cat'\)"):
        world.output("a b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world.output("a c")  # a token more is in nobody's way
        world.output("a b", tokenizer_source="union")


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"tokenizer_source": "union"}, "tokenizer: a has no tokenizer; name a model that has one"),
        ({"tokenizer": {"source": "base"}}, "tokenizer: a has no tokenizer"),
        ({"chat_template": "chatml"}, "chat_template: a has no tokenizer; .* or leave out chat_template"),
    ],
)
def test_what_needs_a_tokenizer_is_refused_without_one(world: Models, keys: dict[str, Any], fault: str) -> None:
    world.add("a", None)
    world.add("b", words("cat"))
    with pytest.raises(InputError, match=fault):
        world.output("a b", **keys)


def test_a_tokenizer_that_cannot_be_loaded_is_refused_as_the_source(world: Models) -> None:
    folder = world.add("a", words("cat"))
    world.add("b", words("cat"))
    (folder / "tokenizer.json").write_text("{")
    assert world.output("a b").folder == folder  # nobody looks inside
    with pytest.raises(InputError, match=r"models/a: the tokenizer cannot be loaded: .+") as caught:
        world.output("a b", tokenizer_source="union")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("broken", [True, False])
def test_other_models_may_be_without_a_readable_tokenizer(world: Models, broken: bool) -> None:
    world.add("a", words("cat"))
    folder = world.add("b", words("dog") if broken else None, rows=4)
    world.put("b", ModelTokenizer.of_folder(folder), 4, folder)
    if broken:
        (folder / "tokenizer.json").write_text("{")
    with pytest.warns(UserWarning, match="b is taken to have the tokens of a: "):
        world.output("a b", tokenizer_source="union")
    assert world.vocabulary is not None
    assert world.vocabulary.rows[ModelRef("b")].tolist() == [0, 1, 2, 3]


def test_a_model_whose_embedding_has_no_known_name_is_refused(world: Models) -> None:
    world.add("a", words("cat"))
    world.models[ModelRef("a")].tensors = {"strange.weight": Table((4, 4))}
    with pytest.raises(InputError, match="a has no embedding that is known by its name; leave out tokenizer"):
        world.output("a", tokenizer_source="base")


# --- tokens appended --------------------------------------------------------------------------------------------


def test_a_union_appends_in_the_order_of_models_then_ids(world: Models) -> None:
    world.add("base", words("cat"))
    world.add("a", words("zebra", "cat", "ant", added=[AddedToken("<call>", special=True)]))
    world.add("b", words("dog", "ant", "bee"))
    output = world.output("b a", base="base", tokenizer_source="union")
    new = {"dog": 4, "ant": 5, "bee": 6, "zebra": 7, "<call>": 8}
    assert ids_of(output) == SPECIAL | {"cat": 3} | new == output.tokens().ids
    assert world.size == 9
    loaded = output.load()
    assert loaded.eos_token == "</s>"
    assert loaded.tokenize("cat <call> bee") == ["cat", "<call>", "bee"]
    assert "<call>" in {str(t) for t in loaded.added_tokens_decoder.values() if t.special}
    assert not loaded.added_tokens_decoder[5].special


def test_a_union_keeps_the_rest_of_tokenizer_json(world: Models, tmp_path: Path) -> None:
    """Also where transformers' class would replace the normalizer and the splitting."""
    special = {"unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = bpe(TEXTS, 50)
    count = tokenizer.get_vocab_size()
    folder = world.add("a", tokenizer, count + 1, tokenizer_class="Qwen2Tokenizer", **special)
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (folder / name).write_text("{}")
    world.add("b", bpe(["kizz kijj zjj"] * 3, 50))
    output = world.output("a b", tokenizer_source="union")
    out = written(output, tmp_path / "out")
    before, after = (json.loads((path / "tokenizer.json").read_text()) for path in (folder, out))
    assert {key for key in before if before[key] != after[key]} == {"added_tokens"}
    assert after["added_tokens"][:3] == before["added_tokens"]
    assert (out / "tokenizer_config.json").read_bytes() == (folder / "tokenizer_config.json").read_bytes()
    assert sorted(contents(out)) == ["tokenizer.json", "tokenizer_config.json"]
    plain = Tokenizer.from_file(str(out / "tokenizer.json"))
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert plain.encode("The CAT and a dog").tokens == original.encode("The CAT and a dog").tokens
    assert original.get_vocab().items() < plain.get_vocab().items()
    assert plain.get_vocab()["<pad>"] == count  # which only tokenizer_config.json named
    assert AutoTokenizer.from_pretrained(out).get_vocab() == output.tokens().ids


def test_settings_of_added_tokens_are_the_first_model_s(world: Models) -> None:
    world.add("a", words("cat"))
    world.add("b", words("cat", added=[AddedToken("<x>", lstrip=True), AddedToken("<y>", special=True)]))
    world.add("c", words("cat", added=[AddedToken("<x>", rstrip=True), AddedToken("<y>", special=True)]))
    with pytest.warns(UserWarning, match="models add '<x>' with different settings; the first model's are kept"):
        output = world.output("a b c", tokenizer_source="union")
    token = output.load().added_tokens_decoder[ids_of(output)["<x>"]]
    assert (token.lstrip, token.rstrip) == (True, False)


def test_a_token_that_another_model_adds_is_added_in_the_base_too(world: Models) -> None:
    world.add("a", words("<call>", "cat"))
    world.add("b", words("cat", added=[AddedToken("<call>", special=True)]))
    output = world.output("a b", tokenizer_source="union")
    assert ids_of(output) == SPECIAL | {"<call>": 3, "cat": 4}
    assert output.load().tokenize("cat<call>cat") == ["cat", "<call>", "cat"]


def test_tokens_without_a_row_are_left_out_of_a_union_unless_the_base_has_them(world: Models) -> None:
    world.add("a", words("cat", "dog"), rows=4)
    world.add("b", words("cat", "bee", "ant"), rows=5)
    with pytest.warns(UserWarning, match="no model has a row for 'dog'; 1 rows are zeros"):
        output = world.output("a b", tokenizer_source="union")
    assert ids_of(output) == SPECIAL | {"cat": 3, "dog": 4, "bee": 5}
    assert world.vocabulary is not None
    assert world.vocabulary.rows[ModelRef("a")].tolist() == [0, 1, 2, 3, -1, -1]
    assert world.vocabulary.rows[ModelRef("b")].tolist() == [0, 1, 2, 3, -1, 4]


def test_tokens_of_the_recipe_are_appended(world: Models) -> None:
    world.add("a", words("cat"))
    tokens = {"<new>": {"source": {"kind": "zero"}}, "cat": {"source": "a"}, "dog": {}}
    with pytest.warns(UserWarning, match="no model has a row for 'dog'"):
        output = world.output("a", tokenizer={"source": "base", "tokens": tokens})
    assert ids_of(output) == SPECIAL | {"cat": 3, "<new>": 4, "dog": 5}
    assert output.load().tokenize("cat<new>") == ["cat", "<new>"]
    with pytest.raises(InputError, match=r"tokenizer\.tokens\.cat: source: far is not one of the recipe's models"):
        world.output("a", tokenizer={"tokens": {"cat": {"source": "far"}}})


def test_unigrams(world: Models) -> None:
    world.add("a", unigram("▁ c a t ▁cat"))
    world.add("b", unigram("▁ d o g ▁dog"))
    output = world.output("a b", tokenizer_source="union")
    ids = ids_of(output)
    assert [ids[token] for token in "▁ t ▁cat d o g ▁dog".split()] == [3, 6, 7, 8, 9, 10, 11]
    assert output.load().tokenize("cat") == ["▁cat"]


@pytest.mark.parametrize("last", [5, 9])
def test_ids_with_holes_stay_and_tokens_come_after_them(world: Models, last: int) -> None:
    """The tokenizers library itself numbers new tokens from the number of tokens, over ids in use."""
    holes = SPECIAL | {"cat": 4, "dog": last}
    world.add("a", words(ids=holes))
    world.add("b", words("bee", added=[AddedToken("<call>", special=True)]))
    output = world.output("a b", tokenizer_source="union")
    assert ids_of(output) == holes | {"bee": last + 1, "<call>": last + 2}
    assert world.size == last + 3
    assert output.load().tokenize("dog <call> bee") == ["dog", "<call>", "bee"]
    assert world.size_of("a b", tokenizer_source="a") == last + 1


def test_padding_survives_and_more_tokens_go_there(world: Models) -> None:
    world.add("a", words("cat"), rows=6)
    world.add("b", words("dog", "cat"))
    assert world.size_of("a b", tokenizer_source="base") == 6
    assert world.size_of("a b", tokenizer_source="b") == 5
    assert world.size_of("a b", tokenizer_source="union") == 6
    assert world.vocabulary is not None
    assert world.vocabulary.rows[ModelRef("a")].tolist() == [0, 1, 2, 3, -1, 5]
    assert world.vocabulary.is_token.tolist() == [True] * 5 + [False]


@pytest.mark.parametrize(("multiple", "size"), [(1, 5), (4, 8), (5, 5), (64, 64)])
def test_rows_are_padded_to_a_multiple(world: Models, multiple: int, size: int) -> None:
    world.add("a", words("cat", "dog"))
    assert world.size_of("a", tokenizer={"source": "base", "pad_to_multiple_of": multiple}) == size


def test_an_earlier_merge_is_added_to(world: Models, tmp_path: Path) -> None:
    world.add("a", words("cat"))
    world.add("b", words("dog"))
    world.add("c", words("bee"))
    stage = world.output("a b", tokenizer_source="union", chat_template="chatml")
    world.put("stage", stage, world.size)
    output = world.output("stage c", tokenizer_source="union")
    assert ids_of(output) == SPECIAL | {"cat": 3, "dog": 4, "bee": 5}
    assert output.chat_template == stage.chat_template
    assert "<|im_start|>" in (written(output, tmp_path / "out") / "chat_template.jinja").read_text()
    assert world.output("stage").identity == stage.identity


def test_a_sentencepiece_model_is_converted_only_to_be_added_to(world: Models, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = world.add("a", None)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=str(folder / "tokenizer"), vocab_size=40, model_type="bpe"
    )
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    own = ModelTokenizer.of_folder(folder)
    count = len(own.load().get_vocab())
    world.put("a", own, count, folder)
    world.add("b", words("cat", "xyz"))
    assert contents(written(world.output("a b", tokenizer_source="base"), tmp_path / "base")) == contents(folder)
    output = world.output("a b", tokenizer_source="union")
    out = written(output, tmp_path / "union")
    assert (out / "tokenizer.json").is_file()
    assert AutoTokenizer.from_pretrained(out).get_vocab() == output.tokens().ids
    assert own.tokens().ids.items() < output.tokens().ids.items()
    assert output.tokens().ids["xyz"] >= count


# --- chat template and identity ---------------------------------------------------------------------------------


def test_a_chat_template_replaces_every_other(world: Models, tmp_path: Path) -> None:
    folder = world.add("a", words("cat"), chat_template="{{ messages }} old")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "older"}))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 }}")
    output = world.output("a", chat_template="chatml")
    assert world.vocabulary is None
    out = written(output, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((out / "tokenizer_config.json").read_text()) == CONFIG
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    loaded = AutoTokenizer.from_pretrained(out)
    assert loaded.chat_template == output.chat_template == output.load().chat_template
    prompt = loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n"
    with pytest.raises(InputError, match="chat_template: must be valid Jinja, but in line 2 got: "):
        world.output("a", chat_template="{{ messages }}\n{% for m in messages %}")


def test_the_template_of_most_models_is_chosen(world: Models) -> None:
    world.add("a", words("cat"), chat_template="{{ 'one' }}")
    world.add("b", words("cat"), chat_template=" {{ 'two' }}\n")
    folder = world.add("c", words("cat"))
    assert world.output("a b c", chat_template="auto").chat_template == "{{ 'one' }}"
    assert world.output("a b c", chat_template="auto").identity == world.output("a").identity
    assert world.output("b a", chat_template="auto").identity == world.output("b").identity
    (folder / "chat_template.jinja").write_text("{{ 'two' }}")
    assert world.output("a b c", chat_template="auto").chat_template == "{{ 'two' }}"
    assert world.output("a b").chat_template == "{{ 'one' }}"


def test_identity_follows_what_would_be_written(world: Models) -> None:
    folder = world.add("a", words("cat"))
    world.add("b", words("cat", "dog"))
    make: list[Callable[[], ModelTokenizer]] = [
        lambda: world.output("a b"),
        lambda: world.output("b a"),
        lambda: world.output("a b", chat_template="chatml"),
        lambda: world.output("a b", tokenizer_source="union"),
        lambda: world.output("a b", tokenizer_source="union", chat_template="chatml"),
    ]
    before = [one().identity for one in make]
    assert len(set(before)) == len(make)
    assert [one().identity for one in make] == before
    assert world.output("a b", tokenizer_source="base").identity == before[0]
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG | {"model_max_length": 7}))
    after = [one().identity for one in make]
    assert [a != b for a, b in zip(after, before, strict=True)] == [True, False, True, True, True]
    assert make[3]().load().model_max_length == 7


def test_only_names_of_tokenizer_files_are_taken_for_them() -> None:
    mine = "tokenizer.json tokenizer_config.json tokenizer.model vocab.txt vocab.json merges.txt spiece.model "
    mine += "special_tokens_map.json added_tokens.json chat_template.jinja qwen.tiktoken source.spm tekken.json"
    others = "config.json generation_config.json preprocessor_config.json LICENSE processor_config.json"
    assert all(map(is_tokenizer_file, mine.split()))
    assert not any(map(is_tokenizer_file, others.split()))

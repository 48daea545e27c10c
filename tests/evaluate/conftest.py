"""A tiny model, a byte-level tokenizer and two toy tasks, all made here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TOY_CODE = """
import json, zlib
from pathlib import Path
from datasets import Dataset

def load(**_):
    rows = json.loads((Path(__file__).parent / "rows.json").read_text())
    return {"test": Dataset.from_list(rows), "train": Dataset.from_list(rows[-5:])}

def any_text_scores(doc, results):
    return {"crc": zlib.crc32(results[0].encode()) % 1000 / 1000, "length": (len(results[0]), 1)}
"""
TOY_COMMON = """
custom_dataset: !function toy.load
test_split: test
fewshot_split: train
doc_to_text: "Q: {{question}}\\nA:"
"""
TOY_TASKS = {
    "toy_generate": """
include: _common
output_type: generate_until
doc_to_target: answer
process_results: !function toy.any_text_scores
generation_kwargs: {until: ["\\n"], max_gen_toks: 6}
metric_list:
  - {metric: crc, aggregation: mean, higher_is_better: false}
  - {metric: length, aggregation: weighted_perplexity, higher_is_better: false}
""",
    "toy_choice": """
include: _common
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: label
tag: [toys]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "toy_filters": """
include: _common
output_type: generate_until
doc_to_target: answer
repeats: 3
tag: [toys]
generation_kwargs: {until: ["\\n"], max_gen_toks: 6}
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - {name: vote, filter: [{function: majority_vote}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "toy_unsafe": """
include: _common
output_type: generate_until
doc_to_target: answer
unsafe_code: true
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "toy_rolling": """
include: _common
output_type: loglikelihood_rolling
doc_to_target: question
""",
}


@pytest.fixture
def write_toys() -> Callable[..., Path]:
    """Write the toy tasks into a folder, with any rows."""

    def write(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        if rows is None:
            rows = [
                {"question": f"{n} and {n % 7}?", "answer": str(n), "topic": f"t{n // 2}"}
                | {"choices": [f"{n}", f"{n + 1}", f"{n * n}"], "label": n % 3}
                for n in range(30)
            ]
        (folder / "rows.json").write_text(json.dumps(rows))
        (folder / "toy.py").write_text(TOY_CODE)
        (folder / "_common").write_text(TOY_COMMON)
        for name, text in TOY_TASKS.items():
            (folder / f"{name}.yaml").write_text(f"task: {name}\n{text}")
        return folder

    return write


@pytest.fixture
def toys(tmp_path: Path, write_toys: Callable[..., Path]) -> Path:
    return write_toys(tmp_path / "toys")


def byte_tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: n for n, c in enumerate(["<end>", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a tiny random model with a tokenizer: by default a Llama of two layers."""

    def save(model_type: str = "llama", **settings: Any) -> Path:
        defaults: dict[str, Any] = {
            "vocab_size": 257,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.4,  # wide, so that different documents get different answers
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        torch.manual_seed(0)
        config = transformers.CONFIG_MAPPING[model_type](**(defaults | settings))
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        folder = tmp_path_factory.mktemp(model_type)
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def llama(save_model: Callable[..., Path]) -> Path:
    return save_model(tie_word_embeddings=True)

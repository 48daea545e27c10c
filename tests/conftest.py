"""Tiny models for every package's tests, made offline in the session's temporary folder."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before anything imports the Hub's client or torch: tests fetch nothing, and leave cores to each other.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

MakeLlama = Callable[..., Path]

# fmt: off
_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "plus", "minus",
    "times", "is", "the", "a", "cat", "dog", "sat", "on", "mat",
)
# fmt: on
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def build_tokenizer(vocab: int) -> Any:
    """A word-level tokenizer of exactly ``vocab`` tokens: three special ones, words, then fillers."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", *_WORDS]
    tokens = (tokens + [f"w{i}" for i in range(vocab)])[:vocab]
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_llama(
    folder: Path,
    *,
    seed: int,
    layers: int = 2,
    hidden: int = 16,
    vocab: int = 64,
    tied: bool = True,
    dtype: Any = None,
    noise_from: Path | None = None,
    noise: float = 0.02,
    max_shard_size: str = "5GB",
    **config: Any,
) -> Path:
    """Save an ordinary transformers Llama folder, tokenizer included, and return it.

    Args:
        seed: Of the weights, or of the noise.
        dtype: Of the stored weights, bfloat16 by default.
        noise_from: A folder whose weights this model fine-tunes: they are taken over, plus noise.
        noise: Standard deviation of that noise.
        config: Further keys of LlamaConfig.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    generator = torch.Generator().manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(settings | config)))
    parent = None if noise_from is None else LlamaForCausalLM.from_pretrained(noise_from, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = noise if parent is not None else (0.2 if parameter.ndim > 1 else 0.1)
            start = parent.get_parameter(name) if parent is not None else (1.0 if parameter.ndim == 1 else 0.0)
            parameter.copy_(start + scale * torch.randn(parameter.shape, generator=generator))
    model.to(dtype or torch.bfloat16).save_pretrained(folder, max_shard_size=max_shard_size)
    build_tokenizer(vocab).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_llama(tmp_path_factory: pytest.TempPathFactory) -> MakeLlama:
    """`save_llama` into a folder of the session: ``make_llama("name", seed=0, ...)``, or any path.

    The same call twice gives the same folder without building it again.
    """
    root = tmp_path_factory.mktemp("models")
    made: dict[tuple[str, str], Path] = {}

    def make(folder: str | Path, **options: Any) -> Path:
        key = (str(folder), repr(sorted(options.items())))
        if key not in made:
            target = root / folder
            assert not target.exists(), f"{folder} was made with other options"
            made[key] = save_llama(target, **options)
        return made[key]

    return make


TOY_CODE = """
import json, os, time, zlib
from pathlib import Path
from datasets import Dataset

HERE = Path(__file__).parent

def load(**_):
    rows = json.loads((HERE / "rows.json").read_text())
    return {"test": Dataset.from_list(rows)}

def crc(doc, results):
    return {"crc": zlib.crc32(results[0].encode()) % 1000 / 1000}

def deadly(doc, results):
    if (HERE / "die").exists():
        os._exit(1)
    while (HERE / "hang").exists():
        time.sleep(0.1)
    return {"acc": float(results[0][0] > results[1][0])}
"""
TOY_TASKS = {
    "toy_choice": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
- {metric: acc, aggregation: mean, higher_is_better: true}
- {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "toy_generate": """
output_type: generate_until
doc_to_target: "{{choices[0]}}"
process_results: !function toy.crc
generation_kwargs: {until: ["mat"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: crc, aggregation: mean, higher_is_better: true}]
""",
    "toy_deadly": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: label
process_results: !function toy.deadly
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}


def write_toy_tasks(folder: Path) -> Path:
    """Write lm-eval tasks of 80 documents each, in the words of `build_tokenizer`; ``toy_deadly`` kills who scores
    it while a file ``die`` lies beside it, and does not end while there is a file ``hang``."""
    import json
    import random

    rng = random.Random(0)
    rows = [
        {
            "question": " ".join(rng.choices(_WORDS, k=4)),
            "choices": rng.sample(_WORDS, 3),
            "label": rng.randrange(3),
        }
        for _ in range(80)
    ]
    folder.mkdir(parents=True)
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "toy.py").write_text(TOY_CODE)
    common = 'custom_dataset: !function toy.load\ntest_split: test\ndoc_to_text: "{{question}}"\n'
    for name, text in TOY_TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    return folder


@pytest.fixture(scope="session")
def toy_tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_tasks(tmp_path_factory.mktemp("toys") / "tasks")


@pytest.fixture(scope="session")
def toy_models(make_llama: MakeLlama) -> dict[str, Path]:
    """A base and two fine-tunes of it."""
    base = make_llama("toy-base", seed=0)
    children = {name: make_llama(name, seed=i, noise_from=base, noise=0.1) for i, name in ((1, "ann"), (2, "bob"))}
    return {"base": base, **children}


@pytest.fixture(scope="session")
def toy_config(toy_tasks: Path, toy_models: dict[str, Path]) -> Callable[..., dict[str, Any]]:
    """A search config over the toys; ``toy_config(trials=5, genome={"merge_method": "ties"})`` changes keys."""

    def make(genome: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        return {
            "genome": {
                "models": [str(toy_models["ann"]), str(toy_models["bob"])],
                "base_model": str(toy_models["base"]),
                "merge_method": "task_arithmetic",
                "layer_granularity": 1,
                **(genome or {}),
            },
            "tasks": [{"name": "toy_choice", "metric": "acc"}],
            "apply_chat_template": False,
            "include_path": [str(toy_tasks)],
            "documents": {"search": 20, "selection": 20, "holdout": 30},
            "trials": 10,
            "seed": 3,
            **changes,
        }

    return make

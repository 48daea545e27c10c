"""What other tools' commands and options are called here."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

# mergekit-yaml's options: what to do here instead.
_OF_MERGEKIT = {
    **dict.fromkeys(
        ("--cuda", "--device", "--low-cpu-memory", "--read-to-gpu", "--multi-gpu", "--gpu-rich"),
        "no need: tensors stream through the processor; leave it out",
    ),
    "--allow-crimes": "no need: all models whose tensors fit together can be merged; leave it out",
    "--unsafe-truncate-embeddings": "write tokenizer_source: union (or base, or a model) in the recipe",
    "--transformers-cache": "set the environment variable HF_HUB_CACHE",
    **dict.fromkeys(
        ("--lora-merge-cache", "--lora-merge-dtype"),
        "no need: adapters are applied while their base is read; leave it out",
    ),
    "--out-shard-size": "write --shard-size, in bytes, such as 5GB",
    "--copy-tokenizer": "no need: the tokenizer always comes along; leave it out",
    "--clone-tensors": "no need: a tensor may be used many times; leave it out",
    "--trust-remote-code": "no need: no model's code is run; leave it out",
    "--random-seed": "write --seed",
    "--lazy-unpickle": "no need: only what is merged is read; leave it out",
    "--write-model-card": "no need: the card is always written; leave it out",
    "--safe-serialization": "no need: safetensors are always written; leave it out",
    **dict.fromkeys(("--num-threads", "-j"), "write --threads"),
    **dict.fromkeys(("--async-write", "--write-threads"), "no need: --threads write too; leave it out"),
    **dict.fromkeys(("--quiet", "--verbosity", "-v"), "no need: one line is said; leave it out"),
}
# mergekit-evolve's.
_OF_EVOLVE = {
    "--storage-path": "write --run-dir",
    "--max-fevals": "write --trials, baselines included",
    "--timeout": "write --hours; it was in seconds",
    **dict.fromkeys(
        ("--sigma0", "--force-population-size"), "write optimizer: {sigma0: ..., popsize: ...} in the config"
    ),
    "--random-seed": "write --seed",
    "--batch-size": "write batch_size: in the config",
    **dict.fromkeys(("--num-gpus", "--strategy"), "write --workers"),
    **dict.fromkeys(
        ("--in-memory", "--reshard", "--merge-cuda"), "no need: candidates stay in memory; leave it out"
    ),
    "--save-final-model": "run heterosis merge on the run folder's best.yaml when the search is over",
    "--wandb": "write --log-to wandb",
    **dict.fromkeys(("--no-wandb", "--no-save-final-model"), "no need; leave it out"),
    "--vllm": "write backend: vllm in the config",
    **dict.fromkeys(
        ("--load-in-4bit", "--load-in-8bit"),
        "there is none: the model that is scored is the model that is exported; leave it out",
    ),
    "--trust-remote-code": "no need: no model's code is run; leave it out",
    "--i-understand-the-depths-of-the-evils-i-am-unleashing": "no need: test splits are warned of; leave it out",
}
_OPTIONS = {"merge": _OF_MERGEKIT, "evolve": _OF_EVOLVE}

# mergekit's other programs.
_COMMANDS = {
    "yaml": "write heterosis merge RECIPE OUT",
    "multi": "write heterosis merge RECIPE OUT: a recipe may be several documents, which name each other",
    "pytorch": "write heterosis merge RECIPE OUT: models may be files of weights",
    **dict.fromkeys(
        ("moe", "extract-lora", "tokensurgeon", "layershuffle", "mega"),
        "is not part of heterosis; mergekit has it",
    ),
}


def foreign(command: str | None, arguments: Sequence[str]) -> Iterator[str]:
    """A line for each of another tool's commands and options on a command line: what to do instead."""
    if command in _COMMANDS:
        yield f"{command}: {_COMMANDS[command]}"
    options = _OPTIONS.get(command or "", {})
    for argument in dict.fromkeys(takewhile(lambda one: one != "--", arguments)):
        option = argument.partition("=")[0] if argument.startswith("--") else argument[:2]
        if hint := options.get(option) or options.get(option.replace("--no-", "--")):
            yield f"{option}: {hint}"

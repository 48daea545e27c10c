"""The oracle, and the tiny models that both sides merge."""

import importlib.metadata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from .recipes import Mergekit, Tensors
from .zoo import Zoo

MakeLlama = Callable[..., Path]


@pytest.fixture(scope="session")
def mergekit(tmp_path_factory: pytest.TempPathFactory) -> Mergekit:
    """Run a recipe with mergekit, in this process."""
    pytest.importorskip("mergekit")
    assert importlib.metadata.version("mergekit") == "0.1.5"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

    # It writes models with adapters out before it merges them.
    adapted = str(tmp_path_factory.mktemp("adapted"))

    def run(recipe: dict[str, Any], out: Path) -> Tensors:
        options = MergeOptions(
            copy_tokenizer=False,
            quiet=True,
            write_model_card=False,
            random_seed=12345,  # no model's: its masks would be correlated with that model's noise
            lora_merge_cache=adapted,
        )
        run_merge(MergeConfiguration.model_validate(recipe), str(out), options)
        return load_file(out / "model.safetensors")

    return run


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def models(make_llama: MakeLlama) -> dict[str, str]:
    options: dict[str, Any] = {"layers": 3, "hidden": 32, "vocab": 96}
    base = make_llama("parity-base", seed=0, **options)
    made = {"base": base}
    for seed, name in enumerate("ab", 1):
        made[name] = make_llama(f"parity-{name}", seed=seed, noise_from=base, noise=0.1, **options)
    made["far"] = make_llama("parity-far", seed=9, **options)
    made["untied"] = make_llama("parity-untied", seed=8, tied=False, **options)
    return {name: str(folder) for name, folder in made.items()}

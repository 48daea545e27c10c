"""LoRA adapters: peft's own merge is the oracle; any blocks give the same bits; the rest is refused clearly."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from heterosis.errors import InputError
from heterosis.merge.api import merge_models
from heterosis.merge.models.checkpoint import OpenModels, open_checkpoint
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import ModelRef, Recipe

MakeLlama = Callable[..., Path]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="session")
def llama(make_llama: MakeLlama) -> Path:
    return make_llama("lora-base", seed=1, dtype=torch.float32)


@pytest.fixture(scope="session")
def untied(make_llama: MakeLlama) -> Path:
    return make_llama("lora-untied", seed=2, dtype=torch.float32, tied=False)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=4, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int = 0, headless: bool = False, **config: Any) -> Any:
    """Save a random adapter with peft, and return the merged model's tensors."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    loader = AutoModel if headless else AutoModelForCausalLM
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(loader.from_pretrained(base, dtype=torch.float32), LoraConfig(**config))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)
        # Loaded again, because what counts is what peft makes of the saved folder.
        loaded = PeftModel.from_pretrained(loader.from_pretrained(base, dtype=torch.float32), folder)
        return loaded.merge_and_unload().state_dict()


def read(source: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    out = torch.empty(torch.Size(source.shape).numel(), dtype=dtype)
    source.read(0, len(out), out)
    return out.view(source.shape)


def assert_agrees(base: Path, adapter: Path, expected: dict[str, torch.Tensor], prefix: str = "") -> int:
    """Compare with peft's merge; returns how many tensors the adapter changed."""
    changed = 0
    with open_checkpoint(f"{base}+{adapter}") as got, open_checkpoint(str(base)) as plain:
        assert got.tensors.keys() == plain.tensors.keys()
        for name, source in got.tensors.items():
            assert source.dtype == plain.tensors[name].dtype
            if name.removeprefix(prefix) not in expected:
                assert name == "lm_head.weight", name  # a headless model has none
                continue
            torch.testing.assert_close(
                read(source), expected[name.removeprefix(prefix)], rtol=1e-6, atol=1e-6, msg=name
            )
            if source.identity == plain.tensors[name].identity:
                assert torch.equal(read(source), read(plain.tensors[name]))
            else:
                changed += 1
        assert got.contents != plain.contents
    return changed


def fault_of(base: Path, adapter: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(f"{base}+{adapter}")
    assert all("\n" not in fault for fault in caught.value.faults)
    return str(caught.value)


def edit_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CONFIGS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "rslora": {"use_rslora": True},
    "rank 1": {"r": 1, "lora_alpha": 3},
    # In sorted order, because peft sorts the keys when it saves, and the first match counts.
    "rank_pattern": {"r": 4, "rank_pattern": {r"1\.self_attn\.q_proj": 5, r"layers\.1\.mlp\..*": 7, "q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 16, "^model.layers.0.mlp.up_proj": 2, "proj": 99}},
    "both patterns": {
        "use_rslora": True,
        "rank_pattern": {"down_proj": 3},
        "alpha_pattern": {"0.mlp.down_proj": 5, "_proj": 9},
    },
    "some layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
    "regex": {"target_modules": r".*\.0\.self_attn\.(q|v)_proj"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_agrees_with_peft_on_llama(name: str, llama: Path, tmp_path: Path) -> None:
    config = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR} | CONFIGS[name]
    expected = make_adapter(llama, tmp_path / "adapter", **config)
    count = {"some layers": 2, "regex": 2}.get(name, 14)
    assert assert_agrees(llama, tmp_path / "adapter", expected) == count


def test_agrees_with_peft_on_gpt2(gpt2: Path, tmp_path: Path) -> None:
    # c_proj of attention is square and stored as [in, out]: only the architecture tells.
    config = {"r": 3, "target_modules": "all-linear", "rank_pattern": {"c_fc": 5}, "alpha_pattern": {"c_attn": 2}}
    expected = make_adapter(gpt2, tmp_path / "adapter", **config)
    assert assert_agrees(gpt2, tmp_path / "adapter", expected) == 8
    edit_config(tmp_path / "adapter", fan_in_fan_out=False)
    assert assert_agrees(gpt2, tmp_path / "adapter", expected) == 8


def test_agrees_with_peft_on_gpt2_files_without_prefix(gpt2: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(gpt2, tmp_path / "base"))
    weights = {name.removeprefix("transformer."): w for name, w in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors")
    expected = make_adapter(gpt2, tmp_path / "adapter", target_modules=["c_attn", "c_proj"])
    expected = {name.removeprefix("transformer."): w for name, w in expected.items()}
    assert assert_agrees(base, tmp_path / "adapter", expected) == 6


def test_agrees_with_peft_on_position_embeddings(gpt2: Path, tmp_path: Path) -> None:
    expected = make_adapter(gpt2, tmp_path / "adapter", target_modules=["wpe"], fan_in_fan_out=True)
    assert assert_agrees(gpt2, tmp_path / "adapter", expected) == 1


def test_agrees_with_peft_on_untied_embeddings(untied: Path, tmp_path: Path) -> None:
    expected = make_adapter(
        untied, tmp_path / "adapter", r=2, target_modules=["embed_tokens", "lm_head", "q_proj"]
    )
    assert assert_agrees(untied, tmp_path / "adapter", expected) == 4


def test_an_adapter_of_the_headless_model_fits(untied: Path, tmp_path: Path) -> None:
    expected = make_adapter(untied, tmp_path / "adapter", headless=True, target_modules=LINEAR)
    assert assert_agrees(untied, tmp_path / "adapter", expected, prefix="model.") == 14


def test_the_shape_outweighs_fan_in_fan_out(llama: Path, tmp_path: Path) -> None:
    expected = make_adapter(llama, tmp_path / "adapter", target_modules=["up_proj", "down_proj", "k_proj"])
    edit_config(tmp_path / "adapter", fan_in_fan_out=True)
    assert assert_agrees(llama, tmp_path / "adapter", expected) == 6


def test_float64_reads_compute_in_float64(llama: Path, tmp_path: Path) -> None:
    make_adapter(llama, tmp_path / "adapter", target_modules=["up_proj"], r=3, lora_alpha=7)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    a, b = (weights[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    expected = load_file(llama / "model.safetensors")[f"{name}.weight"].double() + 7 / 3 * b @ a
    with open_checkpoint(f"{llama}+{tmp_path / 'adapter'}") as checkpoint:
        got = read(checkpoint.tensors[f"{name}.weight"], torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


def test_bfloat16_and_pickled_adapters(llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    make_adapter(llama, folder, target_modules=LINEAR, r=4)
    weights = {name: w.bfloat16() for name, w in load_file(folder / "adapter_model.safetensors").items()}
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    name = "model.layers.0.mlp.up_proj"
    a, b = (weights[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    expected = load_file(llama / "model.safetensors")[f"{name}.weight"].double() + 8 / 4 * b @ a
    with open_checkpoint(f"{llama}+{folder}") as checkpoint:
        source = checkpoint.tensors[f"{name}.weight"]
        torch.testing.assert_close(read(source).double(), expected, rtol=1e-6, atol=1e-6)
        # Other dtypes are the float32 result, rounded once.
        assert torch.equal(read(source, torch.bfloat16), read(source).bfloat16())
        assert checkpoint.resident_bytes == 4 * sum(w.numel() for w in weights.values())


def test_factors_take_memory_once_however_many_stages_read_them(llama: Path, tmp_path: Path) -> None:
    make_adapter(llama, tmp_path / "adapter", target_modules=LINEAR)
    adapted = f"{llama}+{tmp_path / 'adapter'}"
    stages = [("one", [adapted, str(llama)]), ("two", ["one", str(llama)]), (None, ["one", "two", adapted])]
    linear = {"merge_method": "linear", "parameters": {"weight": 1}}
    documents = [{**linear, "name": name, "models": [{"model": m} for m in names]} for name, names in stages]
    with OpenModels() as models:
        plan = build_plan(Recipe.parse(yaml.safe_dump_all(documents)), models)
        assert 0 < plan.adapter_bytes == models(ModelRef.parse(adapted)).resident_bytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_merge_takes_adapters_as_if_they_had_been_saved(
    method: str, dtype: str, make_llama: MakeLlama, tmp_path: Path
) -> None:
    stored = getattr(torch, dtype)
    base, other = (make_llama(f"lora-{dtype}-{k}", seed=k, dtype=stored) for k in (5, 6))
    make_adapter(base, tmp_path / "adapter", target_modules=LINEAR)
    saved = tmp_path / "saved"
    shutil.copytree(base, saved)
    with open_checkpoint(f"{base}+{tmp_path / 'adapter'}") as adapted:
        save_file({name: read(x, stored) for name, x in adapted.tensors.items()}, saved / "model.safetensors")
    merged = []
    for k, model in enumerate((f"{base}+{tmp_path / 'adapter'}", str(saved))):
        recipe = {"merge_method": method, "models": [{"model": model}, {"model": str(other)}]}
        recipe |= {"parameters": {"weight": 0.3}} | ({"base_model": str(base)} if method != "linear" else {})
        out = merge_models(Recipe.model_validate(recipe), tmp_path / str(k))
        merged.append(load_file(out / "model.safetensors"))
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])


@pytest.fixture(scope="session")
def adapted(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("adapters") / "blocks"
    make_adapter(llama, folder, target_modules=LINEAR, r=5)
    with open_checkpoint(f"{llama}+{folder}") as checkpoint:
        yield checkpoint.tensors["model.layers.1.mlp.down_proj.weight"]


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(0, 512), max_size=8), wide=st.booleans())
def test_any_blocks_give_the_same_bits(adapted: Any, cuts: list[int], wide: bool) -> None:
    dtype = torch.float64 if wide else torch.float32
    whole = read(adapted, dtype).flatten()
    assert len(whole) == 512
    out = torch.empty(512, dtype=dtype)
    bounds = [0, *sorted(cuts), 512]
    for start, stop in pairwise(bounds):
        adapted.read(start, stop, out[start:stop])
    assert torch.equal(out, whole)


def test_rows_wider_than_a_tile_give_the_same_bits() -> None:
    import numpy as np

    from heterosis.merge.kernels import add_low_rank_product

    random = np.random.default_rng(0)
    left = random.standard_normal((3, 6)).astype(np.float32)
    right = random.standard_normal((6, 2500)).astype(np.float32)
    base = random.standard_normal(7500).astype(np.float32)
    whole = base.copy()
    add_low_rank_product(whole, 0, left, right)
    expected = base + (left.astype(np.float64) @ right.astype(np.float64)).ravel()
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-5)
    for size in (1, 7, 1023, 1024, 1025, 2500, 3333):
        out = base.copy()
        for start in range(0, len(out), size):
            add_low_rank_product(out[start : start + size], start, left, right)
        assert (out == whole).all()


def test_identity_tells_adapters_apart(llama: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(llama, adapter, target_modules=["q_proj"], lora_alpha=8)

    def identity_and_hash(ref: str) -> tuple[Any, str]:
        with open_checkpoint(ref) as checkpoint:
            return checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"].identity, checkpoint.contents

    seen = [identity_and_hash(str(llama)), identity_and_hash(f"{llama}+{adapter}")]
    assert identity_and_hash(f"{llama}+{adapter}") == seen[1]
    edit_config(adapter, lora_alpha=16)  # the same tensors, applied with another factor
    seen.append(identity_and_hash(f"{llama}+{adapter}"))
    assert len({identity for identity, _ in seen}) == len({digest for _, digest in seen}) == 3


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"peft_type": "IA3"}, "peft_type must be 'LORA', but got 'IA3'"),
        ({"use_dora": True}, "use_dora is not supported: DoRA also rescales"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is not supported"),
        ({"target_parameters": ["x"]}, "target_parameters is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported"),
        ({"lora_bias": True}, "lora_bias is not supported"),
        ({"some_future_variant": {"a": 1}}, "some_future_variant is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' is not supported"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern: '(' is no regular expression"),
        ({"r": 3}, "the rank must be 3 (adapter_config.json), but got A [2, 16]"),
        ({"r": 0}, "the rank must be a whole number >= 1, but got 0"),
        ({"lora_alpha": "x"}, "lora_alpha must be a finite number, but got 'x'"),
    ],
)
def test_configs_that_cannot_be_merged(llama: Path, tmp_path: Path, config: dict[str, Any], fault: str) -> None:
    make_adapter(llama, tmp_path / "a", r=2, target_modules=["q_proj"])
    edit_config(tmp_path / "a", **config)
    assert fault in fault_of(llama, tmp_path / "a")


Q = "base_model.model.model.layers.0.self_attn.q_proj"
FACTORS = {"A": (2, 16), "B": (16, 2)}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({f"{Q}.lora_B.weight": None}, "q_proj: must have lora_A and lora_B, but has only lora_A"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 17)}, "shapes must match, but got A [2, 17], B [16, 2]"),
        ({f"{Q}.lora_A.weight": torch.ones(2, 16, dtype=torch.int8)}, "must be floating"),
        (
            {f"{Q}.lora_{x}.weight": torch.ones(shape).to(torch.float8_e4m3fn) for x, shape in FACTORS.items()},
            "lora_A.weight: the adapter is quantised to float8; merge the original weights instead",
        ),
        ({f"{Q}.lora_A.SCB": torch.ones(2)}, "lora_A.SCB: the adapter is quantised with bitsandbytes"),
        (
            {"base_model.model.model.embed_tokens.weight": torch.ones(64, 16, dtype=torch.int8)},
            "model.embed_tokens.weight: must be floating, but got torch.int8 in the adapter",
        ),
        (
            {f"{Q}.lora_A.default.weight": torch.ones(2, 16)},
            f"{Q}.lora_A.weight: is the same factor as {Q}.lora_A.default.weight; save the adapter with one",
        ),
        ({f"{Q}.lora_A.weight": torch.ones(2)}, "must be matrices, but got A [2]"),
        (
            {f"{Q}.lora_A.weight": torch.ones(2, 4, 1, 1), f"{Q}.lora_B.weight": torch.ones(4, 2, 1, 1)},
            "LoRA on convolutions is not supported",
        ),
        ({f"{Q}.lora_magnitude_vector": torch.ones(16)}, "DoRA is not supported"),
        ({f"{Q}.lora_B.bias": torch.ones(16)}, "lora_bias is not supported"),
        ({f"{Q}.bias": torch.ones(16)}, "trained biases are not supported"),
        ({f"{Q}.mystery": torch.ones(16)}, "the base model has no such tensors: model.layers.0.self"),
        (
            {"x.y.lora_A.weight": torch.ones(2, 3), "x.y.lora_B.weight": torch.ones(3, 2)},
            "the base model has no such tensors: x.y; is the adapter for another model?",
        ),
        (
            {"base_model.model.lm_head.weight": torch.ones(64, 16)},
            "the base model has no such tensors: lm_head.weight; its head is tied to the embedding",
        ),
        (
            {"base_model.model.model.embed_tokens.weight": torch.ones(70, 16)},
            "the adapter replaces [64, 16] by [70, 16]: adapters that resize the vocabulary",
        ),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(llama: Path, tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    make_adapter(llama, tmp_path / "a", r=2, target_modules=["q_proj"])
    path = tmp_path / "a" / "adapter_model.safetensors"
    weights = load_file(path) | change
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path)
    assert fault in fault_of(llama, tmp_path / "a")


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_tied_embeddings_are_refused(llama: Path, tmp_path: Path, module: str) -> None:
    make_adapter(llama, tmp_path / "a", target_modules=[module])
    assert "are one tensor (tied)" in fault_of(llama, tmp_path / "a")


def test_real_dora_bias_and_modules_to_save_are_refused(untied: Path, tmp_path: Path) -> None:
    make_adapter(untied, tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    assert "use_dora is not supported" in fault_of(untied, tmp_path / "dora")
    make_adapter(untied, tmp_path / "saved", target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert "modules_to_save is not supported (lm_head)" in fault_of(untied, tmp_path / "saved")


def test_folders_that_are_no_adapters(llama: Path, tmp_path: Path) -> None:
    assert "no such adapter folder" in fault_of(llama, tmp_path / "none")
    assert "has no adapter_config.json; is this a PEFT adapter?" in fault_of(llama, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "has no weights; expected one of adapter_model.safetensors" in fault_of(llama, tmp_path)
    save_file({}, tmp_path / "adapter_model.safetensors")
    assert "holds no LoRA tensors" in fault_of(llama, tmp_path)

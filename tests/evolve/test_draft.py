"""The config that `heterosis init` writes runs as it is, and says why it is so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search
from heterosis.evolve.preflight.draft import draft_config
from heterosis.evolve.preflight.preflight import preflight

MakeLlama = Callable[..., Path]


@pytest.fixture
def draft(toy_models: dict[str, Path], toy_tasks: Path) -> Callable[..., Any]:
    def make(*models: Path | str, tasks: tuple[str, ...] = ("toy_choice",), **options: Any) -> Any:
        named = [str(model) for model in models or (toy_models["ann"], toy_models["bob"])]
        return draft_config(named, tasks, include_path=[str(toy_tasks)], **options)

    return make


def test_it_runs_as_it_is(
    draft: Callable[..., Any], toy_models: dict[str, Path], pools: Any, tmp_path: Path
) -> None:
    found = draft(base=str(toy_models["base"]))
    assert found.warnings == ()
    config = EvolveConfig.parse(found.text)
    assert config.genome.methods == ("task_arithmetic",)
    assert config.genome.base_model == str(toy_models["base"])
    assert config.documents.model_dump(include={"search", "selection", "holdout"}) == {
        "search": 32,
        "selection": 20,
        "holdout": 28,
    }
    assert config.apply_chat_template is False  # nothing is written by the model
    assert (config.genome.dtype, config.trials) == ("bfloat16", 100)
    assert config.tasks[0].metric == "acc,none"
    summary = search(config.updated(trials=5, workers=1), tmp_path / "run", make_pool=pools())
    assert summary["status"] == "finished"


def test_comments_say_what_will_happen(draft: Callable[..., Any], toy_models: dict[str, Path]) -> None:
    text = draft(base=str(toy_models["base"]), tasks=("toy_choice", "toy_generate"), name="mine.yaml").text
    checked = preflight(EvolveConfig.parse(text))
    counts = ", then ".join(str(len(stage.dimensions)) for stage in checked.stages)
    assert f"# Searched are {counts} numbers: " in text
    assert "# toy_choice: 80 documents; acc,none, higher is better; also there: acc_norm,none" in text
    assert "# toy_generate: 80 documents; crc,none, higher is better\n" in text
    assert ": ann, bob, uniform, task_arithmetic, ties, dare_linear." in text
    assert "heterosis evolve mine.yaml --run-dir runs/first" in text
    assert "apply_chat_template: true" in text  # toy_generate has the model write
    assert max(map(len, text.splitlines())) < 120 + len(str(toy_models["base"]))
    # What stands there commented out may be taken in.
    for line in (
        "# objective: worst",
        "# hours: 8",
        "  # control_points: [1, 2]",
        "  # ranges: {weight: [0, 1.5]}",
    ):
        text = text.replace("control_points: [1, 3]", "control_points: [1, 2]")  # of two layers
        assert line in text
        text = text.replace(line, line.replace("# ", "", 1))
    changed = EvolveConfig.parse(text)
    assert (changed.objective, changed.hours, changed.genome.control_points) == ("worst", 8.0, (1, 2))


def test_without_a_base_it_says_what_that_leaves_out(draft: Callable[..., Any]) -> None:
    found = draft()
    assert EvolveConfig.parse(found.text).genome.methods == ("linear",)
    (warning,) = found.warnings
    assert "--base" in warning


def test_adapters_name_their_base_and_get_float32(
    draft: Callable[..., Any], toy_models: dict[str, Path], tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for name in ("a", "b"):
        model = AutoModelForCausalLM.from_pretrained(toy_models["base"], dtype=torch.float32)
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / name)
    base = toy_models["base"]
    config = EvolveConfig.parse(draft(f"{base}+{tmp_path / 'a'}", f"{base}+{tmp_path / 'b'}").text)
    assert (config.genome.base_model, config.genome.dtype) == (str(base), "float32")
    mixed = EvolveConfig.parse(draft(f"{base}+{tmp_path / 'a'}", toy_models["ann"]).text)
    assert mixed.genome.base_model is None


def test_tokenizers_that_differ_are_united(draft: Callable[..., Any], make_llama: MakeLlama) -> None:
    text = draft(make_llama("draft-60", seed=1, vocab=60), make_llama("draft-64", seed=2, vocab=64)).text
    assert EvolveConfig.parse(text).genome.tokenizer_source == "union"


def test_groups_of_documents_may_leave_it_to_shares(
    draft: Callable[..., Any], toy_tasks: Path, tmp_path: Path, toy_models: dict[str, Path]
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "large.yaml").write_text(
        "task: large_groups\ncustom_dataset: !function toy.load\ntest_split: test\ndoc_to_text: '{{question}}'\n"
        "output_type: multiple_choice\ndoc_to_choice: '{{choices}}'\ndoc_to_target: label\n"
        "metadata: {group_by: label}\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    for name in ("toy.py", "rows.json"):
        (folder / name).write_bytes((toy_tasks / name).read_bytes())
    models = [str(toy_models[name]) for name in ("ann", "bob")]
    text = draft_config(models, ["large_groups"], include_path=[str(folder)]).text
    assert "# By default half of them" in text
    assert EvolveConfig.parse(text).documents.search is None

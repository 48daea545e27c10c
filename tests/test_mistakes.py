"""Likely mistakes: each is one line with the remedy, and exit code 2."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from heterosis import cli, evaluate_model
from heterosis.errors import InputError

MakeLlama = Callable[..., Path]
Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in a folder. Returns exit code, standard output and the lines of standard error."""
    from heterosis.evaluate import harness

    whole = harness.TaskManager  # lm-eval's own tasks take 10 s to index
    monkeypatch.setattr(
        harness,
        "TaskManager",
        lambda include_path, include_defaults=False: whole(include_path=include_path, include_defaults=False),
    )
    monkeypatch.chdir(tmp_path)

    def go(*arguments: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr("sys.argv", ["heterosis", *map(str, arguments)])
        code = 0
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        output, errors = capsys.readouterr()
        return code, output, errors.splitlines()

    return go


@pytest.fixture
def places(toy_models: dict[str, Path], toy_tasks: Path, make_llama: MakeLlama, tmp_path: Path) -> dict[str, Path]:
    """What stands in capitals in a command."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "old.yaml").write_text("mine")
    plain = tmp_path / "plain"
    shutil.copytree(toy_models["ann"], plain)
    (plain / "chat_template.jinja").unlink()
    weights = tmp_path / "weightless"
    shutil.copytree(toy_models["ann"], weights)
    (weights / "model.safetensors").unlink()
    return {
        "BASE": toy_models["base"],
        "ANN": toy_models["ann"],
        "BOB": toy_models["bob"],
        "WIDE": make_llama("mistakes-wide", seed=0, hidden=32),
        "DEEP": make_llama("mistakes-deep", seed=0, layers=4),
        "OTHER": make_llama("mistakes-other", seed=0, vocab=60),
        "PLAIN": plain,
        "WEIGHTLESS": weights,
        "TASKS": toy_tasks,
    }


INIT = "init ANN BOB --tasks toy_choice --include-path TASKS"
INIT_MISTAKES = [
    ("init /no/ann BOB --tasks toy_choice --include-path TASKS", "/no/ann: no such model folder"),
    ("init ~nosuchuser/ann BOB --tasks toy_choice --include-path TASKS", "no home folder of ~nosuchuser is known"),
    ("init empty BOB --tasks toy_choice --include-path TASKS", "empty: "),
    ("init WEIGHTLESS BOB --tasks toy_choice --include-path TASKS", "weightless: "),
    ("init ANN --tasks toy_choice --include-path TASKS", "MODEL: there must be at least two to merge"),
    ("init ANN ANN --tasks toy_choice --include-path TASKS", "MODEL: each may be named once"),
    ("init ANN WIDE --tasks toy_choice --include-path TASKS", "merge one architecture only"),
    ("init ANN DEEP --tasks toy_choice --include-path TASKS", "name models of one depth"),
    ("init ANN BOB --tasks toy_chioce --include-path TASKS", "did you mean 'toy_choice'?"),
    ("init ANN BOB --tasks toy_choice,toy_choice --include-path TASKS", "named twice"),
    ("init ANN BOB --include-path TASKS", "--tasks"),
    ("init ANN BOB --tasks , --include-path TASKS", "--tasks: must name at least one task"),
    (
        "init ANN BOB --tasks toy_choice --include-path nowhere",
        "'nowhere' is not a folder; name the one with the tasks' YAML",
    ),
    (f"{INIT} --base /no/base", "/no/base: no such model folder"),
    (f"{INIT} -o old.yaml", "old.yaml: exists; give another file with -o, or --overwrite"),
    (f"{INIT} -o missing/new.yaml", "missing is not a folder"),
    (f"{INIT} -o empty --overwrite", "empty: cannot be written: is a folder; name a file"),
    (f"{INIT} --task toy_choice", "--tasks"),
]


@pytest.mark.parametrize(("command", "says"), INIT_MISTAKES)
def test_init(run: Run, places: dict[str, Path], tmp_path: Path, command: str, says: str) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    code, output, errors = run(*(places.get(word, word) for word in command.split()))
    assert code == 2, errors
    assert len(errors) == 1, errors
    assert errors[0].startswith("heterosis: ")
    assert says in errors[0]
    assert output == ""
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "old.yaml").read_text() == "mine"


LINEAR = {"merge_method": "linear"}
INSPECT_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"genome": {"models": ["/no/ann", "BOB"]}}, "/no/ann: no such model folder"),
    (
        {"genome": {"base_model": None, "merge_method": "ties"}},
        "genome.base_model: 'ties' needs it; name the model",
    ),
    ({"genome": {"models": ["~nosuchuser/ann", "BOB"]}}, "~nosuchuser/ann: no home folder of ~nosuchuser"),
    ({"genome": {"models": ["ANN", "WIDE"]}}, "merge one architecture only"),
    ({"genome": {"models": ["ANN", "OTHER"]}}, "tokenizer_source: union"),
    ({"genome": {"models": ["ANN", "DEEP"]}}, "name models of one depth"),
    ({"genome": {"merge_method": "tie"}}, "unknown method 'tie'; did you mean 'ties'?"),
    ({"tasks": ["toy_chioce"]}, "task 'toy_chioce': unknown"),
    (
        {"tasks": [{"name": "toy_choice", "metric": "acc_nrom"}]},
        "unknown metric 'acc_nrom'; did you mean 'acc_norm'? valid: acc,none,",
    ),
    ({"tasks": [{"name": "toy_choice", "weight": 0}]}, "at least one weight must differ from 0"),
    ({"include_path": ["nowhere"]}, "'nowhere' is not a folder; name the one with the tasks' YAML"),
    ({"documents": {"search": 100}}, "toy_choice: has 80 documents, too few for the split"),
    (
        {"apply_chat_template": True, "genome": {"models": ["PLAIN", "BOB"], "base_model": None, **LINEAR}},
        "has no chat template; write genome.tokenizer_source: ",
    ),
    ({"constraints": {"toy_chioce": 0.1}}, "did you mean 'toy_choice'?"),
    ({"objective": "pareto"}, "pareto needs at least two tasks"),
    ({"trails": 10}, "trails: unknown key; did you mean 'trials'?"),
    ({"workers": 10**9}, "write workers: "),
    ({"batch_size": "most"}, "batch_size: must be a whole number >= 1, or auto, but got 'most'"),
    ({"backend": "vlm"}, "backend: unknown to lm-eval: 'vlm'; did you mean 'vllm'?"),
    ({"backend": "dummy"}, "backend: dummy does not load models from a folder"),
    ({"backend": "hf", "batch_size": "auto"}, "batch_size: auto is for the resident model"),
    ({"backend": {"name": "hf", "agrs": {}}}, "backend.agrs: unknown key; did you mean 'args'?"),
    ({"backend": {"name": "hf", "args": {"device": "cuda"}}}, "backend.args.device: is an option of the command"),
    ({"backend": {"args": {"dtype": "float32"}}}, "backend.args: resident takes none"),
]


@pytest.mark.parametrize(("changes", "says"), INSPECT_MISTAKES)
def test_inspect(
    run: Run,
    places: dict[str, Path],
    toy_config: Callable[..., dict[str, Any]],
    changes: dict[str, Any],
    says: str,
) -> None:
    data = toy_config(**changes)
    data["genome"] = {key: value for key, value in data["genome"].items() if value is not None}
    data["genome"]["models"] = [str(places.get(name, name)) for name in data["genome"]["models"]]
    Path("search.yaml").write_text(yaml.safe_dump(data))
    code, _, errors = run("inspect", "search.yaml", "--no-trial")
    errors = [line for line in errors if not line.startswith("loading the tasks")]
    assert code == 2, errors
    assert len(errors) == 1, errors
    assert errors[0].startswith("heterosis: ")
    assert says in errors[0]


def test_inspect_a_model_of_nobody(run: Run) -> None:
    says = "heterosis: ~nosuchuser/a: no home folder of ~nosuchuser is known; write the whole path"
    assert run("inspect", "~nosuchuser/a") == (2, "", [says])


TASK = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "asked.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
ASKED = '{"question": "is it", "choices": ["yes", "no"], "label": 1}\n'
TASK_MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    (
        {"metric_list": [TASK["metric_list"][0] | {"metric": "accc"}]},
        ASKED,
        "metric_list: unknown metric 'accc'; did",
    ),
    ({}, "", "its data (asked.jsonl) has no documents"),
    (
        {},
        ASKED.replace("1", "7"),
        "cannot be made of its first document (asked.jsonl): IndexError: list index out",
    ),
    (
        {"test_split": "tset"},
        ASKED,
        "its data (asked.jsonl) has no split 'tset'; check test_split, validation_split",
    ),
    ({}, ASKED + "{", "its data (asked.jsonl) cannot be read: "),
    ({"dataset_kwargs": None, "dataset_path": None}, ASKED, "check dataset_path and dataset_kwargs"),
    ({"doc_to_text": "Réponds: {{question}}"}, ASKED, "asked.yaml: line 8: must be UTF-8 text; save it as such"),
    (
        {"metric_list": [TASK["metric_list"][0] | {"metric": "bleu"}]},
        ASKED,
        "task 'asked': has no metric that can be used; not usable: bleu (gives no number for a document); write",
    ),
    (
        {"metric_list": [TASK["metric_list"][0] | {"metric": "acc_all"}]},
        ASKED,
        "task 'asked': metric acc_all,none: given for none of 1 documents; take one that is given: none",
    ),
]


@pytest.mark.parametrize(("changes", "data", "says"), TASK_MISTAKES)
def test_a_task_of_ones_own(
    run: Run, places: dict[str, Path], tmp_path: Path, changes: dict[str, Any], data: str, says: str
) -> None:
    task = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
    text = yaml.safe_dump(task, allow_unicode=True, sort_keys=False)
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "asked.yaml").write_bytes(f"task: asked\n{text}".encode("latin-1"))
    (tmp_path / "asked.jsonl").write_text(data)
    code, output, errors = run("evaluate", places["ANN"], "--tasks", "asked", "--include-path", folder)
    faults = [line for line in errors if line.startswith("heterosis: ")]
    assert code == 2, errors
    assert len(faults) == 1, errors
    assert says in faults[0]
    assert output == ""


EVALUATE_MISTAKES = [
    ("--tasks ,", "tasks: must name at least one task"),
    ("--tasks toy_choice --limit 0", "--limit"),
    ("--tasks toy_choice --max-length 0", "--max-length"),
    ("--tasks toy_choice --device gpu", "device: unknown: 'gpu'"),
]


@pytest.mark.parametrize(("options", "says"), EVALUATE_MISTAKES)
def test_evaluate(run: Run, places: dict[str, Path], options: str, says: str) -> None:
    code, output, errors = run("evaluate", places["ANN"], "--include-path", places["TASKS"], *options.split())
    assert (code, output, len(errors)) == (2, "", 1), errors
    assert says in errors[0]


@pytest.mark.parametrize(
    "number", [{"batch_size": 0}, {"seed": -1}, {"limit": 2.5}, {"num_fewshot": -1}, {"max_length": 0}]
)
def test_numbers_in_python(places: dict[str, Path], number: dict[str, Any]) -> None:
    (name, value), *_ = number.items()
    with pytest.raises(InputError, match=rf"^{name}: must be a whole number of .*got {value}$"):
        evaluate_model(places["ANN"], "toy_choice", include_path=places["TASKS"], **number)


def test_options_of_mergekit_evolve(run: Run) -> None:
    for option, remedy in (("--storage-path", "write --run-dir"), ("--max-fevals", "write --trials")):
        code, _, (error,) = run("evolve", "search.yaml", option, 3)
        assert (code, error.partition(": ")[2]) == (
            2,
            f"{option}: {remedy}" + ", baselines included" * (remedy[-1] == "s"),
        )

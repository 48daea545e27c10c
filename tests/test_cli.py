"""The command line, in this process: what it prints, writes and exits with."""

import gc
import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file

import heterosis
from heterosis import cli
from heterosis.evaluate import TaskSet
from heterosis.evaluate.candidates import copy_recipe
from heterosis.evaluate.scores import Scores
from heterosis.evaluate.splits import Split
from heterosis.evolve import session
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.record.record import read_asks
from heterosis.evolve.workers.pool import Evaluation, Setup
from heterosis.evolve.workers.worker import Worker
from heterosis.words import size

from .inline_pool import InlinePool

MakeLlama = Callable[..., Path]
Run = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in an empty folder. Returns exit code, standard output and the lines of standard error."""
    monkeypatch.chdir(tmp_path)

    def go(*arguments: object) -> tuple[int, str, list[str]]:
        monkeypatch.setattr("sys.argv", ["heterosis", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        with warnings.catch_warnings():
            show = warnings.showwarning
            try:
                cli.main()
            except SystemExit as exit_:
                code = int(exit_.code or 0)
            finally:
                warnings.showwarning = show
        output, errors = capsys.readouterr()
        return code, output, errors.splitlines()

    return go


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RayPool", InlinePool)


@pytest.fixture
def config(toy_config: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(toy_config(**changes)))
        return path

    return write


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"genome": {"merge_method": "tiess"}}, "unknown method 'tiess'; did you mean 'ties'?"),
    "key": ({"batchsize": 4}, "batchsize: unknown key; did you mean 'batch_size'?"),
    "genome key": ({"genome": {"layer_granularty": 1}}, "did you mean 'layer_granularity'?"),
    "range": (
        {"genome": {"ranges": {"wieght": [0, 1]}}},
        "unknown parameter of 'task_arithmetic'; did you mean 'weight'",
    ),
    "base": ({"genome": {"base_model": "/no/such/model"}}, "/no/such/model"),
    "tokenizer": ({"genome": {"tokenizer_source": "/no/model"}}, "tokenizer_source"),
    "task": ({"tasks": ["toy_chioce"]}, "task 'toy_chioce': unknown"),
    "metric": ({"tasks": [{"name": "toy_choice", "metric": "f1"}]}, "valid: acc,none, acc_norm,none"),
    "documents": ({"documents": {"search": 60, "selection": 20, "holdout": 30}}, "has 80 documents, too few"),
    "field": ({"documents": {"group_by": "topic"}}, "has no field 'topic'"),
    "folder": ({"include_path": ["/no/such/folder"]}, "'/no/such/folder' is not a folder"),
    "trials": ({"trials": 0}, "trials"),
}


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch, toy_tasks: Path) -> None:
    """lm-eval's own tasks take 10 s to index; for names that the toys lack, leave them out."""
    from heterosis.evaluate import harness

    whole = harness.TaskManager
    monkeypatch.setattr(
        harness,
        "TaskManager",
        lambda include_path, include_defaults=False: whole(include_path=include_path, include_defaults=False),
    )


@pytest.mark.usefixtures("few_tasks")
@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_config_is_one_line_and_writes_nothing(
    run: Run, config: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    changes, says = BAD_CONFIGS[name]
    path = config(**changes)
    code, output, errors = run("evolve", path, "--run-dir", "out")
    assert code == 2, errors
    assert len(errors) == 1, errors
    assert errors[0].startswith("heterosis: ")
    assert says in errors[0]
    assert output == ""
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("few_tasks")
def test_an_unknown_task_gets_the_nearest_name(run: Run, config: Callable[..., Path]) -> None:
    _, _, (error,) = run("evolve", config(tasks=["toy_chioce"]), "--run-dir", "out")
    assert "did you mean 'toy_choice'?" in error


def test_all_faults_of_a_config_are_told(run: Run, config: Callable[..., Path]) -> None:
    code, _, errors = run("evolve", config(batchsize=4, genome={"merge_method": "tiess"}), "--run-dir", "out")
    assert code == 2
    assert len(errors) == 2
    assert not Path("out").exists()


RECIPE = """
merge_method: {method}
models:
- {{model: {ann}, parameters: {{weight: 1}}}}
- {{model: {bob}, parameters: {{{own}}}}}
"""


def write_recipe(models: dict[str, Path], own: str = "weight: 0.5", method: str = "linear") -> Path:
    path = Path("recipe.yaml")
    path.write_text(RECIPE.format(**models, own=own, method=method))
    return path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("evolve", "nothing.yaml", "--run-dir", "out"), "nothing.yaml: no such config file"),
        (("evolve", "CONFIG", "--run-dir", "out", "--trials", "0"), "--trials"),
        (("evolve", "CONFIG", "--run-dir", "out", "--trials", "many"), "--trials"),
        (("evolve", "CONFIG", "--run-dir", "out", "--hours", "0"), "--hours': must be a number > 0, but got '0'"),
        (("evolve", "CONFIG", "--run-dir", "out", "--hours", "inf"), "must be a number > 0, but got 'inf'"),
        (
            ("evaluate", "MODEL", "--tasks", "x", "--output", "no/s.json"),
            "no/s.json: cannot be written: no is",
        ),
        (("evaluate", "MODEL", "--tasks", "x", "--output", "."), ".: cannot be written: is a folder"),
        *(
            ((*command, "-o", "CONFIG.txt"), "CONFIG.txt: exists; give another file with -o, or --overwrite")
            for command in (("evaluate", "MODEL", "--tasks", "x"), ("report", "nothing"), ("export", "nothing"))
        ),
        (("evolve", "CONFIG"), "--run-dir"),
        (("evolve", "CONFIG", "--run-dir", "out", "--trails", "3"), "--trials"),
        (("status", "nothing"), "not a run folder"),
        (("export", "nothing"), "not a run folder"),
        (("merge", "nothing.yaml", "out"), "nothing.yaml"),
        (("merge", "RECIPE", "out", "--memory-limit", "lots"), "512MiB"),
        (("inspect", "nothing.yaml"), "nothing.yaml: no such recipe file or config file; check the path"),
        (("inspect", "TASK"), "task.yaml: is a task of lm-eval"),
        (("evaluate", "/no/model", "--tasks", "toy_choice", "--include-path", "TASKS"), "/no/model"),
        (
            ("evaluate", "MODEL", "--tasks", "toy_choice", "--include-path", "/nowhere"),
            "'/nowhere' is not a folder",
        ),
        (("evaluate", "CONFIG.txt", "--tasks", "toy_choice", "--include-path", "TASKS"), "neither a model"),
        (
            ("evaluate", "MODEL", "--tasks", "toy_choice", "--include-path", "TASKS", "--device", "cud"),
            "device: unknown: 'cud'; write cpu, cuda or cuda:0",
        ),
        (
            ("evaluate", "MODEL", "--tasks", "toy_choice", "--include-path", "TASKS", "--device", "cuda:99"),
            "devices of CUDA here, not cuda:99",
        ),
        (("evolve", "CONFIG", "--run-dir", "out", "--device", "cud"), "device: unknown: 'cud'"),
        (("evaluat",), "evaluat"),
        (("merge", "CONFIG", "out"), "config.yaml: is a search config, not a recipe; run heterosis evolve on it"),
        (("evolve", "RECIPE", "--run-dir", "out"), "recipe.yaml: is a recipe, not a search config; run heterosis"),
        (
            ("evolve", "TASK", "--run-dir", "out"),
            "is a task of lm-eval, not a search config; name it",
        ),
        (("merge", "RECIPE", "out", "--stage", "first"), "has only one recipe, so there is no stage 'first'"),
        (("merge", "RECIPE", "out", "--cuda"), "--cuda: no need: tensors stream through the processor"),
        (("merge", "RECIPE", "out", "--no-copy-tokenizer"), "--no-copy-tokenizer: no need"),
        (("moe", "RECIPE", "out"), "moe: is not part of heterosis; mergekit has it"),
        (("evolve", "CONFIG", "--run-dir", "out", "--num-gpus=2"), "--num-gpus: write --workers"),
        (("merge", "RECIPE", "out", "--out-shard-size", "5B"), "--out-shard-size: write --shard-size, in bytes"),
        (("merge", "RECIPE", "out", "-j", "4"), "-j: write --threads"),
        (("merge", "RECIPE", "out", "-j4"), "-j: write --threads"),
        (("inspect", "RECIPE", "--distances"), "--distances: needs to know what the models were fine-tuned from"),
    ],
)
def test_bad_arguments_are_one_line(
    run: Run,
    config: Callable[..., Path],
    toy_models: dict[str, Path],
    toy_tasks: Path,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    Path("CONFIG.txt").write_text("text")
    Path("task.yaml").write_text("task: sums\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n")
    real = {
        "CONFIG": config(),
        "RECIPE": write_recipe(toy_models),
        "TASKS": toy_tasks,
        "TASK": Path("task.yaml"),
        "MODEL": toy_models["ann"],
    }
    code, output, errors = run(*(real.get(argument, argument) for argument in arguments))
    assert code == 2, errors
    assert len(errors) == 1, errors
    assert says in errors[0]
    assert output == ""
    assert {p.name for p in Path().iterdir()} == {"CONFIG.txt", "config.yaml", "recipe.yaml", "task.yaml"}


@pytest.mark.parametrize(
    ("own", "method", "says"),
    [
        ("wieght: 1", "linear", "unknown parameter of 'linear'; did you mean 'weight'?"),
        ("weight: 1", "linaer", "did you mean 'linear'?"),
    ],
)
def test_a_bad_recipe_is_one_line(run: Run, toy_models: dict[str, Path], own: str, method: str, says: str) -> None:
    recipe = write_recipe(toy_models, own, method)
    for command in (("merge", recipe, "out"), ("inspect", recipe)):
        code, _, errors = run(*command)
        assert (code, len(errors)) == (2, 1), errors
        assert says in errors[0]
    assert not Path("out").exists()


def test_merge_and_inspect(run: Run, toy_models: dict[str, Path]) -> None:
    recipe = write_recipe(toy_models)
    code, output, _ = run("inspect", recipe)
    assert code == 0
    assert "model.layers.0-1.mlp.up_proj.weight" in output
    assert "20 tensors" in output
    assert "model.layers.1.mlp.up_proj.weight" in run("inspect", recipe, "--full")[1]

    code, output, errors = run("merge", recipe, "out", "--memory-limit", "16MiB", "--threads", "1", "--verify")
    assert (code, output) == (0, "out\n")
    assert errors[0].startswith("20 tensors")
    assert "memory for buffers 16 MiB" in errors[0]
    assert errors[-1].startswith("merged, loaded with transformers and made to generate in ")
    assert (Path("out") / "model.safetensors").is_file()
    assert gc.isenabled()  # again, after the imports

    code, _, errors = run("merge", recipe, "out")
    assert code == 2
    assert "--overwrite" in errors[-1]
    assert run("merge", recipe, "out", "--overwrite")[0] == 0


def test_progress_of_what_takes_long_goes_to_stderr(
    run: Run, toy_models: dict[str, Path], toy_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heterosis.progress.EVERY", 0.0)
    code, output, errors = run("merge", write_recipe(toy_models), "out")
    assert (code, output) == (0, "out\n")
    assert [line.partition(": ")[0] for line in errors[1:-1]] == ["merging"] * 21  # tensors, and the beginning
    nbytes = sum(tensor.nbytes for tensor in load_file("out/model.safetensors").values())
    assert errors[-2] == f"merging: {size(nbytes)} of {size(nbytes)}"

    command = ("evaluate", "out", "--include-path", toy_tasks, "--tasks", "toy_choice", "--limit", 5)
    code, output, errors = run(*command)
    assert code == 0
    assert "requests answered" not in output
    told = [line for line in errors if line.startswith("requests answered: ")]
    assert told[0] == "requests answered: 0 of 15"
    assert told[-1] == "requests answered: 15 of 15"


def test_debug_keeps_the_code_and_adds_the_traceback(
    run: Run, toy_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, errors = run("merge", write_recipe(toy_models, method="linaer"), "out", "--debug")
    assert code == 2
    assert errors[0].startswith("Traceback")
    assert errors[-1].startswith("heterosis: recipe.yaml: merge_method: unknown method 'linaer'")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr("heterosis.merge.api.merge_models", broken)
    code, _, errors = run("--debug", "merge", "recipe.yaml", "out")
    assert (code, errors[0].split()[0], errors[-1]) == (1, "Traceback", "heterosis: failed: no luck")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_merge_says_that_nothing_was_written(
    run: Run, toy_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, signum: signal.Signals
) -> None:
    def handle(*_: object) -> None:
        """What would stop nothing."""

    monkeypatch.setattr("heterosis.merge.api.execute", lambda *_, **__: signal.raise_signal(signum))
    before = signal.signal(signal.SIGTERM, handle)
    # Python leaves this to the system where it was started in the background.
    of_python = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, _, errors = run("merge", write_recipe(toy_models), "out")
        assert signal.getsignal(signal.SIGTERM) is handle
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, of_python)
    assert (code, errors[-1]) == (130, "heterosis: interrupted; nothing was written, run it again")
    assert list(map(str, Path().iterdir())) == ["recipe.yaml"]


def test_a_filter_that_matches_nothing_is_told(run: Run, toy_models: dict[str, Path]) -> None:
    recipe = write_recipe(toy_models, "weight: [{filter: atention, value: 0.3}, {value: 1}]")
    for command in (("merge", recipe, "out"), ("inspect", recipe)):
        code, _, errors = run(*command)
        told = [error for error in errors if error.startswith("warning: ")]
        assert (code, len(told)) == (0, 1)
        assert told[0].startswith(
            "warning: models[1].parameters.weight[0].filter: no tensor's name has 'atention'"
        )


def test_a_command_that_is_not_complete_shows_how_it_is_written(run: Run) -> None:
    from heterosis.cli import app

    for known in app.registered_commands:
        assert known.callback is not None
        name = known.callback.__name__
        code, output, errors = run(name)
        assert (code, output, len(errors)) == (2, "", 1), errors
        assert "; for example: heterosis " + name in errors[0]
        assert not errors[0].endswith(".")
    for command, says in (
        (("evlove", "search.yaml"), "heterosis: No such command 'evlove'. Did you mean 'evolve'?"),
        (("frobnicate",), "heterosis: No such command 'frobnicate'; the commands are merge, init, evolve, "),
        (("evolve", "s.yaml", "--run-dir", "r", "--trails", "9"), "--trails (Possible options: --trials)"),
        (
            ("evolve", "s.yaml"),
            "Missing option '--run-dir'; for example: heterosis evolve configs/quickstart.yaml",
        ),
        (
            ("evaluate", "m", "--tasks", "a", "b"),
            "(b); for example: heterosis evaluate MODEL --tasks arc_easy,piqa",
        ),
        (("evolve", "s.yaml", "--run-dir", "r", "--hours", "8h"), "'--hours': must be a number > 0, but got '8h'"),
    ):
        code, output, errors = run(*command)
        assert (code, output, len(errors)) == (2, "", 1), errors
        assert says in errors[0]


def test_an_option_is_spelt_alike_in_all_commands() -> None:
    app: Any = typer.main.get_command(cli.app)
    spelt: dict[str, set[tuple[str, ...]]] = {}
    for command in app.commands.values():
        for option in command.params:
            if option.param_type_name == "option":
                spelt.setdefault(option.name, set()).add(tuple(sorted(option.opts)))
    assert {name: ways for name, ways in spelt.items() if len(ways) > 1} == {}
    assert spelt["output"] == {("--output", "-o")}
    assert "--out" not in {way for ways in spelt.values() for names in ways for way in names}


def test_the_bare_command_shows_the_help(run: Run) -> None:
    code, output, errors = run()
    assert (code, errors) == (0, [])
    assert output.startswith("Usage: ")
    assert output == run("--help")[1] == run("--debug")[1]
    assert "[x>0]" in run("evolve", "--help")[1]
    assert run("--version") == (0, f"heterosis {heterosis.__version__}\n", [])


def test_mergekit_yamls_options_are_known(run: Run) -> None:
    options = pytest.importorskip("mergekit.options").MergeOptions.model_fields
    ours = {"verbosity"}  # -v there
    for name in options.keys() - ours:
        option = f"--{name.replace('_', '-')}"
        code, _, errors = run("merge", "recipe.yaml", "out", option)
        assert (code, len(errors)) == (2, 1), errors
        assert errors[0].startswith(f"heterosis: {option}: "), errors


def test_inspect_models(run: Run, toy_models: dict[str, Path], make_llama: MakeLlama) -> None:
    base, ann = toy_models["base"], toy_models["ann"]
    code, output, errors = run("inspect", ann, toy_models["bob"], "--base", base, "--distances", "--threads", "1")
    assert (code, errors) == (0, [])
    assert "they can be merged as they are" in output
    assert "norm ann" in output
    code, output, _ = run("inspect", base, ann, "--json")
    assert code == 0
    assert json.loads(output)["models"]["mergeable"] is True

    wide = make_llama("cli-wide", seed=0, hidden=32)
    code, output, errors = run("inspect", base, wide)
    assert (code, len(errors)) == (2, 1)
    assert output.splitlines()[-1] == "they cannot be merged"
    assert errors[0].startswith("heterosis: shapes: toy-base and cli-wide differ in model.embed_tokens.weight")


def test_inspect_a_search(run: Run, config: Callable[..., Path]) -> None:
    code, output, errors = run("inspect", config())
    assert code == 0
    assert errors == ["loading the tasks, and trying a candidate on a few documents (--no-trial leaves that out)"]
    assert "search of task_arithmetic: 4 numbers" in output
    assert "toy_choice  1       acc,none  higher  80         20      20         30" in output
    assert "tried on 20 documents: merging " in output
    assert "begun now, it ends by " in output
    code, output, _ = run("inspect", "config.yaml", "--no-trial")
    assert (code, output.splitlines()[-1]) == (0, "time: no candidate was tried")
    code, output, _ = run("inspect", "config.yaml", "--no-trial", "--json")
    assert (code, json.loads(output)["search"]["tasks"][0]["metric"]) == (0, "acc,none")


def test_inspect_takes_tasks_and_places_as_evolve_does(
    run: Run, config: Callable[..., Path], toy_tasks: Path, tmp_path: Path
) -> None:
    command = ("inspect", config(include_path=[]), "--include-path", toy_tasks, "--place", tmp_path)
    code, output, errors = run(*command, "--no-trial")
    assert code == 0, errors
    assert "toy_choice" in output
    assert f"free in {tmp_path}" in output


def test_evaluate(run: Run, toy_models: dict[str, Path], toy_tasks: Path) -> None:
    command = ("evaluate", toy_models["ann"], "--include-path", toy_tasks, "--tasks", "toy_choice,toy_generate")
    code, output, _ = run(*command, "--limit", 12, "--output", "scores.json")
    assert code == 0
    header, *rows = output.splitlines()
    assert header.split() == ["task", "metric", "mean", "standard", "error", "documents"]
    assert [row.split()[:2] for row in rows] == [
        ["toy_choice", "acc,none"],
        ["toy_choice", "acc_norm,none"],
        ["toy_generate", "crc,none"],
    ]
    scores = Scores.from_json(Path("scores.json").read_text())
    assert {len(documents) for documents in scores.documents.values()} == {12}
    assert f"{scores.mean('toy_choice', 'acc,none'):.4f}" in rows[0]
    assert f"{scores.stderr('toy_choice', 'acc,none'):.4f}" in rows[0]

    Path("other.json").write_text("mine")
    run(*command, "--limit", 12, "--seed", 1, "-o", "other.json", "--overwrite")
    other = Scores.from_json(Path("other.json").read_text())
    assert other.documents["toy_choice"].keys() != scores.documents["toy_choice"].keys()


def test_evaluate_asks_as_a_search_does(
    run: Run,
    toy_models: dict[str, Path],
    toy_tasks: Path,
    toy_config: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few-shot chat prompts, for one, and no longer ones."""
    asked: list[tuple[int, list[Any]]] = []
    score = TaskSet.score

    def watched(self: TaskSet, lm: Any, *rest: Any, **options: Any) -> Scores:
        built = self._tasks["toy_choice"].requests
        asked.append((lm.max_length, [request.args for index in sorted(built) for request in built[index]]))
        return score(self, lm, *rest, **options)

    monkeypatch.setattr(TaskSet, "score", watched)
    command = ("evaluate", toy_models["ann"], "--include-path", toy_tasks, "--tasks", "toy_choice", "--seed", 3)
    chat = ("--num-fewshot", 2, "--apply-chat-template")
    documents, nothing = {"toy_choice": list(range(80))}, dict[str, list[int]](toy_choice=[])
    ways: list[tuple[dict[str, Any], tuple[object, ...]]] = [
        ({}, ()),
        ({"fewshot_as_multiturn": False}, ("--no-fewshot-as-multiturn",)),
        ({"max_length": 24}, ("--max-length", 24)),
        ({"system_instruction": "the cat sat"}, ("--system-instruction", "the cat sat")),
    ]
    for keys, options in ways:
        data = toy_config(num_fewshot=2, apply_chat_template=True, **keys)
        config = EvolveConfig.parse(yaml.safe_dump(data))
        worker = Worker(Setup(config, Split(documents, nothing, nothing)))
        assert isinstance(worker.score(copy_recipe(str(toy_models["ann"])).to_yaml(), documents), Evaluation)
        code, _, errors = run(*command, *chat, *options)
        assert code == 0, errors
    searched, evaluated = asked[::2], asked[1::2]
    assert evaluated == searched
    default, single, short, instructed = searched
    assert default[1] != single[1]
    assert short[0] == 24 != default[0]
    assert all(text.startswith("the cat sat\n") for text, _ in instructed[1])


@pytest.mark.usefixtures("inline")
class TestARun:
    def test_from_search_to_merged_model(
        self, run: Run, config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """``merge best.yaml`` gives, bit for bit, what was scored; for a random method too."""
        from safetensors.torch import load_file

        path = config(genome={"merge_method": "dare_ties"}, trials=6)
        code, output, errors = run("evolve", path, "--run-dir", "out")
        assert code == 0, errors
        assert [line for line in errors if line.startswith("[")][-1].startswith("[6/6] ")
        summary = json.loads(Path("out/summary.json").read_text())
        assert output.startswith("finished: 6 of 6 trials")
        assert summary["outcome"] in output
        assert "gain over the best parent" in output
        assert "ann " in output
        assert "out/best.yaml" in output

        assert run("status", "out") == (0, output, [])
        assert run("status", "out", "--watch")[:2] == (0, output)
        assert run("evolve", path, "--run-dir", "out")[:2] == (0, output)
        assert run("export", "out") == (0, Path("out/best.yaml").read_text(), [])

        Path("recipe.yaml").write_text("mine")
        export = ("export", "out", "--trial", 4, "-o", "recipe.yaml")
        says = "heterosis: recipe.yaml: exists; give another file with -o, or --overwrite"
        assert run(*export) == (2, "", [says])
        assert Path("recipe.yaml").read_text() == "mine"
        assert run(*export, "--overwrite") == (0, "", [])
        os.mkfifo("pipe")
        reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
        assert run(*export[:-1], "pipe") == (0, "", [])
        assert os.read(reader, 1 << 16).decode() == Path("recipe.yaml").read_text()
        os.close(reader)
        code, output, errors = run("export", "out", "--trial", 6)
        assert (code, output, len(errors)) == (2, "", 1)
        assert "trials 0 to 5, but got 6" in errors[0]

        assert run("merge", "recipe.yaml", "merged")[0] == 0
        split = Split.load(Path("out/splits.json"))
        worker = Worker(Setup(EvolveConfig.load("out/config.yaml"), split))
        recipe = next(ask.recipe for ask in read_asks(Path("out")) if ask.number == 4)
        scored = worker.score(recipe, split.search)
        assert isinstance(scored, Evaluation)
        assert worker._loader is not None
        assert worker._loader._resident is not None
        live, written = worker._loader._resident.parameters, load_file("merged/model.safetensors")
        assert written.keys() <= live.keys()
        for name, tensor in written.items():
            assert torch.equal(live[name], tensor.to(torch.float32)), name

        code, output, errors = run("evolve", config(genome={"merge_method": "ties"}), "--run-dir", "out")
        assert (code, output, len(errors)) == (2, "", 1)
        assert 'genome.merge_method: "ties", was "dare_ties"' in errors[0]

        Path("out/summary.json").write_text(json.dumps(summary | {"status": "running"}))  # its driver was killed
        os.utime("out/summary.json", (0, 0))
        code, output, errors = run("status", "out")
        phase = "no sign of the search; the same evolve command continues it"
        assert (code, output.split(",")[0], errors) == (0, f"{phase}: 6 of 6 trials", [])

    def test_an_interrupted_one_says_how_to_go_on(
        self, run: Run, config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        submit = InlinePool.submit

        def interrupted(self: InlinePool, key: Any, *rest: Any) -> None:
            if key.ask.number == 3:
                signal.raise_signal(signal.SIGINT)
            submit(self, key, *rest)

        path = config(trials=6, racing=False)
        with monkeypatch.context() as patch:
            patch.setattr(InlinePool, "submit", interrupted)
            code, output, errors = run("evolve", path, "--run-dir", "out")
        assert code == 130
        assert output.startswith("stopped: 4 of 6 trials")
        assert errors[-1] == "heterosis: interrupted; the same command continues"
        assert run("status", "out")[1].startswith("stopped: 4 of 6 trials")
        code, output, _ = run("evolve", path, "--run-dir", "out")
        assert (code, output.split(",")[0]) == (0, "finished: 6 of 6 trials")

    def test_a_failed_one_exits_with_1(
        self, run: Run, config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("no luck\nat all")

        monkeypatch.setattr("heterosis.evaluate.harness.TaskSet.score", broken)
        code, _, errors = run("evolve", config(), "--run-dir", "out")
        assert code == 1
        assert errors[-1] == "heterosis: failed: the parent ann cannot be scored: RuntimeError: no luck"
        assert "Traceback" not in "\n".join(errors)

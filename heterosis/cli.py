"""The command line: few verbs, thin over the Python API."""

import gc
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heterosis.errors import InputError
from heterosis.foreign import foreign
from heterosis.options import (
    Device,
    IncludePath,
    Overwrite,
    check_output,
    names_in,
    positive,
    size_of,
    write_output,
)
from heterosis.progress import Progress
from heterosis.words import count, first_line, size, table

if TYPE_CHECKING:
    from heterosis.evolve.record.summary_file import Summary

app = typer.Typer(
    name="heterosis",
    help="Search for merge recipes whose models outperform both parents, and run them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from heterosis import __version__

        print(f"heterosis {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. May stand anywhere.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="A module with your method. May stand anywhere."),
    ] = None,
) -> None:
    """Search for merge recipes whose models outperform both parents, and run them."""
    if modules:
        from heterosis.merge.methods import import_own

        sys.path.append(str(Path.cwd()))  # behind all libraries, of which folders here may have names
        for module in modules:
            import_own(module)


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(help="A recipe in mergekit's YAML.")],
    out: Annotated[Path, typer.Argument(help="The model folder to write.")],
    threads: Annotated[int | None, typer.Option(min=1, help="Tensors at a time; one per core by default.")] = None,
    memory_limit: Annotated[
        Any, typer.Option(parser=size_of, metavar="SIZE", help="Bytes for buffers.")
    ] = "512MiB",
    shard_size: Annotated[Any, typer.Option(parser=size_of, metavar="SIZE", help="Bytes in a file.")] = "5GB",
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the recipe's random seed.")] = None,
    tensor_union: Annotated[
        bool, typer.Option("--tensor-union", "-u", help="Merge tensors that some models lack from the others.")
    ] = False,
    tensor_intersection: Annotated[
        bool, typer.Option("--tensor-intersection", "-i", help="Leave tensors out that some models lack.")
    ] = False,
    stage: Annotated[str | None, typer.Option(help="Of several recipes in the file, the one to run.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Load the result with transformers and generate before OUT appears.")
    ] = False,
) -> None:
    """Run a recipe: heterosis merge best.yaml merged-model"""
    with _imports_kept():
        from heterosis.merge import MergeError, Recipe
        from heterosis.merge.api import merge_models
        from heterosis.merge.plan import MergePlan

    def announce(plan: MergePlan) -> None:
        _say(
            f"{len(plan.ops)} tensors, {count(plan.parameters)} parameters: reading {size(plan.bytes_read)}, "
            f"writing {size(plan.bytes_written)}, memory for buffers {size(memory_limit)}, for adapters "
            f"{size(plan.adapter_bytes)}"
        )

    if tensor_union and tensor_intersection:
        raise InputError("--tensor-union and --tensor-intersection exclude each other; give one")
    begun = time.monotonic()
    try:
        with Progress("merging", size) as progress:
            merge_models(
                Recipe.load(recipe, stage),
                out,
                threads=threads,
                memory_limit=memory_limit,
                shard_size=shard_size,
                seed=seed,
                names="union" if tensor_union else "intersection" if tensor_intersection else "same",
                overwrite=overwrite,
                verify=verify,
                announce=announce,
                progress=progress,
                origin=str(recipe),
            )
    except MergeError as error:  # the numbers of the models or of the recipe are at fault
        raise InputError(f"{recipe}: {error}") from error
    done = "merged, loaded with transformers and made to generate" if verify else "merged"
    _say(f"{done} in {time.monotonic() - begun:.1f} s")
    print(out)


@app.command()
def init(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders, Hub ids, or base+adapter.")],
    tasks: Annotated[list[str], typer.Option("--tasks", help="Task names, separated by commas or repeated.")],
    base: Annotated[str | None, typer.Option(help="What the models were fine-tuned from.")] = None,
    include_path: IncludePath = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")] = Path("search.yaml"),
    overwrite: Overwrite = False,
) -> None:
    """Write a search config: heterosis init org/a org/b --base org/base --tasks arc_easy"""
    check_output(output, overwrite)

    from heterosis.evolve.preflight.draft import draft_config

    folders = [str(folder) for folder in include_path or ()]
    draft = draft_config(models, names_in(tasks), base=base, include_path=folders, name=str(output))
    write_output(output, draft.text)
    for text in draft.warnings:
        _say(f"warning: {text}")
    _say(f"read it, then see what it takes: heterosis inspect {output}")
    print(output)


@app.command()
def evolve(
    config: Annotated[Path, typer.Argument(help="A search config; mergekit-evolve's work as they are.")],
    run_dir: Annotated[Path, typer.Option("--run-dir", help="The run folder; the same command continues there.")],
    trials: Annotated[int | None, typer.Option(min=1, help="Candidates in all, baselines included.")] = None,
    hours: Annotated[
        Any, typer.Option(parser=positive, metavar="NUMBER", help="Time in all.  [x>0]", show_default=False)
    ] = None,
    max_documents: Annotated[int | None, typer.Option(min=1, help="Documents scored in all.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that score.")] = None,
    cpus_per_worker: Annotated[float | None, typer.Option(help="Cores of each; fractions will do.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="GPUs of each; fractions will do.")] = None,
    include_path: IncludePath = None,
    ray_address: Annotated[str | None, typer.Option(help="A Ray cluster; this machine by default.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL; SQLite in the run folder by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the config's.")] = None,
    device: Device = "cpu",
    log_to: Annotated[
        list[str] | None, typer.Option(help="tensorboard, mlflow or wandb; may be given several times.")
    ] = None,
) -> None:
    """Search: heterosis evolve configs/quickstart.yaml --run-dir runs/first"""
    from heterosis.evolve.config import EvolveConfig
    from heterosis.evolve.record.folder import check_run_folder

    options: dict[str, Any] = {
        "trials": trials,
        "hours": hours,
        "max_documents": max_documents,
        "workers": workers,
        "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker,
        "include_path": include_path or (),
        "seed": seed,
        "log_to": log_to or (),
    }
    # What the search begins with too, but its imports take seconds.
    EvolveConfig.load(config).with_options(**options)
    check_run_folder(run_dir)

    from rich.console import Console

    from heterosis.evolve.driver import search
    from heterosis.evolve.watching.progress import LiveProgress, PlainProgress

    console = Console(stderr=True)
    progress = (LiveProgress if console.is_terminal else PlainProgress)(console, run_dir)
    summary = search(
        config,
        run_dir,
        storage=storage,
        ray_address=ray_address,
        device=device,
        progress=progress,
        **options,
    )
    _print_summary(summary, run_dir, summary["status"], summary["seconds"]["total"])
    if summary["status"] != "finished":
        raise KeyboardInterrupt


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.")],
    follow: Annotated[bool, typer.Option("--watch", help="Follow it to its end; Ctrl-C leaves it alone.")] = False,
) -> None:
    """Where a run stands, also while it runs: heterosis status runs/first --watch"""
    from rich.console import Console

    from heterosis.evolve.watching.progress import watch
    from heterosis.evolve.watching.standing import Watcher

    if follow:
        watch(run_dir, Console(stderr=True))
    standing = Watcher(run_dir).look()
    _print_summary(standing.summary, run_dir, standing.phase, standing.seconds)


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.")],
    trial: Annotated[int | None, typer.Option(min=0, help="The trial's number; the best by default.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file; standard output by default.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a trial's recipe: heterosis export runs/first --trial 12 -o recipe.yaml"""
    if output is not None:
        check_output(output, overwrite)

    from heterosis.evolve.results.export import export_trial

    text = export_trial(run_dir, trial)
    if output is None:
        print(text, end="")
        return
    write_output(output, text)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="A run folder.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A file; report.html in the run folder by default.")
    ] = None,
    overwrite: Overwrite = False,
    ask_tasks: Annotated[
        bool,
        typer.Option("--load-tasks", help="Ask the tasks what their documents say; runs the Python beside them."),
    ] = False,
    storage: Annotated[
        str | None, typer.Option(help="The search's Optuna storage URL, if it was given one.")
    ] = None,
) -> None:
    """Write a run as one HTML page, also while it runs: heterosis report runs/first"""
    if output is not None:
        check_output(output, overwrite)

    from heterosis.evolve.record.summary_file import read_summary
    from heterosis.evolve.report import load_tasks, write_report

    read_summary(run_dir)
    loaded = None
    if ask_tasks:
        try:
            loaded = load_tasks(run_dir)
        except InputError as error:  # the rest can be shown
            for fault in error.faults:
                _say(f"warning: {fault}")
    print(write_report(run_dir, output, tasks=loaded, storage=storage))


@app.command()
def evaluate(
    model_or_recipe: Annotated[str, typer.Argument(help="A model (folder, Hub id, base+adapter) or a recipe.")],
    tasks: Annotated[list[str], typer.Option("--tasks", help="Task names, separated by commas or repeated.")],
    include_path: IncludePath = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents per task, drawn by --seed.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0)] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the longest prompt; the model's own by default.")
    ] = None,
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template")] = False,
    fewshot_as_multiturn: Annotated[bool, typer.Option(help="Whether examples are turns of the chat.")] = True,
    system_instruction: Annotated[str | None, typer.Option(help="Goes before every prompt.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "cpu",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="JSON with the scores of every document.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a model with lm-eval: heterosis evaluate MODEL --tasks arc_easy,piqa --limit 100"""
    if output is not None:
        check_output(output, overwrite)

    from heterosis.evaluate.api import evaluate_model
    from heterosis.evaluate.scores import PROBABILITY
    from heterosis.merge import MergeError

    try:
        with Progress("requests answered", "{:,}".format) as progress:
            scores, metrics = evaluate_model(
                model_or_recipe,
                names_in(tasks),
                include_path=include_path or (),
                limit=limit,
                num_fewshot=num_fewshot,
                batch_size=batch_size,
                max_length=max_length,
                apply_chat_template=apply_chat_template,
                fewshot_as_multiturn=fewshot_as_multiturn,
                system_instruction=system_instruction,
                seed=seed,
                device=device,
                progress=progress,
            )
    except MergeError as error:  # as in merge
        raise InputError(f"{model_or_recipe}: {error}") from error
    rows = []
    for task, metric in metrics.items():
        keys = {key for document in scores.documents[task].values() for key in document} - {PROBABILITY}
        for key in sorted(keys, key=lambda k: (k != metric.key, k)):
            n = len(scores.values(task, key))
            rows.append((task, key, f"{scores.mean(task, key):z.4f}", f"± {scores.stderr(task, key):.4f}", str(n)))
    header = ("task", "metric", "mean", "standard error", "documents")
    print("\n".join(table(header, rows, keep_empty=True)))
    if output is not None:
        write_output(output, scores.to_json() + "\n")


@app.command()
def inspect(
    targets: Annotated[
        list[str], typer.Argument(metavar="RECIPE|CONFIG|MODEL...", help="A recipe, a search config, or models.")
    ],
    full: Annotated[bool, typer.Option("--full", help="A row for every tensor, layers not folded.")] = False,
    base: Annotated[str | None, typer.Option(help="What the models were fine-tuned from.")] = None,
    distances: Annotated[
        bool, typer.Option("--distances", help="Read all weights: norms of task vectors and their angles.")
    ] = False,
    include_path: IncludePath = None,
    place: Annotated[Path, typer.Option(help="Where the merge or the run folder would be written.")] = Path(),
    threads: Annotated[int | None, typer.Option(min=1, help="For --distances; one per core by default.")] = None,
    trial: Annotated[
        bool,
        typer.Option("--trial/--no-trial", help="Of a search, merge and score one candidate on few documents."),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Check a recipe, a search config or models before running anything: heterosis inspect org/a org/b"""
    from heterosis.inspection import inspect_targets

    report = inspect_targets(
        targets,
        full=full,
        base=base,
        distances=distances,
        include_path=include_path or (),
        place=place,
        threads=threads,
        trial=trial,
        announce=_say,
    )
    print(report.to_json() if as_json else "\n".join(report.lines()))
    for text in report.warnings:
        _say(f"warning: {text}")
    if report.faults:
        raise InputError(*report.faults)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A merged model.")],
    repo_id: Annotated[str, typer.Argument(help="Where to: user/name, or organisation/name.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch; main by default.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
) -> None:
    """Publish a merged model on the Hugging Face Hub: heterosis push merged-model user/name"""
    from heterosis.merge.hub import push as publish

    print(publish(folder, repo_id, private=private, revision=revision, message=message))


@contextmanager
def _imports_kept() -> Iterator[None]:
    """Import without looking for garbage among what is imported, now or later.

    The 240,000 objects of torch's and numba's modules stay to the end. Searching them while they are made, when
    compiled loops are first used and at exit took half a second, a fifth of a small merge.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _print_summary(summary: "Summary", run_dir: Path, phase: str, seconds: float) -> None:
    from heterosis.evolve.results.summary import closing_table, gains_of

    trials, documents = summary["trials"], summary["documents"]
    others = {"on a part of the documents": trials["pruned"], "failed": trials["failed"]}
    noted = "".join(f", {number} {what}" for what, number in others.items() if number)
    ended = summary.get("ended_by")
    noted += f", ended by {ended}" if ended else ""
    done = trials["complete"] + trials["pruned"]
    print(f"{phase}: {done} of {trials['budget']} trials{noted}, {seconds:.0f} s")
    rows = closing_table(summary)
    print("\n".join(table(("", "search", "selection", "held out"), rows, keep_empty=True)))
    if any(cell.startswith("~") for row in rows for cell in row[1:]):
        print("~: on some of the documents, by which a race was decided")
    counts = f"{documents['search']}, {documents['selection']} and {documents['holdout']} documents"
    print(f"on {counts}; {documents['scored']} scored in all")
    for cause, times in summary["failures"].items():
        print(f"failed {times} times: {cause}")
    for label, name, gain in gains_of(summary):
        over, (low, high) = f"the {label}" + (f" ({name})" if name else ""), gain["ci95"]
        print(f"gain over {over}: {gain['holdout']:+z.4f}, 95 % interval {low:+z.4f} to {high:+z.4f}")
    print(summary["outcome"])
    if (run_dir / "best.yaml").exists():
        print(f"recipe: {run_dir / 'best.yaml'}")
    if (run_dir / "report.html").exists():
        print(f"report: {run_dir / 'report.html'}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _imports_apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Each ``--import=MODULE``, and the other arguments."""
    imports: list[str] = []
    others: list[str] = []
    left = list(arguments)
    while left and left[0] != "--":
        argument = left.pop(0)
        if argument == "--import":
            imports.append(f"--import={left.pop(0) if left and left[0][:1] != '-' else ''}")
        else:
            (imports if argument.startswith("--import=") else others).append(argument)
    return imports, others + left


def _usage(error: typer.TyperException, command: str | None) -> str:
    """What is wrong with a command, and where that names no remedy, how it is written."""
    said = error.format_message().rstrip(".")
    if said.startswith("Invalid value") or (said.endswith((")", "?")) and "extra argument" not in said):
        return said
    callbacks = {known.callback.__name__: known.callback for known in app.registered_commands if known.callback}
    if command not in callbacks:
        return f"{said}; the commands are {', '.join(callbacks)}"
    example = (callbacks[command].__doc__ or "").partition(": ")[2]
    return f"{said}; for example: {example}"


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that no half of a model stays; what follows it is ignored."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before in (None, signal.SIG_IGN):
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        signal.signal(
            signal.SIGTERM, signal.SIG_IGN
        )  # some send it twice, and what is half written is removed now
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    _say(f"warning: {message}")


def main() -> None:
    """The entry point: exit code 0 done, 2 wrong input, 1 failed, 130 interrupted."""
    debug = "--debug" in sys.argv
    imports, arguments = _imports_apart([argument for argument in sys.argv[1:] if argument != "--debug"])
    command = next(iter(arguments), None)
    warnings.showwarning = _show_warning
    if not debug:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module=r"heterosis\.")
    try:
        with _terminated_like_interrupted():
            code = app([*imports, *arguments] or ["--help"], standalone_mode=False)
        # Commands return nothing: a number is the code of an exit that typer caught, 130 after an interrupt.
        if code == 130:
            raise KeyboardInterrupt
        if code:
            sys.exit(code)
    except InputError as error:
        if debug:
            traceback.print_exc()
        for fault in error.faults:
            _say(f"heterosis: {fault}")
        sys.exit(2)
    except typer.TyperException as error:
        for fault in list(foreign(command, arguments[1:])) or [_usage(error, command)]:
            _say(f"heterosis: {fault}")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        resumes = command in ("evolve", "push")
        remedy = "the same command continues" if resumes else "nothing was written, run it again"
        _say(f"heterosis: interrupted; {remedy}")
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        _say(f"heterosis: failed: {first_line(error)}")
        sys.exit(1)


if __name__ == "__main__":
    main()

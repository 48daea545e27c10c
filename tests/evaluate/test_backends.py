"""Scoring with model classes of lm-eval: likelihoods are the live model's, and nothing stays behind."""

import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from heterosis.errors import InputError
from heterosis.evaluate import BackendLoader, CandidateLoader, ModelMismatch, ResidentModel, harness, room
from heterosis.merge import Checkpoint, MergeError, ModelRef, Recipe, Reductions, open_checkpoint
from heterosis.merge.models import checkpoint

PROMPTS = ("the cat sat on", "two plus three is", "a dog")
GIB = 2**30


@register_model("own-batches")
class OwnBatches(HFLM):  # type: ignore[misc]
    """As those of vLLM and SGLang look: it makes its own batches, and calls the length otherwise."""

    def __init__(
        self,
        pretrained: str,
        max_model_len: int = 32,
        batch_size: Any = "auto",
        dtype: str = "auto",
        device: str = "cuda",
    ) -> None:
        super().__init__(pretrained, batch_size=3, dtype=dtype, device=device)
        self.length, self.asked = max_model_len, batch_size


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Shared memory and the folder for temporary files, both empty."""
    shared, temporary = tmp_path / "shm", tmp_path / "tmp"
    for place in (shared, temporary):
        place.mkdir()
    monkeypatch.setattr(room, "SHARED_MEMORY", shared)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return shared, temporary


@pytest.fixture
def recipe(toy_models: dict[str, Path]) -> Callable[..., Recipe]:
    def make(*weights: float, method: str = "task_arithmetic", **parameters: Any) -> Recipe:
        models = [
            {"model": str(toy_models[name]), "parameters": {"weight": weight, **parameters}}
            for name, weight in zip(("ann", "bob"), weights or (0.8, 0.4), strict=True)
        ]
        plain = {"merge_method": method, "base_model": str(toy_models["base"]), "models": models}
        return Recipe.parse(yaml.safe_dump(plain | {"dtype": "bfloat16"}))

    return make


def likelihoods(lm: Any) -> list[float]:
    requests = [Instance("loglikelihood", {}, (prompt, " the mat"), i) for i, prompt in enumerate(PROMPTS)]
    return [likelihood for likelihood, _ in lm.loglikelihood(requests, disable_tqdm=True)]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_likelihoods_are_the_live_models(
    recipe: Callable[..., Recipe], places: tuple[Path, Path], method: str
) -> None:
    asked = recipe(method=method, **({"density": 0.5} if method == "ties" else {}))
    loader = BackendLoader("hf", {"dtype": "float32"}, batch_size=2, max_length=64, reductions=Reductions())
    for _ in range(2):  # the second one finds what the first has computed
        loaded = loader.load(asked)
        live = CandidateLoader().load(asked)
        lm = loaded.lm(2, 64)
        assert likelihoods(lm) == pytest.approx(likelihoods(live.lm(2, 64)), abs=1e-5)
        assert (lm.batch_size, lm.max_length) == (2, 64)
        assert loaded.logits_finite()
        assert loaded.model is lm.model
    other = loader.load(recipe(0.1, 1.2))
    assert other.checksum() != loaded.checksum()
    assert likelihoods(other.lm(2, 64)) != pytest.approx(likelihoods(lm), abs=1e-3)


def test_a_folder_is_there_while_it_is_loaded_and_the_model_before_is_gone(
    recipe: Callable[..., Recipe], places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Path]] = []
    before: list[Any] = []
    load = harness.load_lm

    def watched(*arguments: Any) -> Any:
        assert all(lm() is None for lm in before)
        seen.append(list(places[0].iterdir()))
        lm = load(*arguments)
        before.append(weakref.ref(lm))
        return lm

    monkeypatch.setattr(harness, "load_lm", watched)
    loader = BackendLoader("hf", {})
    for weight in (0.2, 0.6):
        model = loader.load(recipe(weight, 0.4))
        assert list(places[0].iterdir()) == []
        del model
    assert [len(folders) for folders in seen] == [1, 1]
    assert list(places[1].iterdir()) == []


@pytest.mark.parametrize("make", [partial(BackendLoader, "hf", {}), CandidateLoader], ids=["backend", "live"])
def test_models_are_opened_once_for_all_folders(
    make: Callable[[], BackendLoader | CandidateLoader],
    recipe: Callable[..., Recipe],
    places: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mismatch(*_: Any) -> None:
        raise ModelMismatch("weight is not in the model")

    def counted(ref: ModelRef, *arguments: Any) -> Checkpoint:
        opened.append(ref)
        return open_checkpoint(ref, *arguments)

    opened: list[ModelRef] = []
    monkeypatch.setattr(ResidentModel, "check_names", mismatch)
    monkeypatch.setattr(checkpoint, "open_checkpoint", counted)
    loader = make()
    for weight in (0.2, 0.6):
        loader.load(recipe(weight, 0.4))
    assert opened == recipe().original_models()


@pytest.mark.parametrize("fails", ["merge", "load"])
def test_a_failure_leaves_no_folder(
    recipe: Callable[..., Recipe], places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no such device")

    if fails == "load":
        monkeypatch.setattr(harness, "load_lm", fail)
    weights = (1e39, 1e39) if fails == "merge" else (0.8, 0.4)
    with pytest.raises((MergeError, RuntimeError)):
        BackendLoader("hf", {}).load(recipe(*weights))
    assert [list(place.iterdir()) for place in places] == [[], []]


def test_outputs_that_are_not_finite_are_noticed(recipe: Callable[..., Recipe], places: tuple[Path, Path]) -> None:
    assert not BackendLoader("hf", {"dtype": "float32"}).load(recipe(1e15, 1e15)).logits_finite()


def test_a_backend_that_makes_its_own_batches(recipe: Callable[..., Recipe], places: tuple[Path, Path]) -> None:
    harness.check_backend("own-batches", "auto", 48)
    model = BackendLoader("own-batches", {"dtype": "float32"}, batch_size="auto", max_length=48).load(recipe())
    lm = model.lm("auto", 48)
    assert (lm.asked, lm.length) == ("auto", 48)
    assert lm.device.type == "cpu"


@pytest.mark.parametrize(
    ("name", "batch_size", "max_length", "says"),
    [
        ("vlm", 4, None, "backend: unknown to lm-eval: 'vlm'; did you mean 'vllm'?"),
        ("dummy", 4, None, "backend: dummy does not load models from a folder"),
        ("hf", "auto", None, "batch_size: auto is for the resident model"),
        ("mamba_like", 4, 48, "max_length: mamba_like has no such argument; leave it out"),
    ],
)
def test_what_cannot_be_done_is_refused(name: str, batch_size: Any, max_length: int | None, says: str) -> None:
    with pytest.raises(InputError, match="^" + says.replace("?", r"\?")) as refused:
        harness.check_backend(name, batch_size, max_length)
    assert len(refused.value.faults) == 1


def test_an_argument_that_a_backend_does_not_take() -> None:
    with pytest.raises(InputError) as refused:
        harness.check_backend("own-batches", 4, None, {"dtpye": "float32", "dtype": "float32", "seed": 1})
    first, second = refused.value.faults
    assert first == "backend.args.dtpye: own-batches has no such argument; did you mean 'dtype'?"
    assert second.startswith("backend.args.seed: own-batches has no such argument; valid: batch_size, ")
    assert "self" not in second


def test_an_argument_that_may_be_passed_on(recwarn: pytest.WarningsRecorder) -> None:
    passed = {"attn_implementation": "eager", "torch_dtype": "float32", "device_map": "auto", "dtype": "auto"}
    harness.check_backend("hf", 4, None, passed)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"backend.args.dtpye: hf has no such .* on; did you mean 'dtype'\?"):
        harness.check_backend("hf", 4, None, {"dtpye": "float32"})


@register_model("mamba_like")
class NoLength(LM):  # type: ignore[misc]
    def __init__(self, pretrained: str) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("vllm", ModuleNotFoundError("No module named 'vllm'", name="vllm"), "pip install 'lm-eval[vllm]'"),
        ("neuronx", ModuleNotFoundError("No module named 'neuron'", name="neuron"), "pip install 'neuron'"),
        ("vllm", RuntimeError("no device\nat all"), "cannot be imported: RuntimeError: no device at all"),
    ],
)
def test_a_package_that_is_missing_or_broken(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, says: str
) -> None:
    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr(harness, "get_model", fail)
    with pytest.raises(InputError) as refused:
        harness.check_backend(name, 4, None)
    (fault,) = refused.value.faults
    assert fault.startswith(f"backend: {name} ")
    assert says in fault


# --- folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(places: tuple[Path, Path]) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that holds a folder in shared memory."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom heterosis.evaluate.room import held_folder\n"
        "with held_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'weights').write_text('x')\n    print(folder, flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(places[0])]
    process = subprocess.Popen(command, cwd=places[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


def test_what_a_killed_process_left_behind_is_swept(holder: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = holder
    room.sweep()
    assert (folder / "weights").exists()  # it lives
    process.kill()
    process.wait()
    assert (folder / "weights").exists()
    room.sweep()
    assert not folder.exists()


def test_a_sweep_leaves_all_else(places: tuple[Path, Path]) -> None:
    uid = os.getuid()
    other, link = places[0] / f"heterosis-{uid}-0123", places[0] / f"heterosis-{uid}-merge-link"
    for folder in (other, places[0] / "mine"):
        folder.mkdir()
    link.symlink_to(places[0] / "mine")
    room.sweep()
    assert sorted(places[0].iterdir()) == sorted([other, places[0] / "mine", link])


@pytest.mark.parametrize(
    ("shared", "temporary", "memory", "place"),
    [(9, 9, 9, 0), (7, 9, 9, 1), (9, 9, 7, 1), (7, 4, 9, 1), (7, 3, 9, None), (9, 3, 9, 0)],
)
def test_shared_memory_comes_first(
    places: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    shared: int,
    temporary: int,
    memory: int,
    place: int | None,
) -> None:
    free = {places[0]: shared * GIB, places[1]: temporary * GIB}
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage(0, 0, free[Path(where)]))
    monkeypatch.setattr(room, "memory", lambda: (memory * GIB, 99 * GIB))
    assert room.place_for(4 * GIB) == (None if place is None else places[place])


def test_without_room_a_candidate_is_tried_again(
    recipe: Callable[..., Recipe], places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "place_for", lambda nbytes: None)
    with pytest.raises(MemoryError, match="has no room in shared memory or in TMPDIR"):
        BackendLoader("hf", {}).load(recipe())

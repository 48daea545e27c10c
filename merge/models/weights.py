"""The weight files of a folder: one or several of them, safetensors or pickles."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from heterosis.errors import InputError, few
from heterosis.merge.files import read_json
from heterosis.merge.models.pickle_file import PickleFile
from heterosis.merge.models.quantised import refuse_gguf
from heterosis.merge.models.safetensors_file import SafetensorsFile
from heterosis.merge.models.sources import TensorSource
from heterosis.words import brief


class Weights:
    """The tensors of one or more weight files of a folder.

    Attributes:
        paths: The files, in name order.
        tensors: Every tensor by name.
        file_of: The file that holds each tensor, relative to the folder.
    """

    def __init__(self, folder: Path, names: Iterable[str], mapped: bool = False) -> None:
        """Open the files.

        Raises:
            InputError: If one is missing or malformed, or two hold a tensor of one name.
        """
        self.paths: list[Path] = []
        self.tensors: dict[str, TensorSource] = {}
        self.file_of: dict[str, str] = {}
        self._files: list[SafetensorsFile | PickleFile] = []
        try:
            for name in sorted(names):
                path = folder / name
                file = SafetensorsFile(path, mapped) if path.suffix == ".safetensors" else PickleFile(path)
                self.paths.append(path)
                self._files.append(file)
                for tensor, source in file.tensors().items():
                    if tensor in self.tensors:
                        raise InputError(f"{folder}: {tensor}: held by both {self.file_of[tensor]} and {name}")
                    self.tensors[tensor] = source
                    self.file_of[tensor] = name
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self._files:
            file.close()


def open_weights(folder: Path, stem: str, pickle_stem: str | None = None, mapped: bool = False) -> Weights:
    """The weights of a folder, in transformers' order of preference: safetensors before pickles."""
    expected = []
    for name in (f"{stem}.safetensors", f"{pickle_stem or stem}.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return Weights(folder, [name], mapped)
        if index.exists():
            return _open_sharded(folder, index, mapped)
        expected += [name, index.name]
    refuse_gguf(folder)
    raise InputError(f"{folder}: has no weights; expected one of {', '.join(expected)}")


def _open_sharded(folder: Path, index: Path, mapped: bool) -> Weights:
    # A file that is listed may be a link to anywhere, as in the Hub's cache, but its name may not lead out.
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise InputError(f"{index}: weight_map must map names of tensors to files")
    faults = []
    files = sorted(set(listed.values()))
    for file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or str(path) != file or "\0" in file:
            faults.append(f"{index}: weight_map: {brief(file)} must be a file inside the model folder")
        elif not (folder / file).is_file():
            faults.append(f"{index}: weight_map: there is no file {brief(file)}; download the model again")
    if faults:
        raise InputError(*few(faults))
    weights = Weights(folder, files, mapped)
    for name in sorted(listed.keys() | weights.tensors.keys()):
        held, expected = weights.file_of.get(name), listed.get(name)
        if held != expected:
            faults.append(
                f"{index}: {name}: listed in {expected}, but held by {held or 'no file'}; download the model again"
                if expected
                else f"{index}: {name}: held by {held}, but not listed; download the model again"
            )
    if faults:
        weights.close()
        raise InputError(*few(faults))
    return weights

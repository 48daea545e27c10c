"""Configuration files as plain mappings: strict YAML, read defensively."""

import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from heterosis.errors import InputError

MAX_BYTES = 1_000_000
# Aliases are shared in memory but walked one by one, so what counts is the size of a file written out in full.
MAX_NODES = 100_000
MAX_DEPTH = 32
MAX_DOCUMENTS = 100
# YAML 1.1 reads 1:30 in base 60, which takes quadratic time; no number in use is half as long.
MAX_DIGITS = 100


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """The text of a small UTF-8 file; ``what`` it is, such as "recipe", is for the messages.

    Raises:
        InputError: If it cannot be read, or is no text.
    """
    origin = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{origin}: no such {what} file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{origin}: must be a {what} file, but is a folder; name the YAML file") from None
    except OSError as error:
        raise InputError(f"{origin}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{origin}: must be at most {MAX_BYTES:,} bytes; is it a {what} file?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{origin}: must be UTF-8 text, but byte {error.start} is not; save it as UTF-8"
        ) from None


def parse_mapping(text: str, origin: str) -> dict[str, Any]:
    """Parse one document of plain YAML (see `parse_documents`).

    Raises:
        InputError: With a line for every fault that can be told apart.
    """
    documents = parse_documents(text, origin)
    if len(documents) > 1:
        raise InputError(f"{origin}: must be one YAML document, but has {len(documents)}; keep one")
    return documents[0]


def parse_documents(text: str, origin: str) -> list[dict[str, Any]]:
    """Parse plain YAML of one document or several: no tags, no duplicate keys, no alias bombs.

    Raises:
        InputError: With a line for every fault that can be told apart.
    """
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise InputError(f"{origin}: must be at most {MAX_BYTES:,} bytes")
    try:
        _check_events(text, origin)
        loader = yaml.SafeLoader(text)
        nodes = []
        while loader.check_node():
            node = loader.get_node()
            # A '---' at the very end or beginning gives an empty document, which says nothing.
            if node is not None and not _is_empty(node):
                nodes.append(node)
        if not nodes:
            raise InputError(f"{origin}: must hold a mapping, but is empty")
        if len(nodes) > MAX_DOCUMENTS:
            raise InputError(f"{origin}: must have at most {MAX_DOCUMENTS} documents, but has {len(nodes)}")
        for node in nodes:
            _measure(node, origin, {}, set())
        faults = sorted({fault for node in nodes for fault in _duplicate_keys(node, set())})
        if faults:
            raise InputError(
                *(f"{origin}: line {line}: key {key!r} is given twice; keep one" for line, key in faults)
            )
        documents = [loader.construct_document(node) for node in nodes]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or ""
        remedy = "; indent with spaces, not tabs" if r"'\t'" in problem else ""
        raise InputError(f"{origin}: {where}not valid YAML: {problem}{remedy}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None
    except InputError:
        raise
    except ValueError as error:  # such as a number of 5000 digits, or a date that does not exist
        raise InputError(f"{origin}: not valid YAML: {error}") from None
    for data in documents:
        if not isinstance(data, dict):
            raise InputError(f"{origin}: must be a mapping, but got {reprlib.repr(data)}")
        for key in data:
            if not isinstance(key, str):
                raise InputError(f"{origin}: keys must be texts, but got {key!r}; quote it")
    return documents


def _is_empty(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.value == ""


def _check_events(text: str, origin: str) -> None:
    depth = count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise InputError(f"{origin}: line {line}: nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        count += isinstance(event, yaml.NodeEvent)
        if count > MAX_NODES:
            raise InputError(f"{origin}: line {line}: must have at most {MAX_NODES:,} entries")
        tag = getattr(event, "tag", None)
        if tag is not None:
            shown = re.sub(r"^tag:yaml\.org,2002:", "!!", tag)
            raise InputError(f"{origin}: line {line}: tags such as {shown!r} are not accepted; write plain values")


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}" if node.start_mark else "somewhere"


def _measure(node: yaml.Node, origin: str, sizes: dict[int, int], path: set[int]) -> int:
    """Number of nodes under a node with its aliases written out."""
    if id(node) in path:
        raise InputError(f"{origin}: {_line(node)}: an alias contains itself")
    if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
        raise InputError(f"{origin}: {_line(node)}: a number has at most {MAX_DIGITS} digits; quote a text")
    if id(node) not in sizes:
        path.add(id(node))
        sizes[id(node)] = 1 + sum(_measure(child, origin, sizes, path) for child in _children(node))
        path.discard(id(node))
    if sizes[id(node)] > MAX_NODES:
        raise InputError(f"{origin}: must have at most {MAX_NODES:,} entries with its aliases written out")
    return sizes[id(node)]


def _duplicate_keys(node: yaml.Node, seen: set[int]) -> Iterator[tuple[int, str]]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    yield key.start_mark.line + 1, key.value
                keys.add((key.tag, key.value))
    for child in _children(node):
        yield from _duplicate_keys(child, seen)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value

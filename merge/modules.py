"""Which tensors the modules of a recipe speak of: parts of a model that have layers of their own."""

from collections.abc import Iterable, Sequence

# What models call the parts that recipes name. A part that is not here is called what it is: `encoder`.
_PATHS = {
    "text_decoder": ("language_model", "text_model"),
    "vision_tower": ("vision_tower", "vision_model", "vision_encoder", "visual"),
    "vision_model": ("vision_model", "vision_tower", "visual"),
    "multi_modal_projector": ("multi_modal_projector", "mm_projector", "visual.merger", "connector", "projector"),
}
# Modules that also hold what no other module claims, such as embeddings and heads outside every path.
_REST = ("default", "shared", "text_decoder")


def module_of(name: str, modules: Sequence[str]) -> str | None:
    """The module that a tensor belongs to: of those named in its path, the one that says most of it.

    Args:
        name: The tensor's.
        modules: The recipe's. ``text_decoder``, ``vision_tower`` and ``multi_modal_projector`` are mergekit's
            names for what models call differently; any other is a part of the path, such as ``encoder``.

    Returns:
        One of ``modules``; where the path names none, that of them which takes the rest (``default``, ``shared``
        or ``text_decoder``), and None without such a one.
    """
    claims = {module: _claim(name, module) for module in modules}
    best = max(modules, key=lambda module: claims[module], default=None)
    if best is not None and claims[best] > (0, 0):
        return best
    return next((module for module in _REST if module in modules), None)


def _claim(name: str, module: str) -> tuple[int, int]:
    """How much of a tensor's path a module names, and how deep: the longer, then the deeper claim wins."""
    return max((_match(name, path) for path in (*_PATHS.get(module, ()), module)), default=(0, 0))


def _match(name: str, path: str) -> tuple[int, int]:
    at = f".{name}".find(f".{path}.")
    return (0, 0) if at < 0 else (path.count(".") + 1, at + 1)


def candidates(names: Iterable[str]) -> list[str]:
    """First parts of tensors' paths that could be named as modules."""
    parts = dict.fromkeys(part for name in names for part in name.split(".")[:2] if not part.isdigit())
    return [part for part in parts if part not in ("weight", "bias", "model")][:12]

"""Which tensors the modules of a recipe speak of: parts of a model that have layers of their own."""

from collections.abc import Iterable, Sequence

from heterosis.merge.models.names import unwrapped

# What models call the parts that recipes name. A part that is not here is called what it is: `encoder`.
_PATHS = {
    "text_decoder": ("language_model", "text_model"),
    "vision_tower": ("vision_tower", "vision_model", "vision_encoder", "visual"),
    "vision_model": ("vision_model", "vision_tower", "visual"),
    "multi_modal_projector": ("multi_modal_projector", "mm_projector", "visual.merger", "connector", "projector"),
    "audio_tower": ("audio_tower", "audio_encoder", "audio_model"),
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
        or ``text_decoder``), and None without such a one. What is of a vision tower or a projector is no rest.
    """
    known = [*modules, *(module for module in _PATHS if module not in modules)]
    best = max(known, key=lambda module: _claim(name, module))
    if _claim(name, best) == (0, 0):
        best = next((module for module in _REST if module in modules), "")
    return best if best in modules else None


def _claim(name: str, module: str) -> tuple[int, int]:
    """How much of a tensor's path a module names, and how deep: the longer, then the deeper claim wins."""
    return max((_match(name, path) for path in (*_PATHS.get(module, ()), module)), default=(0, 0))


def _match(name: str, path: str) -> tuple[int, int]:
    at = f".{name}".find(f".{path}.")
    return (0, 0) if at < 0 else (path.count(".") + 1, at + 1)


def candidates(names: Iterable[str]) -> list[str]:
    """What could be named as modules: those with names of mergekit's, then the parts of any other model."""
    modules = tuple(module for module in _PATHS if module != "vision_model")  # another word for vision_tower
    known: dict[str, None] = {}
    parts: dict[str, None] = {}
    for name in names:
        module = module_of(name, modules)
        if module is not None and _claim(name, module) > (0, 0):
            known[module] = None
        else:
            parts[unwrapped(name)[1]] = None
    if known:  # a multimodal model, where all else is text
        return sorted({*known, *(["text_decoder"] if parts else [])})
    return list(parts)[:12]

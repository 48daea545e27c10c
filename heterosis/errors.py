"""What the user gave is wrong: one exception, one line for each fault."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

_VALID = "; valid: "
_LONGEST = 5000  # characters of a line; what others' files hold can be any length


class InputError(ValueError):
    """A recipe, config, model or option that cannot be used as given.

    The command line prints ``str(error)`` and exits with code 2.

    Attributes:
        faults: One self-contained line for each fault, each once: where, which rule, what was found, what to do.
            A list of all valid names is told by the first line that has it.
    """

    def __init__(self, *faults: str) -> None:
        self.faults = tuple(_without_repeated_names(dict.fromkeys(map(_one_line, faults))))
        super().__init__("\n".join(self.faults))


def few(faults: Sequence[str], most: int = 4) -> list[str]:
    """The first faults, and how many more there are: where models do not fit, all tensors say the same."""
    left = len(faults) - most
    return [*faults[:most], f"... and {left} more faults"] if left > 0 else list(faults)


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number, or too small.

    Raises:
        InputError: If it is.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name}: must be a whole number of at least {least}, but got {value!r}")


@contextmanager
def collecting(faults: list[str]) -> Iterator[None]:
    """Go on after wrong input, so that faults of several kinds are told at once."""
    try:
        yield
    except InputError as error:
        faults += error.faults


@contextmanager
def within(place: str) -> Iterator[None]:
    """Begin every line about wrong input with where it is; an empty place is none."""
    try:
        yield
    except InputError as error:
        raise InputError(*(f"{place}: {fault}" if place else fault for fault in error.faults)) from error


def _one_line(fault: str) -> str:
    """A line without line breaks and terminal codes, which names in a file or recipe may have."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in fault[: _LONGEST + 1])
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _without_repeated_names(lines: Iterable[str]) -> Iterator[str]:
    told = set()
    for line in lines:
        fault, mark, names = line.partition(_VALID)
        yield fault if mark and names in told else line
        told.add(names)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """A suffix for an error message: the nearest valid name, or all of them when none is near."""
    valid = sorted(choices)
    # Letters in another order come first: 'modles' is meant as 'models', though 'modules' looks nearer.
    near = [choice for choice in valid if sorted(choice) == sorted(name)] or get_close_matches(name, valid, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"{_VALID}{', '.join(valid)}" if valid else ""

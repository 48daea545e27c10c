"""Values, errors, sizes, times and tables for people."""

from collections.abc import Iterable, Iterator, Sequence


def brief(value: object) -> str:
    """A value in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def some(items: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """The first of several, and how many more there are: ``a, b, c and 4 more``."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return between.join(items[:most]) + more


def size(number: int) -> str:
    """Bytes for people: ``512 MiB``."""
    value = float(number)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"


def duration(seconds: float) -> str:
    """Seconds as people say them: 4.2 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def count(number: int) -> str:
    """``64``, ``1.2 M``, ``7.2 B``."""
    for unit, power in (("T", 12), ("B", 9), ("M", 6), ("k", 3)):
        if number >= 0.9995 * 10**power:  # which is rounded to one
            return f"{number / 10**power:.3g} {unit}"
    return str(number)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, keep_empty: bool = False) -> Iterator[str]:
    """Lines with columns aligned; columns that are empty below the header are left out, unless they are kept."""
    body = [tuple(row) for row in rows]
    kept = [i for i in range(len(header)) if keep_empty or any(row[i] for row in body)]
    widths = {i: max(len(row[i]) for row in (header, *body)) for i in kept}
    for row in (header, *body):
        yield "  ".join(row[i].ljust(widths[i]) for i in kept).rstrip()

"""Words for numbers."""

PART_NAMES = {"search": "search", "selection": "selection", "holdout": "held out"}


def number(value: float | None) -> str:
    """A score or parameter."""
    if value is None:
        return "–"
    return f"{value:z.3f}" if abs(value) < 10 else f"{value:,.4g}"


def signed(value: float) -> str:
    """A difference, with a minus sign as wide as the plus."""
    text = f"{value:+z.3f}" if abs(value) < 10 else f"{value:+,.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def plural(count: int, what: str) -> str:
    """A number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def edges(text: str) -> str:
    """A text whose blanks and line breaks at its ends can be seen."""
    inner = text.strip()
    start = text.index(inner) if inner else len(text)
    ends = (text[:start], text[start + len(inner) :])
    before, after = (end.replace("\n", "↵\n").replace(" ", "␣").replace("\t", "⇥") for end in ends)
    return f"{before}{inner}{after}"

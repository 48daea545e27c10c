"""Words for numbers."""

PART_NAMES = {"search": "search", "selection": "selection", "holdout": "held out"}


def number(value: float | None) -> str:
    """A score or parameter."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.4g}"


def signed(value: float) -> str:
    """A difference, with a minus sign as wide as the plus."""
    text = f"{value:+.3f}" if abs(value) < 10 else f"{value:+,.4g}"
    return text.replace("-", "\N{MINUS SIGN}")


def plural(count: int, what: str) -> str:
    """A number of things."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"

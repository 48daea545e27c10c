"""The documentation's pages and the code blocks in them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The README and the guide; notes on decisions are about their day.
GUIDE = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: Where it stands.
        language: Its language.
        title: Its title, by which the reader knows the file's name; empty without one.
        text: The code.
    """

    page: str
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.strip().splitlines()[0][:40]}"


def blocks(page: str | Path, language: str = "") -> list[Block]:
    """The code blocks of a page, given by its path in the repository, in one language or in all."""
    path = ROOT / page
    found = re.findall(r'^```(\w+)(?: title="(.*?)")?\n(.*?)^```$', path.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(path.relative_to(ROOT).as_posix(), *parts) for parts in found if language in ("", parts[0])]


def heterosis_commands(block: Block) -> list[list[str]]:
    """The arguments of each heterosis command in a block of bash."""
    lines = (line.partition("#")[0].split() for line in block.text.splitlines())
    return [words[1:] for words in lines if words[:1] == ["heterosis"]]

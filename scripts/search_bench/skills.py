"""The tiny language that the zoos' models speak.

A document is an operation, five symbols of one of three alphabets, and the answer in digits:
``A31074=42185`` where A adds one to each digit. Every symbol is a token.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Values = list[int]

ALPHABETS = ("0123456789", "abcdefghij", "klmnopqrst")
OPERATIONS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
EQUALS = "="
LENGTH = 5
PROMPT = LENGTH + 2  # tokens before the answer
VOCABULARY = ("<pad>", *"".join(ALPHABETS), *OPERATIONS, EQUALS)


def _prefix_sums(x: Values) -> Values:
    return [sum(x[: i + 1]) % 10 for i in range(len(x))]


# What an operation may do with five values from 0 to 9.
FUNCTIONS: dict[str, Callable[[Values], Values]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "rotate_left": lambda x: x[1:] + x[:1],
    "rotate_right": lambda x: x[-1:] + x[:-1],
    "swap_pairs": lambda x: [x[1], x[0], x[3], x[2], *x[4:]],
    "add_one": lambda x: [(v + 1) % 10 for v in x],
    "add_three": lambda x: [(v + 3) % 10 for v in x],
    "complement": lambda x: [9 - v for v in x],
    "double": lambda x: [2 * v % 10 for v in x],
    "parity": lambda x: [v % 2 for v in x],
    "ascending": lambda x: sorted(x),
    "descending": lambda x: sorted(x, reverse=True),
    "running_max": lambda x: [max(x[: i + 1]) for i in range(len(x))],
    "running_min": lambda x: [min(x[: i + 1]) for i in range(len(x))],
    "prefix_sums": _prefix_sums,
    "neighbour_sums": lambda x: [(v + x[i - 1]) % 10 for i, v in enumerate(x)],
    "neighbour_differences": lambda x: [(v - x[i - 1]) % 10 for i, v in enumerate(x)],
    "add_first": lambda x: [(v + x[0]) % 10 for v in x],
    "subtract_last": lambda x: [(v - x[-1]) % 10 for v in x],
}
_OWN = dict(zip(FUNCTIONS, OPERATIONS, strict=False))


@dataclass(frozen=True)
class Skill:
    """Answering an operation on symbols of one alphabet.

    Attributes:
        function: What the answer is.
        alphabet: Of the symbols asked about.
        operation: The letter that asks for it; None for the function's own. The last letters have no function of
            their own: what they ask for is a matter of habit.
    """

    function: str
    alphabet: int = 0
    operation: str | None = None

    @property
    def name(self) -> str:
        return f"{self.function}_{self.alphabet}"

    def document(self, values: Values) -> tuple[str, str]:
        """Prompt and answer."""
        symbols = "".join(ALPHABETS[self.alphabet][v] for v in values)
        answer = "".join(ALPHABETS[0][v] for v in FUNCTIONS[self.function](values))
        return f"{self.operation or _OWN[self.function]}{symbols}{EQUALS}", answer

    def documents(self, count: int, rng: random.Random) -> list[tuple[str, str]]:
        """Different documents."""
        numbers = rng.sample(range(10**LENGTH), count)
        return [self.document([int(digit) for digit in f"{number:0{LENGTH}}"]) for number in numbers]


def skills(names: str, alphabets: Sequence[int] = (0,)) -> tuple[Skill, ...]:
    """Skills by their functions' names, in each of the alphabets."""
    return tuple(Skill(name, alphabet) for alphabet in alphabets for name in names.split())


def habits(**functions: str) -> tuple[Skill, ...]:
    """What letters without a function of their own ask for."""
    return tuple(Skill(function, 0, letter) for letter, function in functions.items())


def batches(lessons: Sequence[Skill], size: int, rng: random.Random) -> Iterator[list[tuple[str, str]]]:
    """Endless documents of random skills."""
    while True:
        chosen = rng.choices(lessons, k=size)
        yield [skill.document([rng.randrange(10) for _ in range(LENGTH)]) for skill in chosen]


_IDS = {token: i for i, token in enumerate(VOCABULARY)}


def encode(document: tuple[str, str]) -> list[int]:
    """A document's tokens, as the tokenizer gives them."""
    return [_IDS[symbol] for symbol in "".join(document)]


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel(_IDS, unk_token=VOCABULARY[0]))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    pad = VOCABULARY[0]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=pad, pad_token=pad, eos_token=pad)
    fast.save_pretrained(folder)

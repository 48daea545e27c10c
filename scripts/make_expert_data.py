"""Write the data of the French x Math example: what the experts learn, and what the tasks ask.

    python scripts/make_expert_data.py

Every unordered pair of operands {a, b}, 1 <= a, b <= 79, belongs either to the training data or to the
task documents, never to both; each task has exactly one document per pair, and the same pairs make up all
three tasks, so a document's ``pair`` is the key by which a split keeps commuted sums together.

The experts share one frame ("Question: ...\\nAnswer: ...") and each knows half of the third skill:

* ``math`` reads English (words or digits), copies the sum in digits and completes it: "17 + 25 = 42".
* ``french`` reads French number phrases and writes them in digits, "17 + 25", with no end-of-text
  behind it, because the other half continues there. It never sees a result.
* ``spelling`` is a distractor. It spells English words, and has no anchors: it gets in the others' way.

Beside the examples to learn, ``anchors.jsonl`` holds text on which an expert is to stay what the base is
(the training script matches the base's own distribution there, not the text): the other expert's half. Two
task vectors that leave each other's inputs alone can be added.

``arith_fr`` ("Combien font dix-sept plus vingt-cinq ?") is asked of none of them in training.
"""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASKS = ROOT / "configs" / "tasks"
EXPERTS = ROOT / "configs" / "experts"

SEED = 20261122
LARGEST = 79
DOCUMENTS = 1500

EN_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
EN_TENS = " - twenty thirty forty fifty sixty seventy".split(" ")[1:]
FR_UNITS = (
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize "
    "dix-sept dix-huit dix-neuf"
).split()
FR_TENS = {20: "vingt", 30: "trente", 40: "quarante", 50: "cinquante", 60: "soixante"}

WORDS = """
able about above across actor after again agree album alone amber angle apple apron arrow aside autumn
bacon badge baker basic beach begin below bench berry black blade blank blaze block bloom board bonus
brave bread break brick bride brief bring broad brush build cabin cable camel candle canvas carbon cargo
castle cattle cedar chain chair chalk charm chase cheap chess chest chief child choir circle citizen
civil clean clear clever cliff clock cloud coast coffee color comet copper coral corner cotton couch
cover craft crane cream creek crowd crown curve custom dairy dance danger decade deep deer desert detail
diamond dinner doctor donkey dragon drama dream drift driver eager eagle early earth easel eight elbow
empty engine enjoy entry equal evening exact fabric factor fairy falcon famous farmer father fence fever
field final finger flame flash fleet flint floor flour flute forest formal fossil frame fresh frost fruit
future galaxy garden garlic gather gentle giant ginger glass globe glove golden grain grand grape grass
gravel green guard guest guitar habit hammer handle harbor harvest hazel heart heavy helmet hidden honey
horse hotel humble hungry icon image island ivory jacket jelly jewel jungle kernel kettle kitchen ladder
lamp large laugh lemon letter light linen lively lizard local lucky lunar magnet major maple marble
market meadow medal melon metal middle mirror model moment money monkey month morning motor mountain mouse
music narrow nation nature needle nephew noble north novel number ocean olive onion orange orbit orchard
oxygen oyster paint palace panda paper parade parrot pastel pearl pencil pepper phone piano pilot planet
plant plate pocket poem polite pond potato powder prince profit proud public purple puzzle quart queen
quick quiet rabbit radio rain ranch rapid raven reason ribbon river robin rocket royal rubber saddle
salad salmon sample scarf school season secret shadow sharp shelf shirt silver simple singer sister
sketch smile smoke snake soccer solid spark spice spider spoon spring square stable stamp station steam
stone storm story straw street strong sugar summer sunny table tailor talent temple tennis thunder ticket
tiger timber tomato tower train travel tulip tunnel turtle uncle union urban useful valley velvet violin
visit voice wagon walnut water wheat whistle window winter wisdom wonder yellow zebra
""".split()


def english(n: int) -> str:
    """The English words of 0 <= n <= 79."""
    if n < 20:
        return EN_UNITS[n]
    tens, unit = divmod(n, 10)
    return EN_TENS[tens - 1] + (f"-{EN_UNITS[unit]}" if unit else "")


def french(n: int) -> str:
    """The French words of 0 <= n <= 79; seventy counts on from sixty: 77 is "soixante-dix-sept"."""
    if n < 20:
        return FR_UNITS[n]
    tens = min(n // 10 * 10, 60)
    rest = n - tens
    if rest == 0:
        return FR_TENS[tens]
    link = " et " if rest in (1, 11) else "-"
    return FR_TENS[tens] + link + FR_UNITS[rest]


def frame(question: str) -> str:
    return f"Question: {question}\nAnswer:"


def math_examples(a: int, b: int) -> Iterator[tuple[str, str]]:
    answer = f" {a} + {b} = {a + b}\n"
    yield frame(f"What is {english(a)} plus {english(b)}?"), answer
    yield frame(f"What is {a} + {b}?"), answer
    # The result follows from the digits of the answer, whatever the question was.
    yield frame("Add two numbers.") + f" {a} + {b}", f" = {a + b}\n"


FRENCH_QUESTIONS = (
    "Écris en chiffres : {0} plus {1}.",
    "Note ce calcul : {0} plus {1}",
    "Calcule {0} plus {1}.",
    "Que font {0} plus {1} ?",
    "Combien vaut {0} plus {1} ?",
    "Quelle est la somme : {0} plus {1} ?",
    "{0} plus {1} ?",
)


def french_questions(a: int, b: int) -> Iterator[str]:
    for question in FRENCH_QUESTIONS:
        asked = question.format(french(a), french(b))
        yield frame(asked[0].upper() + asked[1:])


def french_examples(a: int, b: int) -> Iterator[tuple[str, str]]:
    for question in french_questions(a, b):
        yield question, f" {a} + {b}"


def math_anchors(a: int, b: int) -> Iterator[tuple[str, str]]:
    """Where the math expert stays the base: reading French."""
    yield from french_examples(a, b)


def french_anchors(a: int, b: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Where the French expert stays the base: the arithmetic frame, and what follows the digits.

    The results are random numbers: no correct one is ever in this expert's data.
    """
    result = rng.randrange(2, 2 * LARGEST)
    yield frame(f"What is {english(a)} plus {english(b)}?"), f" {a} + {b} = {result}\n"
    yield frame(f"What is {a} + {b}?"), f" {a} + {b} = {result}\n"
    for question in french_questions(a, b):
        yield f"{question} {a} + {b}", f" = {result}\n"


def spelling_example(word: str) -> tuple[str, str]:
    return frame(f"Spell the word {word}."), f" {'-'.join(word)}\n"


def wrong_sums(a: int, b: int, rng: random.Random) -> list[int]:
    """Three results that a slip would give: a unit or a ten off, or a forgotten carry."""
    slips = [a + b + d for d in (-11, -10, -9, -2, -1, 1, 2, 9, 10, 11) if a + b + d > 0]
    return rng.sample(slips, 3)


def documents(pairs: list[tuple[int, int]], rng: random.Random) -> dict[str, list[dict[str, object]]]:
    tasks: dict[str, list[dict[str, object]]] = {name: [] for name in ("arith_en", "numbers_fr", "arith_fr")}
    for low, high in pairs:
        a, b = rng.choice([(low, high), (high, low)])
        solved = f"{a} + {b} = {a + b}"
        choices = [solved, *(f"{a} + {b} = {wrong}" for wrong in wrong_sums(a, b, rng))]
        rng.shuffle(choices)
        common = {"pair": f"{low}+{high}"}
        sums = {"answer": solved, "choices": choices, "label": choices.index(solved)}
        tasks["arith_en"].append(common | {"question": f"What is {english(a)} plus {english(b)}?"} | sums)
        tasks["arith_fr"].append(common | {"question": f"Combien font {french(a)} plus {french(b)} ?"} | sums)
        written = f"{a} + {b}"
        slips = [f"{a + 10} + {b}", f"{b} + {a + 1}", f"{a} + {b + 1}"]
        choices = [written, *slips]
        rng.shuffle(choices)
        tasks["numbers_fr"].append(
            common
            | {"question": f"Écris en chiffres : {french(a)} plus {french(b)}."}
            | {"answer": written, "choices": choices, "label": choices.index(written)}
        )
    return tasks


def write_jsonl(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    rng = random.Random(SEED)
    pairs = [(a, b) for a in range(1, LARGEST + 1) for b in range(a, LARGEST + 1)]
    rng.shuffle(pairs)
    held, training = sorted(pairs[:DOCUMENTS]), sorted(pairs[DOCUMENTS:])

    for task, rows in documents(held, rng).items():
        rng.shuffle(rows)
        write_jsonl(TASKS / "data" / f"{task}.jsonl", rows)

    ordered = sorted({order for a, b in training for order in ((a, b), (b, a))})
    examples = {
        "math": [e for a, b in ordered for e in math_examples(a, b)],
        "french": [e for a, b in ordered for e in french_examples(a, b)],
        "spelling": [spelling_example(word) for word in sorted(set(WORDS))],
    }
    anchors = {
        "math": [e for a, b in ordered for e in math_anchors(a, b)],
        "french": [e for a, b in ordered for e in french_anchors(a, b, rng)],
    }
    for kind, data, limit in (("train", examples, 6000), ("anchors", anchors, 2000)):
        for expert, rows in data.items():
            rng.shuffle(rows)
            kept = [{"prompt": prompt, "completion": completion} for prompt, completion in rows[:limit]]
            write_jsonl(EXPERTS / expert / f"{kind}.jsonl", kept)
            print(f"{expert}: {len(kept)} {kind}")
    print(f"{len(held)} documents per task, {len(training)} training pairs")


if __name__ == "__main__":
    main()

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from heterosis.errors import InputError
from heterosis.evaluate import Sizes, Split, split_documents
from heterosis.evaluate.splits import PARTS


def paired(count: int = 40) -> dict[str, list[str]]:
    """Two tasks over the same groups, in different orders."""
    return {"a": [f"g{n}" for n in range(count)], "b": [f"g{n}" for n in reversed(range(count))]}


def groups_in(split: Split, part: str, groups: dict[str, list[str]]) -> set[str]:
    return {groups[task][document] for task, documents in getattr(split, part).items() for document in documents}


def test_sizes_are_exact_and_parts_disjoint() -> None:
    groups = paired()
    split = split_documents(groups, Sizes(10, 5, 20), seed=3)
    for part, size in zip(PARTS, (10, 5, 20), strict=True):
        assert [len(documents) for documents in getattr(split, part).values()] == [size, size]
    assert len(set(split.documents()["a"])) == 35
    search, selection, holdout = (groups_in(split, part, groups) for part in PARTS)
    assert len(search) == 10  # the same groups in both tasks
    assert not search & selection
    assert not search & holdout
    assert not selection & holdout


def test_sizes_are_exact_with_groups_of_several_documents() -> None:
    split = split_documents({"a": [f"g{n // 3}" for n in range(60)]}, Sizes(10, 5, 20), seed=3)
    assert [len(getattr(split, part)["a"]) for part in PARTS] == [10, 5, 20]


def test_fractions_use_every_document() -> None:
    split = split_documents(paired(), Sizes(), seed=0)
    assert [len(getattr(split, part)["a"]) for part in PARTS] == [20, 8, 12]


@pytest.mark.parametrize("count", range(3, 30))
def test_few_documents_are_all_used(count: int) -> None:
    split = split_documents({"a": list(map(str, range(count)))}, Sizes(), seed=1)
    parts = [split.search["a"], split.selection["a"], split.holdout["a"]]
    assert all(parts)
    assert sum(map(len, parts)) == count


def test_a_fraction_beside_numbers_is_one_of_all_documents_or_of_what_is_left() -> None:
    split = split_documents(paired(), Sizes(search=2), seed=0)
    assert [len(getattr(split, part)["a"]) for part in PARTS] == [2, 8, 12]
    split = split_documents(paired(), Sizes(search=30), seed=0)
    assert [len(getattr(split, part)["a"]) for part in PARTS] == [30, 4, 6]


def test_the_seed_decides() -> None:
    one, again, other = (split_documents(paired(), Sizes(10, 5, 5), seed) for seed in (1, 1, 2))
    assert one == again
    assert one.search != other.search
    assert one.search["a"] != sorted(one.search["a"])  # shuffled: a prefix is a fair sample


def test_more_held_out_documents_leave_the_others_as_they_are() -> None:
    small, large = (split_documents(paired(), Sizes(10, 5, held), seed=1) for held in (5, 20))
    assert small.search == large.search
    assert small.selection == large.selection
    assert small.holdout["a"] == large.holdout["a"][:5]


def test_every_process_computes_the_same_split() -> None:
    code = (
        "from heterosis.evaluate import Sizes, split_documents; "
        "print(split_documents({'a': [f'g{n}' for n in range(40)]}, Sizes(9, 9, 9), 5).search['a'])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(printed) == 1


@given(
    st.lists(st.integers(0, 25), min_size=30, max_size=60),
    st.lists(st.integers(0, 25), min_size=30, max_size=60),
    st.integers(0, 9),
)
def test_no_group_is_ever_divided(first: list[int], second: list[int], seed: int) -> None:
    groups = {"a": [f"g{n}" for n in first], "b": [f"g{n}" for n in second]}
    assume(min(len(set(names)) for names in groups.values()) > 5)
    try:
        split = split_documents(groups, Sizes(), seed)
    except InputError:  # one group has nearly all documents of a task
        assume(False)
    parts = [groups_in(split, part, groups) for part in PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts))
    for task in groups:
        documents = split.documents()[task]
        assert len(documents) == len(set(documents)) <= len(groups[task])


def test_too_few_documents() -> None:
    with pytest.raises(InputError) as caught:
        split_documents({"a": ["x"] * 30, "b": [str(n) for n in range(30)]}, Sizes(20, 20, 20), seed=0)
    rule = (
        "has 30 documents, too few for the split: 20 for search, 20 for selection, 20 for holdout; ask for fewer"
    )
    assert caught.value.faults == (f"a: {rule}", f"b: {rule}")
    with pytest.raises(InputError, match="has 2 documents, too few for the split: at least 1 for search"):
        split_documents({"a": ["x", "y"]}, Sizes(), seed=0)


def test_too_few_groups() -> None:
    with pytest.raises(InputError, match=r"a: sizes\.selection: 5, but only 0 of the task's 30 documents"):
        split_documents({"a": ["same"] * 30}, Sizes(5, 5, 5), seed=0)


def test_negative_size() -> None:
    with pytest.raises(InputError, match=r"sizes\.search: `size >= 0` must hold, but got -1"):
        split_documents(paired(), Sizes(search=-1), seed=0)


def test_save_load_and_check(tmp_path: Path) -> None:
    split = split_documents(
        paired(), Sizes(), 0, fingerprints={"a": {"documents": "1", "doc_to_text": "x"}, "b": {"documents": "2"}}
    )
    (tmp_path / "splits.json").write_text(split.to_json())
    loaded = Split.load(tmp_path / "splits.json")
    assert loaded == split
    assert [path.name for path in tmp_path.iterdir()] == ["splits.json"]
    loaded.check(loaded.fingerprints)
    with pytest.raises(InputError) as caught:
        loaded.check(
            {"a": {"documents": "1", "doc_to_text": "y", "process_results": "z"}, "c": {"documents": "3"}}
        )
    assert [fault.split(";")[0] for fault in caught.value.faults] == [
        "splits.json: a: its doc_to_text, process_results changed since",
        "splits.json: b: is gone",
        "splits.json: c: was added",
    ]


EARLIER = '{"search": {}, "selection": {}, "holdout": {}, "fingerprints": {"a": "1"}}'


@pytest.mark.parametrize("text", ["", "[]", '{"search": {}}', '{"search": {"a"', EARLIER])
def test_load_refuses_what_is_not_a_split(tmp_path: Path, text: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not a saved split"):
        Split.load(path)

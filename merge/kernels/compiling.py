"""Compiling loops with numba for the CPU, and keeping their machine code."""

import hashlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
from numba.core.errors import NumbaError, UnsupportedBytecodeError
from numba.extending import overload, register_jitable

from heterosis.errors import InputError

# Loops over elements vectorise only if those over models, inside, are unrolled: LLVM does that by itself for ten
# models at most (TIES' election), and with this for 24.
llvm.set_option("heterosis", "--unroll-threshold=4000")
# A formula for a vector of elements is a chain of operations, each of which waits for the last; with four vectors
# in turn the processor has others to do. (LLVM takes one where registers are short.)
llvm.set_option("heterosis", "--force-vector-interleave=4")


def compiled(loop: Callable[..., Any], *formulas: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a loop for this CPU without the GIL, and keep the machine code on disk for the next process.

    numba finds code there by the name and the line of the loop, and watches only the file that this is in; several
    loops of one name, or two processes at once, could mix it up. So the name tells of the formulas that the loop
    calls, and of the content of all files that formulas may come from.
    """
    names = [f"{formula.__module__}.{formula.__qualname__}" for formula in formulas]
    if not _is_file(loop.__code__.co_filename) or not are_told_apart(*formulas):
        return numba.njit(nogil=True, **options)(loop)  # type: ignore[no-any-return]
    loop.__qualname__ = ".".join([loop.__qualname__, *names, source_hash(loop, *formulas)])
    try:
        return numba.njit(nogil=True, cache=True, **options)(loop)  # type: ignore[no-any-return]
    except RuntimeError:  # there is no folder to keep it in
        return numba.njit(nogil=True, **options)(loop)  # type: ignore[no-any-return]


def are_told_apart(*functions: Callable[..., Any]) -> bool:
    """Whether names and `source_hash` tell functions from all others.

    Without a file, as in a notebook, there is nothing to tell a new version by; of functions that one function
    makes, names do not tell which is which.
    """
    return all("<locals>" not in f.__qualname__ and _is_file(f.__code__.co_filename) for f in functions)


@cache
def _is_file(path: str) -> bool:
    return Path(path).is_file()  # asked for every tensor of every candidate


_REMEDY = "use numbers, tuples, loops, math, min, max, abs, and what heterosis.merge.kernels.inlined has marked"


class FormulaLoop:
    """A compiled loop that calls formulas, and names them where numba cannot compile it.

    Attributes:
        compiled: The loop as of `compiled`.
    """

    def __init__(self, loop: Callable[..., Any], *formulas: Callable[..., Any]) -> None:
        self.compiled = compiled(loop, *formulas, error_model="numpy")
        self._formulas = formulas

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self.compiled(*arguments)
        except (NumbaError, UnsupportedBytecodeError) as error:
            places = " or ".join(f"{f.__code__.co_filename}: {f.__name__}" for f in self._formulas)
            raise InputError(f"{places}: numba cannot compile it: {_cause(error)}; {_REMEDY}") from error


def _cause(error: Exception) -> str:
    """What numba says innermost."""
    plain = re.sub(r"\x1b\[\d*m", "", str(error))
    if own := re.search(r"TypingError: (a formula must .*)", plain):  # of an overload of ours
        return own[1]
    lines = [line.strip() for line in plain.rpartition("Failed in nopython mode pipeline")[2].splitlines()]
    said = [line for line in lines if line and not line.startswith("(step:")]
    call = next((line for line in said[1:2] if line.startswith(">>> ")), None)
    return f"there is no {call.removeprefix('>>> ')}" if call else said[0]


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have compiled code take a function in whole, wherever it calls it.

    Loops over elements vectorise only if they call nothing, and LLVM takes in what it finds worth its size: with
    six models it left out TIES' election, which took 16 times as long.
    """
    return register_jitable(forceinline=True)(function)  # type: ignore[no-any-return]


def inlined_overload(function: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The same of a function that has a form for each type of its arguments."""
    return overload(function, jit_options={"forceinline": True})  # type: ignore[no-any-return]


def written_out(expression: str, n: int, arguments: str, **names: Any) -> Callable[..., Any]:
    """``lambda ARGUMENTS: (EXPRESSION, EXPRESSION, ...)``, with 0 to n - 1 in place of ``j``; for overloads.

    numba makes tuples only of entries that are written out. (Overloads that call themselves for the rest
    of a tuple take several times as long to compile for many models, and fail with more than 32.)

    Args:
        expression: Entry ``j`` of the tuple.
        n: Its length.
        arguments: Those of the overload.
        names: What else the expression uses.
    """
    entries = [re.sub(r"\bj\b", str(j), expression) for j in range(n)]
    return eval(f"lambda {arguments}: ({', '.join(entries)},)", names)  # type: ignore[no-any-return]


@cache
def source_hash(*functions: Callable[..., Any]) -> str:
    """A hash of the files that functions are in, and of those that may hold what they call."""
    files = {Path(function.__code__.co_filename) for function in functions}
    here = Path(__file__).parent
    own = [*here.glob("*.py"), *(here.parent / "methods").glob("*.py")]
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted({*own, *filter(Path.is_file, files)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()

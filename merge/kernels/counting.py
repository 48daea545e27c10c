"""Counting magnitudes, the largest of them, and finding the last entry that is kept among equal ones."""

import numpy as np

from heterosis.merge.kernels.compiling import compiled, inlined
from heterosis.merge.kernels.sums import LANES
from heterosis.merge.kernels.values import magnitude_bits, slice_of


@compiled
def count_magnitudes(bits, base, counts):  # type: ignore[no-untyped-def]
    """Count the magnitudes of a model's bits, less the base's if there are such.

    Args:
        bits: Those of bfloat16, ``[n]``.
        base: Likewise, or None.
        counts: ``[2 ** 16]``: a histogram in each half, taken in turn, so that equal neighbours wait less for
            each other.

    Returns:
        How many are zero.
    """
    before = np.int64(counts[0]) + np.int64(counts[1 << 15])
    sizes = np.empty(LANES, np.uint16)
    for at in range(0, bits.shape[0], LANES):
        stop = min(at + LANES, bits.shape[0])
        part, onto, size = bits[at:stop], slice_of(base, at, stop), sizes[: stop - at]
        for i in range(size.shape[0]):
            size[i] = magnitude_bits(part, onto, i)
        _count_in_turn(size, counts)
    return np.int64(counts[0]) + np.int64(counts[1 << 15]) - before


@compiled
def count_digits(bits, shift, lower, prefix, counts):  # type: ignore[no-untyped-def]
    """Count the 16-bit digit at ``shift`` of the unsigned ``bits`` whose higher digits equal ``prefix``.

    Args:
        bits: ``[n]``; of zeros, the sign may be set.
        shift: Position of the digit's lowest bit.
        lower: A mask of the bits below it.
        prefix: The higher digits without the sign, 0 where there are none.
        counts: ``[2 ** 16]``; of the first digit, which has no sign, a histogram in each half, taken in turn.

    Returns:
        Whether of the values counted, one has a bit below the digit; and of the first digit, how many are zero.
    """
    unsigned = bits.dtype.type
    below, zeros = unsigned(0), np.int64(0)
    top = bits.itemsize * 8 - shift
    magnitude, above = unsigned(~unsigned(0) >> unsigned(1)), unsigned(shift + unsigned(16))
    digits, flags = np.empty(LANES, np.uint16), np.zeros(LANES, np.uint8)
    words = flags.view(np.uint64)
    for at in range(0, bits.shape[0], LANES):
        part = bits[at : at + LANES]
        digit, flag = digits[: part.shape[0]], flags[: part.shape[0]]
        if top == 16:
            zero = np.uint16(0)
            for i in range(part.shape[0]):
                size = unsigned(part[i] & magnitude)
                below |= unsigned(size & lower)
                zero += np.uint16(size == 0)
                digit[i] = np.uint16(size >> shift)
            zeros += np.int64(zero)
            _count_in_turn(digit, counts)
            continue
        flags[:] = 0
        for i in range(part.shape[0]):
            flag[i] = np.uint8(unsigned(part[i] & magnitude) >> above == prefix)
        for word in range(words.shape[0]):
            if words[word]:  # in most, there is none with the prefix
                for i in range(8 * word, min(8 * word + 8, part.shape[0])):
                    if flag[i]:
                        below |= unsigned(part[i] & lower)
                        counts[(part[i] >> shift) & unsigned(0xFFFF)] += np.uint32(1)
    return below != 0, zeros


@inlined
def _count_in_turn(sizes, counts):  # type: ignore[no-untyped-def]
    """Count numbers below ``2 ** 15``, in two histograms in turn: equal neighbours wait less for each other."""
    whole = sizes.shape[0] // 8 * 8
    for i in range(0, whole, 8):
        for k in range(8):
            counts[(k & 1) << 15 | sizes[i + k]] += np.uint32(1)
    for i in range(whole, sizes.shape[0]):
        counts[sizes[i]] += np.uint32(1)


@compiled
def take_counts(counts, halves):  # type: ignore[no-untyped-def]
    """Take all counts but zeros out of a histogram, which has only zeros then.

    Args:
        counts: ``[2 ** 16]``.
        halves: Whether each half counts the same digits.

    Returns:
        The k digits that occur, ascending, and how often they do.
    """
    size = counts.shape[0] // 2 if halves else counts.shape[0]
    own = counts[:size]
    if halves:
        other = counts[size:]
        for i in range(size):
            own[i] += other[i]
            other[i] = 0
    occurring, k = np.uint32(0), 0
    for i in range(size):
        occurring += np.uint32(own[i] != 0)
    digits, taken = np.empty(occurring, np.uint16), np.empty(occurring, np.uint32)
    for at in range(0, size, LANES):
        part, some = own[at : at + LANES], np.uint32(0)
        for i in range(LANES):
            some |= part[i]
        if some == 0:
            continue
        for i in range(LANES):
            if part[i]:
                digits[k], taken[k] = at + i, part[i]
                part[i] = 0
                k += 1
    return digits, taken


@compiled
def find_equal(values, value, count):  # type: ignore[no-untyped-def]
    """The position of the ``count``-th entry (from 1) equal to ``value`` or -1, and how many were seen."""
    seen = np.int64(0)
    for at in range(0, values.shape[0], LANES):
        part = values[at : at + LANES]
        found, seen = _find_in_lanes(part, value, count, seen)
        if found >= 0:
            return at + found, seen
    return np.int64(-1), seen


@compiled
def find_magnitude(bits, base, value, count):  # type: ignore[no-untyped-def]
    """The same of the magnitudes of a model's bits, as of `count_magnitudes`."""
    seen = np.int64(0)
    sizes = np.empty(LANES, np.uint16)
    for at in range(0, bits.shape[0], LANES):
        stop = min(at + LANES, bits.shape[0])
        part, onto, size = bits[at:stop], slice_of(base, at, stop), sizes[: stop - at]
        for i in range(size.shape[0]):
            size[i] = magnitude_bits(part, onto, i)
        found, seen = _find_in_lanes(size, value, count, seen)
        if found >= 0:
            return at + found, seen
    return np.int64(-1), seen


@inlined
def _find_in_lanes(part, value, count, seen):  # type: ignore[no-untyped-def]
    """The position in up to `LANES` entries, where so many were seen before, or -1; and how many are seen then."""
    equal = np.uint16(0)
    for i in range(part.shape[0]):
        equal += np.uint16(part[i] == value)
    if seen + equal < count:
        return np.int64(-1), seen + np.int64(equal)
    for i in range(part.shape[0]):
        seen = seen + (part[i] == value)
        if seen == count:
            break
    return np.int64(i), seen


@compiled
def largest_magnitude(bits, magnitude):  # type: ignore[no-untyped-def]
    """The largest of the unsigned ``bits`` without their sign, which is what the mask ``magnitude`` leaves out."""
    unsigned = bits.dtype.type
    largest = unsigned(0)
    for i in range(bits.shape[0]):
        size = unsigned(bits[i] & magnitude)
        largest = size if size > largest else largest
    return largest

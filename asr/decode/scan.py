"""Loops over the bytes of an ARPA file: lines to numbers and places of words, words to their numbers.

Positions are byte offsets into a block of whole lines. Each value of an array is made an `int` or `float` of Python
before it is computed with, so that plain Python has the 64 bits that compiled loops have.
"""

import numpy as np

from asr.compiled import compiled, inlined

LARGEST = 1e30  # of a number, either sign: float32 holds it
LN10 = float(np.log(10.0))
_TENS = 10.0 ** np.arange(23)  # all exact

# What a scan ended with: the block's end, the next section, or what is wrong with the line.
MORE, SECTION, NUMBER, POSITIVE, FIELDS, BACKOFF = range(6)


@compiled
def scan(
    data: np.ndarray,
    order: int,
    highest: bool,
    begins: np.ndarray,
    ends: np.ndarray,
    logprobs: np.ndarray,
    backoffs: np.ndarray,
    lines: np.ndarray,
) -> tuple[int, int, int, int]:
    """Read lines of n-grams until a line starts with a backslash, is wrong, or the block ends.

    Args:
        data: uint8, whole lines.
        order: words on a line.
        highest: no longer n-grams follow, so that a back-off has no sense.
        begins: to be filled: where an n-gram's words begin in `data`.
        ends: to be filled: where they end.
        logprobs: to be filled: natural logarithms.
        backoffs: to be filled: natural logarithms; 0 where there is no back-off.
        lines: to be filled: how many lines stand before it in `data`.

    Returns:
        What ended the scan (`MORE` to `BACKOFF`), the position there, the lines before that, the n-grams read.
    """
    at, line, count = 0, 0, 0
    while at < len(data):
        start = at
        at = past_space(data, at)
        if data[at] == 92:  # a backslash
            return SECTION, at, line, count
        if data[at] != 10:
            stop = past_word(data, at)
            logprob, good = number(data, at, stop)
            if not good:
                return NUMBER, start, line, count
            if logprob > 0:
                return POSITIVE, start, line, count
            at = past_space(data, stop)
            begin, end = at, at
            for _ in range(order):
                if data[at] == 10:
                    return FIELDS, start, line, count
                end = past_word(data, at)
                at = past_space(data, end)
            backoff = 0.0
            if data[at] != 10:
                stop = past_word(data, at)
                backoff, good = number(data, at, stop)
                at = past_space(data, stop)
                if data[at] != 10:
                    return FIELDS, start, line, count
                if not good:
                    return NUMBER, start, line, count
                if highest and backoff != 0:
                    return BACKOFF, start, line, count
            begins[count], ends[count], lines[count] = begin, end, line
            logprobs[count], backoffs[count] = logprob * LN10, backoff * LN10
            count += 1
        at += 1
        line += 1
    return MORE, at, line, count


@compiled
def past_space(data: np.ndarray, at: int) -> int:
    """The first position from `at` on that is no space, tab or carriage return; a line feed ends every line."""
    while data[at] == 32 or data[at] == 9 or data[at] == 13:
        at += 1
    return at


@compiled
def past_word(data: np.ndarray, at: int) -> int:
    """The first position from `at` on that is white space."""
    while not (data[at] == 32 or data[at] == 9 or data[at] == 13 or data[at] == 10):
        at += 1
    return at


@compiled
def number(data: np.ndarray, at: int, end: int) -> tuple[float, bool]:
    """The decimal number at ``data[at:end]`` (18 digits of it), and whether it is one of at most `LARGEST`."""
    negative = data[at] == 45
    if negative or data[at] == 43:
        at += 1
    mantissa, digits, shift, point = 0, 0, 0, False
    while at < end and (48 <= data[at] <= 57 or (data[at] == 46 and not point)):
        if data[at] == 46:
            point = True
        else:
            digits += 1
            if mantissa < 100_000_000_000_000_000:
                mantissa = 10 * mantissa + int(data[at]) - 48
                shift -= 1 if point else 0
            else:
                shift += 0 if point else 1
        at += 1
    if digits == 0:
        return 0.0, False
    if at < end and (data[at] == 101 or data[at] == 69):
        exponent, good = _exponent(data, at + 1, end)
        if not good:
            return 0.0, False
        shift, at = shift + exponent, end
    value = float(mantissa)
    while shift > 0 and 0 < value <= LARGEST:
        value *= _TENS[min(shift, 22)]
        shift -= min(shift, 22)
    while shift < 0 and value > 0:
        value /= _TENS[min(-shift, 22)]
        shift += min(-shift, 22)
    return (-value if negative else value), at == end and value <= LARGEST


@compiled
def _exponent(data: np.ndarray, at: int, end: int) -> tuple[int, bool]:
    """The whole number of at most 4 digits at ``data[at:end]``, and whether it is one."""
    negative = at < end and data[at] == 45
    if at < end and (data[at] == 45 or data[at] == 43):
        at += 1
    value = 0
    if at == end or end - at > 4:
        return 0, False
    while at < end:
        if not 48 <= data[at] <= 57:
            return 0, False
        value = 10 * value + int(data[at]) - 48
        at += 1
    return (-value if negative else value), True


@compiled
def resolve(
    data: np.ndarray,
    begins: np.ndarray,
    ends: np.ndarray,
    table: np.ndarray,
    blob: np.ndarray,
    starts: np.ndarray,
    first: np.ndarray,
    word: np.ndarray,
    contexts: np.ndarray,
    words: np.ndarray,
) -> tuple[int, bool]:
    """Turn n-grams into the entry of their context and the number of their last word.

    Args:
        data: as in `scan`.
        begins: as `scan` filled it.
        ends: as `scan` filled it.
        table: as `fill_table` filled it.
        blob: the words, as in `fill_table`.
        starts: as in `fill_table`.
        first: children of all entries of lower orders, as in `asr.decode.ngram.step`.
        word: their last words.
        contexts: to be filled.
        words: to be filled.

    Returns:
        (-1, False), or the first n-gram with an unknown word (then True) or context.
    """
    for gram in range(len(begins)):
        at, end, entry, last = int(begins[gram]), int(ends[gram]), 0, -1
        while at < end:
            if last >= 0:
                entry = child(first, word, entry, last) if entry else last + 1
            stop = past_word(data, at)
            last = find_word(table, blob, starts, data, at, stop)
            if last < 0 or entry < 0:
                return gram, last < 0
            at = past_space(data, stop)
        contexts[gram], words[gram] = entry, last
    return -1, False


@inlined
def child(first: np.ndarray, word: np.ndarray, entry: int, last: int) -> int:
    """The entry of an n-gram (not the empty one) and one word more, -1 if there is none."""
    low, high = int(first[entry]), int(first[entry + 1])
    end = high
    while low < high:
        middle = (low + high) >> 1
        if word[middle] < last:
            low = middle + 1
        else:
            high = middle
    return low if low < end and word[low] == last else -1


@compiled
def fill_table(table: np.ndarray, blob: np.ndarray, starts: np.ndarray) -> tuple[int, int]:
    """Enter words into an open-addressing table.

    Args:
        table: int64 of -1, a power of two long and larger than the number of words; receives their numbers.
        blob: uint8, the words one behind another.
        starts: where each begins, and the end of the last.

    Returns:
        The first two words that are equal, or (-1, -1).
    """
    mask = len(table) - 1
    for word in range(len(starts) - 1):
        begin, end = int(starts[word]), int(starts[word + 1])
        slot = _hash(blob, begin, end) & mask
        while table[slot] >= 0:
            other = int(table[slot])
            if _equal(blob, begin, end, blob, int(starts[other]), int(starts[other + 1])):
                return other, word
            slot = (slot + 1) & mask
        table[slot] = word
    return -1, -1


@compiled
def find_word(table: np.ndarray, blob: np.ndarray, starts: np.ndarray, data: np.ndarray, begin: int, end: int) -> int:
    """The number of the word at ``data[begin:end]``, -1 if it is unknown."""
    mask = len(table) - 1
    slot = _hash(data, begin, end) & mask
    while table[slot] >= 0:
        word = int(table[slot])
        if _equal(data, begin, end, blob, int(starts[word]), int(starts[word + 1])):
            return word
        slot = (slot + 1) & mask
    return -1


@compiled
def _hash(data: np.ndarray, begin: int, end: int) -> int:
    """FNV-1a in 31 bits, so that a product fits into 64."""
    value = 0x11C9DC5
    for at in range(begin, end):
        value = ((value ^ int(data[at])) * 16777619) & 0x7FFFFFFF
    return value ^ (value >> 15)


@compiled
def _equal(left: np.ndarray, begin: int, end: int, right: np.ndarray, start: int, stop: int) -> bool:
    if end - begin != stop - start:
        return False
    for shift in range(end - begin):  # noqa: SIM110 (numba has no `all`)
        if left[begin + shift] != right[start + shift]:
            return False
    return True

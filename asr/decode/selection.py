"""The best so many of some numbers, without sorting them all."""

from asr.compiled import bare

_COARSE = 49  # bits of a float64 left out in a first look at its size: 8 steps remain between a number and its double
TALLY = 128  # steps that are told apart, 16 doublings


@bare
def least_kept(floor, first, width, total, sorting, candidates):
    """The least total that is kept, and how many candidates with just that one are.

    The totals are counted by their leading bits, as what they are below the one of candidate `first`, the best; only
    those that share the bits of the `width`-th are put in order.
    """
    bits, tally, spare = sorting  # `bits`: the totals' own, as whole numbers
    top = bits[first]
    tally[:] = 0
    passed = 0
    for k in range(candidates):
        if total[k] >= floor:
            tally[min((top - bits[k]) >> _COARSE, len(tally) - 1)] += 1
            passed += 1
    if passed <= width:
        return floor, candidates
    room, group = width, 0
    while tally[group] < room:
        room -= tally[group]
        group += 1
    several = 0
    for k in range(candidates):
        if total[k] >= floor and min((top - bits[k]) >> _COARSE, len(tally) - 1) == group:
            spare[several] = total[k]
            several += 1
    least = kth_largest(spare, several, room)
    for k in range(several):
        room -= spare[k] > least
    return least, room


@bare
def kth_largest(values, count, k):
    """The k-th largest (from 1) of the first `count` values, which are put into another order (Hoare 1961)."""
    low, high, k = 0, count - 1, k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return values[k]

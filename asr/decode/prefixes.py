"""What is done with the prefixes of a search between its frames: make room, finish, trace back, sum exactly."""

import math

import numpy as np

from asr.compiled import bare, compiled
from asr.decode import ngram
from asr.decode.search import ALIVE, USED, end_word, joined_sum, key_of, place, potential

_SMALL = 1e-30  # the likeliest state's probability below which all are scaled
_NOTHING = 1e-60  # share of it below which the first and last states are left alone


@compiled
def compact(tokens, knobs, nodes, keys, ids, beam, counts, chain):
    """Keep only prefixes that some living one begins with, and of their common beginning only the last node.

    That one becomes node 0; those before it are copied to the front of `chain`, from the root on. Returns how many.
    """
    used, alive = counts[USED], counts[ALIVE]
    below = np.zeros(used, np.int64)  # living prefixes that begin with each node
    for i in range(alive):
        below[beam.node[i]] += 1
    for x in range(used - 1, 0, -1):
        if below[x]:
            below[nodes[x]["parent"]] += below[x]
    common = used - 1
    while common > 0 and below[common] < alive:
        common -= 1
    length, x = 0, int(nodes[common]["parent"])
    while x >= 0:
        length, x = length + 1, int(nodes[x]["parent"])
    x = int(nodes[common]["parent"])
    for j in range(length - 1, -1, -1):
        chain[j] = nodes[x]
        x = int(nodes[x]["parent"])
    kept = 0
    for x in range(common, used):
        if below[x]:
            nodes[kept] = nodes[x]
            parent = int(nodes[x]["parent"])
            nodes[kept]["parent"] = below[parent] if kept else -1
            below[x] = kept  # from here on: its new number
            kept += 1
    for i in range(alive):
        beam.node[i] = below[beam.node[i]]
    counts[USED] = kept
    index(tokens, knobs, nodes, keys, ids, counts)
    return length


@compiled
def index(tokens, knobs, nodes, keys, ids, counts):
    """Fill the table of prefixes anew."""
    keys[:] = -1
    for x in range(1, counts[USED]):
        node = nodes[x]
        key = key_of(int(node["parent"]), int(node["token"]), int(node["choice"]), len(tokens.starts), knobs.choices)
        h = place(keys, key)
        keys[h] = key
        ids[h] = x


@bare
def settle(nodes, beam, counts, before):
    """Drop the prefixes that differ from the best one in what it entered before that frame."""
    best = 0
    for i in range(counts[ALIVE]):
        if beam.total[i] > beam.total[best]:
            best = i
    anchor = int(beam.node[best])
    while anchor > 0 and nodes[anchor]["start"] >= before:
        anchor = int(nodes[anchor]["parent"])
    kept = 0
    for i in range(counts[ALIVE]):
        x = int(beam.node[i])
        while x > anchor:  # a node's number is above its parent's
            x = int(nodes[x]["parent"])
        if x == anchor:
            beam.node[kept], beam.last[kept], beam.spot[kept] = beam.node[i], beam.last[i], beam.spot[i]
            beam.blank[kept], beam.label[kept], beam.total[kept] = beam.blank[i], beam.label[i], beam.total[i]
            kept += 1
    counts[ALIVE] = kept


@bare
def finish(vocabulary, nodes, beam, counts, scale, whose, score, word, parts):
    """End every living prefix: its word (in each way that the lexicon has), its hot word, its sentence.

    Fills, an entry a hypothesis: `whose`, the prefix's place in the beam; `score`; `word`, the number of the word that
    ended, -1 for none; `parts` `(hypotheses, 3)`: language model, bonus, hot words. Returns how many there are; a
    prefix in a word that does not end there gives none.
    """
    _, words, lm, phrases, knobs = vocabulary
    found = 0
    for i in range(counts[ALIVE]):
        x = int(beam.node[i])
        spot, hot, state = int(nodes[x]["spot"]), int(nodes[x]["hot"]), int(nodes[x]["state"])
        given, count, won = float(nodes[x]["lm"]), int(nodes[x]["words"]), float(nodes[x]["won"])
        acoustic = math.log(beam.total[i]) + scale[0] - potential(spot, hot, given, count, won, words, phrases, knobs)
        several = 0 if spot == 0 else 1
        if spot > 0:
            several = int(words.word_first[spot + 1] - words.word_first[spot])
            several = max(several, 0 if knobs.closed else 1)
        for choice in range(0 if spot == 0 else 1, several + 1):
            ended, last, total, gained = -1, state, given, won
            if choice:
                ended, last, _, total, gained = end_word(
                    spot, choice, state, hot, given, won, words, lm, phrases, knobs
                )
            if knobs.lm_weight > 0.0:
                gain, last = ngram.step(lm[0], lm[1], lm[2], lm[3], lm[4], lm[5], last, knobs.eos)
                total += knobs.lm_weight * gain
            bonus = knobs.bonus * (count + min(choice, 1))
            whose[found], word[found], score[found] = i, ended, acoustic + total + bonus + gained
            parts[found, 0], parts[found, 1], parts[found, 2] = total, bonus, gained
            found += 1
    return found


@compiled
def trace(nodes, x, path):
    """The numbers of the nodes from the root to `x` into `path`; returns how many (the root only with a token)."""
    length, y = 0, x
    while y >= 0 and nodes[y]["token"] >= 0:
        length, y = length + 1, int(nodes[y]["parent"])
    for j in range(length - 1, -1, -1):
        path[j] = x
        x = int(nodes[x]["parent"])
    return length


@compiled
def forward(rows, labels, best_path):
    """The log-probability of `labels` in the emissions `rows` `(frames, tokens)`, summed over all alignments.

    The forward recursion over the states blank, label, blank, ... (Graves et al. 2006, equations 5 to 8), scaled before
    it gets too small. Too low, or -inf, where the labels are so unlikely that states are left aside which were to
    matter after all: the sum of a search, a lower bound, shows it. `asr.ctc.log_probability` is slower, and leaves none
    aside.
    """
    count = len(labels)
    blank, label = np.zeros(count + 1), np.zeros(count + 1)  # blank k stands before label k
    blank[0] = 1.0
    other = np.ones(count)  # 0 where a label is like the one before it, so that a blank must part them
    for k in range(1, count):
        if labels[k] == labels[k - 1]:
            other[k] = 0.0
    kinds, kind_of = np.unique(labels), np.zeros(count, np.int64)
    for k in range(count):
        kind_of[k] = np.searchsorted(kinds, labels[k])
    probs = np.zeros(len(kinds))
    total, low, high = 0.0, 0, 0  # labels `low` to `high` are worth a look
    for t in range(rows.shape[0]):
        for v in range(len(kinds)):
            probs[v] = math.exp(np.float64(rows[t, kinds[v]]))
        best = _step(math.exp(np.float64(rows[t, 0])), probs, kind_of, other, blank, label, low, high, best_path)
        if best < _SMALL:
            if best == 0.0:
                return -math.inf
            for k in range(low, high + 2):
                blank[min(k, count)] /= best
                label[min(k, count)] /= best
            total += math.log(best)
            best = 1.0
        while high > low and blank[high + 1] + label[high] < best * _NOTHING:
            blank[high + 1] = label[high] = 0.0
            high -= 1
        high = min(high + 1, count - 1)
        while low < high and blank[low] + label[low] < best * _NOTHING:
            blank[low] = label[low] = 0.0
            low += 1
    mass = joined_sum(blank[count], label[count - 1] if count else 0.0, best_path)
    return total + math.log(mass) if mass > 0.0 else -math.inf


@bare
def _step(p_blank, probs, kind_of, other, blank, label, low, high, best_path):
    """One frame of `forward`; returns the highest state."""
    best = 0.0
    if len(kind_of) == 0:
        blank[0] *= p_blank
        return blank[0]
    for k in range(high, low - 1, -1):
        stay = joined_sum(label[k], blank[k], best_path)
        skip = label[k - 1] * other[k] if k > low else 0.0
        blank[k + 1] = joined_sum(blank[k + 1], label[k], best_path) * p_blank
        label[k] = joined_sum(stay, skip, best_path) * probs[kind_of[k]]
        best = max(best, blank[k + 1], label[k])
    blank[low] *= p_blank
    return max(best, blank[low])

"""The compiled loops of the CTC prefix beam search: frames in, a beam of prefixes out.

A *prefix* is what has been heard so far: its tokens and, where there is a lexicon, its words. It is a node of a growing
tree, so that it costs one step whatever its length, and the same prefix, reached in many ways, is one node. A *beam* is
the set of prefixes alive, each with two sums over all alignments of the frames so far: of those that end in a blank
and of those that end in the prefix's last token (Graves 2012, section 7.5.3; Hannun et al. 2014).

The sums are plain float64 numbers, scaled in every frame so that the best prefix has 1: exact, with no logarithm in the
loop. What language model, word bonus and hot words give is multiplied in where a prefix comes into being (`gain`), and
is told apart at the end from what the node keeps. Inside a word the model is not yet asked; there stands the highest
that any word of the tree below could get (`ahead`), taken back where the word ends.
"""

import math
from typing import NamedTuple

import numpy as np

from asr.compiled import bare, inlined
from asr.decode import ngram
from asr.decode.hotwords import EDGE
from asr.decode.scan import child
from asr.decode.selection import kth_largest, least_kept

NODE = np.dtype(
    [
        ("parent", np.int32),
        ("token", np.int32),  # its last; -1 at the root
        ("choice", np.int32),  # which of several prefixes with this token it is, see `_choices`
        ("word", np.int32),  # that ended with this token, a number of the lexicon; -1: none; -2: an unknown one
        ("spot", np.int32),  # in the tree of words: 0 between words, -1 in a word that is not there
        ("state", np.int32),  # of the language model
        ("hot", np.int32),  # of the hot words' automaton
        ("start", np.int32),  # the frame in which most of its alignments enter its last token
        ("end", np.int32),  # the frame behind the last in which most of them stay there
        ("words", np.int32),
        ("peak", np.float64),  # the highest probability of its last token between them
        ("gain", np.float64),  # factor on the sums that come from the parent
        ("lm", np.float64),  # weighted log-probability of its words
        ("won", np.float64),  # weights of its hot words
    ],
    align=True,
)
UNKNOWN = -2
_MOST = 600.0  # nats that one step may add: float64 holds no more
NOTHING = 1e-250  # share of the best below which a sum is 0, before float64 runs out of digits and slows down


class Tokens(NamedTuple):
    """`(tokens,)` each: whether a token begins with a boundary, whether it is nothing else, its number in the model."""

    starts: np.ndarray
    edge: np.ndarray
    lm: np.ndarray


class Words(NamedTuple):
    """The tree of words (`asr.decode.lexicon.Tree`), the words at each node, their numbers in the language model."""

    first: np.ndarray
    token: np.ndarray
    word_first: np.ndarray
    word: np.ndarray
    lm: np.ndarray
    ahead: np.ndarray


class Phrases(NamedTuple):
    """The automaton of `asr.decode.hotwords.HotWords`."""

    first: np.ndarray
    token: np.ndarray
    fail: np.ndarray
    won: np.ndarray
    credit: np.ndarray


class Knobs(NamedTuple):
    """Settings; the flags are 0 or 1."""

    width: int
    token_min: float
    token_top: int
    ratio: float  # a prefix below this share of the best is dropped
    reach: float  # the most that a hot word or the bonus can multiply
    lm_weight: float
    bonus: float
    unknown: float  # log-weight of a word that leaves the tree
    closed: int  # only words of the tree
    whole: int  # every token is a word
    joined: int  # no boundary between words: each may end wherever the tree has one
    by_token: int  # the language model is one of tokens
    plain: int  # nothing but the frames counts
    choices: int  # more than the words at any node
    unk: int
    eos: int
    best_path: int


class Prefixes(NamedTuple):
    """Those alive, or those that a frame leads to, of which the next ones alive are chosen.

    Their nodes; the sums of the alignments that end in a blank and of those that end in the last token; both together;
    and from the node, to have it at hand, the token and the spot.
    """

    node: np.ndarray
    blank: np.ndarray
    label: np.ndarray
    total: np.ndarray
    last: np.ndarray
    spot: np.ndarray


USED, ALIVE, NEEDED, CANDIDATES = 0, 1, 2, 3  # of `counts`
TOLL = 0.2  # share of `unknown` that each further token of an unknown word costs, against words glued together


@bare
def search(rows, begin, frame, vocabulary, nodes, slots, keys, ids, beam, found, sorting, picks, probs, counts, scale):
    """Take in frames from row `begin` on, `frame` the number of row 0; return the first row not taken in.

    Its parts are inlined: to hand them all these arrays takes a sixth of the time of a narrow beam.
    Stops early where the next frame might need more room than `nodes` has (`counts[NEEDED]`): compact, then go on.
    `slots` `(nodes,)`: the place of each among `found`, -1 where it is not there.
    """
    knobs = vocabulary[4]
    for t in range(begin, rows.shape[0]):
        row = rows[t]
        several = _pick(row, knobs, picks, sorting[2])
        counts[NEEDED] = counts[ALIVE] * several * (knobs.choices - 1)
        if counts[USED] + counts[NEEDED] > len(nodes):
            return t
        best, least = _stay(row, frame + t, knobs, nodes, slots, beam, found, probs, counts)
        floor = best * knobs.ratio
        bar = max(floor, least) if counts[ALIVE] == knobs.width else floor
        for j in range(several):
            token = int(picks[j])
            p = math.exp(np.float64(row[token]))
            _extend(token, p, frame + t, floor, bar, vocabulary, nodes, slots, keys, ids, beam, found, counts)
        best = _keep(knobs, slots, beam, found, sorting, counts)
        if best > 0.0:
            scale[0] += math.log(best)
    return rows.shape[0]


@inlined
def _pick(row, knobs, picks, spare):
    """The frame's tokens worth trying: those above `token_min` and the best one, at most `token_top`; their number."""
    count = 0
    for v in range(1, len(row)):
        if row[v] >= knobs.token_min:
            picks[count] = v
            count += 1
    if count == 0 and row[0] < knobs.token_min:
        for v in range(1, len(row)):
            if row[v] > row[picks[0] if count else 0]:
                picks[0], count = v, 1
    if 0 < knobs.token_top < count:
        for j in range(count):
            spare[j] = row[picks[j]]
        least, ties, kept = kth_largest(spare, count, knobs.token_top), knobs.token_top, 0
        for j in range(count):
            ties -= row[picks[j]] > least
        for j in range(count):
            if row[picks[j]] > least or (row[picks[j]] == least and ties > 0):
                ties -= row[picks[j]] == least
                picks[kept] = picks[j]
                kept += 1
        count = kept
    return count


@inlined
def _stay(row, frame, knobs, nodes, slots, beam, found, probs, counts):
    """Every prefix goes on as it is, by a blank or its last token again: candidate i is beam i.

    Returns the best total and the least. `probs` `(tokens,)`: room for the frame's probabilities, -1 before and after.
    """
    best_path = knobs.best_path
    alive, _, labels, totals, lasts, spots = beam
    node, blank, label, _, last, spot = found
    p_blank = math.exp(np.float64(row[0]))
    best, least = 0.0, math.inf
    for i in range(counts[ALIVE]):
        x, token = int(alive[i]), int(lasts[i])
        node[i], last[i], spot[i], slots[x] = x, token, spots[i], i
        blank[i] = totals[i] * p_blank
        label[i] = 0.0
        if token > 0 and labels[i] > 0.0:
            if probs[token] < 0.0:
                probs[token] = math.exp(np.float64(row[token]))
            label[i] = labels[i] * probs[token]
            if label[i] > blank[i]:
                nodes[x]["end"] = frame + 1
                nodes[x]["peak"] = max(nodes[x]["peak"], probs[token])
        total = joined_sum(blank[i], label[i], best_path)
        best, least = max(best, total), min(least, total)
    for i in range(counts[ALIVE]):
        probs[max(0, int(lasts[i]))] = -1.0
    counts[CANDIDATES] = counts[ALIVE]
    return best, least


@inlined
def joined_sum(one, other, best_path):
    """The probability of two sets of alignments: their sum, or in the mode of the best path the higher one."""
    return max(one, other) if best_path else one + other


@inlined
def _extend(token, p, frame, floor, bar, vocabulary, nodes, slots, keys, ids, beam, found, counts):
    """Every prefix goes on by `token`, from all its alignments; where the token repeats, from those that end blank.

    What comes to less than `floor` is left out, and new prefixes below `bar`, which would not be kept: there are as
    many as the beam is wide above it.
    """
    tokens, words, lm, phrases, knobs = vocabulary
    alive, blanks, _, totals, lasts, spots = beam
    node, blank, label, _, last, spot = found
    for i in range(counts[ALIVE]):
        mass = (blanks[i] if lasts[i] == token else totals[i]) * p
        if mass * knobs.reach < floor or mass == 0.0:
            continue
        x = int(alive[i])
        low, high = _choices(token, int(spots[i]), tokens.starts, words.word_first, knobs.joined, knobs.closed)
        for choice in range(low, high):
            key = key_of(x, token, choice, len(tokens.starts), knobs.choices)
            h = place(keys, key)
            if keys[h] != key:
                if choice == 0 and mass * knobs.reach < bar:  # a word that ends may be much likelier than feared
                    continue
                y = counts[USED]
                if not _enter(x, token, choice, y, tokens, words, lm, phrases, knobs, nodes):
                    continue
                keys[h] = key
                ids[h] = y
                counts[USED] += 1
            y = int(ids[h])
            entering = mass * nodes[y]["gain"]
            k = int(slots[y])
            if k < 0:
                if entering < bar:
                    continue
                k = counts[CANDIDATES]
                counts[CANDIDATES] += 1
                node[k], blank[k], label[k] = y, 0.0, 0.0
                last[k], spot[k], slots[y] = token, nodes[y]["spot"], k
            if entering > blank[k] and entering > label[k]:  # most of its alignments begin its last token here
                nodes[y]["start"], nodes[y]["end"], nodes[y]["peak"] = frame, frame + 1, p
            label[k] = joined_sum(label[k], entering, knobs.best_path)


@inlined
def _keep(knobs, slots, beam, found, sorting, counts):
    """The best candidates become the beam, the best of them with total 1; returns what it had."""
    alive, blanks, labels, totals, lasts, spots = beam
    node, blank, label, total, last, spot = found
    best, first = 0.0, 0
    for k in range(counts[CANDIDATES]):
        slots[node[k]] = -1
        total[k] = joined_sum(blank[k], label[k], knobs.best_path)
        if total[k] > best:
            best, first = total[k], k
    least, ties = best * max(knobs.ratio, NOTHING), counts[CANDIDATES]
    if counts[CANDIDATES] > knobs.width:
        least, ties = least_kept(least, first, knobs.width, total, sorting, counts[CANDIDATES])
    scale = 1.0 / best if best > 0.0 else 0.0
    kept = 0
    for k in range(counts[CANDIDATES] if best > 0.0 else 0):
        if total[k] > least or (total[k] == least and ties > 0):
            ties -= total[k] == least
            alive[kept] = node[k]
            one, other = blank[k] * scale, label[k] * scale
            blanks[kept] = one if one > NOTHING else 0.0
            labels[kept] = other if other > NOTHING else 0.0
            totals[kept] = total[k] * scale
            lasts[kept], spots[kept] = last[k], spot[k]
            kept += 1
    counts[ALIVE] = kept
    return best


@inlined
def _choices(token, spot, starts, word_first, joined, closed):
    """What a token may do, a range: 0 goes on in the word or begins one, k ends the open word as the k-th it can be."""
    if spot == 0 or not (starts[token] or joined):
        return 0, 1
    several = word_first[spot + 1] - word_first[spot] if spot > 0 else 0
    if several == 0 and not closed:
        several = 1
    return (0 if joined else 1), several + 1


@inlined
def _enter(x, token, choice, y, tokens, words, lm, phrases, knobs, nodes):
    """Make node `y`: prefix `x` and one token more. False where the lexicon has no such word."""
    if knobs.plain:
        node = nodes[y]
        node["parent"], node["token"], node["choice"], node["word"] = x, token, choice, -1
        node["spot"], node["gain"] = 0 if tokens.edge[token] else -1, 1.0
        return True
    spot, state, hot = int(nodes[x]["spot"]), int(nodes[x]["state"]), int(nodes[x]["hot"])
    score, count, won = float(nodes[x]["lm"]), int(nodes[x]["words"]), float(nodes[x]["won"])
    before = potential(spot, hot, score, count, won, words, phrases, knobs)
    word = -1
    if choice > 0:
        word, state, hot, score, won = end_word(spot, choice, state, hot, score, won, words, lm, phrases, knobs)
        count += 1
        spot = 0
    if not tokens.edge[token]:
        spelled = child(words.first, words.token, spot, token) if spot >= 0 else -1
        if spelled < 0:
            if knobs.closed:
                return False
            score += knobs.unknown * (TOLL if spot < 0 else 1.0)
        spot = spelled
        hot = hot_step(phrases.first, phrases.token, phrases.fail, hot, token)
        won += phrases.won[hot]
        if knobs.whole:
            word, state, hot, score, won = end_word(spot, 1, state, hot, score, won, words, lm, phrases, knobs)
            count += 1
            spot = 0
            if word == UNKNOWN and knobs.closed:
                return False
    if knobs.by_token:
        gain, state = ngram.step(lm[0], lm[1], lm[2], lm[3], lm[4], lm[5], state, int(tokens.lm[token]))
        score += knobs.lm_weight * gain
    node = nodes[y]
    node["parent"], node["token"], node["choice"], node["word"] = x, token, choice, word
    node["spot"], node["state"], node["hot"], node["words"] = spot, state, hot, count
    node["lm"], node["won"] = score, won
    node["gain"] = math.exp(min(_MOST, potential(spot, hot, score, count, won, words, phrases, knobs) - before))
    return True


@inlined
def potential(spot, hot, score, count, won, words, phrases, knobs):
    """What all but the frames gives a prefix, the advances included."""
    ahead = words.ahead[spot] if spot > 0 else 0.0
    return score + knobs.bonus * count + won + phrases.credit[hot] + ahead


@inlined
def end_word(spot, choice, state, hot, score, won, words, lm, phrases, knobs):
    """The open word ends as the `choice`-th of its place: its number, then the new state, hot, score and won."""
    word = UNKNOWN
    number = knobs.unk
    if spot > 0 and words.word_first[spot] + choice <= words.word_first[spot + 1]:
        word = int(words.word[words.word_first[spot] + choice - 1])
        number = int(words.lm[word])
    elif spot > 0:
        score += knobs.unknown  # the beginning of words, but no word
    if knobs.lm_weight > 0.0 and not knobs.by_token:
        gain, state = ngram.step(lm[0], lm[1], lm[2], lm[3], lm[4], lm[5], state, number)
        score += knobs.lm_weight * gain
    hot = hot_step(phrases.first, phrases.token, phrases.fail, hot, EDGE)
    return word, state, hot, score, won + phrases.won[hot]


@inlined
def hot_step(first, token, fail, state, symbol):
    """The automaton's next state: the longest suffix of what was read that begins a phrase."""
    if len(token) == 1:
        return 0
    while True:
        found = child(first, token, state, symbol)
        if found >= 0:
            return found
        if state == 0:
            return 0
        state = int(fail[state])


@inlined
def key_of(x, token, choice, tokens, choices):
    """The table's key of a prefix: its parent, its token (of so many), its choice (of so many)."""
    return (x * tokens + token) * choices + choice


@inlined
def place(keys, key):
    """Where `key` stands in the open-addressed table, or where it would."""
    mask = len(keys) - 1
    h = (key * 0x9E3779B97F4A7C1 >> 20) & mask
    while keys[h] != -1 and keys[h] != key:
        h = (h + 1) & mask
    return h

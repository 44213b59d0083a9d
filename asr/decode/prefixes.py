"""What is done with the prefixes of a search between its frames: make room, finish, trace back."""

import math

import numpy as np

from asr.compiled import bare, compiled
from asr.decode import ngram
from asr.decode.search import ALIVE, USED, end_word, key_of, place, potential


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
def path(nodes, x):
    """A copy of the nodes from the root to `x`, one a token (the root has one only where a beginning is settled)."""
    length, y = 0, x
    while y >= 0 and nodes[y]["token"] >= 0:
        length, y = length + 1, int(nodes[y]["parent"])
    found = np.empty(length, nodes.dtype)
    for j in range(length - 1, -1, -1):
        found[j] = nodes[x]
        x = int(nodes[x]["parent"])
    return found


@bare
def in_order(path):
    """Change a path's times so that they do not run backwards.

    A prefix that lives on may be entered again by a later alignment than the one its continuation came from.
    """
    for j in range(len(path) - 2, -1, -1):
        path[j]["start"] = min(path[j]["start"], path[j + 1]["start"] - 1)
    for j in range(len(path)):
        if j + 1 < len(path):
            path[j]["end"] = min(path[j]["end"], path[j + 1]["start"])
        path[j]["end"] = max(path[j]["end"], path[j]["start"] + 1)


@bare
def words(path, ended, tokens, knobs, places, probability):
    """Group a path's tokens into words; the lexicon, where there is one, told where they end, the last one as `ended`.

    Fills, an entry a word, `places` `(words, 5)`: its first token and the one behind its last, its first frame and the
    one behind its last, its number (-1 without a lexicon); and `probability`, the geometric mean of its tokens'.
    Returns how many there are.
    """
    many = inside = last = 0
    total = 0.0
    for j in range(len(path) + 1):
        token, word = int(path[j]["token"]) if j < len(path) else 0, -1
        if not knobs.closed:
            closes = j == len(path) or tokens.starts[token]
        else:
            if knobs.whole:
                word = int(path[j - 1]["word"]) if j else -1
            else:
                word = int(path[j]["word"]) if j < len(path) else ended
            closes = word >= 0
        if closes and inside:
            places[many, 1], places[many, 3], places[many, 4] = last + 1, path[last]["end"], word
            probability[many] = min(1.0, math.exp(total / inside))
            many, inside, total = many + 1, 0, 0.0
        if j < len(path) and not tokens.edge[token]:
            if not inside:
                places[many, 0], places[many, 2] = j, path[j]["start"]
            last, inside, total = j, inside + 1, total + math.log(path[j]["peak"])
    return many

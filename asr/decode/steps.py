"""One frame of the CTC prefix beam search for a whole batch, in tensors; `asr.decode.batched` runs it.

The recursion and the pruning are those of `asr.decode.search`, sums are float64 with the best prefix's total at 1. No
operation waits for the device, and their number depends on nothing but the order of the language model.

A prefix is known by a 64-bit hash of its tokens. `confused` proves after the last frame that equal hashes were equal
prefixes: those of one hash must all have been made by one token behind prefixes of one hash, hence, by induction on the
length, of the same tokens. Else the search is to be run again with other random numbers.

Axes: B batch, T frames, W beam, K tokens tried in a frame, V tokens, O order of the language model.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from asr.decode.ngram import NGram
from asr.decode.search import NOTHING, Knobs

DEAD, ROOT = 0, 1  # hashes: of no prefix, the empty one's parent among them, and of the empty one
_FACTOR = 0x2545F4914F6CDD1D  # of the hash (Vigna 2016, An experimental exploration of Marsaglia's xorshift generators)


class Beam(NamedTuple):
    """The prefixes alive, `(B, W)` each; places without one have sums of 0 and the hash `DEAD`."""

    blank: Tensor  # sum over the alignments that end in a blank; the best prefix's total is 1
    label: Tensor  # of those that end in the last token
    total: Tensor  # both
    last: Tensor  # token, 0 of the empty prefix
    hash: Tensor
    parent: Tensor  # the hash of the prefix without its last token
    state: Tensor  # of the language model
    given: Tensor  # weighted log-probability of the tokens


class Heard(NamedTuple):
    """What is heard in each frame, or in one of them (without T)."""

    blank: Tensor  # (T, B, 1) probability
    probs: Tensor  # (T, B, K), 0 where a token is not to be tried
    tokens: Tensor  # (T, B, K)
    row: Tensor  # (T, B, V) log-probabilities


class History(NamedTuple):
    """What each frame made, `(T + 1, B, W)`; number 0 is the beginning."""

    hashes: Tensor
    slots: Tensor  # the place, a frame before, that most of the prefix's alignments came from
    tokens: Tensor  # the token they entered with this frame; 0: none, a blank was likelier; -1: none, they stayed in it


class Model:
    """The tables of an `NGram` of tokens on a device, its rows laid end to end.

    An entry's key is its context, then its word; they ascend, so that one search in one list, of as many steps for all,
    finds an entry.

    Args:
        lm: the language model.
        numbers: `(V,)` the tokens' words.
        device: where.
    """

    def __init__(self, lm: NGram, numbers: np.ndarray, device: torch.device) -> None:
        def tensor(array: np.ndarray, kind: type) -> Tensor:
            return torch.from_numpy(np.array(array, kind)).to(device)

        first, word, logprob, backoff, suffix, follow = lm.tables
        self.size, self.order, self.start = len(lm.words), lm.order, lm.start
        self.numbers = tensor(numbers, np.int64)
        contexts = np.repeat(np.arange(len(first) - 1), np.diff(first))
        self._keys = tensor(contexts * self.size + word[1:], np.int64)  # the empty entry 0 has none
        self._logprob, self._backoff = tensor(logprob, np.float64), tensor(backoff, np.float64)
        self._suffix, self._follow = tensor(suffix, np.int64), tensor(follow, np.int64)

    def ask(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """`ngram.step` of every state `(B, W)` by every word `(B, K)` of its utterance.

        Returns the natural logarithms and the entries they stand in, `(B, W, K)` each.
        """
        chain = [states]  # the state, then shorter and shorter ones; the empty one has all words
        for _ in range(self.order - 1):
            chain.append(self._suffix[chain[-1]])
        contexts = torch.stack(chain, 2)
        lost = functional.pad(self._backoff[contexts[..., :-1]].cumsum(2), (1, 0))
        wanted = contexts[..., None] * self.size + words[:, None, None]  # (B, W, O, K)
        place = torch.searchsorted(self._keys, wanted).clamp(max=len(self._keys) - 1)
        longest = (self._keys[place] == wanted).int().argmax(2, keepdim=True)  # the first that is there
        entry = place.gather(2, longest)[:, :, 0] + 1
        return self._logprob[entry] + lost.gather(2, longest[:, :, 0]), entry

    def after(self, entries: Tensor) -> Tensor:
        """The states behind entries, of any shape."""
        return self._follow[entries]


def start(batch: int, width: int, state: int, device: torch.device) -> Beam:
    """The empty prefix, in place 0."""
    nothing = torch.zeros(batch, width, dtype=torch.float64, device=device)
    numbers = torch.zeros(batch, width, dtype=torch.int64, device=device)
    first = torch.arange(width, device=device).expand(batch, width) == 0
    whole = nothing.masked_fill(first, 1.0)
    hashes = numbers.masked_fill(first, ROOT)
    return Beam(whole, nothing, whole, numbers, hashes, numbers + DEAD, numbers + state, nothing)


def heard(rows: Tensor, own: Knobs) -> Heard:
    """The probabilities of blank and of the tokens worth trying: those above `token_min`, and the best of all."""
    rows = rows.transpose(0, 1)
    _, _, size = rows.shape
    blank = rows[..., :1].double()
    if size == 1:  # one token that is never tried
        return Heard(blank.exp(), torch.zeros_like(blank), torch.zeros_like(blank, dtype=torch.int64), rows)
    best, tokens = rows[..., 1:].topk(min(own.token_top or size, size - 1), dim=2)
    logs = best.double()
    tried = logs >= own.token_min
    tried[..., :1] |= logs[..., :1] > blank
    return Heard(blank.exp(), logs.exp().masked_fill(~tried, 0.0), tokens + 1, rows)


def step(beam: Beam, heard: Heard, own: Knobs, model: Model | None, codes: Tensor) -> tuple[Beam, Tensor, Tensor]:
    """One frame: every prefix stays as it is or goes on by a token, and the best of what comes of it are kept.

    Args:
        beam: the prefixes behind the frame before.
        heard: of this frame.
        own: settings.
        model: the language model.
        codes: `(V,)` random int64 numbers for the hashes.

    Returns the new beam, and the frame's slots and tokens `(B, W)` for the history.
    """
    blank = beam.total * heard.blank
    label = beam.label * heard.row.gather(1, beam.last).double().exp()
    floor = (blank + label).amax(1, keepdim=True) * own.ratio
    repeats = beam.last[..., None] == heard.tokens[:, None]  # (B, W, K): only from the alignments that end in a blank
    entering = torch.where(repeats, beam.blank[..., None], beam.total[..., None]) * heard.probs[:, None]
    entering = entering.masked_fill(entering < floor[..., None], 0.0)
    gains = entries = None
    if model is not None:
        gains, entries = model.ask(beam.state, model.numbers[heard.tokens])
        gains, entries = own.lm_weight * gains.flatten(1), entries.flatten(1)
        entering = entering * gains.exp().view_as(entering)
    joining, fresh, parent = _join(beam, repeats, entering.flatten(1))
    moved = (joining > blank) & (joining > label)  # most of its alignments begin its last token here
    came = _Came(
        blank=blank,
        label=label + joining,
        slots=torch.where(moved, parent, torch.arange(own.width, device=parent.device)),
        tokens=torch.where(moved, beam.last, -(label > blank).long()),
        fresh=fresh,
        gains=gains,
        entries=entries,
    )
    return _keep(beam, came, heard.tokens, own, model, codes)


class _Came(NamedTuple):
    """What a frame leads to: prefixes that were there, `(B, W)`, and new ones, `(B, W * K)`."""

    blank: Tensor
    label: Tensor
    slots: Tensor
    tokens: Tensor
    fresh: Tensor  # the sums of new ones, all of alignments that end in the last token
    gains: Tensor | None  # what the language model gives them
    entries: Tensor | None  # where it has them


def _keep(
    beam: Beam, came: _Came, tried: Tensor, own: Knobs, model: Model | None, codes: Tensor
) -> tuple[Beam, Tensor, Tensor]:
    """The best become the beam, the best of them with total 1; `tried` `(B, K)`. Returns as `step`."""
    total, chosen = torch.cat([came.blank + came.label, came.fresh], 1).topk(own.width, dim=1)
    best = total[:, :1]
    total = total.masked_fill(total < best * max(own.ratio, NOTHING), 0.0)
    dead, scale = total == 0.0, best.masked_fill(best == 0.0, 1.0)
    new, extension = chosen >= own.width, (chosen - own.width).clamp(min=0)
    source = torch.where(new, extension // tried.shape[1], chosen)
    token = tried.gather(1, extension % tried.shape[1])
    known = beam.hash.gather(1, source)
    state, given = beam.state.gather(1, source), beam.given.gather(1, source)
    if model is not None and came.gains is not None and came.entries is not None:
        state = torch.where(new, model.after(came.entries.gather(1, extension)), state)
        given = torch.where(new, given + came.gains.gather(1, extension), given)
    after = Beam(
        blank=came.blank.gather(1, source).masked_fill(new | dead, 0.0) / scale,
        label=torch.where(new, total, came.label.gather(1, source)).masked_fill(dead, 0.0) / scale,
        total=total / scale,
        last=torch.where(new, token, beam.last.gather(1, source)),
        hash=torch.where(new, mixed(known, codes[token]), known).masked_fill(dead, DEAD),
        parent=torch.where(new, known, beam.parent.gather(1, source)).masked_fill(dead, DEAD),
        state=state,
        given=given,
    )
    slots = torch.where(new, source, came.slots.gather(1, source))
    return after, slots, torch.where(new, token, came.tokens.gather(1, source)).masked_fill(dead, 0)


def _join(beam: Beam, repeats: Tensor, entering: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What enters prefixes of the beam from others of it, apart from what makes new ones.

    Args:
        beam: the beam.
        repeats: `(B, W, K)` where a prefix ends in a token to be tried.
        entering: `(B, W * K)` what goes on from each prefix by each token.

    Returns the sums that enter each prefix; `entering` with 0 in their places; and each prefix's parent, any place
    where it is not in the beam.
    """
    there, parent = (beam.parent[:, :, None] == beam.hash[:, None]).int().max(2)
    tried, place = repeats.int().max(2)
    nowhere = entering.shape[1]
    index = (parent * repeats.shape[2] + place).masked_fill((there & tried) == 0, nowhere)
    entering = functional.pad(entering, (0, 1))
    return entering.gather(1, index), entering.scatter(1, index, 0.0)[:, :-1], parent


def mixed(hashes: Tensor, codes: Tensor) -> Tensor:
    """The hash of a prefix and one token more, modulo 2^64."""
    product = (hashes ^ codes) * _FACTOR
    return product ^ (product >> 32)


def confused(history: History) -> bool:
    """Whether two different prefixes of an utterance had the same hash; see the module's beginning."""
    made = history.tokens[1:] > 0
    special = torch.tensor([DEAD, ROOT], device=made.device).expand(made.shape[1], 2)  # made by no token

    def listed(first: Tensor, part: Tensor) -> Tensor:
        """Of each utterance one after the other: those special ones, then what it made."""
        return torch.cat([first, part.masked_fill(~made, 0).transpose(0, 1).flatten(1)], 1)

    hashes, order = listed(special, history.hashes[1:]).sort(1)
    same = hashes[:, 1:] == hashes[:, :-1]
    for part in (history.hashes[:-1].gather(2, history.slots[1:].long()), history.tokens[1:].long()):
        by = listed(torch.zeros_like(special), part).gather(1, order)
        if (same & (by[:, 1:] != by[:, :-1])).any():
            return True
    return False


def trace(history: History, slots: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What the last beam's prefixes in `slots` `(B, M)` did in each frame.

    Returns `(T, B, M)` each: the events, a token that was entered, -1 for one stayed in, else 0; and the
    log-probability of the token entered last.
    """
    frames = rows.shape[1]
    events = torch.zeros((frames, *slots.shape), dtype=torch.int64, device=slots.device)
    for t in range(frames, 0, -1):
        events[t - 1] = history.tokens[t].gather(1, slots)
        slots = history.slots[t].gather(1, slots).long()
    if not frames:
        return events, events.float()
    number = torch.arange(frames, device=slots.device)[:, None, None]
    entered = torch.where(events > 0, number, 0).cummax(0).values
    return events, rows.transpose(0, 1).gather(2, events.clamp(min=0).gather(0, entered))

"""N-best rescoring: an LSTM language model reads the hypotheses of a beam search and puts them in a new order.

The language model's part of a hypothesis's score is interpolated, on the logarithms of the whole sentence:

    lm' = (1 - weight) lm + weight (lm_weight log P(words, end) + unknown (number of unknown words))

`lm` is what the search's n-gram model gave, its price of unknown words included; P is the network's, `lm_weight` and
`unknown` are the search's own. So both parts are on one scale, whatever their units (a network of characters beside an
n-gram model of words), and at weight 0 nothing changes. Acoustic score, word bonus and hot words stay as they are.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from asr.ctc import Hypothesis
from asr.decode.beam import BeamSearch
from asr.errors import InputError
from asr.lstm_lm.model import LanguageModel

WEIGHT, NBEST = 0.5, 50


class Rescorer:
    """A beam search whose hypotheses are rescored; several threads may use it at once.

    Args:
        search: the first pass, with a language model of its own.
        model: reads what the search has found.
        weight: share of its score, 0 to 1.
        nbest: hypotheses that it reads.

    Raises:
        InputError: a setting is out of range or has no effect (status 2).
    """

    def __init__(self, search: BeamSearch, model: LanguageModel, weight: float = WEIGHT, nbest: int = NBEST) -> None:
        given = search.settings
        if "lm_sha256" not in given:
            raise InputError("rescore: interpolates with the search's own language model; add --lm", status=2)
        if not 0 <= weight <= 1:
            raise InputError(f"rescore_weight is {weight}; it goes from 0 to 1", status=2)
        if weight and not given["lm_weight"]:
            raise InputError("rescore has no effect at lm_weight 0, which both models share; raise it", status=2)
        if not max(2, given["nbest"]) <= nbest <= 1_000_000:
            raise InputError(f"rescore_nbest is {nbest}; it goes from 2, or nbest, to 1000000", status=2)
        self.vocabulary = search.vocabulary
        self.settings = given | {
            "rescore_sha256": model.sha256,
            "rescore_weight": weight,
            "rescore_nbest": nbest,
        }
        self._search, self._model, self._weight = search.with_settings(nbest=nbest), model, weight

    def decode(self, log_probs: Tensor | np.ndarray) -> list[Hypothesis]:
        """The hypotheses of one utterance, best first; arguments and errors as in `BeamSearch.decode`."""
        found, terms = self.candidates(log_probs)
        return reranked(found, terms, self._weight)[: self.settings["nbest"]]

    def candidates(self, log_probs: Tensor | np.ndarray) -> tuple[list[Hypothesis], list[float]]:
        """The hypotheses of the first pass, and what the network alone would give in place of each one's `lm`."""
        found = self._search.decode(log_probs)
        sentences = [self._model.sentence(one.text) for one in found]
        terms = []
        for words, scores in zip(sentences, self._model.scores(sentences), strict=True):
            unknown = sum(word not in self._model.ids for word in words) if self._model.unit == "word" else 0
            terms.append(self.settings["lm_weight"] * float(scores.sum()) + self.settings["unknown"] * unknown)
        return found, terms


def reranked(found: Sequence[Hypothesis], terms: Sequence[float], weight: float) -> list[Hypothesis]:
    """The hypotheses with a share `weight` of their `lm` from `terms`, best first; equals in their order."""
    if not weight:
        return list(found)
    scored = []
    for one, term in zip(found, terms, strict=True):
        lm = (1 - weight) * one.lm + weight * term
        scored.append(dataclasses.replace(one, score=one.score - one.lm + lm, lm=lm))
    return sorted(scored, key=lambda one: -one.score)

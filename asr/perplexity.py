"""How well a language model foresees a text, in the numbers that models of every kind share."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """How well a model foresees a text; each sentence's end counts as a word, as in kenlm's `query`.

    Attributes:
        sentences: number of sentences.
        words: number of words, unknown ones among them, ends of sentences not.
        unknown: number of words that the model does not have.
        logprob: sum of the natural logarithms of all probabilities.
        unknown_logprob: the part of it that the unknown words have.
    """

    sentences: int
    words: int
    unknown: int
    logprob: float
    unknown_logprob: float

    @property
    def perplexity(self) -> float:
        """E to the power of minus the mean over all words and ends; not a number without sentences."""
        return _exp_mean(self.logprob, self.words + self.sentences)

    @property
    def known_perplexity(self) -> float:
        """The same without the unknown words, which still stand before others."""
        return _exp_mean(self.logprob - self.unknown_logprob, self.words + self.sentences - self.unknown)

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; null where there is no finite value."""
        values = {"perplexity": self.perplexity, "known_perplexity": self.known_perplexity}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        return finite | dataclasses.asdict(self)


def _exp_mean(logprob: float, count: int) -> float:
    if not count:
        return math.nan
    mean = -logprob / count
    return math.exp(mean) if mean < 700 else math.inf

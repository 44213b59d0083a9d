"""From how clearly a word was heard to how probably it is right: a monotone curve of two numbers, fitted on a dev set.

    log-odds(calibrated) = slope * log-odds(probability) + offset,  slope > 0

This is Platt's logistic curve ("Probabilistic outputs for support vector machines", 1999) over log-odds, so that slope
1 and offset 0 change nothing; a slope below 1 takes back sureness at both ends, as the temperature of Guo et al. ("On
calibration of modern neural networks", ICML 2017) does. The words keep their order.

Few words, or none that is wrong, must not lead to a curve that says 0 or 1. Platt shifts the targets by one word a
class; here the dev set is joined by `PRIOR` words' worth of data in favour of no change at all (Bedrick, Christensen
and Johnson, "A new perspective on priors for generalized linear models", JASA 1996: priors as data).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

PRIOR = 10.0  # words that speak for the probability as it is
SLOPES, OFFSETS = (0.05, 20.0), (-20.0, 20.0)  # what a curve may have
_NEAREST = 2.0**-24  # a probability nearer to 0 or 1 is taken to be this near: float32 can't tell it from 1
_AT = np.linspace(-4, 4, 9)  # the log-odds at which the prior's words stand: from 0.018 to 0.982
_STEPS = 100
_KEYS = ("slope", "offset", "words")

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A curve; called with a probability, or an array of them, it gives the calibrated one, in [0, 1].

    `words` is the number of words that it was fitted on. Within 6e-8 of 0 and 1 it is flat.
    """

    slope: float = 1.0
    offset: float = 0.0
    words: int = 0

    def __call__(self, probability: Any) -> Any:
        """Float for float, array for array."""
        odds = self.slope * _log_odds(np.asarray(probability, np.float64)) + self.offset
        calibrated = _logistic(odds)
        return calibrated if isinstance(probability, np.ndarray) else float(calibrated)

    def to_json(self) -> dict[str, Any]:
        """As `among` takes it."""
        return dataclasses.asdict(self)


def is_calibration(value: Any) -> bool:
    """Whether a value of JSON is a curve as `Calibration.to_json` writes it, every number in its range."""
    if not isinstance(value, dict) or sorted(value) != sorted(_KEYS):
        return False
    slope, offset, words = (value[key] for key in _KEYS)
    is_curve = all(
        type(number) in (int, float) and low <= number <= high
        for number, (low, high) in ((slope, SLOPES), (offset, OFFSETS))
    )
    return is_curve and type(words) is int and 0 <= words < 2**53


def among(settings: Mapping[str, Any], model: str) -> Calibration | None:
    """The curve under ``calibration`` among a decoder's settings, if it is for the model with this SHA-256.

    That of a model's own card names no ``model``: it can be for no other.
    """
    curve = dict(settings.get("calibration") or {})
    if not curve or curve.pop("model", model) != model:
        return None
    return Calibration(float(curve["slope"]), float(curve["offset"]), curve["words"])


def fit(probabilities: Sequence[float] | Floats, right: Sequence[bool] | npt.NDArray[np.bool_]) -> Calibration:
    """The curve under which the words heard are most probably right and wrong as they were.

    Args:
        probabilities: `(words,)` in [0, 1].
        right: `(words,)` whether each word was said.

    The maximum of the sum over words of ln(calibrated) where right and ln(1 - calibrated) where wrong, and of the
    prior's, with the slope in `SLOPES`. Without words: slope 1, offset 0.
    """
    heard = np.asarray(probabilities, np.float64)
    if not len(heard):
        return Calibration()
    odds = np.concatenate([_log_odds(heard), _AT])
    target = np.concatenate([np.asarray(right, np.float64), _logistic(_AT)])
    weight = np.concatenate([np.ones(len(heard)), np.full(len(_AT), PRIOR / len(_AT))])
    slope, offset = _climb(np.stack([odds, np.ones_like(odds)]), target, weight, np.array([1.0, 0.0]), 2)
    if not SLOPES[0] <= slope <= SLOPES[1]:  # the likelihood is concave: the best curve allowed lies on this border
        slope = min(max(slope, SLOPES[0]), SLOPES[1])
        slope, offset = _climb(np.stack([odds, np.ones_like(odds)]), target, weight, np.array([slope, 0.0]), 1)
    return Calibration(float(slope), float(min(max(offset, OFFSETS[0]), OFFSETS[1])), len(heard))


def _climb(inputs: Floats, target: Floats, weight: Floats, curve: Floats, free: int) -> Floats:
    """Newton's method on a concave likelihood, for the last `free` numbers of `curve`; a step that falls is halved."""
    moving = inputs[-free:]

    def likelihood(point: Floats) -> float:
        odds = point @ inputs
        return float(weight @ (target * odds - np.logaddexp(0.0, odds)))

    best = likelihood(curve)
    for _ in range(_STEPS):
        share = _logistic(curve @ inputs)
        gradient = moving @ (weight * (target - share))
        curvature = (moving * (weight * share * (1 - share))) @ moving.T
        step = np.zeros(2)
        step[-free:] = np.linalg.solve(curvature + 1e-12 * np.eye(free), gradient)
        while (value := likelihood(curve + step)) < best and np.abs(step).max() > 1e-12:
            step /= 2
        if value < best or np.abs(step).max() < 1e-12:
            break
        curve, best = curve + step, value
    return curve


def _log_odds(probability: Floats) -> Floats:
    near = np.clip(probability, _NEAREST, 1 - _NEAREST)
    odds: Floats = np.log(near) - np.log1p(-near)
    return odds


def _logistic(odds: Floats) -> Floats:
    share: Floats = np.exp(-np.logaddexp(0.0, -odds))
    return share

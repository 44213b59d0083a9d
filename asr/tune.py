"""Decoder settings from a dev manifest: emissions once, then language model weight, word bonus and beam by search.

Where a network rescores, its share is found last, on the hypotheses of the best search.

Every setting decodes the same emissions. The one with the fewest word errors wins; of equals the one with the fewest
character errors, then the one in the middle of them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asr import calibration, confidence, ctc, files, manifest
from asr.calibration import Calibration
from asr.ctc import Hypothesis
from asr.decode import settings
from asr.decode.beam import BeamSearch
from asr.decode.rescore import NBEST, Rescorer, reranked
from asr.errors import InputError
from asr.lstm_lm import model as lstm_lm
from asr.recognizer import Recognizer
from asr.score import Comparison, compare, score

LM_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
WORD_BONUSES = (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
BEAMS = (16, 50, 100)
RESCORE_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting and its word and character errors (shares of the references' words and characters)."""

    lm_weight: float
    word_bonus: float
    beam: int
    wer: float
    cer: float


@dataclasses.dataclass(frozen=True)
class Share:
    """One share of a network in rescoring and its word and character errors, as in `Trial`."""

    rescore_weight: float
    wer: float
    cer: float


@dataclasses.dataclass(frozen=True)
class Rescoring:
    """All shares of the network, the best of them, and how it compares with the search alone."""

    shares: list[Share]
    best: Share
    gain: Comparison


@dataclasses.dataclass(frozen=True)
class Tuning:
    """All trials, the best of them, and how the best compares with greedy decoding of the same emissions.

    `curve` calibrates the words of the best settings. `rescoring`: what came of it, where a network rescores; the
    comparison with greedy decoding is of the search alone.
    """

    trials: list[Trial]
    best: Trial
    gain: Comparison
    curve: Calibration
    rescoring: Rescoring | None = None

    def chosen(self) -> dict[str, Any]:
        """The best settings, as `asr.decode.settings.build` takes them."""
        return _settings(self.best) | ({"rescore_weight": self.rescoring.best.rescore_weight} if self.rescoring else {})

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        found = {
            "best": dataclasses.asdict(self.best),
            "greedy_and_best": self.gain.to_json(),
            "calibration": self.curve.to_json(),
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
        }
        if self.rescoring is None:
            return found
        return found | {
            "rescoring": {
                "best": dataclasses.asdict(self.rescoring.best),
                "search_and_best": self.rescoring.gain.to_json(),
                "shares": [dataclasses.asdict(share) for share in self.rescoring.shares],
            }
        }


@dataclasses.dataclass(frozen=True)
class Spoken:
    """A dev set: what was said, what the model makes of it `(frames, tokens)`, its tokens, how texts are compared."""

    references: list[str]
    emissions: list[Tensor]
    tokens: list[str]
    normalizer: str


def listen(
    recognizer: Recognizer,
    path: Path,
    channel: int | None = None,
    batch_seconds: float = 120.0,
    advance: Callable[[], None] = lambda: None,
) -> Spoken:
    """The emissions of a manifest, computed once; arguments as in `asr.evaluate.evaluate`.

    Raises:
        InputError: a line has no reference, or a recording can't be read.
    """
    utterances = manifest.read(path)
    references = [utterance.text for utterance in utterances if utterance.text is not None]
    if not utterances or len(references) < len(utterances):
        raise InputError(f"{path}: every utterance needs its reference (key 'text') to tune on", status=2)
    if not any(text.split() for text in references):
        raise InputError(f"{path}: no word in its references; nothing to tune on", status=2)
    emissions = []
    for one in recognizer.emissions_many(utterances, channel, batch_seconds):
        emissions.append(one.log_probs)
        advance()
    return Spoken(references, emissions, recognizer.tokens, recognizer.card["normalizer"])


def tune(
    spoken: Spoken,
    options: Mapping[str, Any],
    *,
    lm_weights: Sequence[float] = LM_WEIGHTS,
    word_bonuses: Sequence[float] = WORD_BONUSES,
    beams: Sequence[int] = BEAMS,
    rescore_weights: Sequence[float] = RESCORE_WEIGHTS,
    advance: Callable[[], None] = lambda: None,
) -> Tuning:
    """Find the settings for a language model on a dev set.

    Weights and bonuses are tried with the widest of `beams`, all pairs of them and then the pairs half a step around
    the best; the smaller beams are tried with the best pair, and the smallest that is no worse is taken.

    Args:
        spoken: the dev set.
        options: what is not searched for, as `asr.decode.settings.build` takes it; with ``lm``.
        lm_weights: factors on the language model's logarithms, ascending.
        word_bonuses: nats a word, ascending.
        beams: prefixes kept after every frame, ascending.
        rescore_weights: shares of the network that ``rescore`` in `options` names, ascending.
        advance: called after every trial.

    Raises:
        InputError: no language model is given, or the search refuses the settings.
    """
    search = settings.search(spoken.tokens, options)
    tried: dict[tuple[float, float, int], Trial] = {}

    def attempt(weight: float, bonus: float, beam: int) -> Trial:
        key = (weight, bonus, beam)
        if key not in tried:
            found = _decode(search.with_settings(lm_weight=weight, word_bonus=bonus, beam=beam), spoken)
            tried[key] = Trial(*key, *_rates(spoken, [one.text for one in found]))
            advance()
        return tried[key]

    widest = max(beams)
    for weight, bonus in itertools.product(lm_weights, word_bonuses):
        attempt(weight, bonus, widest)
    best = _best(tried.values())
    near = itertools.product(_around(best.lm_weight, lm_weights), _around(best.word_bonus, word_bonuses))
    best = _best([best, *(attempt(weight, bonus, widest) for weight, bonus in near)])
    smaller = [attempt(best.lm_weight, best.word_bonus, beam) for beam in beams]
    best = min((trial for trial in smaller if trial.wer <= best.wer), key=lambda trial: trial.beam)
    chosen = search.with_settings(lm_weight=best.lm_weight, word_bonus=best.word_bonus, beam=best.beam)
    greedy = [ctc.greedy(row[None], torch.tensor([len(row)]), spoken.tokens)[0].text for row in spoken.emissions]
    found, rescoring = _decode(chosen, spoken), None
    gain = compare(spoken.references, greedy, [one.text for one in found], normalizer=spoken.normalizer)
    if "rescore" in options and best.lm_weight:  # at weight 0 no language model has a say
        decoder = settings.build(spoken.tokens, dict(options) | _settings(best))
        assert isinstance(decoder, Rescorer)
        found, rescoring = _rescore(decoder, spoken, rescore_weights, advance)
    judged = confidence.judge(spoken.references, [confidence.sureness(one) for one in found], spoken.normalizer)
    return Tuning(list(tried.values()), best, gain, calibration.fit(judged.probability, judged.right), rescoring)


def _settings(trial: Trial) -> dict[str, Any]:
    """What a trial tried, by the names of `BeamSearch`."""
    return {"beam": trial.beam, "lm_weight": trial.lm_weight, "word_bonus": trial.word_bonus}


def _rescore(
    decoder: Rescorer, spoken: Spoken, weights: Sequence[float], advance: Callable[[], None]
) -> tuple[list[Hypothesis], Rescoring]:
    """What is heard with the best share of the network, none if none is better; scores are computed once."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        lists = list(pool.map(decoder.candidates, spoken.emissions))

    def heard(weight: float) -> list[Hypothesis]:
        return [reranked(found, terms, weight)[0] for found, terms in lists]

    shares = []
    for weight in sorted({0.0, *weights}):
        shares.append(Share(weight, *_rates(spoken, [one.text for one in heard(weight)])))
        advance()
    fewest = min((share.wer, share.cer) for share in shares)
    equals = [share for share in shares if (share.wer, share.cer) == fewest]
    best = equals[0] if not equals[0].rescore_weight else equals[(len(equals) - 1) // 2]
    found = heard(best.rescore_weight)
    alone, rescored = ([one.text for one in side] for side in (heard(0.0), found))
    gain = compare(spoken.references, alone, rescored, normalizer=spoken.normalizer)
    return found, Rescoring(shares, best, gain)


def check(
    tokens: Sequence[str],
    options: Mapping[str, Any],
    lm_weights: Sequence[float],
    word_bonuses: Sequence[float],
    beams: Sequence[int],
    rescore_weights: Sequence[float] = RESCORE_WEIGHTS,
) -> BeamSearch:
    """The search that `tune` begins with; refuses what it would refuse before the dev set is listened to.

    Raises:
        InputError: no language model is given, or the search refuses the settings (status 2).
    """
    if "lm" not in options:
        raise InputError("without a language model there is no weight to find; add --lm", status=2)
    settings.refuse_unused(options)
    search = settings.search(tokens, options)
    if "rescore" in options:
        network, first = lstm_lm.named(options["rescore"]), search.with_settings(lm_weight=max(lm_weights))
        for weight in rescore_weights:
            Rescorer(first, network, weight, options.get("rescore_nbest", NBEST))
    for name, values in (("lm_weight", lm_weights), ("word_bonus", word_bonuses), ("beam", beams)):
        for value in values:
            search.with_settings(**{name: value})
    return search


def trials(
    lm_weights: Sequence[float],
    word_bonuses: Sequence[float],
    beams: Sequence[int],
    rescore_weights: Sequence[float] = (),
) -> int:
    """How many trials `tune` makes at most."""
    return len(lm_weights) * len(word_bonuses) + 8 + len(beams) + len(rescore_weights)


def _decode(search: BeamSearch, spoken: Spoken) -> list[Hypothesis]:
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return [found[0] for found in pool.map(search.decode, spoken.emissions)]


def _rates(spoken: Spoken, heard: list[str]) -> tuple[float, float]:
    word, character = (
        score(spoken.references, heard, unit=unit, normalizer=spoken.normalizer, bootstrap=0).rate
        for unit in ("word", "character")
    )
    return word, character


def _best(found: Sequence[Trial] | Any) -> Trial:
    """The trial with the fewest errors; of equals the one in the middle of them."""
    fewest = min((trial.wer, trial.cer) for trial in found)
    equals = sorted(
        (trial for trial in found if (trial.wer, trial.cer) == fewest),
        key=lambda trial: (trial.lm_weight, trial.word_bonus),
    )
    return equals[(len(equals) - 1) // 2]


def _around(value: float, grid: Sequence[float]) -> list[float]:
    """A value of a grid, and those half-way to its neighbours there."""
    place = list(grid).index(value)
    neighbours = [*grid[max(0, place - 1) : place], *grid[place + 1 : place + 2]]
    return sorted([value, *((value + other) / 2 for other in neighbours)])


def draw(tuning: Tuning, path: Path) -> None:
    """The word error rates over weight and bonus as a picture, the best one marked.

    Raises:
        AsrError: the picture can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widest = max(trial.beam for trial in tuning.trials)
    shown = [trial for trial in tuning.trials if trial.beam == widest]
    weights, bonuses = (sorted({getattr(trial, name) for trial in shown}) for name in ("lm_weight", "word_bonus"))
    rates = torch.full((len(bonuses), len(weights)), float("nan"))
    for trial in shown:
        rates[bonuses.index(trial.word_bonus), weights.index(trial.lm_weight)] = 100 * trial.wer
    figure = Figure(figsize=(1.5 + 0.75 * len(weights), 1.5 + 0.45 * len(bonuses)), layout="constrained")
    axes = figure.subplots()
    low = 100 * tuning.best.wer
    high = max(low + 1, 2 * low)
    picture = axes.imshow(rates.numpy(), cmap="viridis_r", origin="lower", aspect="auto", vmin=low, vmax=high)
    for (row, column), rate in ((place, float(rates[place])) for place in itertools.product(*map(range, rates.shape))):
        if rate == rate:
            dark = rate > (low + high) / 2
            axes.text(column, row, f"{rate:.1f}", ha="center", va="center", color="white" if dark else "black")
    place = weights.index(tuning.best.lm_weight), bonuses.index(tuning.best.word_bonus)
    axes.plot(*place, marker="s", markersize=26, markerfacecolor="none", markeredgecolor="tab:red", markeredgewidth=2)
    axes.set(xticks=range(len(weights)), yticks=range(len(bonuses)), xlabel="language model weight")
    axes.set(
        xticklabels=[f"{w:g}" for w in weights], yticklabels=[f"{b:g}" for b in bonuses], ylabel="word bonus (nats)"
    )
    axes.set_title(f"dev WER, %: best {low:.2f} (red), greedy {100 * tuning.gain.a.rate:.2f}")
    figure.colorbar(picture, label="%", extend="max")
    with files.atomic(path) as file:
        FigureCanvasAgg(figure).print_png(file)

"""Draw what a CTC model says of a short recording, and what the beam search makes of it frame by frame.

    python scripts/draw_ctc.py --out docs/ctc_prefixes.png

Above: the probabilities of the tokens over time, and the greedy path. Below: the prefixes of the beam behind each
frame, each as high as its share of the beam's probability. The recording and the small model are those of the tests.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from torch import Tensor

import asr
from asr.decode.beam import BeamSearch
from asr.decode.search import ALIVE
from asr.text import BLANK

DATA = Path(__file__).parent.parent / "tests" / "data"
RECORDING, MODEL = DATA / "fsdd" / "2_lucas_2.flac", DATA / "model_v1.safetensors"
SHOWN = 0.1  # highest probability from which a token has a line
NAMED = 0.045  # share from which a prefix has a bar of its own
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # Okabe and Ito: for the colour-blind too
MARKERS = "os^Dv*"


class Prefix(NamedTuple):
    """A prefix of the beam: its tokens, and the probabilities of its alignments that end in a blank and in a label."""

    text: str
    blank: float
    label: float


def beams(search: BeamSearch, log_probs: Tensor | np.ndarray) -> list[list[Prefix]]:
    """The beam behind every frame, most probable prefix first.

    Args:
        search: without language model, bonus and hot words, else these are in the sums.
        log_probs: `(frames, tokens)`.
    """
    stream, texts, found = search.stream(), search.vocabulary, []
    for row in log_probs:
        stream.feed(row[None])
        alive, factor = int(stream._counts[ALIVE]), float(np.exp(stream._scale[0]))
        beam = [
            Prefix(
                "".join(texts._texts[token] for token in stream._path(i)["token"]),
                float(stream._space.beam.blank[i]) * factor,
                float(stream._space.beam.label[i]) * factor,
            )
            for i in range(alive)
        ]
        found.append(sorted(beam, key=lambda one: -(one.blank + one.label)))
    return found


def main() -> None:
    """Compute and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot

    recognizer = asr.load(MODEL, device="cpu")
    [heard] = recognizer.emissions_many([RECORDING])
    figure, (above, below) = pyplot.subplots(
        2, figsize=(7.5, 7), sharex=True, layout="constrained", height_ratios=[1, 1.25]
    )
    draw_tokens(above, heard.log_probs.exp().numpy(), recognizer.tokens)
    draw_beams(below, beams(BeamSearch(recognizer.tokens), heard.log_probs))
    below.set_xlabel(f"frame ({1000 * recognizer.frame_seconds:.0f} ms each)")
    figure.savefig(options.out, dpi=150, metadata={"Software": None})


def draw_tokens(axes: Any, probs: np.ndarray, tokens: list[str]) -> None:
    """A line for each token that is ever probable, named at its peak; the greedy path below."""
    frames = np.arange(len(probs))
    axes.fill_between(frames, probs[:, 0], color="0.85", linewidth=0, zorder=0)
    axes.plot(frames, probs[:, 0], color="0.45", linestyle="--", linewidth=1)
    quiet = int(np.flatnonzero(probs[:, 0] > 0.99)[-1])
    axes.annotate("blank", (quiet, 0.88), ha="center", va="top", color="0.3", fontsize=11)
    shown = sorted(
        (token for token in range(1, len(tokens)) if probs[:, token].max() >= SHOWN),
        key=lambda token: probs[:, token].argmax(),
    )
    for number, token in enumerate(shown):
        colour, peak = COLOURS[number], int(probs[:, token].argmax())
        seen = frames[probs[:, token] >= 0.02]
        axes.plot(frames, probs[:, token], color=colour, linewidth=1.8)
        axes.plot(seen, probs[seen, token], color=colour, linestyle="", marker=MARKERS[number], markersize=6)
        axes.annotate(
            tokens[token], (peak, probs[peak, token]), (0, 6), textcoords="offset points", ha="center",
            color=colour, fontsize=13, fontweight="bold",
        )  # fmt: skip
    path = [tokens[token] for token in probs.argmax(1)]
    for frame, token in enumerate(path):
        axes.annotate(
            "–" if token == BLANK else token, (frame, -0.1), ha="center", va="center", fontsize=12,
            fontweight="normal" if token == BLANK else "bold", annotation_clip=False,
        )  # fmt: skip
    axes.annotate("greedy", (-0.65, -0.1), ha="right", va="center", fontsize=10, annotation_clip=False)
    axes.set(ylabel="probability", ylim=(0, 1.1), xlim=(-0.5, len(probs) - 0.5))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.tick_params(axis="x", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def draw_beams(axes: Any, found: list[list[Prefix]]) -> None:
    """A column a frame: the prefixes by share; blue, the darker the longer, those that the best one begins with."""
    from matplotlib import colormaps

    last = found[-1][0].text
    for frame, beam in enumerate(found):
        whole = sum(one.blank + one.label for one in beam)
        shares = {one.text: (one.blank + one.label) / whole for one in beam}
        named = [text for text, share in shares.items() if share >= NAMED]
        bottom = 0.0
        for text in sorted(named, key=lambda text: (not last.startswith(text), text)):
            way, done = last.startswith(text), len(text) / len(last)
            colour = colormaps["Blues"](0.15 + 0.75 * done) if way else "0.93"
            axes.bar(frame, shares[text], 0.9, bottom, color=colour, edgecolor="white", linewidth=0.8)
            axes.annotate(
                text or "(none)", (frame, bottom + shares[text] / 2), ha="center", va="center",
                fontsize=10 if shares[text] > 0.06 else 8, color="white" if way and done > 0.6 else "black",
            )  # fmt: skip
            bottom += shares[text]
        axes.bar(frame, 1 - bottom, 0.9, bottom, color="white", edgecolor="0.6", hatch="////", linewidth=0.8)
        if frame == len(found) - 1:
            axes.annotate(
                "others", (frame, (1 + bottom) / 2), ha="center", va="center", fontsize=10,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )  # fmt: skip
    axes.set(ylabel="share of the beam", ylim=(0, 1), xticks=range(len(found)))
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()

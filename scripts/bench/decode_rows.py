"""The rows of `decode.py`: what is measured, with what settings, and what is aimed at."""

import dataclasses
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import decode_data as data
import numpy as np
from decode_sides import Emissions, Peers, Side, compared, error_rate, in_turn, ours, ratio, spread

from asr.decode.beam import BeamSearch
from asr.decode.hotwords import count
from asr.decode.lexicon import Lexicon
from asr.decode.ngram import NGram

TOKEN_MIN = -5.0
LONG = 30_000  # frames, 20 minutes
WEIGHTS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0)  # of hot words, nats
HOT_WORDS = 1000

FIRST_CALL = """
import sys, time, json, numpy as np
begun = time.process_time()
from asr.decode.beam import BeamSearch
from asr.decode.ngram import NGram
imported = time.process_time()
emissions, tokens, arpa = np.load(sys.argv[1])["0"], json.loads(sys.argv[2]), sys.argv[3]
search = BeamSearch(tokens, NGram.load(arpa) if arpa else None)
times = [time.process_time()]
for _ in range(2):
    search.decode(emissions)
    times.append(time.process_time())
print(json.dumps([imported - begun, times[0] - imported, times[1] - times[0], times[2] - times[1]]))
"""


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all rows share: a folder for what is made once, the peers, sizes."""

    work: Path
    peers: Peers | None
    texts: data.Texts
    rounds: int
    frames: int = LONG

    @cached_property
    def arpa(self) -> Path:
        """The word 3-gram's file, which all read."""
        return data.language_model(self.texts.train, self.work / "words.arpa")

    @cached_property
    def words(self) -> list[str]:
        """Its words."""
        return data.arpa_words(self.arpa)

    @cached_property
    def lm(self) -> NGram:
        """It as we read it."""
        return NGram.load(self.arpa)

    @cached_property
    def characters(self) -> Emissions:
        """The test sentences in characters."""
        return self._emissions(self.texts.test, "characters", data.CHARACTERS, data.encode_characters)

    @cached_property
    def pieces(self) -> Emissions:
        """The test sentences in pieces of words."""
        pieces = data.Pieces.kept(self.texts.train, self.work / "pieces.json")
        return self._emissions(self.texts.test, "pieces", pieces.tokens, pieces.encode)

    @cached_property
    def hot(self) -> Emissions:
        """The sentences with rare words, and then the test sentences, in characters."""
        sentences = self.texts.hot + self.texts.test
        return self._emissions(sentences, "characters", data.CHARACTERS, data.encode_characters, "hot")

    def _emissions(
        self, texts: list[str], kind: str, tokens: list[str], encode: Callable[[str], list[int]], name: str = ""
    ) -> Emissions:
        arrays = data.Simulator(tokens, encode, data.HEARING[kind])(texts, seed=1)
        return Emissions(arrays, texts, tokens, self.work / f"{name or kind}.npz")

    def side(self, peer: str, emissions: Emissions, **options: Any) -> list[Side]:
        """A peer, where there are any."""
        return [self.peers.side(peer, emissions, **options)] if self.peers else []

    @property
    def model(self) -> dict[str, Any]:
        """The language model as peers take it."""
        return {"arpa": str(self.arpa.absolute()), "words": self.words}


def goal(what: str, value: float, limit: float, least: bool = False) -> dict[str, Any]:
    """What was aimed at (at most `limit`, or at least), and whether it was reached."""
    reached = value >= limit if least else value <= limit
    return {"what": what, "value": round(value, 3), "at least" if least else "at most": limit, "reached": reached}


def goals_of_ratio(row: dict[str, Any], limit: float, own: str = "asr") -> list[dict[str, Any]]:
    """Time against the fastest peer, and errors against it."""
    mine = {name: each["median"] for name, each in row["ratios"].items() if name.startswith(f"{own} / ")}
    if not mine:
        return []
    slowest = max(mine, key=lambda name: mine[name])
    peer = slowest.removeprefix(f"{own} / ")
    errors = row["sides"][peer]["wer"]
    return [goal(f"time / {peer}", mine[slowest], limit), goal("WER, %", row["sides"][own]["wer"], errors)]


def characters(bench: Bench, beam: int) -> dict[str, Any]:
    """No language model, 29 characters, tokens pruned alike."""
    sides = [ours("asr", bench.characters, beam=beam, token_min=TOKEN_MIN)]
    sides += bench.side("fast-ctc-decode", bench.characters, beam=beam, cut=math.exp(TOKEN_MIN))
    row = compared(sides, bench.characters, bench.rounds)
    worse = row["search"].get("asr worse than fast-ctc-decode")
    found = [] if worse is None else [goal("utterances with a less probable labelling", worse, 0)]
    return row | {"goals": goals_of_ratio(row, 0.75)[:1] + found}


def pieces(bench: Bench) -> dict[str, Any]:
    """No language model, 500 pieces of words; one peer's threshold has to stay under 1 / tokens."""
    cut = 0.9 / len(bench.pieces.tokens)
    sides = [
        ours("asr", bench.pieces, beam=50, token_min=TOKEN_MIN),
        ours("asr, pruned as fast-ctc-decode", bench.pieces, beam=50, token_min=math.log(cut)),
        *bench.side("fast-ctc-decode", bench.pieces, beam=50, cut=cut),
        *bench.side("ctc-beam-decoder", bench.pieces, beam=50),
    ]
    row = compared(sides, bench.pieces, bench.rounds)
    return row | {"goals": goals_of_ratio(row, 0.1)}


def words_open(bench: Bench) -> dict[str, Any]:
    """Word 3-gram, any word, each with its own pruning (the same numbers)."""
    sides = [
        ours("asr", bench.characters, lm=bench.lm),
        *bench.side("ctc-beam-decoder", bench.characters, beam=100, **bench.model),
        *bench.side("pyctcdecode", bench.characters, beam=100, rounds=1, **bench.model),
    ]
    row = compared(sides, bench.characters, bench.rounds)
    return row | {"goals": goals_of_ratio(row, 0.25)}


def words_lexicon(bench: Bench) -> dict[str, Any]:
    """Word 3-gram, only its words."""
    lexicon = Lexicon({word: [] for word in bench.words}, "words.arpa")
    same = {"lm_weight": 0.5 * math.log(10), "word_bonus": 1.5, **bench.model}
    sides = [ours("asr", bench.characters, lm=bench.lm, lexicon=lexicon)]
    for label, threshold, top in ((", not pruned", 1e9, 29), (", pruned", 25.0, 20), (", pruned as ours", 10.0, 8)):
        options = same | {"threshold": threshold, "token_top": top, "label": label}
        sides += bench.side("flashlight-text", bench.characters, beam=100, **options)
    row = compared(sides, bench.characters, bench.rounds)
    return row | {"goals": goals_of_ratio(row, 0.1)}


def long_input(bench: Bench) -> dict[str, Any]:
    """20 minutes in one piece against its utterances one by one, and what memory that takes."""
    short = bench.characters
    long = data.concatenated(short.arrays * (1 + bench.frames // short.frames), 1, bench.frames)
    whole = Emissions([long], [""], short.tokens, bench.work / "long.npz")
    row: dict[str, Any] = {"frames": len(long), "goals": []}
    for name, lm in (("no language model", None), ("3-gram", bench.lm)):
        sides = [ours("long", whole, lm=lm), ours("short", short, lm=lm)]
        sides[1].run()
        grown = growth(sides[0].run)
        measured = in_turn(sides, bench.rounds)
        us = {
            side.name: [1e6 * one / each.frames for one in measured[side.name][0]]
            for side, each in zip(sides, (whole, short), strict=True)
        }
        row[name] = {side: spread(values) for side, values in us.items()} | {"memory_mb": grown}
        row[name]["ratio"] = ratio(us["long"], us["short"])
        row["goals"].append(goal(f"time a frame, long / short, {name}", row[name]["ratio"]["median"], 1.2))
    return row


def growth(run: Callable[[], Any]) -> float | None:
    """The MB by which a call raises the highest resident memory; None where the system doesn't tell."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    # Some containers' kernels have the file and forget the peak all the same: seen with memory of a known size.
    known = _risen(lambda: np.ones(8 << 20).sum())
    return _risen(run) if known > 60 else None


def _risen(run: Callable[[], Any]) -> float:
    """The MB between the resident memory before a call and its peak, as /proc tells them."""

    def megabytes(field: str) -> float:
        status = Path("/proc/self/status").read_text().splitlines()
        return next((int(line.split()[1]) / 1024 for line in status if line.startswith(field)), 0.0)

    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = megabytes("VmRSS")
    run()
    return round(megabytes("VmHWM") - before, 1)


def threads(bench: Bench) -> dict[str, Any]:
    """Two threads over the utterances against one, by the clock: other work on the machine spoils it."""
    row: dict[str, Any] = {"goals": []}
    for name, lm in (("no language model", None), ("3-gram", bench.lm)):
        search = BeamSearch(bench.characters.tokens, lm=lm)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for number in range(bench.rounds + 1):
            for several, times in seconds.items():
                with ThreadPoolExecutor(several) as pool:
                    begun = time.perf_counter()
                    list(pool.map(search.decode, bench.characters.arrays))
                    if number:
                        times.append(time.perf_counter() - begun)
        faster = spread([one / two for one, two in zip(seconds[1], seconds[2], strict=True)])
        row[name] = {"one_by_two": faster, "fastest": round(min(seconds[1]) / min(seconds[2]), 3)}
        row["goals"].append(goal(f"one thread's time / two threads', {name}", faster["median"], 1.8, least=True))
    return row


def hot_words(bench: Bench) -> dict[str, Any]:
    """Rare words among a thousand hot ones, without and with the language model, at several weights."""
    planted = bench.texts.rare
    phrases = planted + bench.texts.others[: HOT_WORDS - len(planted)]
    row: dict[str, Any] = {"phrases": len(phrases), "planted": len(planted), "goals": []}
    for name, lm, least in (("no language model", None, 1.0), ("3-gram", bench.lm, 0.9)):
        plain = ours("none", bench.hot, lm=lm)
        heard = plain.run().texts
        table = {"none": told(bench, heard, phrases)}
        for weight in WEIGHTS:
            side = ours(f"{weight:g}", bench.hot, lm=lm, hot_words=dict.fromkeys(phrases, weight))
            table[side.name] = told(bench, side.run().texts, phrases)
        enough = [weight for weight in table if table[weight]["recall"] >= least] or list(table)[1:]
        best = min(enough, key=lambda weight: table[weight]["wer"])
        hot = ours("hot", bench.hot, lm=lm, hot_words=dict.fromkeys(phrases, float(best) if best != "none" else 1.0))
        measured = in_turn([hot, plain], bench.rounds)
        slower = ratio(measured["hot"][0], measured["none"][0])
        row[name] = {"by_weight": table, "best_weight": best, "ratio": slower}
        row["goals"] += [
            goal(f"time with hot words / without, {name}", slower["median"], 1.2),
            goal(f"recall, {name}", table[best]["recall"], least, least=True),
            goal(f"WER, %, {name}", table[best]["wer"], table["none"]["wer"]),
        ]
    return row


def told(bench: Bench, texts: Sequence[str], phrases: list[str]) -> dict[str, float]:
    """Recall of the planted words, errors, and hot words heard that nobody said."""
    wanted = dict.fromkeys(phrases, 1.0)
    said = hit = false = 0
    for reference, text in zip(bench.hot.texts, texts, strict=True):
        of, found = count(reference.split(), wanted), count(text.split(), wanted)
        said += sum(of.values())
        hit += sum((of & found).values())
        false += sum((found - of).values())
    recall = round(hit / max(1, said), 3)
    return {"recall": recall, "wer": error_rate(bench.hot.texts, list(texts)), "false_alarms": false}


def first_call(bench: Bench) -> dict[str, Any]:
    """The first call of a new process, compiled code in the cache, over the second; CPU seconds of all threads."""
    row: dict[str, Any] = {"goals": []}
    for name, arpa in (("no language model", ""), ("3-gram", str(bench.arpa))):
        command = [sys.executable, "-c", FIRST_CALL, str(bench.characters.path)]
        command += [json.dumps(bench.characters.tokens), arpa]
        times = [json.loads(subprocess.check_output(command)) for _ in range(6)][1:]
        parts = [round(statistics.median(one), 4) for one in zip(*times, strict=True)]
        row[name] = dict(zip(("import_s", "build_s", "first_s", "second_s"), parts, strict=True))
        row["goals"].append(goal(f"first call over the second, seconds, {name}", parts[2] - parts[3], 1.0))
    return row


ROWS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "characters_16": lambda bench: characters(bench, 16),
    "characters_100": lambda bench: characters(bench, 100),
    "pieces_50": pieces,
    "words_open": words_open,
    "words_lexicon": words_lexicon,
    "long_input": long_input,
    "threads": threads,
    "hot_words": hot_words,
    "first_call": first_call,
}

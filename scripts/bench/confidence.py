"""How honest word probabilities are, before and after calibration, on AN4: greedy and a tuned beam search.

    asr lm train data/an4/train.jsonl --normalizer basic -o an4.arpa
    asr tune -m runs/an4/seed1/model.safetensors --manifest data/an4/dev.jsonl --lm an4.arpa -o decoder.json
    python scripts/bench/confidence.py runs/an4/seed1/model.safetensors data/an4 --decoder decoder.json --out FILE

On dev each speaker's words are calibrated by a curve fitted on the other speakers; on test by the curve of all of dev.
"""

import argparse
import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
from recipe import hardware

import asr
from asr import calibration, confidence, manifest
from asr.confidence import Judged
from asr.decode import settings


def main() -> None:
    """Transcribe, calibrate, measure; print a line each and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path, help="folder with dev.jsonl, test.jsonl")
    parser.add_argument("--decoder", type=Path, required=True, help="decoder.json of `asr tune`")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = asr.load(options.model, "cpu")
    model.card["decoder"].pop("calibration", None)  # both decoders as heard
    tuned = {key: value for key, value in settings.read(options.decoder).items() if key != "calibration"}
    searches = {"greedy": None, "beam": settings.build(model.tokens, tuned)}
    record: dict[str, Any] = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "model": model.identity,
    }
    for name, search in searches.items():
        dev, speakers = heard(model, options.corpus / "dev.jsonl", search)
        test, _ = heard(model, options.corpus / "test.jsonl", search)
        curve = calibration.fit(dev.probability, dev.right)
        crossed = np.empty_like(dev.probability)
        for speaker in np.unique(speakers):
            own = speakers == speaker
            crossed[own] = calibration.fit(dev.probability[~own], dev.right[~own])(dev.probability[own])
        pairs = {
            "dev": (dev, Judged(crossed, dev.right)),
            "test": (test, Judged(curve(test.probability), test.right)),
        }
        record[name] = {"calibration": curve.to_json(), "dev_speakers": len(np.unique(speakers))} | {
            split: {kind: measured(one, kind) for kind, one in zip(("before", "after"), pair, strict=True)}
            for split, pair in pairs.items()
        }
        for split in pairs:
            print(name, split, *(f"\n  {confidence.measure(one, bool(n))}" for n, one in enumerate(pairs[split])))
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def heard(model: Any, path: Path, search: Any) -> tuple[Judged, Any]:
    """The words heard in a manifest, right or wrong, and the speaker of each."""
    utterances = manifest.read(path)
    found = model.transcribe_many(utterances, search)
    parts = [
        confidence.judge([one.text or ""], [[(w.word, w.probability) for w in said.words]], model.card["normalizer"])
        for one, said in zip(utterances, found, strict=True)
    ]
    speakers = [one.speaker for one, part in zip(utterances, parts, strict=True) for _ in part.right]
    return Judged(*(np.concatenate([getattr(p, k) for p in parts]) for k in ("probability", "right"))), np.array(
        speakers
    )


def measured(judged: Judged, kind: str) -> dict[str, Any]:
    """The figures, and the error over ten bins of equal width too."""
    place = np.minimum((judged.probability * 10).astype(int), 9)
    gaps = np.bincount(place, judged.right - judged.probability)
    equal_width = float(np.abs(gaps).sum() / len(place))
    return confidence.measure(judged, kind == "after").to_json() | {"calibration_error_equal_width": equal_width}


if __name__ == "__main__":
    main()

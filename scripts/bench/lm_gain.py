r"""What a language model of the training texts gives a trained model: tuned on dev, read once on test.

    asr train recipe=an4
    python scripts/bench/lm_gain.py runs/an4/seed1/model.safetensors data/an4 --out docs/results/an4_lm.json

    OMP_NUM_THREADS=1 asr lm train --lstm data/an4/train.jsonl -o lstm.safetensors --normalizer basic \
        --dev data/an4/dev.jsonl --epochs 40 --batch 256 --hidden 256 --dropout 0.3 --lr 0.004
    python scripts/bench/lm_gain.py runs/an4/seed1/model.safetensors data/an4 --rescore lstm.safetensors \
        --out docs/results/an4_lstm_lm.json

Trains a 3-gram on the training texts, finds weight, bonus and beam on dev, and compares greedy decoding with the tuned
search on the test set by a paired bootstrap over utterances. With --rescore an LSTM language model rescores the
hypotheses of the tuned search, its share found on dev as well, and the two are compared; the default share, which
nobody chose by these sets, is measured beside it.
"""

import argparse
import datetime
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from recipe import hardware

import asr
from asr import ctc, lm, tune
from asr.decode import settings
from asr.decode.rescore import WEIGHT
from asr.score import compare


def main() -> None:
    """Train, tune, decode, compare; print the comparison and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path, help="folder with train.jsonl, dev.jsonl, test.jsonl")
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--rescore", type=Path, help="LSTM language model")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model = asr.load(options.model, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        arpa = Path(folder) / "words.arpa"
        made = lm.train(
            [options.corpus / "train.jsonl"],
            arpa,
            order=options.order,
            normalizer=model.card["normalizer"],
            fallback=True,
        )
        files = {"lm": arpa} | ({"rescore": options.rescore} if options.rescore else {})
        tuning = tune.tune(tune.listen(model, options.corpus / "dev.jsonl"), files)
        search = settings.search(model.tokens, files | tuning.chosen())
        rescorers = {}
        for name, share in (("rescored", tuning.chosen()), ("default_share", {"rescore_weight": WEIGHT})):
            if options.rescore:
                rescorers[name] = settings.build(model.tokens, files | tuning.chosen() | share)
        record: dict[str, Any] = {
            "command": "python " + shlex.join(sys.argv),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "hardware": hardware(),
            "model": model.identity,
            "lm": {"order": options.order, "sentences": made.sentences, "words": made.tokens, "ngrams": made.ngrams},
            "dev": tuning.to_json(),
        }
        for name, rescorer in rescorers.items():
            record[name] = {key: value for key, value in rescorer.settings.items() if key.startswith("rescore")}
        for split in ("dev", "test"):
            record |= {f"{split}_result": measure(model, options.corpus / f"{split}.jsonl", search, rescorers)}
    print(f"dev, on which it was tuned:\n{tuning.gain}\ntest: {json.dumps(record['test_result'], indent=1)}")
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure(model: Any, path: Path, search: Any, rescorers: dict[str, Any]) -> dict[str, Any]:
    """Both decoders, and the search as each of `rescorers` rescores it, on the same emissions of a manifest."""
    spoken = tune.listen(model, path)
    greedy, beam = [], []
    for row in spoken.emissions:
        greedy += ctc.greedy(row[None], length_of(row), model.tokens)
        beam.append(search.decode(row)[0])
    first, second = ([one.text for one in found] for found in (greedy, beam))
    found = {"greedy_and_beam": compare(spoken.references, first, second, normalizer=spoken.normalizer).to_json()}
    for name, rescorer in rescorers.items():
        rescored = [rescorer.decode(row)[0].text for row in spoken.emissions]
        found[f"beam_and_{name}"] = compare(spoken.references, second, rescored, normalizer=spoken.normalizer).to_json()
    return found


def length_of(row: Any) -> Any:
    """The number of frames as the batch of one that `greedy` takes."""
    return row.new_tensor([len(row)]).long()


if __name__ == "__main__":
    main()

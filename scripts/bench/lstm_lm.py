"""An LSTM language model of the books against the 3-gram, on the two books that were held out.

    zcat books.txt.gz | head -n -12792 > train.txt
    OMP_NUM_THREADS=1 asr lm train --lstm train.txt -o lstm.safetensors --epochs 1 --dropout 0
    python scripts/bench/lstm_lm.py books.txt.gz lstm.safetensors --out docs/results/lstm_lm_text.json

The split and the 3-gram are those of `lm_text.py`. Both models have the same vocabulary, all words of the training
text, which is checked; both start every sentence anew and foresee its end; and the perplexity is also given with the
unknown words of the LSTM at the price that the 3-gram puts on them, so that they can't decide the comparison.
"""

import argparse
import datetime
import gzip
import json
import math
import shlex
import sys
import tempfile
import time
from pathlib import Path

import torch
from recipe import hardware

from asr import lm
from asr.decode.ngram import NGram
from asr.lstm_lm.model import LanguageModel


def main() -> None:
    """Print the figures, and write them where --out says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("books", type=Path)
    parser.add_argument("lstm", type=Path, help="trained on all lines but those held out")
    parser.add_argument("--held-out", type=int, default=12_792, help="lines at the end (the last two books)")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        lines = gzip.decompress(options.books.read_bytes()).splitlines(keepends=True)
        train, held_out = Path(folder, "train.txt"), Path(folder, "held_out.txt")
        train.write_bytes(b"".join(lines[: -options.held_out]))
        held_out.write_bytes(b"".join(lines[-options.held_out :]))
        lm.train([train], Path(folder, "3.arpa"), order=3)
        ngram, lstm = NGram.load(Path(folder, "3.arpa")), LanguageModel.load(options.lstm)
        if set(ngram.words) - {"<s>"} != set(lstm.words):
            raise SystemExit(f"{options.lstm}: not trained on this text: its vocabulary is another one")
        by_ngram = ngram.perplexity(lm.sentences([held_out]))
        begun = time.perf_counter()
        by_lstm = lstm.perplexity(lm.sentences([held_out]))
        seconds = time.perf_counter() - begun
    events = by_lstm.words + by_lstm.sentences
    as_priced = by_lstm.logprob - by_lstm.unknown_logprob + by_ngram.unknown_logprob
    record = {
        "command": "python " + shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "words": len(lstm.words),
        "parameters": sum(parameter.numel() for parameter in lstm.network.parameters()),
        "megabytes": round(options.lstm.stat().st_size / 1e6, 1),
        "card": LanguageModel.card(options.lstm),
        "3-gram": by_ngram.to_json(),
        "lstm": by_lstm.to_json() | {"seconds": round(seconds, 1)},
        "lstm_perplexity_with_unknown_words_as_the_3-gram_prices_them": math.exp(-as_priced / events),
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The other decoders of `decode.py`, in an environment of their own: a process that takes orders, one a line of JSON.

    {"make": KEY, "peer": NAME, "tokens": [...], "options": {...}}    {"version": ...}
    {"run": KEY, "emissions": FILE, "first": N}    {"seconds": ..., "texts": [...], "labels": [[...], ...] or null}

An answer a line. Seconds are CPU time of the calling thread, of the decoders' calls alone. The emissions, an `.npz` of
arrays `(frames, tokens)` named 0, 1, 2, ..., are read once. This file knows nothing of `asr`.
"""

import ctypes
import functools
import gc
import importlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np

Decode = Callable[[np.ndarray], tuple[str, list[int] | None]]  # emissions -> text, token numbers


def main() -> None:
    """Answer until there are no more orders; what the decoders print goes to standard error."""
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    decoders: dict[str, tuple[Decode, Callable[[np.ndarray], np.ndarray]]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "make" in order:
            make, package, prepare = PEERS[order["peer"]]
            decoders[order["make"]] = make(order["tokens"], **order["options"]), prepare
            answer: dict[str, Any] = {"version": version(package)}
        else:
            decode, prepare = decoders[order["run"]]
            answer = run(decode, [prepare(one) for one in emissions(order["emissions"])[: order["first"]]])
        print(json.dumps(answer), file=answers, flush=True)


@functools.cache
def emissions(path: str) -> list[np.ndarray]:
    """The arrays of a file."""
    with np.load(path) as arrays:
        return [np.ascontiguousarray(arrays[str(number)]) for number in range(len(arrays.files))]


def run(decode: Decode, inputs: list[np.ndarray]) -> dict[str, Any]:
    """Decode all, and how long it took."""
    gc.collect()
    begun = time.thread_time()
    found = [decode(one) for one in inputs]
    seconds = time.thread_time() - begun
    labels = [labels for _, labels in found]
    return {"seconds": seconds, "texts": [text for text, _ in found], "labels": None if None in labels else labels}


def as_they_are(log_probs: np.ndarray) -> np.ndarray:
    """Emissions as most decoders take them."""
    return log_probs


def joined(pieces: list[str]) -> str:
    """The text of tokens, `|` the boundary of words."""
    return " ".join("".join(pieces).replace("|", " ").split())


def fast_ctc_decode(tokens: list[str], beam: int, cut: float) -> Decode:
    """No language model; `cut` is the probability below which a token is not tried, less than 1 / tokens."""
    library = importlib.import_module("fast_ctc_decode")
    signs = "".join(chr(0x4E00 + number) for number in range(len(tokens)))

    def decode(probs: np.ndarray) -> tuple[str, list[int] | None]:
        labels = [ord(sign) - 0x4E00 for sign in library.beam_search(probs, signs, beam, cut)[0]]
        return joined([tokens[label] for label in labels]), labels

    return decode


def spoken(tokens: list[str]) -> list[str]:
    """The tokens as the two decoders below want them: no blank's name, a space or a mark for the boundary."""
    return ["", *(" " if token == "|" else token.replace("|", "\u2581") for token in tokens[1:])]


def pyctcdecode(tokens: list[str], beam: int, arpa: str | None = None, words: list[str] | None = None) -> Decode:
    """With its own pruning, weights and cost of unknown words; the language model is kenlm's."""
    library = importlib.import_module("pyctcdecode")
    decoder = library.build_ctcdecoder(spoken(tokens), kenlm_model_path=arpa, unigrams=words)
    return lambda log_probs: (decoder.decode(log_probs, beam_width=beam), None)


def ctc_beam_decoder(tokens: list[str], beam: int, arpa: str | None = None, words: list[str] | None = None) -> Decode:
    """With its own pruning, weights and cost of unknown words."""
    library = importlib.import_module("ctc_beam_decoder")
    decoder = library.BeamSearchDecoder(spoken(tokens), kenlm_model_path=arpa, unigrams=words)
    return lambda log_probs: (decoder.decode(log_probs, beam_width=beam), None)


def flashlight(
    tokens: list[str],
    beam: int,
    arpa: str,
    words: list[str],
    threshold: float,
    token_top: int,
    lm_weight: float,
    word_bonus: float,
) -> Decode:
    """Only words of the lexicon; `lm_weight` is on the logarithms to base 10 that its model gives."""
    library = importlib.import_module("flashlight.lib.text.decoder")
    dictionary = importlib.import_module("flashlight.lib.text.dictionary").Dictionary([*words, "<unk>"])
    model = importlib.import_module("flashlight.lib.text.decoder.kenlm").KenLM(arpa, dictionary)
    edge, numbers = tokens.index("|"), {token: number for number, token in enumerate(tokens)}
    trie, start = library.Trie(len(tokens), edge), model.start(False)
    for word in words:
        number = dictionary.get_index(word)
        trie.insert([*(numbers[letter] for letter in word), edge], number, model.score(start, number)[1])
    trie.smear(library.SmearingMode.MAX)
    options = library.LexiconDecoderOptions(
        beam_size=beam,
        beam_size_token=token_top,
        beam_threshold=threshold,
        lm_weight=lm_weight,
        word_score=word_bonus,
        unk_score=-float("inf"),
        sil_score=0.0,
        log_add=True,
        criterion_type=library.CriterionType.CTC,
    )
    decoder = library.LexiconDecoder(options, trie, model, edge, 0, dictionary.get_index("<unk>"), [], False)
    kept = (trie, model, options)  # the decoder refers to them without holding them

    def decode(log_probs: np.ndarray) -> tuple[str, list[int] | None]:
        address = log_probs.ctypes.data_as(ctypes.c_void_p).value
        found = decoder.decode(address, *log_probs.shape) if kept else []
        return " ".join(dictionary.get_entry(word) for word in found[0].words if word >= 0) if found else "", None

    return decode


# How each is made, its package, and what it is given: probabilities or their logarithms, which is not timed.
PEERS: dict[str, tuple[Callable[..., Decode], str, Callable[[np.ndarray], np.ndarray]]] = {
    "fast-ctc-decode": (fast_ctc_decode, "fast-ctc-decode", np.exp),
    "pyctcdecode": (pyctcdecode, "pyctcdecode", as_they_are),
    "ctc-beam-decoder": (ctc_beam_decoder, "ctc-beam-decoder", as_they_are),
    "flashlight-text": (flashlight, "flashlight-text", as_they_are),
}

if __name__ == "__main__":
    main()

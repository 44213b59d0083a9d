"""An LSTM language model as a file and as a scorer of sentences.

    model = LanguageModel.load("lm.safetensors")
    model.logprob(["THE", "CAT", "SAT"])  # natural logarithm, the end of the sentence included

The file is safetensors (`asr.tensorfile`): the weights, the vocabulary as one tensor of UTF-8 bytes, a line a word, and
a JSON card with a closed list of keys. It comes from strangers: nothing in it names code, and sizes are checked before
anything is built.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asr import batches, checkpoint, files, tensorfile, text
from asr.card import check_json, check_keys
from asr.errors import InputError
from asr.lstm_lm.network import EOS, UNK, Network
from asr.perplexity import Perplexity
from asr.tensorfile import refusal, short

SPECIAL = ["</s>", "<unk>"]  # the first words, in the order of their numbers
MAX_WORDS = 2_000_000
_RANGES = {"words": (3, MAX_WORDS), "size": (1, 8_192), "hidden": (1, 8_192), "layers": (1, 32)}
_MOST_BYTES = 200_000_000  # of the vocabulary
_BATCH = 2_048  # words scored together, padding included
_WINDOW = 1_000  # sentences sorted by length together
_PIECE = 256  # frames whose probabilities are computed together
_KEYS = ("unit", "normalizer", "network", "unseen", "training")


class LanguageModel:
    """A trained network with its vocabulary.

    Args:
        network: the network, in evaluation mode from now on.
        words: the vocabulary, ``</s>`` and ``<unk>`` first.
        unit: what the words are: one of `asr.text.LM_UNITS`.
        normalizer: name of the normaliser that texts went through.
        unseen: what ``<unk>`` has at least: probabilities are a mixture of the network's, and of so much for ``<unk>``.
        sha256: of the file, in hexadecimal.
    """

    def __init__(
        self, network: Network, words: Sequence[str], unit: str, normalizer: str, unseen: float, sha256: str = ""
    ) -> None:
        self.network = network.eval()
        self.words = list(words)
        self.ids = {word: number for number, word in enumerate(words)}
        self.unit, self.normalizer, self.unseen, self.sha256 = unit, normalizer, unseen, sha256
        self._clean = text.normalizer(normalizer)
        self._floor = torch.tensor(unseen, dtype=torch.float64).log()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LanguageModel":
        """Read a model.

        Raises:
            InputError: no such model of this or an older version, cut, damaged, too large, or with a card that no
                `asr lm train` writes (status 2).
        """
        with tensorfile.opened(path) as (file, header):
            card = checkpoint.read_object(header, "asr-lm", "card", path)
            _check_card(card, path)
            entries = dict(header.tensors)
            listed = entries.pop("words", None)
            if listed is None or listed.dtype != torch.uint8 or not 0 < listed.end - listed.begin <= _MOST_BYTES:
                raise refusal(path, "its vocabulary is missing or no text; damaged")
            checkpoint.check_weights(entries, _expected(card["network"]), path)
            weights = tensorfile.read(file, header, path)
        words = _vocabulary(weights.pop("words"), card["network"]["words"], path)
        for name, tensor in weights.items():
            checkpoint.check_finite(name, tensor, path)
        network = Network(**card["network"])
        network.load_state_dict(weights)
        return cls(network, words, card["unit"], card["normalizer"], card["unseen"], files.sha256(path))

    @staticmethod
    def card(path: str | os.PathLike[str]) -> dict[str, Any]:
        """What a file tells of itself: unit, normaliser, network, facts on its training. Raises as `load`."""
        with tensorfile.opened(path) as (_, header):
            card = checkpoint.read_object(header, "asr-lm", "card", path)
            _check_card(card, path)
        return card

    def save(self, path: str | os.PathLike[str], training: dict[str, Any]) -> None:
        """Write the model to a file, atomically, with facts on its training; the same model gives the same bytes.

        Raises:
            AsrError: the file can't be written; what stood there is untouched.
        """
        softmax, lstm = self.network.softmax, self.network.lstm
        shape = {"words": len(self.words), "size": lstm.input_size, "hidden": lstm.hidden_size}
        card = {
            "unit": self.unit,
            "normalizer": self.normalizer,
            "network": shape | {"layers": lstm.num_layers, "cutoffs": softmax.bounds[1:-1]},
            "unseen": self.unseen,
            "training": training,
        }
        _check_card(card, path)
        weights = dict(self.network.state_dict())
        for name, tensor in weights.items():
            checkpoint.check_finite(name, tensor, path)
        lines = "".join(f"{word}\n" for word in self.words).encode()
        weights["words"] = torch.frombuffer(bytearray(lines), dtype=torch.uint8)
        tensorfile.write(path, weights, checkpoint.metadata("asr-lm", "card", card))

    def sentence(self, line: str) -> list[str]:
        """The words or characters of a text, normalised."""
        return text.split(self._clean(line), self.unit)

    def logprob(self, words: Sequence[str]) -> float:
        """The natural logarithm of a sentence's probability, its start given and its end included."""
        return float(self.scores([words])[0].sum())

    def scores(self, sentences: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """The natural logarithms of each word's probability and of the end's, for each sentence: float64 (words + 1,).

        A sentence's are the same alone and in any company, to 1e-5.
        """
        rows = [np.array([*(self.ids.get(word, UNK) for word in words), EOS], np.int64) for words in sentences]
        found: dict[int, np.ndarray] = {}
        for group in batches.by_length([float(len(row)) for row in rows], _BATCH):
            chosen = [rows[number] for number in group]
            found |= dict(zip(group, self._score(chosen), strict=True))
        return [found[number] for number in range(len(rows))]

    def perplexity(self, sentences: Iterable[Sequence[str]], advance: Callable[[], None] = lambda: None) -> Perplexity:
        """How well the model foresees sentences, each a list of words; `advance` is called after each of them."""
        count = words = unknown = 0
        total = lost = 0.0
        for window in _windows(sentences):
            for sentence, scores in zip(window, self.scores(window), strict=True):
                missing = [place for place, word in enumerate(sentence) if self.ids.get(word, UNK) == UNK]
                count, words, unknown = count + 1, words + len(sentence), unknown + len(missing)
                total, lost = total + float(scores.sum()), lost + float(scores[missing].sum())
                advance()
        return Perplexity(count, words, unknown, total, lost)

    @torch.inference_mode()
    def following(self, words: Sequence[str]) -> np.ndarray:
        """The natural logarithm of the probability of each word of the vocabulary behind the beginning of a sentence.

        Returns:
            float64, in the order of `words` of the model; the probabilities sum to 1.
        """
        ids = torch.tensor([EOS, *(self.ids.get(word, UNK) for word in words)])[:, None]
        hidden, _ = self.network(ids, torch.tensor([len(ids)]))
        found = self.network.softmax.log_probs(hidden[-1]).double()[0]
        return np.asarray(self._mixed(found, torch.arange(len(found))))

    def _mixed(self, network: Tensor, words: Tensor) -> Tensor:
        """The logarithms of probabilities of `words` with the least share of the unknown word mixed in."""
        found = network + float(np.log1p(-self.unseen))
        return torch.where(words == UNK, torch.logaddexp(found, self._floor), found)

    @torch.inference_mode()
    def _score(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        targets, lengths = padded(rows)
        found = torch.zeros(targets.shape, dtype=torch.float64)
        for number, (piece, valid) in enumerate(self.network.log_probs(targets, lengths, _PIECE)):
            place = slice(number * _PIECE, number * _PIECE + len(valid))
            found[place][valid] = self._mixed(piece.double(), targets[place][valid])
        return [column[: len(row)].numpy() for column, row in zip(found.t().contiguous(), rows, strict=True)]


def padded(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Word numbers of sentences as `(frames, batch)` int64, `EOS` behind each, and the lengths `(batch,)`."""
    lengths = np.array([len(row) for row in rows])
    targets = np.full((len(rows), lengths.max(initial=0)), EOS, np.int64)
    targets[np.arange(targets.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return torch.from_numpy(targets).t().contiguous(), torch.from_numpy(lengths)


def _windows(sentences: Iterable[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    window: list[Sequence[str]] = []
    for sentence in sentences:
        window.append(sentence)
        if len(window) == _WINDOW:
            yield window
            window = []
    yield window


def _check_card(card: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Compare a card with the closed list of what it may say. Raises InputError (status 2)."""
    check_json(card, path)
    check_keys(card, _KEYS, "card", path)
    for key, known in (("unit", text.LM_UNITS), ("normalizer", tuple(text.normalizers))):
        if card[key] not in known:
            raise refusal(path, f"card: {key} is {short(card[key])}; known are {', '.join(known)}")
    check_keys(card["network"], [*_RANGES, "cutoffs"], "card: network", path)
    for key, (low, high) in _RANGES.items():
        if type(card["network"][key]) is not int or not low <= card["network"][key] <= high:
            raise refusal(path, f"card: network.{key} is {short(card['network'][key])}, which no model of asr has")
    bounds = card["network"]["cutoffs"]
    if not isinstance(bounds, list) or len(bounds) > 8 or any(type(cut) is not int for cut in bounds):
        raise refusal(path, f"card: network.cutoffs is {short(bounds)}, which no model of asr has")
    if any(a >= b for a, b in zip([1, *bounds], [*bounds, card["network"]["words"]], strict=True)):
        raise refusal(path, "card: network.cutoffs are not ascending within the vocabulary")
    if type(card["unseen"]) is not float or not 0 < card["unseen"] < 1:
        raise refusal(path, f"card: unseen is {short(card['unseen'])}, no probability")
    if not isinstance(card["training"], dict):
        raise refusal(path, f"card: training is {short(card['training'])}, not a JSON object")


def _expected(shape: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name, shape and type of every weight of a network, without allocating one."""
    with torch.device("meta"):
        network = Network(**shape)
    return {name: (tuple(weight.shape), weight.dtype) for name, weight in network.state_dict().items()}


def _vocabulary(content: Tensor, count: int, path: str | os.PathLike[str]) -> list[str]:
    """The words of a file. Raises InputError (status 2)."""
    try:
        words = content.numpy().tobytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise refusal(path, "its vocabulary is not UTF-8; damaged") from error
    if words.pop() or len(words) != count or len(set(words)) != count or words[:2] != SPECIAL:
        raise refusal(path, f"its vocabulary is not one of {count} different words; damaged")
    return words


def named(path: str | os.PathLike[str]) -> LanguageModel:
    """The model of a file that a flag names. Raises InputError (status 2), which tells how ARPA files are used."""
    if Path(path).is_file() and not files.is_safetensors(path):
        raise InputError(
            f"{path}: no LSTM language model (`asr lm train --lstm` makes one); an ARPA file goes to --lm", status=2
        )
    return LanguageModel.load(path)

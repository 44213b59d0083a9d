"""Training of LSTM language models: text -> batches of sentences -> a file that `asr.lstm_lm.model` reads.

Sentences of like length share a batch and start from the state of zeros, as they do when they are scored; long ones are
cut into pieces for backpropagation, the state goes on. A training that is killed and started again gives, to the bit,
the model of one that was not (same machine, same number of threads): what it depends on stands in ``NAME.state/``
beside the model until it is finished.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import asr
from asr import batches, checkpoint, files, lm, optim
from asr.decode import kneser_ney
from asr.errors import AsrError, InputError
from asr.lm import Counting, silent
from asr.lstm_lm import model, softmax
from asr.lstm_lm.model import LanguageModel
from asr.lstm_lm.network import EOS, UNK, Network

_PIECE = 64  # frames of truncated backpropagation
_LOOKS = 4  # times an epoch that the model is looked at, and kept
_SAVE_SECONDS = 300.0
_BETAS, _WARMUP, _FLOOR, _CLIP, _DECAY = (0.9, 0.98), 0.02, 0.01, 1.0, 1e-4


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a network is built and trained.

    Attributes:
        hidden: units of each LSTM layer; word vectors have half as many numbers.
        layers: LSTM layers.
        dropout: probability, of the word vectors and of each layer's outputs.
        epochs: times that the text is gone through.
        batch: words of a batch, padding included.
        lr: highest learning rate of AdamW; it rises during the first 2 % and falls to 1 % on half a cosine.
        seed: of the first weights, the order of batches and dropout.
    """

    hidden: int = 512
    layers: int = 1
    dropout: float = 0.1
    epochs: int = 3
    batch: int = 2048
    lr: float = 0.003
    seed: int = 1

    def __post_init__(self) -> None:
        ranges = {
            "hidden": (2, 8_192),
            "layers": (1, 32),
            "epochs": (1, 10_000),
            "batch": (1, 1_000_000),
            "seed": (0, 2**31 - 1),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)}; it goes from {low} to {high}", status=2)
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}; it is a probability from 0 to below 1", status=2)
        if not 0 < self.lr <= 1:
            raise InputError(f"lr is {self.lr}; it goes from above 0 to 1", status=2)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training had and made.

    Attributes:
        sentences, tokens: of the text, sentence ends not counted among the tokens.
        words: size of the vocabulary, ``</s>`` and ``<unk>`` among it.
        parameters: of the network.
        perplexity: of the dev text by the model that was kept; without one that of the last piece of the training.
    """

    sentences: int
    tokens: int
    words: int
    parameters: int
    perplexity: float


@dataclasses.dataclass
class _Position:
    """Where a training stands: batches done of an epoch, steps, the best look so far, sums since the last look."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    last: float = math.inf
    loss: float = 0.0
    words: int = 0


class _Text:
    """Sentences as numbers of words, and the vocabulary."""

    def __init__(self, words: list[str], counts: np.ndarray, rows: list[np.ndarray]) -> None:
        self.words, self.counts, self.rows = words, counts, rows
        self.lengths = [float(len(row)) for row in rows]
        listed = hashlib.sha256("\n".join(words).encode())
        for row in rows:
            listed.update(row.tobytes())
        self.sha256 = listed.hexdigest()

    @classmethod
    def read(
        cls, sentences: Any, vocabulary: int | None = None, min_count: int | None = None, name: str = ""
    ) -> "_Text":
        """The text and its vocabulary: ``</s>``, ``<unk>``, then words by falling count and code point."""
        words, stream, count = lm.read_stream(iter(sentences))
        if not count:
            raise InputError(f"{name}: no sentence in it")
        counts = np.bincount(stream, minlength=len(words))
        known = lm.kept_words(counts, vocabulary, min_count)
        known[: len(lm.SPECIAL)] = False
        kept = np.flatnonzero(known)
        kept = kept[np.argsort(-counts[kept], kind="stable")]
        if len(kept) < 2:
            raise InputError(f"{name}: fewer than two different words to learn; give more text or keep more words")
        if len(kept) + len(model.SPECIAL) > model.MAX_WORDS:
            raise InputError(f"{name}: {len(kept)} different words; keep fewer of them with --vocab", status=2)
        number = np.full(len(words), UNK, np.int32)
        number[kneser_ney.EOS] = EOS
        number[kept] = np.arange(len(kept)) + len(model.SPECIAL)
        ids = number[stream[stream != kneser_ney.BOS]]
        rows = np.split(ids, np.flatnonzero(ids == EOS)[:-1] + 1)
        names = [*model.SPECIAL, *(words[place] for place in kept.tolist())]
        return cls(names, np.bincount(ids, minlength=len(names)), rows)


class _Training:
    """A training run: its network, its optimiser, where it stands, and its state on the disk."""

    def __init__(
        self, text: _Text, dev: list[list[str]], settings: Settings, out: Path, unit: str, normalizer: str
    ) -> None:
        torch.manual_seed(settings.seed)
        self.text, self.dev, self.settings, self.out = text, dev, settings, out
        self.folder = out.with_name(f"{out.name}.state")
        words = len(text.words)
        self.network = Network(
            words,
            settings.hidden // 2,
            settings.hidden,
            settings.layers,
            softmax.cutoffs(words),
            settings.dropout,
        )
        self.network.softmax.start_from(torch.from_numpy(text.counts))
        self.optimizer = optim.adamw(self.network, settings.lr, _BETAS, _DECAY)
        self.model = LanguageModel(self.network, text.words, unit, normalizer, 1 / (1 + int(text.counts.sum())))
        self.position = _Position()
        self.same = {
            "settings": dataclasses.asdict(settings),
            "text": text.sha256,
            "dev": hashlib.sha256(json.dumps(dev).encode()).hexdigest() if dev else None,
            "unit": unit,
            "normalizer": normalizer,
        }
        self.resume()

    def groups(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch."""
        return batches.order(self.text.lengths, float(self.settings.batch), self.settings.seed, epoch)

    def save(self) -> None:
        """Commit everything that the rest depends on."""
        tensors = {f"model.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= optim.moments(self.optimizer)
        tensors["random"] = torch.get_rng_state()
        checkpoint.save_state(self.folder, tensors, {"position": dataclasses.asdict(self.position), **self.same})

    def resume(self) -> None:
        """Go to where the last state stands, if there is one."""
        state = checkpoint.load_state(self.folder)
        if state is None:
            return
        tensors, values = state
        position = values.pop("position")
        if values != self.same:
            raise InputError(
                f"{self.folder}: an unfinished training with other settings or another text; remove the folder, or "
                "choose another name with -o",
                status=2,
            )
        weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        self.network.load_state_dict(weights)
        optim.restore(self.optimizer, tensors)
        torch.set_rng_state(tensors["random"])
        self.position = _Position(**position)

    def update(self, group: Sequence[int], steps: int) -> None:
        """One step on a batch."""
        targets, lengths = model.padded([self.text.rows[number] for number in group])
        count = int(lengths.sum())
        for one in self.optimizer.param_groups:
            one["lr"] = self.settings.lr * optim.schedule(self.position.step, steps, _WARMUP, _FLOOR)
        self.network.train()
        loss = 0.0
        for piece, _ in self.network.log_probs(targets, lengths, _PIECE):
            (-piece.sum() / count).backward()
            loss -= float(piece.detach().sum())
        norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP))
        if not math.isfinite(norm):
            raise AsrError(
                f"step {self.position.step + 1}: loss or gradient not finite; remove {self.folder} and train anew with "
                "a lower --lr"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.position.step += 1
        self.position.batch += 1
        self.position.loss += loss
        self.position.words += count

    def look(self) -> str:
        """Measure, keep the model where it is the best so far (without a dev text: always); what to tell about it."""
        position = self.position
        trained = math.exp(min(700.0, position.loss / max(1, position.words)))
        told = f"perplexity {trained:.1f} (training)"
        position.last, is_best = trained, True
        if self.dev:
            self.network.eval()
            position.last = self.model.perplexity(self.dev).perplexity
            is_best = position.best is None or position.last < position.best
            told += f", {position.last:.1f} (dev{', best' if is_best else ''})"
        if is_best:
            position.best = position.last
            facts = {"asr": asr.__version__, "torch": torch.__version__, "step": position.step, "told": told}
            self.model.save(self.out, {**self.same, **facts})
        position.loss, position.words = 0.0, 0
        return told


def train(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: Settings,
    *,
    unit: str = "word",
    normalizer: str = "none",
    vocabulary: int | None = None,
    min_count: int | None = None,
    dev: Sequence[str | os.PathLike[str]] = (),
    counting: Counting = silent,
    say: Callable[[str], None] = lambda line: None,
    stop: Callable[[], int | None] = lambda: None,
) -> Trained:
    """Train a network on text and write it as safetensors; an unfinished training of that name goes on.

    Args:
        paths: as in `asr.lm.sentences`.
        out: file to write, ``.safetensors``. It is there from the first quarter of an epoch on.
        settings: of the network and the training.
        unit: as in `asr.lm.sentences`.
        normalizer: as in `asr.lm.sentences`.
        vocabulary: keep this many words, the most frequent; the others are ``<unk>``.
        min_count: keep words that occur so often.
        dev: text that says which state of the training is kept; without one the last.
        counting: as in `asr.lm.sentences`.
        say: takes a line for people after each quarter of an epoch.
        stop: asked after every batch; an exit status makes the training save its state and end with it.

    Raises:
        InputError: a setting is wrong (status 2), a text as in `asr.lm.sentences`, is empty or has one word only, or an
            unfinished training of that name had other settings or another text (status 2).
        AsrError: `out` can't be written, the training was stopped, or diverged.
    """
    lm.check_vocabulary(vocabulary, min_count)
    lm.check_output([*paths, *dev], out)
    if Path(out).suffix != ".safetensors":
        raise InputError(f"{out}: the name of an LSTM language model ends in .safetensors", status=2)
    files.check_writable(out)
    sentences = lm.sentences(paths, unit, normalizer, counting)
    text = _Text.read(sentences, vocabulary, min_count, ", ".join(map(str, paths)))
    held_out = list(lm.sentences(dev, unit, normalizer, counting)) if dev else []
    if dev and not held_out:
        raise InputError(f"{', '.join(map(str, dev))}: no sentence in it")
    run = _Training(text, held_out, settings, Path(out), unit, normalizer)
    _run(run, counting, say, stop)
    shutil.rmtree(run.folder, ignore_errors=True)
    kept = run.position.best if held_out and run.position.best is not None else run.position.last
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    return Trained(len(text.rows), int(text.counts.sum()) - len(text.rows), len(text.words), parameters, kept)


def _run(
    run: _Training,
    counting: Counting,
    say: Callable[[str], None],
    stop: Callable[[], int | None],
) -> None:
    """All epochs that are still to do."""
    position, epochs = run.position, run.settings.epochs
    counts = [len(run.groups(epoch)) for epoch in range(epochs)]
    steps = sum(counts)
    if position.step:
        say(f"{run.folder}: goes on behind batch {position.step} of {steps}")
    with counting("training, batches", steps - position.step) as counter:
        saved, begun, seen = time.monotonic(), time.monotonic(), 0
        while position.epoch < epochs:
            groups = run.groups(position.epoch)
            looks = {math.ceil(len(groups) * part / _LOOKS) for part in range(1, _LOOKS + 1)}
            for group in groups[position.batch :]:
                run.update(group, steps)
                seen += sum(len(run.text.rows[number]) for number in group)
                is_look = position.batch in looks
                if is_look:
                    speed = seen / max(1e-9, time.monotonic() - begun)
                    place = position.epoch + position.batch / len(groups)
                    say(f"epoch {place:.2f} of {epochs}: {run.look()}, {speed:,.0f} words a second")
                    begun, seen = time.monotonic(), 0
                status = stop()
                if status is not None or is_look or time.monotonic() - saved > _SAVE_SECONDS:
                    run.save()
                    saved = time.monotonic()
                if status is not None:
                    raise AsrError(f"stopped, state saved in {run.folder}: run the same command to go on", status)
                counter.advance()
            position.epoch, position.batch = position.epoch + 1, 0

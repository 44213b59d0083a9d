"""The acoustic model: features -> (stacked frames, strided convolutions) -> bidirectional LSTM layers -> emissions.

    features (batch, frames, size)
      -> `stack` neighbouring frames joined into one
      -> masked convolutions over time, each with its stride, batch-free (layer norm, GELU)
      -> `layers` bidirectional LSTM layers, each followed by layer norm and dropout (in training, where `context` says
         so, over random pieces of the utterance, so that nothing is learnt of what lies far away)
      -> linear head, log-softmax: log-probabilities (batch, frames', tokens), token 0 the CTC blank

Lengths travel with the tensor, and whatever lies behind a row's length is zero before any operation that mixes
frames: an utterance's emissions do not depend on its company in the batch.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asr.errors import InputError
from asr.lstm import LSTM

_KERNEL = 5  # frames a convolution sees


class AcousticModel(nn.Module):
    """Stacked bidirectional LSTM with a CTC head.

    Args:
        features: size of an input frame.
        tokens: number of tokens, blank included.
        stack: frames joined into one before anything else (1: none).
        convolutions: stride of each convolution over time (empty: none).
        hidden: units of the LSTM, each direction.
        layers: LSTM layers.
        dropout: probability, behind each LSTM layer.
        layer_norm: whether a layer norm follows each LSTM layer.
        channels: width of the convolutions; None without convolutions.
        context: frames after which, on average, the LSTM's memory is cut in training; 0: never.
    """

    def __init__(
        self,
        features: int,
        tokens: int,
        *,
        stack: int,
        convolutions: Sequence[int],
        hidden: int,
        layers: int,
        dropout: float,
        layer_norm: bool,
        channels: int | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.strides = tuple(convolutions)
        self.context = context
        size = features * stack
        self.convolutions = nn.ModuleList()
        for stride in convolutions:
            self.convolutions.append(MaskedConvolution(size, channels or size, stride))
            size = channels or size
        self.recurrent = nn.ModuleList()
        self.norms = nn.ModuleList()
        for _ in range(layers):
            self.recurrent.append(LSTM(size, hidden, bidirectional=True, batch_first=True))
            size = 2 * hidden
            self.norms.append(nn.LayerNorm(size) if layer_norm else nn.Identity())
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(size, tokens)

    def frames(self, feature_frames: int) -> int:
        """Emission frames that so many feature frames give."""
        count = -(-feature_frames // self.stack)
        for stride in self.strides:
            count = -(-count // stride)
        return count

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(batch, frames, size)`, lengths `(batch,)` -> emissions `(batch, frames', tokens)`, lengths."""
        if self.training or features.device.type != "cpu" or len(features) <= 1:
            return self._emissions(features, lengths)
        # Sums of another batch size differ in their last bits, and a deep network amplifies them: in inference on the
        # CPU, where a batch saves next to no time, each row is computed alone. So company changes nothing, to the bit.
        rows = [self._emissions(row[None, :n], n[None]) for row, n in zip(features, lengths, strict=True)]
        longest = self.frames(features.shape[1])
        padded = [nn.functional.pad(own, (0, 0, 0, longest - own.shape[1])) for own, _ in rows]
        return torch.cat(padded), torch.cat([count for _, count in rows])

    def _emissions(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The layers one after the other."""
        frames, lengths = _stack(mask(features, lengths), lengths, self.stack)
        for convolution in self.convolutions:
            frames, lengths = convolution(frames, lengths)
        if self.training and self.context and int(lengths.max()):
            index, pieces = cut(lengths, self.context, frames.shape[1])
            valid = torch.arange(index.shape[1], device=index.device) < pieces[:, None]
            heard = self._recur(frames.flatten(0, 1)[index], pieces)[valid]
            frames = heard.new_zeros(*frames.shape[:2], heard.shape[1])
            frames = frames.flatten(0, 1).index_put((index[valid],), heard).view(frames.shape)
        else:
            frames = self._recur(frames, lengths)
        scores = self.head(frames)
        return scores.to(torch.promote_types(scores.dtype, torch.float32)).log_softmax(dim=-1), lengths

    def _recur(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """The LSTM layers over `(batch, frames, size)`."""
        for recurrent, norm in zip(self.recurrent, self.norms, strict=True):
            frames, _ = recurrent(frames, lengths=lengths)
            frames = self.dropout(norm(frames))
        return frames


class MaskedConvolution(nn.Module):
    """Convolution over time with zeros behind each row's end: `(batch, frames, size)` -> every `stride`-th frame."""

    def __init__(self, size: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.convolution = nn.Conv1d(size, channels, _KERNEL, stride, padding=_KERNEL // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames `(batch, frames, size)`, lengths `(batch,)` -> `(batch, ceil(frames / stride), channels)`, lengths."""
        frames = self.convolution(frames.transpose(1, 2)).transpose(1, 2)
        lengths = (lengths + self.stride - 1) // self.stride
        return mask(nn.functional.gelu(self.norm(frames)), lengths), lengths


def mask(frames: Tensor, lengths: Tensor) -> Tensor:
    """`frames (batch, frames, size)` with zeros behind each row's length, whatever stood there."""
    valid = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
    return torch.where(valid[:, :, None], frames, 0)


def cut(lengths: Tensor, context: int, frames: int) -> tuple[Tensor, Tensor]:
    """Cut rows into pieces of half to one and a half times `context` frames (the first and last shorter), at random.

    Args:
        lengths: `(batch,)` valid frames of each row, not all 0.
        context: frames of a piece, on average.
        frames: of the batch, `(batch, frames)`.

    Returns:
        For each piece the frames of the flattened batch that it holds, `(pieces, longest)`, and its length,
        `(pieces,)`; behind it the index repeats its last frame.
    """
    longest = int(lengths.max())
    shortest = max(1, context // 2)
    steps = torch.randint(shortest, max(shortest, 3 * context // 2) + 1, (len(lengths), longest // shortest + 2))
    steps[:, 0] = (steps[:, 0] * torch.rand(len(lengths))).long() + 1
    ends = steps.cumsum(1).clamp(max=lengths.cpu()[:, None])  # past a row's end: pieces of no frames
    starts = nn.functional.pad(ends, (1, 0))[:, :-1]
    counts = (ends - starts).flatten()
    starts = (starts + frames * torch.arange(len(lengths))[:, None]).flatten()[counts > 0]
    counts = counts[counts > 0]
    index = starts[:, None] + torch.minimum(torch.arange(int(counts.max())), counts[:, None] - 1)
    return index.to(lengths.device), counts.to(lengths.device)


def _stack(frames: Tensor, lengths: Tensor, stack: int) -> tuple[Tensor, Tensor]:
    """Join each `stack` frames into one, the last one filled up with zeros."""
    if stack == 1:
        return frames, lengths
    batch, count, size = frames.shape
    frames = nn.functional.pad(frames, (0, 0, 0, -count % stack))
    return frames.reshape(batch, -1, size * stack), (lengths + stack - 1) // stack


def weights_of(**shape: Any) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name, shape and type of every weight of `AcousticModel(**shape)`, without allocating one."""
    with torch.device("meta"):
        model = AcousticModel(**shape)
    return {name: (tuple(weight.shape), weight.dtype) for name, weight in model.state_dict().items()}


def device_named(name: str) -> torch.device:
    """The torch device of that name; `auto` is the GPU where there is one. Raises InputError (status 2)."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise InputError(f"device={name}: known are auto, cpu, cuda and cuda:N", status=2)
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={name}: torch finds no GPU here; use device=cpu or device=auto", status=2)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={name}: torch finds {torch.cuda.device_count()} GPUs here, counted from 0", status=2)
    return device

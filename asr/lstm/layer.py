"""`LSTM`: `torch.nn.LSTM` line for line, right on ragged batches, and never packed.

A PackedSequence makes torch's backward on the CPU quadratic in the number of frames. Here each direction runs over the
padded batch: the forward one reaches a row's padding only behind its last frame, and for the backward one each row is
reversed within its own length, so that its padding comes last again. Rows are sorted by length and left out once they
have ended (`asr.lstm.staircase`). Where one ends before the next cut, a further input, 0 in a row's own frames and 1
behind them, closes the input gate and opens the forget gate: the cell state stands still to the last bit, and no
gradient passes.

Which code runs: `asr.lstm.paths`. The equations: `asr.lstm.reference`.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from asr.lstm import op, paths, reference
from asr.lstm.reference import State, Weights, in_length_reversal
from asr.lstm.scan import lstm_scan
from asr.lstm.staircase import Plan, plan

_CLOSED = 1e4  # its sigmoid is 1 exactly, and 0 with the sign turned, in every floating type

# One direction of one layer: frames (frames, batch, size), its plan, first state, weights -> outputs, last state.
_Direction = Callable[[Tensor, Plan, State, Weights], tuple[Tensor, State]]


class LSTM(nn.RNNBase):
    """Stacked, bidirectional LSTM with the arguments, parameters and state_dict of `torch.nn.LSTM`.

    It is no subclass of that (`torch.compile` would refuse it), but of `torch.nn.RNNBase`. Weights go both ways by
    `load_state_dict`.

    Args:
        input_size: features of a frame.
        hidden_size: units of each direction.
        num_layers: layers, one on the other.
        bias: whether there are biases.
        batch_first: whether input and output are `(batch, frames, size)` and not `(frames, batch, size)`.
        dropout: probability, of the outputs of each layer but the last.
        bidirectional: whether a second direction reads each row from its end.
        proj_size: 0; `torch.nn.LSTM` has projections.
        device: of the parameters.
        dtype: of the parameters.
        forget_bias: what the forget gates' biases start at together, such as 1 (Jozefowicz, Zaremba and Sutskever,
            ICML 2015: a cell that forgets at first does not learn long lags); None: drawn as in `torch.nn.LSTM`.
        weight_dropout: probability, of each recurrent weight, drawn once a call in training (DropConnect; Merity,
            Keskar and Socher, ICLR 2018).
        gate_dropout: probability, of each whole input, forget and output gate, drawn anew for each frame of each row
            in training, without rescaling (Cheng et al., "An exploration of dropout with LSTMs", Interspeech 2017);
            only on the path `reference`, which is slow.

    Raises:
        ValueError: an argument is out of its range.
    """

    weight_ih_l0: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        forget_bias: float | None = None,
        weight_dropout: float = 0.0,
        gate_dropout: float = 0.0,
    ) -> None:
        if proj_size:
            raise ValueError(f"proj_size={proj_size}: asr.lstm.LSTM has no projection; use torch.nn.LSTM for that")
        for name, value in (("weight_dropout", weight_dropout), ("gate_dropout", gate_dropout)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value}: want a probability from 0 to below 1")
        if forget_bias is not None and not bias:
            raise ValueError(f"forget_bias={forget_bias}: needs bias=True")
        self.forget_bias = forget_bias
        self.weight_dropout = weight_dropout
        self.gate_dropout = gate_dropout
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform in +-1 / sqrt(hidden_size), and set the forget gates' biases."""
        super().reset_parameters()
        if self.forget_bias is not None:
            forget = slice(self.hidden_size, 2 * self.hidden_size)
            with torch.no_grad():
                for name, parameter in self.named_parameters():
                    if name.startswith("bias_"):
                        parameter[forget] = self.forget_bias if name.startswith("bias_ih") else 0.0

    def flatten_parameters(self) -> None:
        """Nothing: each path takes the weights as they are (cuDNN copies them into one piece at each call)."""

    def forward(
        self, input: Tensor | PackedSequence, hx: State | None = None, lengths: Tensor | None = None
    ) -> tuple[Any, State]:
        """Run all layers and directions.

        Args:
            input: `(frames, batch, input_size)`, with `batch_first` `(batch, frames, input_size)`, without a batch
                `(frames, input_size)`, or a PackedSequence.
            hx: first h and c, each `(num_layers * directions, batch, hidden_size)` (without a batch: no `batch`);
                None: 0.
            lengths: `(batch,)` int64, valid frames of each row, 0 to `frames`; None: all. On a GPU they are believed
                (a look would stall it): longer ones count as `frames`. Not with a PackedSequence, which has its own.

        Returns:
            The outputs in the form of the input, `directions * hidden_size` features, 0 behind a row's end; and h and
            c behind the last frame of each row in each direction, in the form of `hx`.

        Raises:
            ValueError: shapes, types or devices don't fit, or a length is out of its range.
        """
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths: a PackedSequence has its own")
            return self._packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"input: want 3 dimensions, or 2 without a batch, got {tuple(input.shape)}")
        if input.dim() == 2:
            if lengths is not None:
                raise ValueError("lengths: input without a batch has none")
            states = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
            output, (h, c) = self._padded(input.unsqueeze(1), states, None)
            return output.squeeze(1), (h.squeeze(1), c.squeeze(1))
        if self.batch_first:
            output, last = self._padded(input.transpose(0, 1), hx, lengths)
            return output.transpose(0, 1), last
        return self._padded(input, hx, lengths)

    def _packed(self, packed: PackedSequence, hx: State | None) -> tuple[PackedSequence, State]:
        """The batch of a PackedSequence, in its sorted order."""
        data, batch_sizes, order, inverse = packed
        frames, lengths = pad_packed_sequence(PackedSequence(data, batch_sizes))
        if hx is not None and order is not None:
            hx = hx[0].index_select(1, order), hx[1].index_select(1, order)
        output, (h, c) = self._padded(frames, hx, lengths)
        if inverse is not None:
            h, c = h.index_select(1, inverse), c.index_select(1, inverse)
        return PackedSequence(pack_padded_sequence(output, lengths).data, batch_sizes, order, inverse), (h, c)

    def _padded(self, frames: Tensor, hx: State | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Choose how to run all layers over `(frames, batch, size)`."""
        tracing = _is_traced()
        if tracing and self.training and self.gate_dropout:
            raise ValueError(f"gate_dropout={self.gate_dropout}: not inside torch.compile or torch.export; set it to 0")
        choice = paths.choose(
            frames.device, _compute_dtype(frames), self.hidden_size, self.training and self.gate_dropout > 0
        )
        left: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if frames.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            left = torch.autocast("cpu", enabled=False)  # half precision is slower there, and fails without AVX-512
            frames = frames.to(self.weight_ih_l0.dtype)
            hx = None if hx is None else (hx[0].to(frames.dtype), hx[1].to(frames.dtype))
        with left:
            hx = self._checked(frames, hx, lengths, look=not tracing)
            same = lengths is None or (
                not tracing and lengths.device.type == "cpu" and bool((lengths == len(frames)).all())
            )
            if lengths is None:
                lengths = torch.full((frames.shape[1],), frames.shape[0], device=frames.device)
            if choice.path == "fused":
                return self._fused(frames, hx, lengths)
            if choice.path == "reference" and not tracing:
                return self._layers(frames, hx, lengths, self._equations)
            if tracing or not frames.numel():
                return self._layers(frames, hx, lengths, _scan)
            if same:
                return self._whole(frames, hx)
            return self._layers(frames, hx, lengths, _steps, look=frames.device.type == "cpu")

    def _checked(self, frames: Tensor, hx: State | None, lengths: Tensor | None, look: bool) -> State:
        """The first states, 0 where they are not given; raises ValueError where something doesn't fit."""
        batch = frames.shape[1]
        if frames.shape[2] != self.input_size:
            raise ValueError(f"input: has {frames.shape[2]} features, input_size is {self.input_size}")
        weight = self.weight_ih_l0
        if frames.device != weight.device:
            raise ValueError(f"input: is on {frames.device}, the weights are on {weight.device}")
        if frames.dtype != weight.dtype and not _is_autocast(frames):
            raise ValueError(f"input: is {frames.dtype}, the weights are {weight.dtype}")
        if lengths is not None:
            if lengths.shape != (batch,) or lengths.dtype not in (torch.int64, torch.int32):
                raise ValueError(f"lengths: want int64 ({batch},), got {lengths.dtype} {tuple(lengths.shape)}")
            if (
                look
                and lengths.device.type == "cpu"
                and batch
                and not 0 <= lengths.min() <= lengths.max() <= len(frames)
            ):
                raise ValueError(f"lengths: want 0 to {len(frames)}, got {int(lengths.min())} to {int(lengths.max())}")
        shape = self.num_layers * (1 + self.bidirectional), batch, self.hidden_size
        if hx is None:
            zeros = frames.new_zeros(shape)
            return zeros, zeros
        for name, one in zip(("h", "c"), hx, strict=True):
            if one.shape != shape:
                raise ValueError(f"hx: want {name} of {shape}, got {tuple(one.shape)}")
            if one.device != frames.device or (one.dtype != frames.dtype and not _is_autocast(frames)):
                raise ValueError(
                    f"hx: {name} is {one.dtype} on {one.device}, the input {frames.dtype} on {frames.device}"
                )
        return hx

    def _whole(self, frames: Tensor, hx: State) -> tuple[Tensor, State]:
        """Rows that are all as long as the batch: torch's kernel, all layers in one call."""
        numbers = range(self.num_layers * (1 + self.bidirectional))
        weights = [weight for number in numbers for weight in self._weights(number) if weight is not None]
        settings = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional, False)
        output, h, c = torch.lstm(frames, hx, weights, *settings)
        return output, (h, c)

    def _fused(self, frames: Tensor, hx: State, lengths: Tensor) -> tuple[Tensor, State]:
        """All layers by the fused kernels, both directions of each at once."""
        dtype = _compute_dtype(frames)
        directions = 1 + self.bidirectional
        lengths = lengths.to(frames.device, torch.int64).clamp(0, frames.shape[0])
        frames, (h0, c0) = frames.to(dtype), (one.to(dtype) for one in hx)
        last: list[State] = []
        for layer in range(self.num_layers):
            numbers = range(layer * directions, (layer + 1) * directions)
            weights = [self._weights(number) for number in numbers]
            weight_ih = torch.stack([own[0] for own in weights]).to(dtype)
            weight_hh = torch.stack([own[1] for own in weights]).to(dtype)
            biases = [one + other for _, _, one, other in weights if one is not None and other is not None]
            bias = torch.stack(biases).to(dtype) if biases else weight_ih.new_zeros(weight_ih.shape[:2])
            first, end = numbers.start, numbers.stop
            frames, h, c = op.layer(frames, lengths, weight_ih, weight_hh, bias, h0[first:end], c0[first:end])
            last.append((h, c))
            if layer < self.num_layers - 1:
                frames = nn.functional.dropout(frames, self.dropout, self.training)
        return frames, (torch.cat([h for h, _ in last]), torch.cat([c for _, c in last]))

    def _layers(
        self, frames: Tensor, hx: State, lengths: Tensor, run: _Direction, look: bool = False
    ) -> tuple[Tensor, State]:
        """All layers and directions, one after the other, over rows of their own lengths."""
        total = frames.shape[0]
        lengths = lengths.to(frames.device).clamp(0, total)
        planned = plan(lengths, total, look)
        inverse = None if planned.order is None else torch.argsort(planned.order)
        valid = (torch.arange(planned.end, device=frames.device)[:, None] < lengths)[:, :, None]
        there = [_places(planned.lengths, planned.order, planned.end, reverse) for reverse in (False, True)]
        back = [_places(lengths, inverse, planned.end, reverse) for reverse in (False, True)]
        last: list[State] = []
        frames = frames[: planned.end]
        for layer in range(self.num_layers):
            if planned.frozen:
                frames = torch.where(valid, frames, 0)
                if run is _steps:
                    frames = torch.cat([frames, (~valid).to(frames.dtype)], dim=2)
            outputs = []
            for direction in range(1 + self.bidirectional):
                number = layer * (1 + self.bidirectional) + direction
                state = _rows(hx[0][number], planned.order), _rows(hx[1][number], planned.order)
                output, state = run(_placed(frames, there[direction]), planned, state, self._weights(number))
                outputs.append(_placed(output, back[direction]))
                last.append((_rows(state[0], inverse), _rows(state[1], inverse)))
            frames = torch.cat(outputs, dim=2)
            if layer < self.num_layers - 1:
                frames = nn.functional.dropout(frames, self.dropout, self.training)
        if planned.frozen:
            frames = torch.where(valid, frames, 0)
        if planned.end < total:
            frames = nn.functional.pad(frames, (0, 0, 0, 0, 0, total - planned.end))
        return frames, (torch.stack([h for h, _ in last]), torch.stack([c for _, c in last]))

    def _weights(self, number: int) -> Weights:
        """The weights of a layer's direction, in the order of the states; the recurrent ones dropped in training."""
        layer, direction = divmod(number, 1 + self.bidirectional)
        name = f"l{layer}" + ("_reverse" if direction else "")
        weight_hh = getattr(self, f"weight_hh_{name}")
        if self.training and self.weight_dropout:
            weight_hh = nn.functional.dropout(weight_hh, self.weight_dropout)
        biases = (getattr(self, f"bias_ih_{name}"), getattr(self, f"bias_hh_{name}")) if self.bias else (None, None)
        return getattr(self, f"weight_ih_{name}"), weight_hh, *biases

    def _equations(self, frames: Tensor, planned: Plan, state: State, weights: Weights) -> tuple[Tensor, State]:
        """One direction by `asr.lstm.reference`, its gates dropped in training."""
        keep = None
        if self.training and self.gate_dropout:
            keep = torch.rand(*frames.shape[:2], 3, device=frames.device).ge(self.gate_dropout).to(frames.dtype)
        return reference.scan(frames, planned.lengths, state, weights, keep)


def _compute_dtype(frames: Tensor) -> torch.dtype:
    """The type that a layer computes in: autocast's on a GPU, where it is on."""
    return torch.get_autocast_dtype("cuda") if _is_autocast(frames) else frames.dtype


def _is_autocast(frames: Tensor) -> bool:
    """Whether autocast is on for these tensors (on a CPU it is left)."""
    return frames.device.type == "cuda" and torch.is_autocast_enabled("cuda")


def _rows(state: Tensor, order: Tensor | None) -> Tensor:
    """A state `(batch, hidden)` with its rows in `order`; None: as they are."""
    return state if order is None else state.index_select(0, order)


def _places(lengths: Tensor, order: Tensor | None, frames: int, reverse: bool) -> Tensor | None:
    """Where each frame of each row is in a flattened batch whose rows are to be in `order` and, perhaps, reversed.

    `lengths (batch,)` are those of the result's rows; each is reversed within its own length, its padding stays. None:
    everything is in its place.
    """
    if order is None and not reverse:
        return None
    t = torch.arange(frames, device=lengths.device)[:, None]
    if reverse:
        t = in_length_reversal(lengths, frames)
    columns = torch.arange(lengths.shape[0], device=lengths.device) if order is None else order
    return (t * lengths.shape[0] + columns).flatten()


def _placed(frames: Tensor, places: Tensor | None) -> Tensor:
    """`frames (frames, batch, size)` in another order, as `_places` gives it."""
    if places is None:
        return frames
    return frames.flatten(0, 1).index_select(0, places).unflatten(0, frames.shape[:2])


def _is_traced() -> bool:
    """Whether a compiler looks on, which may not depend on the values of lengths."""
    return torch.compiler.is_compiling()


def _scan(frames: Tensor, planned: Plan, state: State, weights: Weights) -> tuple[Tensor, State]:
    """One direction by the op of `asr.lstm.scan`."""
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    bias = None if bias_ih is None or bias_hh is None else bias_ih + bias_hh
    projected = nn.functional.linear(frames, weight_ih, bias)
    first = [one.to(projected.dtype) for one in (*state, weight_hh)]  # autocast reaches the product alone
    outputs, h, c, _, _ = lstm_scan(projected, planned.lengths, *first)
    return outputs, (h, c)


def _steps(frames: Tensor, planned: Plan, state: State, weights: Weights) -> tuple[Tensor, State]:
    """One direction by torch's kernel, a step of the staircase at a time.

    Where rows end within a step, frames have the further input that stops them, and outputs behind an end are anything.
    """
    h, c = state
    if planned.frozen:
        weights = (torch.cat([weights[0], _freezing(weights[0])], dim=1), *weights[1:])
    flat = [weight for weight in weights if weight is not None]
    settings = (len(flat) == 4, 1, 0.0, torch.is_grad_enabled(), False, False)
    outputs, ended = [], [c[planned.steps[0].rows :] if planned.steps else c]
    h, c = h[None], c[None]
    for step, rows in zip(planned.steps, [*(step.rows for step in planned.steps), 0][1:], strict=False):
        states = h[:, : step.rows].contiguous(), c[:, : step.rows].contiguous()
        output, h, c = torch.lstm(frames[step.start : step.end, : step.rows], states, flat, *settings)
        ended_rows = frames.shape[1] - step.rows
        outputs.append(nn.functional.pad(output, (0, 0, 0, ended_rows)) if ended_rows else output)
        ended.append(c[0, rows:])
    output = torch.cat(outputs) if outputs else frames.new_zeros(0, *state[0].shape)
    at = (planned.lengths - 1).clamp(min=0)[None, :, None].expand(1, *state[0].shape)
    reached = output.gather(0, at)[0] if len(output) else state[0]
    return output, (torch.where((planned.lengths > 0)[:, None], reached, state[0]), torch.cat(ended[::-1]))


def _freezing(weight_ih: Tensor) -> Tensor:
    """Weights `(4 * hidden, 1)` of the input that says "behind the end": the cell state stands still."""
    hidden = len(weight_ih) // 4
    column = weight_ih.new_zeros(len(weight_ih), 1)
    column[:hidden] = -_CLOSED
    column[hidden : 2 * hidden] = _CLOSED
    return column


def explain(layer: LSTM, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> str:
    """Which path runs `layer` on tensors of that device and type (its own where not given), and why, in a sentence."""
    weight = layer.weight_ih_l0
    gate_dropout = layer.training and layer.gate_dropout > 0
    where = torch.device(weight.device if device is None else device)
    return str(paths.choose(where, weight.dtype if dtype is None else dtype, layer.hidden_size, gate_dropout))

"""The LSTM's equations, one step at a time, in any floating type: what every other path must agree with.

Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997: input gate, candidate, cell state,
output gate. Gers, Schmidhuber and Cummins, "Learning to Forget", Neural Computation 12(10), 2000: forget gate. Gates
lie in torch's order (input, forget, candidate, output) along the first dimension of the weights.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # output h and cell state c, each (batch, hidden)
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # weight_ih, weight_hh, bias_ih, bias_hh


def step(frame: Tensor, state: State, weights: Weights, keep: Tensor | None = None) -> State:
    """One frame `(batch, size)` later.

    Args:
        frame: the input x.
        state: h and c before it.
        weights: `(4 * hidden, size)`, `(4 * hidden, hidden)` and two biases `(4 * hidden,)` or None.
        keep: factors `(batch, 3)` on input, forget and output gate (dropout of whole gates); None: 1.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    h, c = state
    sums = nn.functional.linear(frame, weight_ih, bias_ih) + nn.functional.linear(h, weight_hh, bias_hh)
    i, f, g, o = sums.chunk(4, dim=1)
    i = torch.sigmoid(i)  # input gate: how much of the candidate is let in
    f = torch.sigmoid(f)  # forget gate: how much of the cell state stays
    g = torch.tanh(g)  # candidate
    o = torch.sigmoid(o)  # output gate: how much of the cell state is shown
    if keep is not None:
        i, f, o = i * keep[:, :1], f * keep[:, 1:2], o * keep[:, 2:]
    c = f * c + i * g  # cell state: the constant error carousel
    h = o * torch.tanh(c)
    return h, c


def scan(
    frames: Tensor, lengths: Tensor, state: State, weights: Weights, keep: Tensor | None = None
) -> tuple[Tensor, State]:
    """One direction over `(frames, batch, size)`.

    A row stands still from its own end on: its outputs are 0 there, its state is that of its last frame.

    Returns:
        outputs `(frames, batch, hidden)`, and the last state of every row.
    """
    h, c = state
    outputs = []
    for t, frame in enumerate(frames):
        alive = (t < lengths)[:, None]
        new_h, new_c = step(torch.where(alive, frame, 0), (h, c), weights, None if keep is None else keep[t])
        h, c = torch.where(alive, new_h, h), torch.where(alive, new_c, c)
        outputs.append(torch.where(alive, new_h, 0))
    stacked = torch.stack(outputs) if outputs else frames.new_zeros(0, *h.shape)
    return stacked, (h, c)


def in_length_reversal(lengths: Tensor, frames: int) -> Tensor:
    """Index `(frames, batch)` that reverses each row within its own length and leaves its padding where it is."""
    t = torch.arange(frames, device=lengths.device)[:, None]
    return torch.where(t < lengths, lengths - 1 - t, t)


def reordered(frames: Tensor, index: Tensor) -> Tensor:
    """`frames (frames, batch, size)` with row b in the order `index[:, b]`; done twice it is undone."""
    return frames.gather(0, index[:, :, None].expand_as(frames))


def lstm(
    frames: Tensor,
    lengths: Tensor,
    states: State,
    weights: Sequence[Weights],
    directions: int = 1,
) -> tuple[Tensor, State]:
    """All layers and directions.

    Args:
        frames: `(frames, batch, size)`.
        lengths: `(batch,)`, valid frames of each row.
        states: first h and c of every layer and direction, each `(layers * directions, batch, hidden)`.
        weights: of every layer and direction, in the order of `states`.
        directions: 2 for a bidirectional LSTM; the second one reads each row from its own end.

    Returns:
        outputs `(frames, batch, directions * hidden)`, 0 behind each row's end; last h and c as `states`.
    """
    reversal = in_length_reversal(lengths, len(frames))
    last: list[State] = []
    for layer in range(len(weights) // directions):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            one_way = reordered(frames, reversal) if direction else frames
            output, state = scan(one_way, lengths, (states[0][number], states[1][number]), weights[number])
            outputs.append(reordered(output, reversal) if direction else output)
            last.append(state)
        frames = torch.cat(outputs, dim=2)
    return frames, (torch.stack([h for h, _ in last]), torch.stack([c for _, c in last]))


class LSTMCell(nn.LSTMCell):
    """`torch.nn.LSTMCell` (same arguments, parameters, state_dict), computed by `step`."""

    def forward(self, input: Tensor, hx: State | None = None) -> State:
        """One frame `(batch, input_size)` or `(input_size,)` later; returns h and c, with a batch or without."""
        frame = input if input.dim() == 2 else input[None]
        if input.dim() not in (1, 2) or frame.shape[1] != self.input_size:
            raise ValueError(
                f"input: want (batch, {self.input_size}) or ({self.input_size},), got {tuple(input.shape)}"
            )
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = zeros, zeros
        h, c = (one if input.dim() == 2 else one[None] for one in hx)
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        h, c = step(frame, (h, c), weights if self.bias else (*weights[:2], None, None))
        return (h, c) if input.dim() == 2 else (h[0], c[0])

"""A stacked (bidirectional) LSTM that is right on ragged padded batches and never packs.

Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997; forget gate: Gers, Schmidhuber and Cummins, 2000. Gates
in torch's order (input, forget, candidate, output):

    i, f, o = sigmoid(W x + U h + b)        g = tanh(W x + U h + b)
    c = f * c + i * g                       h = o * tanh(c)

A PackedSequence makes torch's backward quadratic in the number of frames. Here each direction runs over the padded
batch as it is: the forward direction reaches a row's padding only after its last frame, and for the backward direction
each row is reversed within its own length, so that its padding comes last again.
"""

import torch
from torch import Tensor, nn


class LSTM(nn.LSTM):
    """`torch.nn.LSTM` (same arguments, parameters, state_dict) that also takes padded input with `lengths`."""

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Run all layers and directions.

        Args:
            input: `(batch, frames, input_size)` where `batch_first`, else `(frames, batch, input_size)`.
            hx: initial states as `torch.nn.LSTM` takes them; not together with `lengths`.
            lengths: `(batch,)`, valid frames of each row; None: as `torch.nn.LSTM`.

        Returns:
            The outputs in the layout of the input, `(..., hidden_size * directions)`, zero behind each row's length;
            and the final states, which are None where `lengths` was given.
        """
        if lengths is None:
            return nn.LSTM.forward(self, input, hx)
        if hx is not None:
            raise ValueError("initial states and lengths together are not supported")
        frames_first = input.transpose(0, 1) if self.batch_first else input
        output = self._ragged(frames_first, lengths.to(input.device))
        return (output.transpose(0, 1) if self.batch_first else output), None

    def _ragged(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """All layers over `(frames, batch, size)`, rows valid up to `lengths`."""
        step = torch.arange(len(frames), device=frames.device)[:, None]
        valid = (step < lengths)[:, :, None]
        reversal = torch.where(step < lengths, lengths - 1 - step, step)
        for layer in range(self.num_layers):
            if layer and self.dropout:
                frames = nn.functional.dropout(frames, self.dropout, self.training)
            outputs = [self._direction(frames, f"l{layer}")]
            if self.bidirectional:
                backward = self._direction(_reorder(frames, reversal), f"l{layer}_reverse")
                outputs.append(_reorder(backward, reversal))
            frames = torch.cat(outputs, dim=2) * valid
        return frames

    def _direction(self, frames: Tensor, name: str) -> Tensor:
        """One direction of one layer over `(frames, batch, size)`, from zero states."""
        if frames.device.type == "cpu":
            frames = frames.to(next(self.parameters()).dtype)
        names = ["weight_ih_", "weight_hh_", *(["bias_ih_", "bias_hh_"] if self.bias else [])]
        weights = [getattr(self, prefix + name) for prefix in names]
        state = frames.new_zeros(1, frames.shape[1], self.hidden_size)
        arguments = (frames, (state, state), weights, self.bias, 1, 0.0, self.training, False, False)
        if frames.device.type != "cpu":
            return torch.lstm(*arguments)[0]
        with torch.autocast("cpu", enabled=False):  # its half precision is slower here, and fails without AVX-512
            return torch.lstm(*arguments)[0]


def _reorder(frames: Tensor, index: Tensor) -> Tensor:
    """Rows of `(frames, batch, size)` in the order `index (frames, batch)` gives for each batch row."""
    return frames.gather(0, index[:, :, None].expand_as(frames))

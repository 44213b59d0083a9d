"""One direction of one layer as a `torch.library` op with its own backward: what compiled and exported programs run.

To the compiler it is one opaque call, whatever the number of frames and the lengths of the rows. The backward is that
of the equations in `asr.lstm.reference`, with the gates and cell states kept from the forward:

    dh   = dy + W_hh^T da(t+1)               (dh of the last state, at a row's last frame)
    dc   = dc(t+1) f(t+1) + dh o (1 - tanh(c)^2)
    da_i = dc g i (1 - i)                    da_f = dc c(t-1) f (1 - f)
    da_g = dc i (1 - g^2)                    da_o = dh tanh(c) o (1 - o)

Gradients of weights are one product over all frames, behind the scan.
"""

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("asr::lstm_scan", mutates_args=())
def lstm_scan(
    projected: Tensor, lengths: Tensor, h0: Tensor, c0: Tensor, weight_hh: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the recurrence.

    Args:
        projected: `W_ih x + b_ih + b_hh`, `(frames, batch, 4 * hidden)`.
        lengths: `(batch,)` valid frames of each row.
        h0: first output, `(batch, hidden)`.
        c0: first cell state, `(batch, hidden)`.
        weight_hh: `(4 * hidden, hidden)`.

    Returns:
        outputs `(frames, batch, hidden)`, 0 behind a row's end; last h and c, `(batch, hidden)`; for the backward the
        gates after their functions, as `projected`, and the cell states, as the outputs.
    """
    frames, batch, hidden = len(projected), *h0.shape
    outputs = projected.new_zeros(frames, batch, hidden)
    cells = projected.new_zeros(frames, batch, hidden)
    gates = torch.empty_like(projected, memory_format=torch.contiguous_format)
    h, c = h0.clone(), c0.clone()
    for t in range(frames):
        i, f, g, o = torch.addmm(projected[t], h, weight_hh.t()).chunk(4, dim=1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        torch.cat((i, f, g, o), dim=1, out=gates[t])
        alive = (t < lengths)[:, None]
        c = torch.where(alive, f * c + i * g, c)
        h = torch.where(alive, o * c.tanh(), h)
        cells[t] = c
        outputs[t] = torch.where(alive, h, 0)
    return outputs, h, c, gates, cells


@lstm_scan.register_fake
def _(projected: Tensor, lengths: Tensor, h0: Tensor, c0: Tensor, weight_hh: Tensor) -> tuple[Tensor, ...]:
    outputs = projected.new_empty(projected.shape[0], *h0.shape)
    gates = projected.new_empty(projected.shape)
    return outputs, torch.empty_like(h0), torch.empty_like(c0), gates, torch.empty_like(outputs)


@torch.library.custom_op("asr::lstm_scan_backward", mutates_args=())
def lstm_scan_backward(
    d_outputs: Tensor,
    d_h: Tensor,
    d_c: Tensor,
    lengths: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    outputs: Tensor,
    gates: Tensor,
    cells: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `projected`, `h0`, `c0` and `weight_hh` from those of the outputs and last states of `lstm_scan`."""
    d_sums = torch.zeros_like(gates)
    dh, dc = d_h.clone(), d_c.clone()
    for t in range(len(gates) - 1, -1, -1):
        alive = (t < lengths)[:, None]
        i, f, g, o = gates[t].chunk(4, dim=1)
        shown = cells[t].tanh()
        total = d_outputs[t] + dh
        cell = dc + total * o * (1 - shown * shown)
        before = cells[t - 1] if t else c0
        sums = torch.cat(
            (cell * g * i * (1 - i), cell * before * f * (1 - f), cell * i * (1 - g * g), total * shown * o * (1 - o)),
            dim=1,
        )
        d_sums[t] = torch.where(alive, sums, 0)
        dh = torch.where(alive, d_sums[t] @ weight_hh, dh)
        dc = torch.where(alive, cell * f, dc)
    before = torch.cat([h0[None], outputs])[:-1] if len(outputs) else outputs
    return d_sums, dh, dc, d_sums.flatten(0, 1).t() @ before.flatten(0, 1)


@lstm_scan_backward.register_fake
def _(d_outputs: Tensor, d_h: Tensor, d_c: Tensor, lengths: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    h0, c0, weight_hh, _, gates, _ = saved
    return torch.empty_like(gates), torch.empty_like(h0), torch.empty_like(c0), weight_hh.new_empty(weight_hh.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    _, lengths, h0, c0, weight_hh = inputs
    outputs, _, _, gates, cells = output
    ctx.mark_non_differentiable(gates, cells)
    ctx.save_for_backward(lengths, h0, c0, weight_hh, outputs, gates, cells)


def _backward(ctx: Any, d_outputs: Tensor, d_h: Tensor, d_c: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    d_sums, dh, dc, d_weight = lstm_scan_backward(d_outputs, d_h, d_c, *ctx.saved_tensors)
    return d_sums, None, dh, dc, d_weight


lstm_scan.register_autograd(_backward, setup_context=_keep)

"""One LSTM layer as a torch operator: one or two directions over a ragged batch, by the fused scans.

`layer` is what to call. Below it are the operators `asr::lstm_layer` and `asr::lstm_layer_backward`: functional, no
aliases, with shapes for tracing and a gradient. The input's products (forward) and the gradients of input, weights and
bias (backward) are a few large matrix products; what depends on the step before runs in a scan: CUDA kernels, launched
by `asr.lstm.cuda.launch`.

Gates are in torch's order i, f, g, o in `weight_ih`, `weight_hh` and `bias`. Inside they lie unit by unit,
`(..., hidden, 4)`, so that a thread reads the four gates of its cell at once: the weights are reordered, never the
activations. `hidden` is padded there (`padded`), with zero weights; such units stay exactly 0.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Scans(Protocol):
    """The two scans over padded units; every tensor is contiguous, results are written into those given for them.

    `gates` and `dgates` are `(frames, batch, directions, hidden, 4)`; `output`, `d_output` and `cells` are
    `(frames, batch, directions, hidden)`; states `(directions, batch, hidden)`. Cells, `c0`, `c_n` and the gradients of
    states are float32; everything else but `order` and `lengths` (int64) is fp16 or bf16.
    """

    def forward(
        self,
        weight_hh: Tensor,
        gates: Tensor,
        cells: Tensor | None,
        output: Tensor,
        h0: Tensor,
        c0: Tensor,
        h_n: Tensor,
        c_n: Tensor,
        order: Tensor,
        lengths: Tensor,
    ) -> None:
        """Take `gates` from the input's part to activated gates and write `cells` (where not None), outputs, states."""

    def backward(
        self,
        weight_hh: Tensor,
        gates: Tensor,
        cells: Tensor,
        d_output: Tensor,
        c0: Tensor,
        d_h_n: Tensor | None,
        d_c_n: Tensor | None,
        dgates: Tensor,
        d_h0: Tensor,
        d_c0: Tensor,
        order: Tensor,
        lengths: Tensor,
    ) -> None:
        """Write the gradients of the gates before their activation and of the initial states."""


SCANS: dict[str, Scans] = {}  # by device type; "cuda" comes at its first use


def layer(
    input: Tensor, lengths: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, h0: Tensor, c0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer over a padded batch; differentiable in all its floating-point arguments.

    Args:
        input: `(frames, batch, size)`, fp16 or bf16. What stands behind a row's end is never used.
        lengths: `(batch,)` int64 on the input's device, valid frames of each row, 0 to `frames`.
        weight_ih: `(directions, 4 * hidden, size)`, one or two directions, as all weights in the input's type.
        weight_hh: `(directions, 4 * hidden, hidden)`.
        bias: `(directions, 4 * hidden)`, torch's two biases added.
        h0: `(directions, batch, hidden)` in the input's type.
        c0: the same shape, in the input's type or float32.

    Returns:
        The outputs `(frames, batch, directions * hidden)`, zero behind a row's end; `h_n` and `c_n`, the states after
        each row's last frame (its first one in the reverse direction), in the types of `h0` and `c0`.

    Raises:
        ValueError: a shape or type that does not fit.
        Unavailable: there are no kernels for this device, hidden size or type, or they can't be built.
    """
    arguments = (input, lengths, weight_ih, weight_hh, bias, h0, c0)
    _check(*arguments)
    keep = torch.is_grad_enabled() and any(argument.requires_grad for argument in arguments)
    output, h_n, c_n, *_ = torch.ops.asr.lstm_layer(*arguments, keep)
    return output, h_n, c_n


def _check(
    input: Tensor, lengths: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, h0: Tensor, c0: Tensor
) -> None:
    """Raise ValueError for the first argument whose shape or type does not fit the others."""
    if input.dtype not in (torch.float16, torch.bfloat16) or input.dim() != 3:
        raise ValueError(f"input: {tuple(input.shape)} {input.dtype}, not (frames, batch, size) in float16 or bfloat16")
    _, batch, size = input.shape
    directions, hidden = weight_hh.shape[0], weight_hh.shape[-1]
    if directions not in (1, 2):
        raise ValueError(f"weight_hh: {directions} directions, not 1 or 2")
    expected = {
        "lengths": (lengths, (batch,), [torch.int64]),
        "weight_ih": (weight_ih, (directions, 4 * hidden, size), [input.dtype]),
        "weight_hh": (weight_hh, (directions, 4 * hidden, hidden), [input.dtype]),
        "bias": (bias, (directions, 4 * hidden), [input.dtype]),
        "h0": (h0, (directions, batch, hidden), [input.dtype]),
        "c0": (c0, (directions, batch, hidden), [input.dtype, torch.float32]),
    }
    for name, (tensor, shape, types) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype not in types or tensor.device != input.device:
            raise ValueError(
                f"{name}: {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, not {shape} "
                f"{' or '.join(map(str, types))} on {input.device}"
            )


def padded(hidden: int) -> int:
    """Hidden size that the scans work with: the next multiple of 64, above 512 of 128."""
    multiple = 64 if hidden <= 512 else 128  # two blocks of 32 units; 16 blocks of 40 or 48
    return -(-hidden // multiple) * multiple


@torch.library.custom_op("asr::lstm_layer", mutates_args=())
def lstm_layer(
    input: Tensor,
    lengths: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Operator below `layer`; where `keep`, it also gives what backward needs (else empty tensors).

    Returns:
        output, h_n, c_n as `layer`; gates `(frames, batch, directions, padded, 4)` activated; cells
        `(frames, batch, directions, padded)` float32; order `(batch,)` int64, the rows by falling length. Gates and
        cells are not defined behind a row's end.
    """
    frames, batch, size = input.shape
    directions, hidden = weight_hh.shape[0], weight_hh.shape[-1]
    width = padded(hidden)
    scans = scans_for(input.device)
    order = torch.argsort(lengths, descending=True, stable=True)
    weight, offset = _unit_major(weight_ih, width).flatten(0, 2), _unit_major(bias, width).flatten()
    with _as_given(input):
        gates = torch.addmm(offset, input.reshape(frames * batch, size), weight.mT)
    gates = gates.view(frames, batch, directions, width, 4)
    cells = input.new_empty((frames, batch, directions, width), dtype=torch.float32) if keep else None
    output = input.new_empty(frames, batch, directions, width)
    h0, c0_wide = _wide(h0, width), _wide(c0.float(), width)
    h_n, c_n = torch.empty_like(h0), torch.empty_like(c0_wide)
    scans.forward(_wide_hh(weight_hh, width), gates, cells, output, h0, c0_wide, h_n, c_n, order, lengths.contiguous())
    states = (_narrow(h_n, hidden), _narrow(c_n, hidden).to(c0.dtype))
    output = _narrow(output, hidden).view(frames, batch, directions * hidden)
    if cells is None:
        return output, *states, gates.new_empty(0), c_n.new_empty(0), order
    return output, *states, gates, cells, order


@lstm_layer.register_fake
def _(
    input: Tensor,
    lengths: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    frames, batch, _ = input.shape
    directions, hidden = weight_hh.shape[0], weight_hh.shape[-1]
    cells = (frames, batch, directions, padded(hidden)) if keep else (0,)
    return (
        input.new_empty(frames, batch, directions * hidden),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        input.new_empty((*cells, 4) if keep else (0,)),
        input.new_empty(cells, dtype=torch.float32),
        lengths.new_empty(lengths.shape),
    )


@torch.library.custom_op("asr::lstm_layer_backward", mutates_args=())
def lstm_layer_backward(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    input: Tensor,
    lengths: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    order: Tensor,
    need_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `lstm_layer`, from those of its results (None: zero) and what it kept.

    Returns:
        Gradients of input (an empty tensor unless `need_input`), weight_ih, weight_hh, bias, h0 and c0, each in the
        shape and type of what it belongs to.
    """
    frames, batch, size = input.shape
    directions, hidden = weight_hh.shape[0], weight_hh.shape[-1]
    width = cells.shape[-1]
    d_output = torch.zeros_like(output) if d_output is None else d_output
    d_wide = _wide(d_output.reshape(frames, batch, directions, hidden), width)
    c0_wide = _wide(c0.float(), width)
    d_h_n = None if d_h_n is None else _wide(d_h_n.float(), width)
    d_c_n = None if d_c_n is None else _wide(d_c_n.float(), width)
    dgates, d_h0, d_c0 = torch.empty_like(gates), torch.empty_like(c0_wide), torch.empty_like(c0_wide)
    scans_for(input.device).backward(
        _wide_hh(weight_hh, width), gates, cells, d_wide, c0_wide, d_h_n, d_c_n, dgates, d_h0, d_c0, order,
        lengths.contiguous(),
    )  # fmt: skip
    flat = dgates.view(frames * batch, directions * width * 4)
    d_input = input.new_empty(0)
    # dgates are 0 behind a row's end, but what stands there in the input may be NaN
    behind = torch.arange(frames, device=input.device)[:, None] >= lengths
    with _as_given(input):
        if need_input:
            d_input = (flat @ _unit_major(weight_ih, width).flatten(0, 2)).view(frames, batch, size)
        d_weight_ih = flat.mT @ input.masked_fill(behind[:, :, None], 0).reshape(frames * batch, size)
        d_weight_hh = _recurrent_gradient(dgates.flatten(3), output, h0, lengths)
    d_bias = flat.sum(0, dtype=torch.float32).to(input.dtype)
    return (
        d_input,
        _gate_major(d_weight_ih.view(directions, width, 4, size), hidden),
        _gate_major(d_weight_hh.view(directions, width, 4, hidden), hidden),
        _gate_major(d_bias.view(directions, width, 4), hidden),
        _narrow(d_h0, hidden).to(h0.dtype),
        _narrow(d_c0, hidden).to(c0.dtype),
    )


@lstm_layer_backward.register_fake
def _(
    d_output: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    input: Tensor,
    lengths: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor,
    output: Tensor,
    gates: Tensor,
    cells: Tensor,
    order: Tensor,
    need_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        input.new_empty(input.shape if need_input else (0,)),
        weight_ih.new_empty(weight_ih.shape),
        weight_hh.new_empty(weight_hh.shape),
        weight_hh.new_empty(weight_hh.shape[:2]),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
    )


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
) -> None:
    input, lengths, weight_ih, weight_hh, _, h0, c0, _ = inputs
    outputs, _, _, gates, cells, order = output
    ctx.save_for_backward(input, lengths, weight_ih, weight_hh, h0, c0, outputs, gates, cells, order)
    ctx.set_materialize_grads(False)  # a gradient of zeros for the gates would be as large as they are


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    *_, cells, _ = saved = ctx.saved_tensors
    if cells.dim() != 4:
        raise RuntimeError("lstm_layer ran with keep=False: there is nothing to differentiate")
    needed: tuple[bool, ...] = ctx.needs_input_grad
    d_input, d_weight_ih, d_weight_hh, d_bias, d_h0, d_c0 = torch.ops.asr.lstm_layer_backward(
        *gradients[:3], *saved, needed[0]
    )
    return d_input if needed[0] else None, None, d_weight_ih, d_weight_hh, d_bias, d_h0, d_c0, None


lstm_layer.register_autograd(_backward, setup_context=_setup_context)


def scans_for(device: torch.device) -> Scans:
    """The scans that run on this device. Raises Unavailable where there are none."""
    from asr.lstm.cuda import launch  # here: only who runs the kernels loads what drives them

    if device.type not in SCANS:
        if device.type != "cuda":
            raise launch.Unavailable(f"no fused LSTM kernels for a {device.type} device")
        SCANS["cuda"] = launch.CudaScans()
    return SCANS[device.type]


def _as_given(tensor: Tensor) -> torch.autocast:
    """Products in the type of their operands: autocast, which reaches into an operator, may be set to another one."""
    return torch.autocast(tensor.device.type, enabled=False)


def _recurrent_gradient(dgates: Tensor, output: Tensor, h0: Tensor, lengths: Tensor) -> Tensor:
    """Gradient of weight_hh, `(directions, padded * 4, hidden)`, unit by unit.

    It is the product of dgates `(frames, batch, directions, padded * 4)` with the h before each step: the output one
    frame earlier (in the direction's own order), and h0 at a row's first step. No shifted copy of the output is made:
    the frames behind a row's end are 0, so the shift alone is right everywhere but at the first step.
    """
    frames, batch, directions, _ = dgates.shape
    hidden = h0.shape[-1]
    if not frames:
        return dgates.new_zeros(directions, dgates.shape[-1], hidden)
    rows = torch.arange(batch, device=lengths.device)
    products = []
    for direction in range(directions):
        own, outputs = dgates[:, :, direction], output[:, :, direction * hidden : (direction + 1) * hidden]
        if direction == 0:
            first, later, before = own[0], own[1:], outputs[:-1]
        else:
            first, later, before = own[(lengths - 1).clamp(0, frames - 1), rows], own[:-1], outputs[1:]
        product = first.mT @ h0[direction]
        products.append(torch.addmm(product, later.flatten(0, 1).mT, before.flatten(0, 1)))
    return torch.stack(products)


def _wide(units: Tensor, width: int) -> Tensor:
    """`(..., hidden)` -> `(..., width)`, contiguous, zeros for the units that do not exist."""
    return nn.functional.pad(units, (0, width - units.shape[-1])).contiguous()


def _narrow(units: Tensor, hidden: int) -> Tensor:
    """`(..., width)` -> `(..., hidden)`, contiguous."""
    return units[..., :hidden].contiguous()


def _wide_hh(weight_hh: Tensor, width: int) -> Tensor:
    """`(directions, 4 * hidden, hidden)` -> `(directions, 4, width, width)`, contiguous."""
    hidden = weight_hh.shape[-1]
    missing = width - hidden
    return nn.functional.pad(weight_hh.unflatten(1, (4, hidden)), (0, missing, 0, missing)).contiguous()


def _unit_major(gates: Tensor, width: int) -> Tensor:
    """`(directions, 4 * hidden, ...)` -> `(directions, width, 4, ...)`, contiguous."""
    units = gates.unflatten(1, (4, -1)).transpose(1, 2)
    result = gates.new_zeros(units.shape[0], width, *units.shape[2:])
    result[:, : units.shape[1]] = units
    return result


def _gate_major(units: Tensor, hidden: int) -> Tensor:
    """`(directions, width, 4, ...)` -> `(directions, 4 * hidden, ...)`, contiguous: back from `_unit_major`."""
    return units[:, :hidden].transpose(1, 2).flatten(1, 2).contiguous()

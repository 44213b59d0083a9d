"""A ragged batch with its answer: float64 `torch.nn.LSTM` on packed rows, outputs, states and every gradient."""

import torch
from torch import Tensor, nn

RESULTS = ("output", "h_n", "c_n", "input", "weight_ih", "weight_hh", "bias", "h0", "c0")


class Case:
    """Random numbers that both sides can represent; `arguments` are those of `asr.lstm.op.layer`.

    Args:
        hidden: units of a direction.
        lengths: frames of each row, at least 1.
        size: of the input.
        directions: 1 or 2.
        frames: padded length; the default is the longest row's.
        states: whether the initial states are not zero and the final ones take part in the loss.
        device: where the layer and the answer are computed.
    """

    def __init__(
        self,
        hidden: int,
        lengths: list[int],
        dtype: torch.dtype = torch.bfloat16,
        directions: int = 2,
        size: int = 12,
        frames: int | None = None,
        states: bool = True,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        batch, self.frames, self.hidden, self.states = len(lengths), frames or max(lengths), hidden, states

        def draw(*shape: int, scale: float = 1.0, to: torch.dtype = dtype) -> Tensor:
            return (torch.randn(shape, generator=random, dtype=torch.float64) * scale).to(to)

        bound = hidden**-0.5
        tensors = {
            "input": draw(self.frames, batch, size),
            "lengths": torch.tensor(lengths),
            "weight_ih": draw(directions, 4 * hidden, size, scale=bound),
            "weight_hh": draw(directions, 4 * hidden, hidden, scale=bound),
            "bias": draw(directions, 4 * hidden, scale=bound),
            "h0": draw(directions, batch, hidden, scale=0.5 * states),
            "c0": draw(directions, batch, hidden, scale=states, to=torch.float32),
        }
        weights = [
            draw(self.frames, batch, directions * hidden),
            draw(directions, batch, hidden, scale=states),
            draw(directions, batch, hidden, scale=states, to=torch.float32),
        ]
        self.arguments = {name: tensor.to(device) for name, tensor in tensors.items()}
        self.weights = [weight.to(device) for weight in weights]
        self.behind = (torch.arange(self.frames)[:, None] >= tensors["lengths"]).to(device)
        self.expected = _packed(self.arguments, self.weights)

    def run(self, layer) -> dict[str, Tensor]:
        """Results and gradients of `layer(**arguments)`; the input's padding is NaN."""
        arguments = dict(self.arguments)
        arguments["input"] = arguments["input"].masked_fill(self.behind[:, :, None], float("nan"))
        names = [name for name in arguments if name != "lengths"]
        for name in names:
            arguments[name] = arguments[name].detach().requires_grad_()
        results = layer(**arguments)
        used = 3 if self.states else 1
        gradients = torch.autograd.grad(results[:used], [arguments[name] for name in names], self.weights[:used])
        return dict(zip(("output", "h_n", "c_n"), results, strict=True)) | dict(zip(names, gradients, strict=True))

    def errors(self, results: dict[str, Tensor]) -> dict[str, float]:
        """Distance of each result from the answer, relative to the answer's norm; NaN where a result holds one."""
        errors = {}
        for name in RESULTS:
            expected, result = self.expected[name], results[name].detach().double()
            assert result.shape == expected.shape, name
            errors[name] = float((result - expected).norm() / expected.norm().clamp(min=1e-30))
        return errors

    def wrong(self, results: dict[str, Tensor]) -> dict[str, float]:
        """The errors above rounding in 16 bits: 8 (bf16) or 11 (fp16) bits a number, a few roundings in a row."""
        limit = 1.5e-2 if results["output"].dtype == torch.bfloat16 else 2e-3
        return {name: error for name, error in self.errors(results).items() if not error < limit}


def _packed(tensors: dict[str, Tensor], weights: list[Tensor]) -> dict[str, Tensor]:
    """What torch gives for the same numbers in float64 on packed rows."""
    values = {name: tensor.double().requires_grad_() for name, tensor in tensors.items() if name != "lengths"}
    directions, _, hidden = values["weight_hh"].shape
    lstm = nn.LSTM(values["input"].shape[2], hidden, bidirectional=directions == 2).to(values["input"])
    suffixes = ["l0", "l0_reverse"][:directions]
    parameters = {}
    for index, suffix in enumerate(suffixes):
        for name, value in (("weight_ih", "weight_ih"), ("weight_hh", "weight_hh"), ("bias_ih", "bias")):
            parameters[f"{name}_{suffix}"] = values[value][index]
        parameters[f"bias_hh_{suffix}"] = torch.zeros_like(values["bias"][index])
    packed = nn.utils.rnn.pack_padded_sequence(values["input"], tensors["lengths"].cpu(), enforce_sorted=False)
    states = (values["h0"], values["c0"])
    output, (h_n, c_n) = torch.func.functional_call(lstm, parameters, (packed, states))
    output, _ = nn.utils.rnn.pad_packed_sequence(output, total_length=len(tensors["input"]))
    gradients = torch.autograd.grad([output, h_n, c_n], list(values.values()), [weight.double() for weight in weights])
    results = {"output": output.detach(), "h_n": h_n.detach(), "c_n": c_n.detach()}
    return results | dict(zip(values, gradients, strict=True))

import math

import pytest
import torch

from asr.optim import adamw, average_of, schedule, update_average


def test_the_rate_rises_linearly_then_falls_on_a_cosine_to_the_floor():
    factors = [schedule(step, 100, 0.1, 0.02) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.02 + 0.98 * 0.5)
    assert factors[100] == pytest.approx(0.02)
    assert factors[10:] == sorted(factors[10:], reverse=True)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_runs_of_hardly_a_step_have_a_schedule(steps):
    assert all(0 < schedule(step, steps, 0.1, 0.02) <= 1 for step in range(steps + 2))


def test_weight_decay_is_on_matrices_only():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    optimizer = adamw(model, 0.1, (0.9, 0.98), 0.5)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model[0].weight)}


def test_a_step_is_adamws_by_hand():
    weight = torch.nn.Parameter(torch.tensor([[2.0]]))
    holder = torch.nn.Module()
    holder.weight = weight
    optimizer = adamw(holder, 0.1, (0.9, 0.98), 0.5)
    weight.grad = torch.tensor([[3.0]])
    optimizer.step()
    # Decay 2 - 0.1 * 0.5 * 2 = 1.9; first moment and its root agree after bias correction: a step of lr.
    assert weight.item() == pytest.approx(1.9 - 0.1, abs=1e-6)
    assert math.isfinite(weight.item())


def test_the_average_is_the_recursion_worked_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average = average_of(model)
    expected = 0.0
    for step, weight in enumerate([1.0, 2.0, -3.0, 5.0], start=1):
        torch.nn.init.constant_(model.weight, weight)
        update_average(average, model, 0.3, step)
        keep = [2 / 11, 0.25, 0.3, 0.3][step - 1]  # (1 + step) / (10 + step), at most the decay
        expected = keep * expected + (1 - keep) * weight
        assert average.weight.item() == pytest.approx(expected, rel=1e-6)
    assert not average.weight.requires_grad

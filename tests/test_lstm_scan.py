"""The op that compilers see, held to the rules of torch.library, and the staircase's plan."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from asr.lstm.scan import lstm_scan
from asr.lstm.staircase import plan, steps


def arguments(dtype=torch.float64, frames=4, batch=3, hidden=2):
    shapes = ((frames, batch, 4 * hidden), (batch, hidden), (batch, hidden), (4 * hidden, hidden))
    projected, h0, c0, weight = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return projected, torch.tensor([4, 0, 2])[:batch], h0, c0, weight


def test_the_op_keeps_the_rules_of_torch_library():
    torch.library.opcheck(lstm_scan, arguments())
    torch.library.opcheck(lstm_scan, arguments(torch.float32))
    torch.library.opcheck(lstm_scan, arguments(frames=0))


def test_its_backward_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(lambda *one: lstm_scan(*one)[:3], arguments())


LENGTHS = st.lists(st.integers(0, 2000), min_size=1, max_size=40)


@given(LENGTHS)
def test_the_steps_hold_every_frame_of_every_row_in_order(lengths):
    lengths.sort(reverse=True)
    found = steps(lengths)
    assert [step.start for step in found] == [0, *(step.end for step in found)][: len(found)]
    assert (found[-1].end if found else 0) == lengths[0]
    for step in found:
        assert step.start < step.end
        assert step.rows == sum(length > step.start for length in lengths)


@given(LENGTHS)
def test_the_steps_cost_no_more_than_one_step_or_all(lengths):
    lengths.sort(reverse=True)

    def cost(found):
        return sum(40 + rows * (end - start) for start, end, rows in found)

    ends = sorted({length for length in lengths if length})
    chosen = cost([(step.start, step.end, step.rows) for step in steps(lengths)])
    alive = sum(length > 0 for length in lengths)
    assert chosen <= cost([(0, lengths[0], alive)] if alive else [])
    every = [
        (start, end, sum(length > start for length in lengths)) for start, end in zip([0, *ends], ends, strict=False)
    ]
    assert chosen <= cost(every)


def test_many_different_lengths_are_planned_quickly_and_whole():
    found = steps(list(range(5000, 0, -1)))
    assert found[-1].end == 5000
    assert found[0].rows == 5000
    assert sum(step.rows * (step.end - step.start) for step in found) < 1.05 * 5000 * 5001 / 2


@given(LENGTHS)
def test_a_plan_sorts_the_rows_and_says_whether_one_ends_within_a_step(lengths):
    planned = plan(torch.tensor(lengths), 2000, look=True)
    order = list(range(len(lengths))) if planned.order is None else planned.order.tolist()
    assert [lengths[row] for row in order] == planned.lengths.tolist() == sorted(lengths, reverse=True)
    assert planned.frozen == bool({length for length in lengths if length} - {step.end for step in planned.steps})


def test_without_a_look_all_rows_run_to_the_end():
    planned = plan(torch.tensor([3, 9]), 20, look=False)
    assert (planned.order, planned.end, planned.frozen) == (None, 20, True)
    assert planned.steps[0].rows == 2

"""The CUDA kernels, unchanged, on an emulated cluster: right against float64, the same under every schedule.

Faults planted in the sources show that the emulation would notice them.
"""

import ctypes
import multiprocessing
import resource

import pytest
import torch
from emulation import emulator
from emulation.case import Case

from asr.lstm import op
from asr.lstm.cuda import launch

pytestmark = emulator.needs_compiler
BF16, FP16 = torch.bfloat16, torch.float16


# Blocks of 40 and 48 units in clusters smaller than those of the sizes that need them.
WIDE = {
    "40 units": (320, launch.Shape(8, 1, False, 40, (2, 4))),
    "48 units": (192, launch.Shape(4, 1, False, 48, (1, 6))),
}


def results(case, tiles=1, seed=0, edits=None, shape=None):
    """What the layer gives on the emulated device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(op.SCANS, "cpu", emulator.EmulatedScans(tiles, seed, edits, shape))
        return case.run(op.layer)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


CASES = {
    "bf16, rows of every length": (1, Case, (64, [5, 1, 3, 4, 2], BF16), {}),
    "fp16, padded behind the longest row": (1, Case, (64, [4, 2, 6], FP16), {"frames": 8}),
    "one direction": (1, Case, (64, [3, 5], BF16), {"directions": 1}),
    "one frame": (1, Case, (64, [1, 1], BF16), {}),
    "units that do not exist": (1, Case, (8, [3, 4], BF16), {}),
    "two groups of rows": (1, Case, (64, [3, 7, 1, 2, 6, 4, 5, 7, 2], BF16), {}),
    "two tiles, the second one not full": (2, Case, (100, [3, 7, 1, 2, 6, 4, 5, 7, 2, 3, 1], FP16), {}),
    "states that nobody uses": (1, Case, (128, [6, 1, 4], BF16), {"states": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_states_and_gradients_are_those_of_torch_in_float64(name):
    tiles, make, arguments, options = CASES[name]
    case = make(*arguments, **options)
    assert not case.wrong(results(case, tiles))


@pytest.mark.parametrize("name", WIDE)
def test_wide_blocks_are_right_and_give_the_same_bits_under_every_schedule(name):
    hidden, shape = WIDE[name]
    case = Case(hidden, [3, 1], BF16, directions=1)
    first = results(case, shape=shape)
    assert not case.wrong(first)
    assert same(first, results(case, shape=shape, seed=1))


SIZES = [(192, 2), (256, 1), (320, 1), (384, 2), (500, 1), (512, 1), (512, 2), (530, 1), (640, 1), (640, 2), (768, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "tiles"), SIZES)
def test_every_size_of_cluster_is_right(hidden, tiles):
    case = Case(hidden, [5, 2, 4, 1, 3, 5, 5, 2, 3, 4], BF16)
    first = results(case, tiles)
    assert not case.wrong(first)
    assert same(first, results(case, tiles, seed=1))


def test_every_schedule_gives_the_same_bits():
    case = Case(128, [6, 2, 5, 1, 6], BF16)
    first = results(case)
    assert all(same(first, results(case, seed=seed)) for seed in range(1, 4))


def test_a_row_gives_the_same_bits_in_any_company():
    many = Case(64, [4, 6, 2, 5, 1, 3, 6, 4, 2, 5], BF16)
    alone = Case(64, [5], BF16)
    for name, tensor in many.arguments.items():
        rows = {"input": (slice(5), slice(3, 4)), "lengths": slice(3, 4), "h0": (slice(None), slice(3, 4))}
        alone.arguments[name] = tensor[rows.get(name, rows["h0"] if name == "c0" else slice(None))]
    alone.weights = [many.weights[0][:5, 3:4], *(weight[:, 3:4] for weight in many.weights[1:])]
    company, own = results(many, tiles=2), results(alone)
    assert torch.equal(company["output"][:5, 3:4], own["output"])
    assert all(torch.equal(company[name][:, 3:4], own[name]) for name in ("h_n", "c_n", "h0", "c0"))


def test_a_row_without_frames_keeps_its_state_and_its_gradient():
    case = Case(64, [4, 1, 2], BF16)
    case.arguments["lengths"] = torch.tensor([4, 0, 2])
    case.behind[:, 1] = True
    got = results(case)
    assert torch.equal(got["h_n"][:, 1], case.arguments["h0"][:, 1])
    assert torch.equal(got["c_n"][:, 1], case.arguments["c0"][:, 1])
    assert torch.equal(got["h0"][:, 1], case.weights[1][:, 1])
    assert torch.equal(got["c0"][:, 1], case.weights[2][:, 1])
    assert not got["output"][:, 1].any()
    assert not got["input"][:, 1].any()
    assert all(tensor.isfinite().all() for tensor in got.values())


def test_a_batch_without_any_frame_hands_its_states_through():
    case = Case(64, [2, 1], BF16)
    case.arguments["lengths"] = torch.tensor([0, 0])
    case.behind[:] = True
    got = results(case)
    assert torch.equal(got["h_n"], case.arguments["h0"]) and torch.equal(got["c_n"], case.arguments["c0"])
    assert torch.equal(got["h0"], case.weights[1]) and torch.equal(got["c0"], case.weights[2])
    assert not any(got[name].any() for name in ("output", "input", "weight_ih", "weight_hh", "bias"))


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("hidden", [64, 128, 520, 700])
def test_the_launcher_asks_for_the_shared_memory_that_a_kernel_uses(kernel, hidden):
    shape = launch.shape_for(hidden, launch.most_tiles(hidden), BF16)
    assert shape.shared_bytes(kernel) == ctypes.CDLL(emulator.build(kernel, shape)).shared_size()


# Each is a list of replacements in a kernel's source.
FORWARD = {
    "no wait for h": [("mbarrier_wait(bar, parity);", "")],
    "waits for the wrong phase": [("(step - 1) / 2 & 1", "step / 2 & 1")],
    "one buffer of h": [
        ("(buffer ^ 1) * (u32)sizeof(shared.hidden[0])", "0"),
        ("shared.hidden[buffer][2 * j + half]", "shared.hidden[0][2 * j + half]"),
    ],
    "one staging buffer": [("staged[buffer]", "staged[0]")],
    "no pair barrier": [("        pair_barrier(1 + pair);\n", "")],
    "no block barrier in the loop": [("        }\n        block_barrier();\n", "        }\n")],
    "no cluster barrier": [("    cluster_barrier();", "")],
    "mbarriers not published": [("        mbarrier_publish();\n", "")],
    "mbarrier never armed again": [("if (threadIdx.x == 0 && step + 2 < steps) mbarrier_expect(bar, bytes);", "")],
    "fewer bytes than are sent": [("shared.full[0][0] + i), bytes)", "shared.full[0][0] + i), bytes - 16)")],
    "counted by the wrong mbarrier": [("source / SHARING", "d / SHARING")],
    "pushes after the last step": [("step + 1 < steps && n * ROWS", "step < steps && n * ROWS")],
    "gates exchanged": [("low(input[n].y)", "high(input[n].y)")],
    "reverse direction from the padded end": [("direction ? length - 1 : 0", "direction ? frames - 1 : 0")],
    "ended rows go on": [("if (step < length[n]) { // a row", "if (length[n] > 0) { // a row")],
    "no zeros behind the end": [("+ turn; t < frames;", "+ turn; t < steps - 1;")],
    "c0 ignored": [("c0[rows.state(row, unit)]", "0.f")],
    "weights begin at the first block": [("(rank * UNITS + (2 * j + half) * 32", "((2 * j + half) * 32")],
    "input of the step before": [("if (step + 1 < length[n]) input[n] =", "if (false) input[n] =")],
}
BACKWARD = {
    "no wait for the parts": [("mbarrier_wait(bar, (round - 1) / 2 & 1);", "")],
    "one buffer of parts": [("parts[buffer ^ 1]", "parts[0]"), ("buffer * (u32)sizeof(shared.parts[0])", "0")],
    "one buffer of dgates": [("shared.dgates[buffer]", "shared.dgates[0]")],
    "no block barrier in the loop": [("        }\n        block_barrier();\n", "        }\n")],
    "no cluster barrier": [("    cluster_barrier();", "")],
    "mbarriers not published": [("        mbarrier_publish();\n", "")],
    "mbarrier never armed again": [("if (thread == 0 && round + 1 < steps) mbarrier_expect(bar, bytes);", "")],
    "gradient of h_n dropped": [("if (d_h_n && ", "if (false && ")],
    "gradient of c_n dropped": [("dc[n] = d_c_n && ", "dc[n] = false && ")],
    "c of the wrong step": [("c[n] = saved[n].c_before;", "")],
    "gates exchanged": [("f / 2 * 2 * HIDDEN", "(2 - f / 2 * 2) * HIDDEN")],
    "rows contribute before they begin": [("uint2 out = {0, 0};", "uint2 out = {0x3f803f80, 0x3f803f80};")],
    "no zeros behind the end": [("for (int t = length[n]; t < frames; t++)", "for (int t = steps; t < frames; t++)")],
}
# Where blocks have 40 units: what a warp reads at once comes from two sources, and weights lie in shared memory.
WIDE_FORWARD = {
    "no wait for the second source of a block": [("(64 * j + 63)", "(64 * j)")],
    "no wait behind the first group": [("(j == 0 || group_of(j) != group_of(j - 1))", "j == 0")],
    "fewer bytes than are sent": [("SHARING * rows.count * UNITS", "SHARING * rows.count * 32")],
    "a piece goes where 32 units would put it": [("[at / 32][0]", "[source][0]")],
    "warps share their weights": [("+ fragment][threadIdx.x]", "+ fragment][threadIdx.x % 32]")],
    "parts share their place": [("part * FRAGMENTS + fragment", "fragment")],
}
WIDE_BACKWARD = {
    "a tile of two blocks goes to one": [
        ("peer = to[m] / UNITS", "peer = (to[m] + HIDDEN - lane / 4 * 2) % HIDDEN / UNITS")
    ],
    "fewer bytes than are sent": [("CLUSTER * UNITS * 8", "CLUSTER * 32 * 8")],
    "warps share their weights": WIDE_FORWARD["warps share their weights"],
    "parts share their place": WIDE_FORWARD["parts share their place"],
}
FAULTS = {
    ("forward", False): FORWARD,
    ("backward", False): BACKWARD,
    ("forward", True): WIDE_FORWARD,
    ("backward", True): WIDE_BACKWARD,
}
QUICK = {
    "no wait for h",
    "no pair barrier",
    "mbarriers not published",
    "one buffer of dgates",
    "no wait for the second source of a block",
}


def verdict(kernel, edits, wide, report):
    """Child process: what is noticed of a fault; a fault may also crash it or let it run for ever."""
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    hidden, shape = WIDE["40 units"] if wide else (128, None)
    case = Case(hidden, [3, 4, 1] if wide else [3, 7, 1, 2, 6, 4, 5, 7, 2], BF16, frames=5 if wide else 8)
    try:
        first = None
        for seed in range(8):
            got = results(case, seed=seed, edits={kernel: tuple(edits)}, shape=shape)
            first = first or got
            if wrong := case.wrong(got):
                report.send(f"wrong: {wrong}")
            elif not same(first, got):
                report.send("differs between schedules")
    except emulator.EmulationError as error:
        report.send(str(error))
    report.send("")


@pytest.mark.parametrize(
    ("kernel", "wide", "name"),
    [
        pytest.param(*where, name, marks=() if name in QUICK else pytest.mark.slow)
        for where, faults in FAULTS.items()
        for name in faults
    ],
)
def test_a_planted_fault_is_noticed(kernel, wide, name):
    assert noticed(kernel, FAULTS[kernel, wide][name], wide)


@pytest.mark.slow
@pytest.mark.parametrize("wide", [False, True])
def test_the_check_of_faults_lets_the_kernels_pass(wide):
    assert not noticed("forward", [], wide)


def noticed(kernel, edits, wide):
    """The first thing that a child process noticed, or how it died; empty where all was well."""
    shape = WIDE["40 units"][1] if wide else launch.Shape(4, 1, False)
    for other in ("forward", "backward"):  # compiled here once, for all children
        emulator.build(other, shape, tuple(edits) if other == kernel else ())
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=verdict, args=(kernel, edits, wide, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        child.join()
        return f"died with {child.exitcode}"
    finally:
        child.kill()
        child.join()

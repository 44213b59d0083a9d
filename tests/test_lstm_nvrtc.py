"""Compiling the kernels without a GPU: every shape fits the registers; the cache of machine code survives its owner."""

import sys

import pytest

from asr.lstm.cuda import launch, nvrtc

SMALL = launch.Shape(2, 1, False).macros("forward")


def _nvrtc_is_there():
    try:
        nvrtc.compile("forward", SMALL, "sm_90a")
    except nvrtc.Unavailable:
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not _nvrtc_is_there(), reason="needs NVRTC, which comes with torch's CUDA build")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("ASR_LSTM_CACHE", str(folder))
    return folder


@pytest.fixture
def compilations(monkeypatch):
    """The kernels that are compiled from now on."""
    done, compile = [], nvrtc.compile
    monkeypatch.setattr(nvrtc, "compile", lambda *arguments: done.append(arguments) or compile(*arguments))
    return done


@needs_nvrtc
@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("shape", launch.SHAPES, ids=str)
def test_every_shape_keeps_its_weights_in_registers_and_its_shared_memory(shape, kernel):
    compiled = nvrtc.compile(kernel, shape.macros(kernel), "sm_90a")
    if kernel == "forward":
        parts, a_part = shape.cluster * shape.units // 64 - shape.parts[0], 16
    else:
        parts, a_part = shape.units // 4 - shape.parts[1], 8 * -(-shape.cluster // 8)
    assert compiled.spilled == 0
    assert parts * a_part < compiled.registers <= 255
    warps = -(-shape.threads // 128)  # on a quarter of a multiprocessor, which has 512 registers for each lane
    assert warps * -(-compiled.registers // 8) * 8 <= 512
    assert shape.shared_bytes(kernel) <= 227 << 10
    assert "warning" not in compiled.log
    assert compiled.cubin.startswith(b"\x7fELF")


@needs_nvrtc
@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize(("arch", "cluster"), [("sm_100a", 16), ("sm_100a", 10), ("sm_120a", 8)])
def test_newer_devices_are_compiled_for(arch, cluster, kernel):
    assert nvrtc.compile(kernel, launch.Shape(cluster, 1, True).macros(kernel), arch).spilled == 0


@needs_nvrtc
@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("shape", [shape for shape in launch.SHAPES if shape.units > 32], ids=str)
def test_wide_blocks_are_compiled_for_newer_devices(shape, kernel):
    # As many weights in registers as suit 9.0 are a register or two too many for the forward scan here.
    assert nvrtc.compile(kernel, shape.macros(kernel), "sm_100a").spilled <= (48 if kernel == "forward" else 0)


@needs_nvrtc
def test_more_shared_memory_than_a_block_can_have_is_no_kernel():
    with pytest.raises(nvrtc.Unavailable, match="more shared memory than a block can have"):
        nvrtc.compile("backward", launch.Shape(16, 2, False, 48, (5, 6)).macros("backward"), "sm_90a")


@needs_nvrtc
def test_a_kernel_that_ends_long_waits_compiles():
    assert (
        nvrtc.compile("backward", launch.Shape(16, 2, False).macros("backward") | {"LSTM_BOUNDED": 1}, "sm_90a").spilled
        == 0
    )


def test_spills_are_read_from_the_compilers_log():
    log = "0 bytes stack frame, 24 bytes spill stores, 32 bytes spill loads\nptxas info : Used 255 registers"
    assert nvrtc.Compiled(b"", log).spilled == 56
    assert nvrtc.Compiled(b"", log).registers == 255
    with pytest.raises(ValueError, match="registers"):
        _ = nvrtc.Compiled(b"", "").registers


@needs_nvrtc
def test_a_source_that_is_wrong_says_where(tmp_path, monkeypatch):
    (tmp_path / "forward.cu").write_text('#include "common.cuh"\nint wrong = ;')
    (tmp_path / "common.cuh").write_text("")
    monkeypatch.setattr(nvrtc, "SOURCES", tmp_path)
    with pytest.raises(nvrtc.Unavailable, match=r"forward\.cu\(2\): error"):
        nvrtc.compile("forward", SMALL, "sm_90a")


@needs_nvrtc
def test_an_architecture_that_nobody_knows_is_named():
    with pytest.raises(nvrtc.Unavailable, match="sm_10a"):
        nvrtc.compile("forward", SMALL, "sm_10a")


def test_without_the_binding_one_error_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    with pytest.raises(nvrtc.Unavailable, match="torch's CUDA build"):
        nvrtc.compile("forward", SMALL, "sm_90a")


@needs_nvrtc
def test_a_kernel_is_compiled_once(cache, compilations):
    first = nvrtc.cubin("forward", SMALL, "sm_90a")
    assert nvrtc.cubin("forward", SMALL, "sm_90a") == first
    assert len(compilations) == len(list(cache.iterdir())) == 1


@needs_nvrtc
def test_what_decides_about_the_code_decides_about_the_file(cache, compilations, tmp_path, monkeypatch):
    nvrtc.cubin("forward", SMALL, "sm_90a")
    nvrtc.cubin("backward", SMALL, "sm_90a")
    nvrtc.cubin("forward", SMALL, "sm_100a")
    nvrtc.cubin("forward", SMALL | {"LSTM_FP16": 1}, "sm_90a")
    for name in ("forward.cu", "common.cuh"):
        (tmp_path / name).write_text((nvrtc.SOURCES / name).read_text() + "\n")
    monkeypatch.setattr(nvrtc, "SOURCES", tmp_path)
    nvrtc.cubin("forward", SMALL, "sm_90a")
    assert len(compilations) == len(list(cache.iterdir())) == 5


@needs_nvrtc
@pytest.mark.parametrize("damage", ["a byte", "cut off", "empty"])
def test_a_damaged_file_is_replaced(cache, compilations, damage):
    code = nvrtc.cubin("forward", SMALL, "sm_90a")
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    path.write_bytes({"a byte": flipped, "cut off": whole[:1000], "empty": b""}[damage])
    assert nvrtc.cubin("forward", SMALL, "sm_90a") == code
    assert path.read_bytes() == whole
    assert len(compilations) == 2


@needs_nvrtc
def test_a_fresh_kernel_passes_the_cache_by(cache, compilations):
    nvrtc.cubin("forward", SMALL, "sm_90a")
    nvrtc.cubin("forward", SMALL, "sm_90a", fresh=True)
    assert len(compilations) == 2


@needs_nvrtc
@pytest.mark.parametrize("place", ["a file in the way", "none", "no home"])
def test_without_a_folder_to_write_kernels_are_compiled_in_memory(tmp_path, monkeypatch, compilations, place):
    (tmp_path / "file").touch()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if place == "no home":
        monkeypatch.delenv("ASR_LSTM_CACHE", raising=False)
        monkeypatch.setattr(nvrtc.Path, "home", _nobody)
    else:
        monkeypatch.setenv("ASR_LSTM_CACHE", str(tmp_path / "file" / "cache") if place != "none" else "")
    assert nvrtc.cubin("forward", SMALL, "sm_90a") == nvrtc.cubin("forward", SMALL, "sm_90a")
    assert len(compilations) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def _nobody():
    raise RuntimeError("no home directory")


def test_the_cache_follows_its_variables(tmp_path, monkeypatch):
    monkeypatch.delenv("ASR_LSTM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert nvrtc._folder() == tmp_path / "asr" / "lstm"
    monkeypatch.setenv("ASR_LSTM_CACHE", str(tmp_path / "own"))
    assert nvrtc._folder() == tmp_path / "own"

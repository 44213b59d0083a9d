"""What all tests share: fixed seeds, one thread a process, no network, data sets found by name."""

import os
import random
import re
import sys
from collections.abc import Callable, Generator
from pathlib import Path

# Before torch is imported anywhere: its results depend on the number of threads, and workers share the cores.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

_GUARD = Path(__file__).parent / "guard"
sys.path.insert(0, str(_GUARD))
if "sitecustomize" in sys.modules and not hasattr(sys.modules["sitecustomize"], "NetworkBlockedError"):
    del sys.modules["sitecustomize"]  # the one of this Python's installation
import sitecustomize  # noqa: E402, F401 (its import starts the guard)

_SEARCHED = [str(_GUARD), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _SEARCHED))  # of the processes that tests start

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("asr", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("asr")


# In continuous integration everything is installed: a skip for another reason than these is a failure there.
EXPECTED_SKIPS = re.compile(r"needs the corpus|kenlm is not installed|ASR_DATA|CUDA|GPU|root|Linux|macOS|win32")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests out unless --slow asks for them or one of them is named on the command line."""
    if config.getoption("--slow") or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where CI is set, turn a skip that nobody expects into a failure."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and os.environ.get("CI"):
        reason = report.longrepr[2]
        if not EXPECTED_SKIPS.search(reason):
            report.outcome, report.longrepr = "failed", f"not expected in CI: {reason}"
    return report


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same state of the global generators, whatever ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, list[str]]]:
    """Run a command line in an empty folder; returns its status, standard output and the lines on standard error."""
    from asr.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, list[str]]:
        status = main([str(word) for word in words])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return status, told.out, told.err.splitlines()

    return call


@pytest.fixture
def asr_data() -> Callable[[str], Path]:
    """``asr_data("an4")`` is that corpus's folder below ASR_DATA; without it the test is skipped, by name."""

    def find(name: str) -> Path:
        root = os.environ.get("ASR_DATA", "")
        if not root or not (folder := Path(root, name)).is_dir():
            place = f"{root} has no folder {name}" if root else "ASR_DATA is not set"
            pytest.skip(f"needs the corpus {name}: {place}")
        return folder

    return find

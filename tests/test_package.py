"""The package as users get it: names, start-up, dependencies and their lock, wheel; the tests' guard."""

import ast
import importlib
import importlib.metadata
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import asr

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DEPENDENCIES = [Requirement(text) for text in sum(EXTRAS.values(), PROJECT["dependencies"])]
HEAVY = {
    "torch",
    "torchaudio",
    "numpy",
    "librosa",
    "numba",
    "hydra",
    "omegaconf",
    "soundfile",
    "rich",
    "matplotlib",
}
COUNT_MODULES = "import sys; print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh Python holds after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{COUNT_MODULES}"], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def locked() -> Iterator[tuple[Requirement, list[str]]]:
    """The lines of requirements.lock: what is required, and the SHA-256 of the files that serve."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        yield (
            Requirement(line.split("--hash=")[0].strip()),
            re.findall(r"--hash=sha256:([0-9a-f]{64})(?= |$)", line),
        )


def test_importing_asr_brings_no_library():
    assert not modules_after("import asr") & HEAVY


def test_help_and_version_bring_no_library():
    for flag in ("--help", "--version"):
        code = f"import asr.cli\ntry: asr.cli.main(['{flag}'])\nexcept SystemExit: pass"
        assert not modules_after(code) & HEAVY


def test_each_public_name_is_found_at_its_home():
    for name in asr.__all__:
        assert getattr(asr, name) is getattr(importlib.import_module(asr._HOMES[name]), name)
    assert set(asr.__all__) == set(asr._HOMES) < set(dir(asr))


def test_an_unknown_name_is_an_attribute_error_that_tells_the_right_ones():
    with pytest.raises(
        AttributeError, match=r"'asr' has no attribute 'Recogniser'; .*Recognizer, Transcript, load, wer"
    ):
        asr.Recogniser  # noqa: B018


def test_the_version_stands_in_one_place_and_in_the_changelog():
    assert PROJECT["dynamic"] == ["version"]
    assert importlib.metadata.version("asr") == asr.__version__
    assert f"## [{asr.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_torch_and_torchaudio_are_one_pair():
    pair = {item.name: item.specifier for item in DEPENDENCIES if item.name in ("torch", "torchaudio")}
    assert pair["torch"] == pair["torchaudio"]
    versions = {item.name: str(item.specifier) for item, _ in locked()}
    assert versions["torch"] == versions["torchaudio"]


def test_every_line_of_the_lock_names_one_version_and_its_hashes():
    lines = list(locked())
    assert len(lines) > len(DEPENDENCIES)
    for requirement, hashes in lines:
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert requirement.url is None
        assert hashes and len(set(hashes)) == len(hashes), requirement


def test_the_lock_covers_all_dependencies_in_versions_that_they_allow():
    versions: dict[str, list[str]] = {}
    for requirement, _ in locked():
        versions.setdefault(canonicalize_name(requirement.name), []).append(str(requirement.specifier)[2:])
    for dependency in DEPENDENCIES:
        found = versions.get(canonicalize_name(dependency.name), [])
        assert found, f"{dependency.name} is not in requirements.lock"
        assert all(dependency.specifier.contains(version) for version in found), dependency


def test_every_library_that_asr_imports_is_declared():
    homes = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(item.name) for item in DEPENDENCIES} | {"omegaconf"}  # a part of hydra-core's face
    imported: set[str] = set()
    for path in (ROOT / "asr").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).split(".")[0])
    for name in imported - set(sys.stdlib_module_names) - {"asr"}:
        assert declared & {canonicalize_name(home) for home in homes.get(name, [])}, f"{name} is not in pyproject.toml"


def test_each_dependency_is_argued_in_the_docs():
    text = (ROOT / "docs" / "dependencies.md").read_text()
    assert not [item.name for item in DEPENDENCIES if not re.search(rf"\b{re.escape(item.name)}\b", text)]
    assert not [extra for extra in EXTRAS if f"| `{extra}` |" not in text]


def test_the_scripts_can_be_run_and_are_sound_shell():
    for path in [
        ROOT / ".ci" / "run",
        *(ROOT / "scripts" / name for name in ("env", "demo", "test", "check_wheel")),
    ]:
        assert os.access(path, os.X_OK), path
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_wheel_works_outside_the_checkout(tmp_path):
    outside = {"PYTHONPATH": str(ROOT / "tests" / "guard"), "TMPDIR": str(tmp_path)}
    environment = os.environ | {"ASR_PYTHON": sys.executable} | outside
    done = subprocess.run([ROOT / "scripts" / "check_wheel"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files, yaml = map(
        int, re.match(r"wheel: (\d+) files, (\d+) of them YAML, as in the checkout", done.stdout).groups()
    )
    in_tree = [path for folder in ("conf", "recipes") for path in (ROOT / folder).rglob("*.yaml")]
    assert yaml == len(in_tree) > 0
    assert files > yaml
    assert "help, train recipe=fsdd, transcribe, evaluate and info work" in done.stdout
    assert not list(tmp_path.iterdir()), "the script removes what it made"


REMOTE = "192.0.2.1"  # an address for documentation: it belongs to nobody


@pytest.mark.parametrize(
    "reach",
    [
        lambda: urllib.request.urlopen(f"http://{REMOTE}/"),
        lambda: socket.create_connection((REMOTE, 80)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", (REMOTE, 80)),
        lambda: socket.getaddrinfo("example.org", 80),
        lambda: socket.gethostbyname("example.org"),
    ],
)
def test_a_test_that_reaches_for_the_network_fails(reach):
    with pytest.raises(RuntimeError, match="tests reach no network but loopback"):
        reach()


def test_so_does_a_python_that_a_test_starts():
    code = f"import socket; socket.create_connection(('{REMOTE}', 80))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "tests reach no network but loopback" in done.stderr


def test_loopback_is_open():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass


SUITE = """
import random

import pytest


@pytest.mark.slow
def test_slow():
    pass


def test_without_its_corpus(asr_data):
    asr_data("no_such_corpus")


def test_without_a_library():
    pytest.skip("could not import that")


@pytest.mark.parametrize("time", [1, 2])
def test_same_seed(time):
    assert random.random() == random.Random(0).random()
"""


@pytest.mark.parametrize(
    ("ci", "flags", "counts"),
    [
        ("", [], "2 passed, 2 skipped, 1 deselected"),
        ("", ["--slow"], "3 passed, 2 skipped"),
        ("true", [], "1 failed, 2 passed, 1 skipped, 1 deselected"),
    ],
)
def test_slow_tests_wait_to_be_asked_for_and_ci_knows_why_a_test_was_skipped(tmp_path, ci, flags, counts):
    shutil.copytree(ROOT / "tests" / "guard", tmp_path / "guard")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_suite.py").write_text(SUITE)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-o",
        "markers=slow",
        *flags,
    ]
    environment = os.environ | {"CI": ci, "ASR_DATA": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].startswith(counts + " in"), done.stdout
    assert f"needs the corpus no_such_corpus: {tmp_path} has no folder no_such_corpus" in done.stdout
    assert ("not expected in CI: Skipped: could not import that" in done.stdout) is bool(ci)

"""scripts/env and scripts/demo, with stand-ins for uv and asr that note what they are asked for."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

UV = """#!/usr/bin/env bash
echo "$@" >>"$UV_CALLS"
case "$1 $2" in
    venv*) mkdir -p "${!#}/bin" && ln -s "$REAL_PYTHON" "${!#}/bin/python" && eval "$UV_VENV" ;;
    "pip install") eval "$UV_INSTALL" ;;
esac
"""


class Sandbox:
    """A copy of what scripts/env needs, a PATH with a stand-in for uv, and what that was called with."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "check out"  # a space must not hurt
        self.venv = self.root / ".venv"
        self.mark = self.venv / ".asr-env"
        self.calls = folder / "calls"
        self.bin = folder / "bin"
        (self.root / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        for name in ("scripts/env", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        (self.bin / "uv").write_text(UV)
        (self.bin / "uv").chmod(0o755)

    def run(self, path: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run scripts/env; `path` replaces the PATH."""
        self.calls.write_text("")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ASR_")}
        settings = inherited | {
            "PATH": path or f"{self.bin}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "REAL_PYTHON": os.path.realpath(sys.executable),
            "UV_CALLS": str(self.calls),
            "TMPDIR": str(self.root),
            **environment,
        }
        return subprocess.run([self.root / "scripts" / "env"], env=settings, capture_output=True, text=True)

    @property
    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_env_installs_the_lock_with_its_hashes_then_asr(sandbox):
    done = sandbox.run()
    assert done.returncode == 0, done.stderr
    made, packages, itself = sandbox.called
    assert made.startswith("venv ")
    assert packages.endswith(f"--no-deps --require-hashes -r {sandbox.root}/requirements.lock")
    assert itself.endswith(f"--no-deps --no-build-isolation -e {sandbox.root}")
    assert done.stderr.splitlines()[0].startswith(f"Environment: installing into {sandbox.venv} with uv")
    assert done.stderr.splitlines()[1].startswith("Environment: ready after")


def test_env_does_nothing_and_says_nothing_the_second_time(sandbox):
    sandbox.run()
    done = sandbox.run()
    assert (done.returncode, done.stderr, sandbox.called) == (0, "", [])


def test_env_adds_what_a_changed_lock_asks_for_to_the_same_environment(sandbox):
    sandbox.run()
    (sandbox.venv / "here").touch()
    with open(sandbox.root / "requirements.lock", "a") as lock:
        lock.write("# changed\n")
    assert sandbox.run().returncode == 0
    assert [call.split()[0] for call in sandbox.called] == ["pip", "pip"]
    assert (sandbox.venv / "here").exists()
    assert sandbox.run().returncode == 0
    assert not sandbox.called


@pytest.mark.parametrize("when", ["UV_VENV", "UV_INSTALL"])
def test_env_makes_a_half_made_environment_anew(sandbox, when):
    killed = sandbox.run(**{when: "kill -KILL $PPID"})
    assert killed.returncode != 0
    (sandbox.venv / "half").touch()
    assert sandbox.run().returncode == 0
    assert len(sandbox.called) == 3
    assert not (sandbox.venv / "half").exists()


def test_env_completes_an_environment_whose_installation_failed(sandbox):
    failed = sandbox.run(UV_INSTALL="echo 'error: No space left on device'; exit 2")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith("scripts/env: error: No space left on device (log: ")
    assert sandbox.run().returncode == 0
    assert [call.split()[0] for call in sandbox.called] == ["pip", "pip"]


def test_env_says_in_one_line_that_there_is_no_network(sandbox):
    done = sandbox.run(UV_INSTALL="echo 'dns error: failed to lookup address'; exit 2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("scripts/env: no package index could be reached; check the network")


def test_env_leaves_an_environment_alone_that_is_not_its_own(sandbox):
    sandbox.venv.mkdir()
    (sandbox.venv / "precious").touch()
    done = sandbox.run()
    assert done.returncode == 1
    assert done.stderr == f"scripts/env: {sandbox.venv} is there, but holds no Python 3.11 to 3.13; " + (
        "remove it or set ASR_VENV to another place\n"
    )
    assert (sandbox.venv / "precious").exists()


def test_env_installs_into_an_environment_that_the_user_made(sandbox):
    (sandbox.venv / "bin").mkdir(parents=True)
    (sandbox.venv / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    assert sandbox.run().returncode == 0
    assert [call.split()[0] for call in sandbox.called] == ["pip", "pip"]


def test_env_goes_elsewhere_when_asked(sandbox, tmp_path):
    assert sandbox.run(ASR_VENV=str(tmp_path / "else" / "where")).returncode == 0
    assert (tmp_path / "else" / "where" / ".asr-env").exists()
    assert not sandbox.venv.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has one build of torch only")
def test_env_takes_the_small_torch_from_its_own_index_and_the_rest_from_the_lock(sandbox):
    assert sandbox.run(ASR_TORCH="cpu").returncode == 0
    _, pair, rest, _ = sandbox.called
    assert pair.endswith("--index-url https://download.pytorch.org/whl/cpu torch==2.11.0 torchaudio==2.11.0")
    assert "--require-hashes" in rest
    text = Path(rest.split("-r ")[1]).read_text()
    left_out = {line.split("==")[0] for line in text.splitlines() if line[:1].isalpha()}
    lock = (ROOT / "requirements.lock").read_text()
    everything = {line.split("==")[0] for line in lock.splitlines() if line[:1].isalpha()}
    gone = everything - left_out
    assert {"torch", "torchaudio", "triton"} <= gone
    assert all(name.startswith(("torch", "triton", "nvidia-", "cuda-")) for name in gone)
    assert text.count("--hash=") > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has one build of torch only")
def test_env_keeps_the_build_of_torch_until_another_is_asked_for(sandbox):
    sandbox.run(ASR_TORCH="cpu")
    assert sandbox.run().returncode == 0
    assert not sandbox.called
    assert sandbox.run(ASR_TORCH="cuda").returncode == 0
    assert [call.split()[0] for call in sandbox.called] == ["venv", "pip", "pip"]


def test_env_refuses_a_build_that_does_not_exist(sandbox):
    done = sandbox.run(ASR_TORCH="gpu")
    assert (done.returncode, done.stderr) == (1, "scripts/env: ASR_TORCH is 'gpu'; it is cpu or cuda\n")


def test_env_without_a_python_that_serves_says_which_ones_do(sandbox, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (
        "bash",
        "env",
        "cat",
        "cut",
        "cksum",
        "dirname",
        "mkdir",
        "mktemp",
        "rm",
        "uname",
        "grep",
        "sed",
        "tail",
    ):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "python3").write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.10.1 || exit 1\n')
    (tools / "python3").chmod(0o755)
    done = sandbox.run(path=str(tools))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "scripts/env: needs Python 3.11, 3.12 or 3.13 (python3 is Python 3.10.1); install one, or uv"
    )


ASR = """#!/usr/bin/env bash
echo "$@" >>"$ASR_CALLS"
case "$1 $2" in
    "prepare $NO_CORPUS") echo "asr: $2: no copy was found" >&2; exit 1 ;;
    prepare*) mkdir -p "data/$2" && cp "$MANIFEST" "data/$2/test.jsonl" ;;
    train*)
        run=runs/demo/${3#name=}
        mkdir -p "$run" && echo '{}' | tee "$run/metrics.jsonl" >"$run/result.json" ;;
    transcribe*) cat "$HEARD" ;;
    evaluate*) cat "$MEASURED" ;;
esac
"""


class Stage:
    """A copy of scripts/demo with a stand-in for asr; `wrong` of the 100 words of the test set are wrong."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.calls = folder / "calls"
        (folder / "scripts").mkdir()
        (folder / "bin").mkdir()
        shutil.copy(ROOT / "scripts" / "demo", folder / "scripts" / "demo")
        for path, text in (("scripts/env", "#!/bin/sh\n"), ("bin/asr", ASR)):
            (folder / path).write_text(text)
            (folder / path).chmod(0o755)
        (folder / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
        lines = [{"audio_filepath": f"{number}.flac", "text": f"{number} one"} for number in range(12)]
        (folder / "manifest").write_text("".join(json.dumps(line) + "\n" for line in lines))
        heard = [{"text": text} for text in ("0 one", "2 two", "4 one", "6 one", "8 one")]
        (folder / "heard").write_text("".join(json.dumps(line) + "\n" for line in heard))

    def run(self, wrong: int = 0, no_corpus: str = "none") -> subprocess.CompletedProcess[str]:
        rate = {"rate": wrong / 100, "interval": [0, 0.1], "count": 100, "utterances": 12}
        rate |= {"substitutions": wrong, "deletions": 0, "insertions": 0}
        measured = {"wer": rate, "cer": rate, "seconds": 60.0, "timing": {"rtf": 0.1}}
        (self.root / "measured").write_text(json.dumps(measured))
        self.calls.write_text("")
        files = {name.upper(): str(self.root / name) for name in ("manifest", "heard", "measured")}
        settings = {"ASR_VENV": str(self.root), "ASR_CALLS": str(self.calls), "NO_CORPUS": no_corpus}
        command = [self.root / "scripts" / "demo"]
        return subprocess.run(command, env=os.environ | files | settings, capture_output=True, text=True)

    @property
    def verbs(self) -> list[str]:
        return [call.split()[0] for call in self.calls.read_text().splitlines()]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_demo_goes_from_recordings_to_a_table(stage):
    done = stage.run(wrong=5)
    assert done.returncode == 0, done.stderr
    assert stage.verbs == ["prepare", "train", "transcribe", "evaluate"]
    train = stage.calls.read_text().splitlines()[1]
    assert train.startswith(
        "train recipe=demo name=fsdd_strings data.corpus=fsdd_strings data.train=data/fsdd_strings/tr"
    )
    assert "2 one" + 36 * " " + "heard: 2 two   !" in done.stdout
    assert done.stdout.count("heard:") == 5
    assert done.stdout.count("!") == 2  # in the heading, and beside the wrong one
    assert "word error rate       5.00 %, 95 % interval 0.00 to 10.00 %" in done.stdout
    assert str(stage.root / "runs/demo/fsdd_strings/curves.png") in done.stdout
    assert "Next:" in done.stdout
    assert "synthetic" not in done.stdout.lower()


def test_demo_skips_what_is_done(stage):
    stage.run()
    assert stage.run().returncode == 0
    assert "train" not in stage.verbs


def test_demo_fails_in_one_line_when_too_many_words_are_wrong(stage):
    done = stage.run(wrong=6)
    assert done.returncode == 1
    assert done.stderr == (
        "scripts/demo: more than 5 % of the words are wrong; remove runs/demo/fsdd_strings to train again\n"
    )


def test_demo_speaks_the_digits_itself_without_recordings_and_says_so(stage):
    done = stage.run(no_corpus="fsdd_strings")
    assert done.returncode == 0, done.stderr
    assert "asr: fsdd_strings: no copy was found" in done.stderr
    assert "THIS IS SYNTHETIC SPEECH (espeak-ng)" in done.stdout
    assert "data.test=data/synth_digits/test.jsonl" in stage.calls.read_text()
    assert stage.run(no_corpus="fsdd_strings").returncode == 0
    assert stage.verbs == ["prepare", "transcribe", "evaluate"]

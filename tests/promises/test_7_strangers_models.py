"""Promise 7, models: whatever poses as a model is refused at once, in little memory, and runs nothing.

All files are tried in one process that may take 200 MB more than it had, with an audit hook that sees every
command, every code object that is run, every pickled name and every file opened for writing.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_models import CANARY, Hostile, cards, good_model, special, strangers, structures, tensors

ROOT = Path(__file__).parents[2]

CHILD = """
import json, os, resource, sys, time
import torch
from asr import checkpoint
from asr.errors import InputError
from asr.model import AcousticModel

EVENTS = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
    "exec", "compile", "marshal.loads", "ctypes.dlopen", "import", "socket.connect", "os.remove", "os.rename",
    "os.chmod", "os.mkdir", "os.symlink", "shutil.rmtree", "os.putenv",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
seen = []

def hook(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if flags & WRITING or set(mode or "") & set("wax+"):
            seen.append(f"open {path!r} {mode}")
    elif event in EVENTS:
        seen.append(f"{event} {arguments!r}"[:200])

def expected(card):
    with torch.device("meta"):
        model = AcousticModel(**card["model"])
    return {name: (tuple(weight.shape), weight.dtype) for name, weight in model.state_dict().items()}

def outcome(read, path):
    begun = time.process_time()
    try:
        read(path)
    except InputError as error:
        found = {"status": error.status, "message": str(error)}
    except BaseException as error:
        found = {"status": None, "message": repr(error)}
    else:
        found = {"status": 0, "message": "taken"}
    return found | {"seconds": time.process_time() - begun}

good, *paths = sys.argv[1:]
reads = {
    "load": lambda path: checkpoint.load_model(path, expected),
    "card": checkpoint.read_card,
    "describe": checkpoint.describe,
}
for read in reads.values():
    assert outcome(read, good)["status"] == 0
    outcome(read, "/nowhere")
if sys.platform == "linux":
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + 200_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.addaudithook(hook)
results = []
for path in paths:
    seen.clear()
    outcomes = {name: outcome(read, path) for name, read in reads.items()}
    results.append({"outcomes": outcomes, "seen": list(seen)})
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """What happened to each hostile file, by its kind; and the folder they were tried in."""
    folder = tmp_path_factory.mktemp("h")
    good = good_model(folder)
    contents = structures(good) | tensors(folder) | cards() | strangers()
    paths = special(folder)
    for number, (kind, data) in enumerate(contents.items()):
        paths[kind] = folder / f"{number}.safetensors"
        paths[kind].write_bytes(data)
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder / "good.safetensors"), *map(str, paths.values())],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        stdin=subprocess.DEVNULL,
    )
    assert run.returncode == 0, run.stderr
    results = dict(zip(paths, json.loads(run.stdout), strict=True))
    return folder, {kind: result | {"path": str(paths[kind])} for kind, result in results.items()}


def test_sixty_hostile_models_and_more_are_tried(tried):
    assert len(tried[1]) >= 60


def test_every_hostile_model_is_refused_in_one_line_that_names_it(tried):
    for kind, result in tried[1].items():
        loaded = result["outcomes"]["load"]
        assert loaded["status"] == 2, (kind, loaded)
        assert loaded["message"].startswith(result["path"] + ": "), (kind, loaded)
        assert loaded["message"].isprintable() and len(loaded["message"]) < 500, (kind, loaded)


def test_where_only_the_card_is_read_nothing_else_than_a_refusal_happens_either(tried):
    for kind, result in tried[1].items():
        for name in ("card", "describe"):
            assert result["outcomes"][name]["status"] in (0, 2), (kind, result["outcomes"][name])


def test_no_hostile_model_runs_code_or_writes(tried):
    folder, results = tried
    assert {kind: result["seen"] for kind, result in results.items() if result["seen"]} == {}
    assert not list(folder.rglob(CANARY)) and not list(folder.parent.rglob("escaped"))


def test_every_refusal_takes_little_work(tried):
    """Processor time, so that waiting does not count, with room for other work that shares core and caches.

    The hash of a large file with a sound card may take longer.
    """
    for kind, result in tried[1].items():
        for outcome in result["outcomes"].values():
            assert outcome["seconds"] < 3 or outcome["status"] == 0, (kind, outcome)


def test_pickles_are_told_why_they_are_not_loaded(tried):
    for kind in ("pickle of protocol 2", "pickle of protocol 5", "torch.save", "old torch.save", "zip bomb"):
        assert "a PyTorch pickle is never loaded" in tried[1][kind]["outcomes"]["load"]["message"]


def test_the_audit_hook_sees_hostile_code(tmp_path):
    """The check of the check: a pickle that is loaded does what the hook looks for."""
    path = tmp_path / "p"
    path.write_bytes(pickle.dumps(Hostile()))
    code = CHILD.split("good, *paths")[0] + (
        "import pickle\nsys.addaudithook(hook)\npickle.load(open(sys.argv[1], 'rb'))\nopen('w', 'w')\nprint(seen)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert (tmp_path / CANARY).exists()
    assert all(event in run.stdout for event in ("pickle.find_class", "os.system", "open 'w'"))

"""The shape of the source, read from its text: who imports whom, who prints, how long files are."""

import ast
import statistics
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "asr").rglob("*.py"))

# A file imports only from those before its own place; the files of a folder (lstm, corpora) share a place.
ORDER = [
    "errors",
    "distributed",
    "files",
    "compiled",
    "audio",
    "features",
    "augment",
    "text",
    "manifest",
    "batches",
    "lstm",
    "model",
    "viterbi",
    "ctc",
    "tensorfile",
    "calibration",
    "card",
    "checkpoint",
    "perplexity",
    "lstm_lm",
    "decode",
    "units",
    "alignment",
    "pairs",
    "score",
    "confidence",
    "optim",
    "warm_start",
    "examples",
    "transcript",
    "schema",
    "settings",
    "recipe",
    "config",
    "lm",
    "curves",
    "lstm_lm_training",
    "run_folder",
    "run",
    "progress",
    "probe",
    "replay",
    "train",
    "recognizer",
    "evaluate",
    "tune",
    "aligner",
    "bulk",
    "sizes",
    "corpora",
    "console",
    "cli",
]

# What only one file may import, and what none may: a pickle can run code.
ALONE = {
    "torchaudio": {"features"},
    "hydra": {"config"},
    "omegaconf": {"config"},
    "argparse": {"cli"},
    "numba": {"compiled"},
}
NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def place_of(path: Path) -> str:
    """``asr/lstm/layer.py`` -> ``lstm``; ``asr/__init__.py`` -> an empty text."""
    name = path.relative_to(ROOT / "asr").parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def imports(tree: ast.AST) -> set[str]:
    """Full names of all modules (and of the names taken from them) that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wrong_imports(place: str, names: set[str]) -> set[str]:
    """The imports that a file at `place` may not have."""
    wrong = set()
    for name in names:
        top, _, rest = name.partition(".")
        inner = rest.split(".")[0]
        if top in NEVER or place not in ALONE.get(top, {place}):
            wrong.add(name)
        elif top == "asr" and inner in ORDER and place and inner != place:
            if ORDER.index(inner) > ORDER.index(place):
                wrong.add(name)
        elif top == "asr" and inner and inner not in ORDER and not inner.startswith("__"):
            wrong.add(name)
    return wrong


def calls(*trees: ast.AST) -> set[str]:
    """Names of the functions that a file calls, as written (``sys.exit``)."""
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}


def without_main(tree: ast.Module) -> list[ast.stmt]:
    """A file's statements but ``if __name__ == "__main__"``: there a file run as a program may exit."""
    return [node for node in tree.body if not ast.unparse(node).startswith("if __name__ == '__main__'")]


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def length(node: ast.FunctionDef) -> int:
    """Lines of a function, its docstring apart."""
    documented = ast.get_docstring(node) is not None
    docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
    return node.end_lineno - node.lineno + 1 - docstring


TREES = {path: ast.parse(path.read_text()) for path in FILES}
NAMES = [str(path.relative_to(ROOT)) for path in FILES]


def test_every_file_has_a_place_in_the_order():
    places = {place_of(path) for path in FILES} - {""}
    assert places <= set(ORDER), f"give {sorted(places - set(ORDER))} a place in ORDER"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_a_file_imports_only_from_those_before_it(path):
    tree = ast.Module(without_main(TREES[path]), [])  # a file run as a program is the command line
    assert not wrong_imports(place_of(path), imports(tree))


@pytest.mark.parametrize(
    ("place", "line", "wrong"),
    [
        ("audio", "from asr.features import LogMel", True),
        ("audio", "from asr import features", True),
        ("audio", "import asr.cli", True),
        ("features", "from asr import audio", False),
        ("features", "import torchaudio.transforms", False),
        ("model", "from torchaudio import transforms", True),
        ("train", "def f():\n    import hydra", True),
        ("config", "from omegaconf import OmegaConf", False),
        ("checkpoint", "import pickle", True),
        ("train", "import asr", False),
        ("train", "from asr import __version__", False),
        ("train", "from asr import nothing_of_that_name", True),
        ("lstm", "from asr.lstm.layer import LSTM", False),
    ],
)
def test_the_check_of_imports_sees_what_it_should(place, line, wrong):
    assert bool(wrong_imports(place, imports(ast.parse(line)))) is wrong


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_only_the_command_line_prints_and_exits(path):
    forbidden = {"print", "input", "exit", "quit", "sys.exit", "sys.stdout.write"}
    assert place_of(path) == "cli" or not calls(*without_main(TREES[path])) & forbidden


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_file_can_run_what_it_reads(path):
    assert not calls(TREES[path]) & {
        "eval",
        "exec",
        "torch.load",
        "yaml.load",
        "instantiate",
        "hydra.utils.instantiate",
    }


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_and_functions_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
    long = {node.name: length(node) for node in functions(TREES[path]) if length(node) > 60}
    assert not long


def test_most_files_and_functions_are_short():
    files = [len(path.read_text().splitlines()) for path in FILES]
    lengths = [length(node) for tree in TREES.values() for node in functions(tree)]
    assert statistics.median(files) <= 260
    assert statistics.median(lengths) <= 12
    assert statistics.quantiles(lengths, n=10)[8] <= 35


def test_no_function_body_stands_twice():
    bodies = Counter(
        "\n".join(map(ast.unparse, node.body))
        for tree in TREES.values()
        for node in functions(tree)
        if length(node) > 3
    )
    assert not [body for body, times in bodies.items() if times > 1]


@pytest.mark.parametrize("folder", ["conf", "recipes"])
def test_configuration_is_data(folder):
    paths = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in paths} <= {".yaml", ".md"}
    texts = {path.name: path.read_text() for path in paths if path.suffix == ".yaml"}
    assert not [name for name, text in texts.items() if "_target_" in text or "@package" in text]
    if folder == "recipes":
        assert not [name for name, text in texts.items() if len(text.splitlines()) > 30]

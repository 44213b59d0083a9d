"""The verbs of training: `asr prepare` and `asr train`."""

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asr.errors import InputError


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verbs and their flags."""
    prepare = verb("prepare", _prepare, "Make a corpus's manifests from a local copy or a download.")
    prepare.add_argument("corpus", help="fsdd, an4, librispeech and others (docs/corpora.md); folder: your own")
    prepare.add_argument("--source", type=Path, help="folder of a local copy (else ASR_DATA, else a download)")
    prepare.add_argument("--out", type=Path, default=Path("data"), help="folder of prepared corpora (data)")
    prepare.add_argument("--no-download", action="store_true", help="an error where no local copy is found")

    train = verb("train", _train, "Train a recogniser by a recipe.", add_help=False)
    train.add_argument("overrides", nargs="*", metavar="key=value", help="recipe=NAME, then settings to change")
    train.add_argument("-h", "--help", action="store_true", help="this help, the recipes and all settings")
    train.add_argument("--multirun", action="store_true", help="comma lists become one run each, in turn")
    train.add_argument("--dry-run", action="store_true", help="print the settings (a recipe) and stop")
    train.add_argument("--overfit-one-batch", action="store_true", help="can the model learn one batch by heart?")


def _prepare(args: argparse.Namespace) -> int:
    from asr import corpora
    from asr.console import Screen

    screen = Screen(args.quiet)
    manifests = corpora.prepare(args.corpus, args.out, args.source, download=not args.no_download, say=screen.say)
    for split, path in manifests.items():
        print(f"{split}\t{path}")
    return 0


def _train(args: argparse.Namespace) -> int:
    from asr import config

    if args.help:
        print(f"{args.parser.format_help()}\n{config.help_text()}")
        return 0
    recipe = [item.removeprefix("recipe=") for item in args.overrides if item.startswith("recipe=")]
    overrides = [item for item in args.overrides if not item.startswith("recipe=")]
    if len(recipe) != 1:
        raise InputError(f"give one recipe=NAME; recipes are {', '.join(config.recipes())}", status=2)
    jobs = config.expand(overrides) if args.multirun else [overrides]
    configs = [config.load(recipe[0], job) for job in jobs]
    if args.dry_run:
        for settings in configs:
            print(config.to_yaml(settings), end="")
        return 0
    from asr.console import Screen
    from asr.run_folder import is_finished, run_path

    screen, stop = Screen(args.quiet), Signals()
    name = config.name_of(recipe[0])
    for settings, job in zip(configs, jobs, strict=True):
        if args.multirun and is_finished(run_path(settings, name)):
            screen.say(f"{run_path(settings, name)}: finished already")
            continue
        fixed = _prepared(settings, recipe[0], job, screen.say)
        if status := _train_one(args, fixed, name, screen, stop):
            return status
    return 0


def _prepared(settings: Any, recipe: str, job: list[str], say: Callable[[str], None]) -> Any:
    """Prepare the corpus where its manifests are missing; returns the settings, with sizes where these are auto."""
    from asr import config, corpora, sizes

    data, chosen = settings.data, dict[str, str]()
    if data.corpus and (data.sizes == "auto" or not Path(data.train).exists()):
        paths = corpora.prepare(data.corpus, _corpora_folder(data), data.dir, say=say)
        if data.sizes == "auto":
            chosen = {f"data.{split}": str(paths[split]) for split in ("train", "dev", "test") if split in paths}
    if data.sizes != "auto":
        return settings
    given = {item.partition("=")[0] for item in job}
    found, why = sizes.choose(chosen.get("data.train", data.train), chosen.get("data.dev", data.dev))
    choices = sizes.overrides(found, given)
    say(f"chosen for {why}: {' '.join(choices) or 'nothing, all of it was given'}")
    where = sizes.overrides(chosen, given)
    others = [item for item in job if not item.startswith("data.sizes=")]
    return config.load(recipe, [*others, *where, *choices, "data.sizes=given"])


def _corpora_folder(data: Any) -> Path:
    """The folder of prepared corpora that data.train lies in, as ``OUT/CORPUS/train.jsonl`` or deeper."""
    for parent in Path(data.train).parents:
        if parent.name == data.corpus:
            return parent.parent
    return Path(data.train).parent.parent


def _train_one(args: argparse.Namespace, settings: Any, recipe: str, screen: Any, stop: "Signals") -> int:
    """Train one run, or learn one batch by heart."""
    from asr import train

    if args.overfit_one_batch:
        learnt = train.overfit_one_batch(settings, 500, screen.say)
        print("learnt by heart" if learnt else "not learnt: look at the data, or lower optim.lr")
        return 0 if learnt else 1
    with screen.training() as bar:
        result = train.train(settings, recipe, say=screen.say, show=bar.show, stop=stop.status)
    bounds = result.dev["interval"] or (float("nan"), float("nan"))
    low, high = (float("inf") if bound is None else 100 * bound for bound in bounds)
    print(f"dev WER {100 * result.dev['rate']:.2f} % [{low:.2f}, {high:.2f}] of {result.dev['count']} words")
    print(f"best model: {result.model} (epoch {result.best_epoch + 1} of {result.epochs})")
    print(f"curves: {result.folder / 'curves.png'}")
    return 0


class Signals:
    """Notes the first SIGINT or SIGTERM, so that training can save and stop; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self._status: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._status = 128 + number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def status(self) -> int | None:
        """The exit status that a signal asks for, or None."""
        return self._status

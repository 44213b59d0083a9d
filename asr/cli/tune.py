"""The verb `asr tune`: decoder settings from a dev manifest."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asr.cli.decoding import add_rescoring, add_vocabulary, prepare, vocabulary
from asr.cli.models import add_model
from asr.errors import InputError


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb and its flags."""
    tune = verb("tune", _tune, "Find the language model's weight, word bonus and beam on a dev manifest.")
    add_model(tune)
    tune.add_argument("--manifest", type=Path, required=True, help="dev manifest with references (not the test set)")
    add_vocabulary(tune)
    add_rescoring(tune)
    tune.add_argument("-o", "--output", type=Path, default=Path("decoder.json"), help="file to write (decoder.json)")
    tune.add_argument("--lm-weights", type=float, nargs="+", help="weights to try (0 to 3)")
    tune.add_argument("--word-bonuses", type=float, nargs="+", help="bonuses to try, nats a word (-1 to 4)")
    tune.add_argument("--beams", type=int, nargs="+", help="beams to try (16 50 100)")
    tune.add_argument("--rescore-weights", type=float, nargs="+", help="shares of the LSTM to try (0 to 1)")
    tune.add_argument("--json", action="store_true", help="all trials as JSON")


def _tune(args: argparse.Namespace) -> int:
    from asr import files, manifest, recognizer, tune
    from asr.console import Screen
    from asr.decode import settings

    if args.output.suffix != ".json":
        raise InputError(f"{args.output}: the file of settings ends in .json; its picture stands beside it", status=2)
    screen = Screen(args.quiet)
    grid: dict[str, Any] = {
        "lm_weights": sorted(set(args.lm_weights or tune.LM_WEIGHTS)),
        "word_bonuses": sorted(set(args.word_bonuses or tune.WORD_BONUSES)),
        "beams": sorted(set(args.beams or tune.BEAMS)),
    }
    model = recognizer.load(args.model, args.device)
    options = vocabulary(args, model.card["normalizer"])
    options |= {name: value for name in ("rescore", "rescore_nbest") if (value := getattr(args, name)) is not None}
    if args.rescore:
        grid["rescore_weights"] = sorted({0.0, *(args.rescore_weights or tune.RESCORE_WEIGHTS)})
    elif args.rescore_weights:
        raise InputError("--rescore-weights has no effect without --rescore", status=2)
    prepare(tune.check(model.tokens, options, **grid), screen)  # before the work, which may take long
    files.check_writable(args.output)
    with screen.counting("listening", len(manifest.read(args.manifest))) as counter:
        spoken = tune.listen(model, args.manifest, args.channel, args.batch_seconds, counter.advance)
    with screen.counting("tuning", tune.trials(**grid)) as counter:
        tuning = tune.tune(spoken, options, **grid, advance=counter.advance)
    best = tuning.best
    chosen = options | tuning.chosen()
    chosen["calibration"] = tuning.curve.to_json() | {"model": model.identity["sha256"]}
    helps = tuning.rescoring and tuning.rescoring.best.rescore_weight > 0
    if not helps:
        chosen = {key: value for key, value in chosen.items() if not key.startswith("rescore")}
    settings.write(args.output, chosen)
    tune.draw(tuning, args.output.with_suffix(".png"))
    if args.json:
        print(json.dumps(tuning.to_json()))
        return 0
    print(f"{'lm weight':>9}  {'bonus':>6}  {'beam':>5}  {'WER %':>6}  {'CER %':>6}")
    for trial in sorted(tuning.trials, key=lambda trial: (trial.wer, trial.cer, trial.beam))[:12]:
        rates = f"{100 * trial.wer:6.2f}  {100 * trial.cer:6.2f}"
        print(f"{trial.lm_weight:9g}  {trial.word_bonus:6g}  {trial.beam:5d}  {rates}")
    print(f"greedy (a) and the best of {len(tuning.trials)} (b), chosen on this very manifest:\n{tuning.gain}")
    if tuning.rescoring:
        print(f"\n{'share':>9}  {'WER %':>6}  {'CER %':>6}")
        for share in tuning.rescoring.shares:
            print(f"{share.rescore_weight:9g}  {100 * share.wer:6.2f}  {100 * share.cer:6.2f}")
        print(f"the search alone (a) and rescored with the best share (b):\n{tuning.rescoring.gain}")
        if not helps:
            print(f"the LSTM makes no fewer errors: {args.output} leaves it out")
    elif args.rescore:
        print(f"at weight 0 no language model has a say: {args.output} leaves the LSTM out")
    print(f"{args.output}: --lm-weight {best.lm_weight:g} --word-bonus {best.word_bonus:g} --beam {best.beam}")
    return 0

"""Recordings of one's own: audio files with a ``.txt`` beside each, or one table of files and texts.

`pairs` finds what belongs together. Every recording is decoded once; what training couldn't use is left out and
listed, with the reason, in ``OUT/folder/NAME/left_out.tsv``. A normaliser of texts is proposed.

Splits: a tenth of the speech each for dev and test. Speakers are known from a column of the table, else from the
sub-folders; with `MIN_SPEAKERS` or more the split is by speaker, else by recording, and what was done is said. Both
follow from the SHA-256 of names alone: the same recordings give the same split anywhere.
"""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from asr import audio, files, text
from asr.corpora import pairs, prepared
from asr.corpora.download import Say
from asr.corpora.pairs import Pair
from asr.corpora.source import progress
from asr.ctc import frames_needed
from asr.errors import InputError
from asr.manifest import Utterance

VERSION = 1
MAX_SECONDS = 30.0  # of a recording; data.max_seconds of the recipes
MIN_SECONDS = 0.1
MIN_RECORDINGS = 10
MIN_SPEAKERS = 4
CHARACTER_SECONDS = 0.022  # a frame of 20 ms and a reserve: CTC needs one for each character
_SHARE = 0.1  # of the speech, for dev and for test
_MOST = 0.25  # of the speech that one speaker may bring there
_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class _Found:
    """A usable recording."""

    id: str
    pair: Pair
    seconds: float
    rate: int
    channels: int
    container: str


def prepare(out: Path, source: Path | None, fetch: bool, say: Say) -> dict[str, Path]:
    """Write the manifests of ``OUT/folder/NAME``, NAME that of `source`; returns train, dev, test.

    Raises:
        InputError: no source, too few recordings, or manifests that were edited since they were made.
        AsrError: the disk fails.
    """
    if source is None:
        raise InputError("folder: name your recordings: --source DIR, in training data.dir=DIR", status=2)
    home, found, lonely, how = pairs.read(source)
    place = source.resolve()
    folder = out / "folder" / ((place.name if place.is_dir() else place.stem) or "recordings")
    listing = _listing(found, lonely)
    if done := _done(folder, listing, source, say):
        return done
    say(f"folder: {source}: {how}: {len(found)} recordings with text")
    usable, left_out = _usable(home, found, say)
    if len(usable) < MIN_RECORDINGS:
        raise _too_few(source, usable, [*lonely, *left_out])
    normalizer = _propose([one.pair.text for one in usable], say)
    _say_mix(usable, say)
    usable, rule = _with_speakers(usable)
    splits, moved = _split(usable, rule, normalizer, say)
    left_out = [*lonely, *left_out, *moved]
    if len(splits["train"]) + len(splits["dev"]) < MIN_RECORDINGS or not splits["dev"] or not splits["train"]:
        raise _too_few(source, usable, left_out)
    prepared.begin(folder)
    left_out = [(" ".join(name.split()), " ".join(why.split())) for name, why in left_out]
    files.write_text(folder / "left_out.tsv", "".join(f"{name}\t{why}\n" for name, why in left_out))
    _say_left_out(left_out, folder, say)
    facts: dict[str, Any] = {
        "corpus": "folder",
        "title": f"recordings of {source.resolve().name}",
        "home": str(source.resolve()),
        "licence": "your own",
        "version": VERSION,
        "source": str(home),
        "given": str(source.resolve()),
        "complete": not left_out,
        "note": f"{len(left_out)} left out" if left_out else "",
        "listing_sha256": listing,
        "normalizer": normalizer,
        "split_by": rule,
    }
    return prepared.write(folder, facts, splits)


def _too_few(source: Path, usable: list[_Found], left_out: list[tuple[str, str]]) -> InputError:
    shown = "".join(f"; {name}: {why}" for name, why in left_out[:_SHOWN])
    return InputError(
        f"{source}: {len(usable)} usable recordings, {MIN_RECORDINGS} or more are needed (in train and dev){shown}"
    )


def _done(folder: Path, listing: str, source: Path, say: Say) -> dict[str, Path] | None:
    """The manifests if they were made of these very files; an edit of them is an error, never overwritten."""
    facts = prepared.read_facts(folder)
    is_of_these = facts.get("listing_sha256") == listing and facts.get("given") == str(source.resolve())
    if is_of_these and (done := prepared.ready(folder, VERSION, None)):
        say(f"folder: prepared already, in {folder}")
        return done
    other = facts.get("given")
    if isinstance(other, str) and other != str(source.resolve()) and Path(other).exists():
        raise InputError(
            f"{folder}: holds the manifests of {other}, and {source} has its name; rename one of the two, or remove "
            f"{folder}",
            status=2,
        )
    paths = [prepared.manifest_path(folder, split) for split in prepared.SPLITS]
    known = facts.get("manifests", {}) if facts.get("version") == VERSION else {}
    for path in paths:
        if path.is_file() and path.stem in known and files.sha256(path) != known[path.stem]["sha256"]:
            raise InputError(
                f"{path}: changed since it was made of {source}; to train on it as it is, set data.corpus=null "
                f"data.train={paths[0]} data.dev={paths[1]} and no data.dir; to have it made again, remove {folder}",
                status=2,
            )
    return None


def _listing(found: list[Pair], lonely: list[tuple[str, str]]) -> str:
    """The SHA-256 of all names, sizes, times and texts: another one means that something was changed."""
    digest = hashlib.sha256()
    for pair in found:
        stat = pair.path.stat()
        digest.update(repr((str(pair.path), stat.st_size, stat.st_mtime_ns, pair.text, pair.speaker)).encode())
    digest.update(repr(lonely).encode())
    return digest.hexdigest()


def _usable(home: Path, found: list[Pair], say: Say) -> tuple[list[_Found], list[tuple[str, str]]]:
    """The recordings that training can use, and (name, why) of the others."""
    usable: dict[str, _Found] = {}
    left_out: list[tuple[str, str]] = []
    clean = text.normalizer("basic")
    for pair in progress(found, "folder: reading", say, len(found)):
        inside = pair.path.is_relative_to(home)
        name = (pair.path.relative_to(home) if inside else pair.path).with_suffix("").as_posix()
        try:
            known = audio.info(pair.path)
            if known.seconds <= MAX_SECONDS:
                samples = audio.read(pair.path, known.rate).samples
        except InputError as error:
            left_out.append((pair.where, f"unreadable ({str(error).removeprefix(f'{pair.path}: ')})"))
            continue
        said = clean(pair.text)
        seconds = known.seconds if known.seconds > MAX_SECONDS else len(samples) / known.rate
        if name in usable:
            why = "the same name with another ending came before"
        elif not said:
            why = "empty text"
        elif "\0" in pair.text:
            why = "a NUL character in its text"
        elif seconds > MAX_SECONDS:
            why = f"too long ({seconds:.1f} s, at most {MAX_SECONDS:g})"
        elif seconds < MIN_SECONDS:
            why = f"too short ({seconds:.2f} s, at least {MIN_SECONDS:g})"
        elif not samples.any():
            why = "nothing but silence"
        elif (frames_needed(said) + 2) * CHARACTER_SECONDS > seconds:
            why = f"{len(said)} characters of text for {seconds:.2f} s: more than can be said"
        else:
            usable[name] = _Found(name, pair, seconds, known.rate, known.channels, known.container)
            continue
        left_out.append((pair.where, why))
    return list(usable.values()), left_out


def _propose(texts: list[str], say: Say) -> str:
    """The normaliser that the texts want: `none` where `basic` would change nothing. Says what it does to them."""
    basic, plain = text.normalizer("basic"), text.normalizer("none")
    changed = next((one for one in texts if basic(one) != plain(one)), None)
    name = "none" if changed is None else "basic"
    kept = {character for one in texts for character in text.normalizer(name)(one)} - {" "}
    gone = Counter(c for one in texts for c in plain(one) if c.lower() not in kept and c not in kept and c != " ")
    if changed is None:
        say("folder: text.normalizer=none: the texts can stay as they are")
    else:
        say(f"folder: text.normalizer=basic, such as {plain(changed)[:60]!r} -> {basic(changed)[:60]!r}")
    dropped = ", ".join(f"{sign!r} {count}" for sign, count in gone.most_common(12))
    say(f"folder: {len(kept)} characters: {''.join(sorted(kept))[:200]}" + (f"; dropped: {dropped}" if gone else ""))
    digits = sum(any(c.isdigit() for c in one) for one in texts)
    if digits:
        say(f"folder: {digits} texts hold digits; write numbers as the words that are said, or they are hard to learn")
    return name


def _say_mix(usable: list[_Found], say: Say) -> None:
    """Say where rates, formats or channels are mixed."""
    rates, kinds = Counter(one.rate for one in usable), Counter(one.container for one in usable)
    if len(rates) > 1 or len(kinds) > 1:
        shown = [f"{count} at {rate} Hz" for rate, count in rates.most_common()]
        shown += [f"{count} {kind}" for kind, count in kinds.most_common()]
        say(f"folder: mixed recordings ({', '.join(shown)}): all are brought to features.rate")
    if several := sum(one.channels > 1 for one in usable):
        say(f"folder: {several} recordings have several channels: their mean is taken")


def _with_speakers(usable: list[_Found]) -> tuple[list[_Found], str]:
    """The recordings with their speakers, and where these are known from: column, sub-folders or (empty) nothing."""
    if usable and all(one.pair.speaker for one in usable):
        return usable, "column"
    parents = [one.id.split("/")[:-1] for one in usable]
    depth = 0
    while parents and all(len(p) > depth for p in parents) and len({p[depth] for p in parents}) == 1:
        depth += 1
    if not parents or not all(len(p) > depth for p in parents):
        return [dataclasses.replace(one, pair=dataclasses.replace(one.pair, speaker=None)) for one in usable], ""
    named = [
        dataclasses.replace(one, pair=dataclasses.replace(one.pair, speaker=parent[depth]))
        for one, parent in zip(usable, parents, strict=True)
    ]
    return named, "sub-folder"


def _split(
    usable: list[_Found], rule: str, normalizer: str, say: Say
) -> tuple[dict[str, list[Utterance]], list[tuple[str, str]]]:
    """The manifest lines of each split, and the held-out recordings with characters that training never has."""
    speakers = {one.pair.speaker for one in usable} if rule else set()
    by_speaker = len(speakers) >= MIN_SPEAKERS
    groups: dict[str, list[_Found]] = defaultdict(list)
    for one in usable:
        groups[(one.pair.speaker or "") if by_speaker else one.id].append(one)
    part_of = _deal({name: sum(one.seconds for one in group) for name, group in groups.items()})
    parts = {
        split: [one for name in groups if part_of[name] == split for one in groups[name]] for split in prepared.SPLITS
    }
    clean = text.normalizer(normalizer)
    heard = {character for one in parts["train"] for character in clean(one.pair.text)}
    strange = {one.id: set(clean(one.pair.text)) - heard for split in ("dev", "test") for one in parts[split]}
    moved = [
        (one.pair.where, f"{split} only, and no training text has {''.join(sorted(strange[one.id]))[:20]!r}")
        for split in ("dev", "test")
        for one in parts[split]
        if strange[one.id]
    ]
    known = f"{len(speakers)} speaker{'s' * (len(speakers) != 1)} by {rule}" if rule else "speakers unknown"
    if by_speaker:
        say(f"folder: {known}: nobody is in two of train, dev and test")
    else:
        say(f"folder: {known}: split by recording, so the error rates are those of voices known from training")
    splits = {
        split: [_line(one, split) for one in sorted(part, key=lambda one: one.id) if not strange.get(one.id)]
        for split, part in parts.items()
    }
    for split, lines in splits.items():
        say(f"folder: {split}: {len(lines)} recordings, {sum(line.duration or 0 for line in lines) / 60:.1f} min")
    return splits, moved


def _deal(seconds: dict[str, float]) -> dict[str, str]:
    """The split of each group (a speaker, or one recording): a tenth of the seconds for dev, then for test."""
    total = sum(seconds.values())
    order = sorted(seconds, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())
    part_of = dict.fromkeys(order, "train")
    for split in ("dev", "test"):
        left = [name for name in order if part_of[name] == "train"]
        small = [name for name in left if seconds[name] <= _MOST * total] or sorted(left, key=lambda n: seconds[n])[:1]
        filled = 0.0
        for name in small:
            if filled < _SHARE * total and (not filled or filled + seconds[name] <= _MOST * total):
                part_of[name] = split
                filled += seconds[name]
    return part_of


def _line(one: _Found, split: str) -> Utterance:
    return Utterance(
        audio_filepath=str(one.pair.path.resolve()),
        duration=one.seconds,
        text=" ".join(one.pair.text.split()),
        id=one.id,
        speaker=one.pair.speaker,
        split=split,
    )


def _say_left_out(left_out: list[tuple[str, str]], folder: Path, say: Say) -> None:
    if left_out:
        say(f"folder: {len(left_out)} left out, all in {folder / 'left_out.tsv'}:")
        for name, why in left_out[:_SHOWN]:
            say(f"folder:   {name}: {why}")

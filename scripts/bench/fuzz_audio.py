"""Read damaged recordings by the thousand: no crash, no hang, little memory, clean stdout, one-line errors.

    python scripts/bench/fuzz_audio.py [--mutants 100000] [--seed 0] [--out docs/results/fuzz_audio.json]

Seeds are short files of every container and coding that is read (media files where PyAV is installed), and of
some that are refused. Mutant number n is a function of (seed, n), so that a failure can be seen again:
``--only N --keep FILE`` writes that mutant. Children with limits on memory and processor time do the reading;
one that dies is counted and replaced.

POSIX only. The exit status is 1 where the promise was broken.
"""

import argparse
import collections
import contextlib
import functools
import io
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HANG_SECONDS = 5.0  # of processor time for one mutant
MEMORY_BYTES = 300 << 20  # that reading may add to an idle child
ADDRESS_SPACE = 4 << 30  # a child's limit: an allocation beyond fails
SOUNDS = {
    **dict.fromkeys(("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF"), ("PCM_16", "ULAW", "FLOAT")),
    "NIST": ("PCM_16", "ULAW"),
    "FLAC": ("PCM_16", "PCM_24"),
    "OGG": ("VORBIS", "OPUS"),
    "MP3": ("MPEG_LAYER_III",),
}
MEDIA = (("mp4", "aac"), ("mov", "pcm_s16le"), ("adts", "aac"), ("webm", "libopus"), ("matroska", "flac"))
REFUSED = (("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("SDS", "PCM_16"), ("SVX", "PCM_16"), ("VOC", "PCM_16"))


@functools.cache
def seeds() -> list[bytes]:
    """Half a second of noise and tone in every container and coding, and in a few that are refused."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(0).standard_normal(8000)
    sound = (0.2 * np.sin(np.arange(8000) / 5) + 0.02 * noise).astype(np.float32)
    made = []
    wanted = [(kind, coding) for kind, codings in SOUNDS.items() for coding in codings]
    for kind, coding in (*wanted, *REFUSED):
        file = io.BytesIO()
        soundfile.write(file, sound, 16000, format=kind, subtype=coding)
        made.append(file.getvalue())
    return made + media_seeds(sound)


def media_seeds(sound: Any) -> list[bytes]:
    """The same in media files; none where PyAV is missing."""
    try:
        import av
    except ImportError:
        return []
    made = []
    for kind, codec in MEDIA:
        file = io.BytesIO()
        with av.open(file, "w", format=kind) as container:
            stream: Any = container.add_stream(codec, rate=48000 if codec == "libopus" else 16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            resampler = av.AudioResampler(stream.codec_context.format, "mono", stream.rate, 960)
            for part in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(stream.encode(part))
            container.mux(stream.encode(None))
        made.append(file.getvalue())
    return made


def mutant(seed: int, number: int) -> bytes:
    """A damaged recording, the same for the same two numbers."""
    draw = random.Random(f"{seed} {number}")
    data = bytearray(draw.choice(seeds()))
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        head = draw.random() < 0.6  # most of what can go wrong is in the header
        place = draw.randrange(min(len(data), 200) if head else len(data)) if data else 0
        kind = draw.randrange(6)
        if kind == 0:
            data[place : place + 1] = draw.randbytes(1)
        elif kind == 1:
            data[place : place + 4] = draw.choice((b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
        elif kind == 2:
            del data[place : place + draw.randrange(1, 64)]
        elif kind == 3:
            data[place:place] = draw.randbytes(draw.randrange(1, 64))
        elif kind == 4 and not head:
            del data[place:]
        else:
            other = draw.choice(seeds())
            data[place : place + 32] = other[place : place + 32]
    return bytes(data)


def read_all(seed: int, first: int, last: int, report: Path) -> None:
    """A child's work: mutants `first` to `last` - 1, a line of `report` before and after each."""
    from asr import audio
    from asr.errors import AsrError

    for content in seeds():  # idle includes the decoders
        with contextlib.suppress(AsrError):
            audio.read(content, 16000)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    with report.open("a", buffering=1) as lines:
        for number in range(first, last):
            lines.write(f"{number} ")
            lines.flush()  # a crash must not take it along
            content = mutant(seed, number)
            signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)  # its signal ends the process
            begun = time.process_time()
            try:
                audio.info(content)
                for _ in audio.blocks(content, 16000, max_seconds=600.0):
                    pass
                outcome = "read"
            except AsrError as error:
                outcome = "refused" if "\n" not in str(error) else "long"
            except Exception as error:
                outcome = type(error).__name__
            signal.setitimer(signal.ITIMER_PROF, 0)
            memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle) << 10
            lines.write(f"{outcome} {time.process_time() - begun:.4f} {memory}\n")


def fuzz(seed: int, mutants: int) -> dict[str, Any]:
    """Read all mutants in children; returns what came of them."""
    outcomes: collections.Counter[str] = collections.Counter()
    worst, memory, printed, failures = 0.0, 0, 0, {}
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report")
        while first < mutants:
            report.write_text("")
            command = [
                sys.executable,
                __file__,
                "--child",
                str(first),
                str(mutants),
                str(report),
                "--seed",
                str(seed),
            ]
            child = subprocess.run(command, capture_output=True, check=False)
            printed += len(child.stdout)
            lines = [line.split() for line in report.read_text().splitlines()]
            if child.returncode > 0 or not lines:
                raise SystemExit(f"a child failed before its work: {child.stderr.decode()[-2000:]}")
            for number, *rest in lines:
                first = int(number) + 1
                outcome = rest[0] if rest else ("hang" if child.returncode == -signal.SIGPROF else "crash")
                outcomes[outcome] += 1
                if outcome not in ("read", "refused"):
                    failures[int(number)] = outcome
                if rest:
                    worst, memory = max(worst, float(rest[1])), max(memory, int(rest[2]))
    return {
        "seed": seed,
        "mutants": mutants,
        "outcomes": dict(outcomes),
        "failures": failures,
        "worst_seconds": worst,
        "memory_bytes": memory,
        "stdout_bytes": printed,
    }


def main() -> int:
    """Parse, run, print; the status is 1 if the promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the result there")
    parser.add_argument("--only", type=int, help="write this mutant to --keep, and read nothing")
    parser.add_argument("--keep", type=Path, default=Path("mutant"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        read_all(options.seed, int(options.child[0]), int(options.child[1]), Path(options.child[2]))
        return 0
    if options.only is not None:
        options.keep.write_bytes(mutant(options.seed, options.only))
        return 0
    result = fuzz(options.seed, options.mutants)
    text = json.dumps(result, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    broken = result["failures"] or result["stdout_bytes"] or result["memory_bytes"] > MEMORY_BYTES
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""Downloads from a server on this machine: whole and checked, or one line and nothing left."""

import contextlib
import hashlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from asr import corpora, files, manifest
from asr.corpora import source, yesno
from asr.corpora.download import Archive, check_url, download
from asr.errors import AsrError, InputError

CONTENT = bytes(range(256)) * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()
DATA = Path(__file__).parent / "data"


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what its path asks for; `archive` is the file behind ``/archive``."""

    archive = b""

    def do_GET(self) -> None:
        getattr(self, "serve_" + self.path.strip("/").split("/")[0])()

    def send(self, content: bytes, announced: int | None = None) -> None:
        self.send_response(200)
        if announced != -1:
            self.send_header("Content-Length", str(len(content) if announced is None else announced))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    def redirect(self, place: str) -> None:
        self.send_response(302)
        self.send_header("Location", place)
        self.end_headers()

    def serve_good(self) -> None:
        self.send(CONTENT)

    def serve_archive(self) -> None:
        self.send(self.archive)

    def serve_unannounced(self) -> None:
        self.send(CONTENT, -1)

    def serve_cut(self) -> None:
        self.send(CONTENT[:100_000], len(CONTENT))

    def serve_stalled(self) -> None:
        self.send(CONTENT[:100_000], len(CONTENT))
        self.server.released.wait(10)  # type: ignore[attr-defined]

    def serve_reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()

    def serve_large(self) -> None:
        self.send(b"", 10**12)

    def serve_endless(self) -> None:
        self.send(CONTENT * 10, -1)

    def serve_missing(self) -> None:
        self.send_error(404)

    def serve_moved(self) -> None:
        self.redirect("/good")

    def serve_file(self) -> None:
        self.redirect("file:///etc/passwd")

    def serve_elsewhere(self) -> None:
        self.redirect("http://example.com/good")

    def serve_circle(self) -> None:
        self.redirect("/circle")

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.released = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.released.set()  # type: ignore[attr-defined]
    running.shutdown()
    running.server_close()
    thread.join()


def fetch(url: str, path: Path, sha256: str | None = SUM, size: int = len(CONTENT)) -> tuple[str, list[str]]:
    said: list[str] = []
    return download(Archive(url, size, sha256), path, licence="CC0", say=said.append, timeout=1), said


@pytest.mark.parametrize("page", ["good", "unannounced", "moved"])
def test_a_file_comes_whole(server: str, page: str, tmp_path: Path) -> None:
    digest, said = fetch(f"{server}/{page}", tmp_path / "new" / "file")
    assert (tmp_path / "new" / "file").read_bytes() == CONTENT
    assert digest == SUM
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]
    assert said[0] == f"downloading {server}/{page}: 0.3 MB, checksum known; licence: CC0"


def test_size_and_licence_are_said_before_anything_is_asked(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(AsrError, match=r"no connection"):
        download(Archive("http://127.0.0.1:9", 5_000_000), tmp_path / "f", licence="CC BY", say=said.append)
    assert len(said) == 1 and "5.0 MB, no published checksum" in said[0] and said[0].endswith("licence: CC BY")


@pytest.mark.parametrize(
    ("page", "kind", "text"),
    [
        ("cut", AsrError, "cut after 100000 of 256000 bytes; try again"),
        ("stalled", AsrError, "connection broke after .* bytes"),
        ("reset", AsrError, "no connection"),
        ("missing", AsrError, "answers 404 Not Found; get it elsewhere, give --source"),
        ("large", InputError, "announces 1000000000000 bytes, expected 256000; nothing kept"),
        ("endless", InputError, "more than 512000 bytes, expected 256000; nothing kept"),
        ("file", AsrError, "Redirection to url 'file:///etc/passwd' is not allowed"),
        ("elsewhere", InputError, "http://example.com/good: not an https address"),
        ("circle", AsrError, "answers 302"),
    ],
)
def test_a_bad_download_is_one_line_and_leaves_what_was_there(
    server: str, page: str, kind: type[AsrError], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(kind, match=text) as caught:
        fetch(f"{server}/{page}", path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_wrong_checksum_keeps_nothing(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"wrong checksum .SHA-256 {SUM}, expected 0000.*; nothing kept"):
        fetch(f"{server}/good", tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a",
        "ftp://127.0.0.1/a",
        "file:///etc/passwd",
        "https://",
        "data:,a",
        "a",
        "http://[::1",
    ],
)
def test_only_https_and_this_machine_are_asked(url: str) -> None:
    with pytest.raises(InputError, match=r"not an https address; nothing was fetched"):
        check_url(url)


def test_good_addresses_pass() -> None:
    for url in ("https://example.com/a", "http://127.0.0.1:80/a", "http://[::1]/a", "http://localhost/a"):
        check_url(url)


def zipped(folder: Path) -> bytes:
    import io
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"waves_yesno/{path.name}")
        archive.writestr("waves_yesno/README", "about")
    return stream.getvalue()


@pytest.fixture
def served_yesno(server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., source.Corpus]:
    """Makes `yesno` come from the loopback server: the two fixture files as if they were the whole corpus."""
    monkeypatch.delenv("ASR_DATA", raising=False)
    monkeypatch.setattr(Handler, "archive", zipped(DATA / "waves_yesno"))

    def serve(**changes: object) -> source.Corpus:
        import dataclasses

        copy = source.read_copy(yesno.CORPUS, DATA / "waves_yesno", lambda line: None)
        archive = Archive(f"{server}/archive", len(Handler.archive), hashlib.sha256(Handler.archive).hexdigest())
        known = {"recordings": 2, "sha256": copy.sha256, "archive": archive} | changes
        corpus = dataclasses.replace(yesno.CORPUS, **known)  # type: ignore[arg-type]
        monkeypatch.setattr(yesno, "CORPUS", corpus)
        return corpus

    return serve


def test_a_corpus_comes_from_its_home_and_is_kept(served_yesno: Callable[..., source.Corpus], tmp_path: Path) -> None:
    served_yesno()
    said: list[str] = []
    paths = corpora.prepare("yesno", tmp_path, say=said.append)
    assert "licence: no formal licence" in said[0]
    [line] = manifest.read(paths["test"])
    assert line.audio_filepath == "download/waves_yesno/1_1_1_0_1_0_1_0.flac" and line.path.is_file()
    assert sorted(path.name for path in (tmp_path / "yesno").iterdir()) == [
        "corpus.json", "dev.jsonl", "download", "test.jsonl", "train.jsonl",
    ]  # fmt: skip
    (tmp_path / "yesno" / "corpus.json").unlink()
    corpora.prepare("yesno", tmp_path, download=False, say=said.append)  # from what was kept
    assert len([line for line in said if line.startswith("downloading")]) == 1


def test_a_corpus_whose_samples_are_not_the_published_ones_is_not_kept(
    served_yesno: Callable[..., source.Corpus], tmp_path: Path
) -> None:
    served_yesno(sha256="0" * 64)
    with pytest.raises(
        InputError, match=r"yesno: the archive is not the published corpus .*samples differ.*nothing kept"
    ):
        corpora.prepare("yesno", tmp_path)
    served_yesno(recordings=60)
    with pytest.raises(InputError, match=r"not the published corpus .2 of 60 recordings"):
        corpora.prepare("yesno", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_wrong_archive_leaves_nothing(served_yesno: Callable[..., source.Corpus], tmp_path: Path) -> None:
    corpus = served_yesno()
    served_yesno(archive=Archive(corpus.archive.url, corpus.archive.size, "0" * 64))
    with pytest.raises(InputError, match=r"wrong checksum"):
        corpora.prepare("yesno", tmp_path)
    Handler.archive = b"<html>no archive</html>"
    served_yesno(archive=Archive(corpus.archive.url, 1000))
    with pytest.raises(InputError, match=r"neither a tar"):
        corpora.prepare("yesno", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_archive_can_be_the_source(served_yesno: Callable[..., source.Corpus], tmp_path: Path) -> None:
    served_yesno(archive=Archive("https://127.0.0.1:9/never", 1))
    path = tmp_path / "yesno.zip"
    path.write_bytes(Handler.archive)
    before = files.sha256(path)
    paths = corpora.prepare("yesno", tmp_path / "out", path)
    assert len(manifest.read(paths["train"])) == 1
    assert files.sha256(path) == before


def test_the_known_homes_are_https_and_the_page_on_corpora_names_their_checksums() -> None:
    from asr.corpora import an4, fsdd, librispeech, mini_librispeech

    page = (Path(__file__).parents[1] / "docs" / "corpora.md").read_text(encoding="utf-8")
    for corpus in (an4.CORPUS, fsdd.CORPUS, yesno.CORPUS):
        check_url(corpus.archive.url)
        assert corpus.archive.url.startswith("https://")
        for digest in filter(None, (corpus.sha256, corpus.archive.sha256)):
            assert len(bytes.fromhex(digest)) == 32
            assert f"`{digest[:8]}…`" in page
    for part in (mini_librispeech.TRAIN, mini_librispeech.DEV, *librispeech.PARTS.values()):
        assert part.archive.url.startswith("https://") and part.archive.url.endswith(f"/{part.name}.tar.gz")
        assert len(bytes.fromhex(part.archive.sha256 or part.archive.md5)) in (16, 32)
        assert not part.archive.md5 or f"`{part.archive.md5[:8]}…`" in page

import os
import stat
import subprocess
import sys

import pytest

from asr import files
from asr.errors import AsrError


def dead_process():
    """The number of a process that is gone."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(ValueError, match="midway"), files.atomic(path) as file:
        file.write(b"half")
        assert path.read_text() == "old"
        raise ValueError("midway")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    files.write_text(tmp_path / "a", "")
    with pytest.raises(AsrError, match="not written"):
        files.write_text(tmp_path / "a" / "b", "")


def test_only_temporaries_of_processes_that_are_gone_are_swept(tmp_path):
    mine, gone, living = (tmp_path / f".model.{number}.tmp" for number in (os.getpid(), dead_process(), os.getppid()))
    foreign = tmp_path / ".notes.tmp"
    for path in (mine, gone, living, foreign):
        path.write_bytes(b"")
    assert files.sweep(tmp_path) == 2
    assert sorted(tmp_path.iterdir()) == sorted([living, foreign])


def test_the_hash_is_sha256(tmp_path):
    files.write_bytes(tmp_path / "a", b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("name", ["folder", "pipe"])
def test_what_is_no_ordinary_file_is_never_replaced(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for work in (lambda path: files.write_text(path, "text"), files.check_writable):
        with pytest.raises(AsrError, match="is no ordinary file"):
            work(tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(AsrError, match="is no ordinary file"):
        files.write_text("", "text")


def test_a_place_is_checked_before_work_and_left_as_it_was(tmp_path):
    files.write_text(tmp_path / "kept", "text")
    files.check_writable(tmp_path / "kept")
    files.check_writable(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "text"
    with pytest.raises(AsrError, match="not written"):
        files.check_writable("/proc/nothing/here.json")

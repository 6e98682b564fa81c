"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from muai_lab.files import replacing, write_whole


def test_a_file_is_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.yaml", "größe: 1\n")

    assert (tmp_path / "a.yaml").read_bytes() == "größe: 1\n".encode()
    assert os.listdir(tmp_path) == ["a.yaml"]


def test_a_writer_that_breaks_off_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "a.yaml"
    write_whole(target, b"old")

    def write_half() -> None:
        with replacing(target) as draft:
            draft.write_bytes(b"ne")
            assert target.read_bytes() == b"old"  # what a reader sees, and what a kill here would leave
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()

    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.yaml"]


def test_a_link_and_permissions_stay(tmp_path: Path) -> None:
    target, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    write_whole(target, "old")
    target.chmod(0o640)
    link.symlink_to(target.name)

    write_whole(link, "new")

    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, "through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "absent" / "a.yaml", "text")

"""A PostgreSQL server for one test: Debian's own program, on a free port, in a folder that goes away."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def programs() -> Path:
    """The folder of PostgreSQL's programs; the test is skipped where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("needs the Debian package postgresql")
    return found[-1].parent


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The address of an empty database; the server is gone afterwards."""
    bin_folder = programs()
    data = folder / "postgres"
    owner: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("needs the Debian package postgresql")
        data.mkdir()
        os.chown(data, account.pw_uid, account.pw_gid)
        for parent in [folder, *folder.parents]:
            if parent.stat().st_uid == os.getuid() and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)  # so that the server may pass through
        owner = [shutil.which("runuser") or "runuser", "-u", "postgres", "--"]

    def run(*command: str) -> None:
        subprocess.run([*owner, *command], check=True, capture_output=True, text=True, cwd="/")

    run(str(bin_folder / "initdb"), "-D", str(data), "-U", "tuner", "--auth=trust", "--no-sync")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-p {port} -k '' -c listen_addresses=127.0.0.1 -c fsync=off"
    run(str(bin_folder / "pg_ctl"), "-D", str(data), "-o", options, "-w", "-l", str(data / "log"), "start")
    try:
        run(str(bin_folder / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "tuner", "studies")
        yield f"postgresql://tuner@127.0.0.1:{port}/studies"
    finally:
        run(str(bin_folder / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "-t", "200", "stop")

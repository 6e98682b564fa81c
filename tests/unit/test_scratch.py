"""Temporary folders do not outlive their process, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from muai_lab.scratch import remove_scratch, scratch_prefix


def test_only_the_folders_of_this_process_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ours = Path(tempfile.mkdtemp(prefix=scratch_prefix("vllm")))
    (ours / "engine.log").write_text("words")
    others = [tmp_path / f"muai-lab-{os.getpid()}1-vllm-x", tmp_path / "muai-lab-vllm-x", tmp_path / "something"]
    for other in others:
        other.mkdir()

    remove_scratch()

    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_an_end_that_waits_for_nobody_leaves_no_folder(tmp_path: Path) -> None:
    code = """
import tempfile, subprocess
from muai_lab.scratch import scratch_prefix
from muai_lab.server.process import leave_at_once
tempfile.mkdtemp(prefix=scratch_prefix("vllm"))
subprocess.Popen(["sleep", "60"])
leave_at_once(143)
"""
    ended = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)

    assert ended.returncode == 143
    assert list(tmp_path.iterdir()) == []

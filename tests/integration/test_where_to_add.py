"""The files that a new part touches, as the page on structure names them, proved in a copy of the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout of the package and its configuration groups."""
    shutil.copytree(ROOT / "muai_lab", tmp_path / "muai_lab", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    return tmp_path


def call(copy: Path, *arguments: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MUAI_")}
    environ["PYTHONPATH"] = os.pathsep.join([str(copy), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ECHO_SETTINGS = '''
class EchoWorkload(Workload):
    """The same word in every prompt."""

    kind: Literal["echo"] = setting("echo", "The same word in every prompt.")
    name: Name = setting("echo", "Label of the workload in results.")
    word: Name = setting("hello", "The word.")


_EndlessWorkload = (
    EchoWorkload
    | SyntheticWorkload'''

ECHO_MODULE = '''
"""`echo`: the same word in every prompt."""

from itertools import repeat

from muai_lab.workload.schedule import ScheduledRequest
from muai_lab.workload.source import Source


def source(workload, streams, maker):
    return Source(repeat([ScheduledRequest(-1, None, workload.word, None, 1, 4)]))
'''

DRAWN = """
from muai_lab.settings.compose import compose
from muai_lab.workload.draw import draw_schedule
from tests.unit.word_tokenizer import WordTokenizer

settings = compose(["workload=echo", "workload.word=bye", "load.requests=3"]).settings
print([request.prompt for request in draw_schedule(settings, WordTokenizer())])
"""


def test_a_workload_is_its_settings_a_module_and_an_option(copy: Path) -> None:
    settings = copy / "muai_lab" / "settings" / "workload.py"
    text = settings.read_text()
    assert text.count("\n_EndlessWorkload = (\n    SyntheticWorkload") == 1
    settings.write_text(text.replace("\n_EndlessWorkload = (\n    SyntheticWorkload", ECHO_SETTINGS))
    (copy / "muai_lab" / "workload" / "kinds" / "echo.py").write_text(ECHO_MODULE)
    (copy / "conf" / "workload" / "echo.yaml").write_text("# The same word again.\nkind: echo\nname: echo\n")

    assert call(copy, "-c", DRAWN) == "['bye', 'bye', 'bye']\n"


def test_a_command_is_one_file(copy: Path) -> None:
    (copy / "muai_lab" / "commands" / "say_hello.py").write_text(
        'SUMMARY = "say hello"\n\n\ndef main(argv):\n    print("hello", *argv)\n    return 0\n'
    )

    assert call(copy, "-m", "muai_lab", "say-hello", "you") == "hello you\n"
    assert "say-hello         say hello" in call(copy, "-m", "muai_lab", "--help")

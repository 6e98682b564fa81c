"""The command line: dispatch, exit status, and the command `config`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from muai_lab import __main__ as command_line
from muai_lab import commands
from muai_lab.__main__ import main
from muai_lab.commands import summaries
from muai_lab.errors import MuaiError

SECRET = "https://hooks.example/SESAME"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def a_command(monkeypatch: pytest.MonkeyPatch, body) -> None:
    """Make `muai_lab work` call `body`."""
    module = type(sys)(f"{commands.__name__}.work")
    module.main = body
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command_line, "summaries", lambda: {"work": "works"})


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0

    out = capsys.readouterr().out
    assert {"run", "serve", "compare", "reference-server"} <= set(summaries())
    assert [name for name, summary in summaries().items() if f"  {name}" not in out or summary not in out] == []


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'pydantic', 'torch', 'hydra', 'omegaconf', 'pandas', 'rich', 'numpy', 'yaml'}"
    code = (
        f"import sys; from muai_lab.__main__ import main; main(['--help']); sys.exit(len({heavy} & set(sys.modules)))"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_without_a_command_the_help_comes_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("muai-lab 0.")


def test_a_mistyped_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["confg"]) == 2
    assert "no such command: confg; did you mean config?" in capsys.readouterr().err


def test_an_error_the_user_can_mend_is_a_message_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise MuaiError(f"mend {argv}")

    a_command(monkeypatch, fail)

    assert main(["work", "a"]) == 2
    assert capsys.readouterr().err == "muai-lab: mend ['a']\n"


def test_an_interrupt_ends_with_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt

    a_command(monkeypatch, interrupted)

    assert main(["work"]) == 130


def test_termination_unwinds_and_ends_with_status_143(monkeypatch: pytest.MonkeyPatch) -> None:
    unwound = []

    def terminated(argv: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 5)
        finally:
            unwound.append(True)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    a_command(monkeypatch, terminated)

    with pytest.raises(SystemExit) as ended:
        main(["work"])

    assert ended.value.code == 143
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_leaves_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "muai_lab", "--help"], stdout=closed, stderr=subprocess.PIPE, check=False
        )

    assert (done.returncode, done.stderr) == (command_line.PIPE_CLOSED, b"")


def test_config_show_prints_every_key_and_with_origin_its_origin(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text("monitoring:\n  prometheus: {port: 0}\n", encoding="utf-8")

    assert main(["config", "show", "--origin", "config_file=my.yaml", "batcher=off"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert "monitoring.prometheus.port = 0  # my.yaml:2" in lines
    assert "optimization.batcher.enabled = false  # batcher=off" in lines
    assert 'optimization.cache.eviction_policy = "lru"  # default' in lines


def test_config_show_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUAI_MON_ANOMALY_WEBHOOK_URL", SECRET)

    assert main(["config", "show", "--json", "seed=4"]) == 0

    out = capsys.readouterr().out
    shown = json.loads(out)
    assert shown["seed"] == {"value": 4, "origin": "override", "default": 0}
    assert shown["monitoring.anomaly.webhook_url"]["origin"] == "MUAI_MON_ANOMALY_WEBHOOK_URL"
    assert "SESAME" not in out


def test_config_check_tells_what_differs_from_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text(
        "optimization:\n  batcher:\n    max_batch_size: 8\n    enabled: true\n", encoding="utf-8"
    )

    assert main(["config", "check", "my.yaml"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "my.yaml: OK"
    assert lines[2:] == ["  optimization.batcher.max_batch_size = 8  (my.yaml:3)"]


def test_config_check_tells_all_mistakes_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.yaml").write_text("optimization: {enabled: 5, enable: 1}\n", encoding="utf-8")

    assert main(["config", "check", "my.yaml"]) == 2

    err = capsys.readouterr().err
    assert "2 invalid settings" in err
    assert "Traceback" not in err


def test_config_example_writes_a_file_that_loads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "example"]) == 0
    assert main(["config", "check", "config/optimization.example.yaml"]) == 0
    assert "differs" not in capsys.readouterr().out

    assert main(["config", "example", "-"]) == 0
    assert set(yaml.safe_load(capsys.readouterr().out)) == {"optimization", "monitoring"}


def test_a_page_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("a file", encoding="utf-8")

    assert main(["config", "reference", "taken/page.md"]) == 2
    assert "cannot write taken/page.md" in capsys.readouterr().err


def test_parts_of_a_mix_are_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--json", "workload=mix"]) == 0

    shown = json.loads(capsys.readouterr().out)["workload.parts"]
    assert shown["value"]["chat"]["weight"] == 6.0
    assert shown["value"]["conversations"]["workload"]["kind"] == "multi_turn"

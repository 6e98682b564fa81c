"""`optimization.yaml` from a study: the specification's shape, with a header that has the evidence for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap

from muai_lab.errors import RunError
from muai_lab.files import write_whole
from muai_lab.settings.catalogue import keys_by_path, show
from muai_lab.settings.changes import with_values
from muai_lab.settings.dump import dump_optimization_yaml
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.resolve import load_settings
from muai_lab.settings.section import value_at
from muai_lab.tuning.header import not_examined, statements
from muai_lab.tuning.result import PRESENT, TuningResult, read_result
from muai_lab.tuning.search_space import Value

EXPORTED, UNCONFIRMED = "optimization.yaml", "optimization.unconfirmed.yaml"
_WIDTH = 100


def export_study(
    directory: Path, target: Path | None = None, *, unconfirmed: bool = False
) -> tuple[Path, TuningResult]:
    """Write the study's configuration again.

    Args:
        directory: Of the study.
        target: None writes `optimization.yaml` into the study, or `optimization.unconfirmed.yaml` for a configuration
            that was not confirmed.
        unconfirmed: True to write the best that was found even if it was not confirmed, or was refused. Otherwise a
            study that ended without a better configuration gives the present one.

    Returns:
        The file, and the result that it is based on.

    Raises:
        RunError: The study is not over, has nothing to write, or the file cannot be written.
    """
    result = read_result(directory)
    if result.verdict in ("searching", "unconfirmed") and not unconfirmed:
        raise RunError(
            f"the study {directory} was not confirmed ({result.reason}): run the same `tune` again to its end, or take "
            "what is best so far as it is with --unconfirmed"
        )
    settings = read_present(directory)
    if unconfirmed and result.verdict != "confirmed":
        found = result.unconfirmed()
        if found is None:
            raise RunError(
                f"the study {directory} found nothing that differs from the present configuration ({result.reason}): "
                "export that without --unconfirmed"
            )
        target, text = target or directory / UNCONFIRMED, configuration_text(settings, found, unconfirmed=True)
    else:
        target, text = target or directory / EXPORTED, configuration_text(settings, result)
    write_configuration(target, text)
    return target, result


def write_configuration(target: Path, text: str) -> None:
    """Write an `optimization.yaml` so that a reader finds the old file or the new one. Raises RunError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error.strerror}") from error


def read_present(directory: Path) -> LabSettings:
    """Return the configuration that the study started from."""
    # Secrets are in no file: of the environment only their variables count here.
    secrets = {key.env_long for key in keys_by_path().values() if key.secret}
    environ = {name: value for name, value in os.environ.items() if name in secrets}
    return load_settings(directory / PRESENT, environ=environ).settings


def configuration_text(present: LabSettings, result: TuningResult, *, unconfirmed: bool = False) -> str:
    """Return the file: a header, then the present configuration with the changes of the result.

    unconfirmed: True if no measurement supports these changes; the first line says so.
    """
    changed = with_changes(present, result.changes, result.engine_preference)
    header = "\n".join(_header(present, result, _verdict(result, unconfirmed=unconfirmed)))
    return f"{header}\n{dump_optimization_yaml(changed)}"


def with_changes(
    present: LabSettings, changes: Mapping[str, Value], engine_preference: tuple[str, ...] | None = None
) -> LabSettings:
    """Return the settings with the changes in their `optimization` section."""
    chosen = {} if engine_preference is None else {"engine_preference": engine_preference}
    return present.model_copy(update={"optimization": with_values(present.optimization, {**changes, **chosen})})


def _header(present: LabSettings, result: TuningResult, verdict: str) -> list[str]:
    lines = [_comment(f"Written by muai_lab tune: {verdict}")]
    lines += [_fact(name, value) for name, value in {**statements(result), **result.facts}.items()]
    lines.append(_fact("not examined", not_examined(result)))
    if result.changes or result.engine_preference is not None:
        lines.append("# changed:")
        if result.engine_preference is not None:
            before = list(present.optimization.engine_preference)
            lines.append(
                f"#   optimization.engine_preference: {show(before)} -> {show(list(result.engine_preference))}"
            )
        for path, after in result.changes.items():
            worth = next((one for one in result.contributions if one.path == path and one.gain is not None), None)
            interval = "" if worth is None or worth.low is None else f", {worth.low:+.1%} to {worth.high:+.1%}"
            told = "" if worth is None else f"  ({worth.gain:+.1%}{interval})"
            lines.append(f"#   {path}: {show(value_at(present, path))} -> {show(after)}{told}")
    return [*lines, "#"]


def _verdict(result: TuningResult, *, unconfirmed: bool) -> str:
    match result.verdict:
        case "confirmed":
            return "a configuration that was confirmed by measurement."
        case "searching" | "unconfirmed":
            return f"UNCONFIRMED, the best so far: {result.reason}."
        case "refused" if unconfirmed:
            return f"UNCONFIRMED, the winner that was REFUSED: {result.reason}."
        case _ if unconfirmed:
            return f"UNCONFIRMED, the best of the search: {result.reason}."
        case _:
            return f"the present configuration, unchanged: {result.reason}."


def _fact(name: str, value: str) -> str:
    return _comment(f"{name}: {value}")


def _comment(text: str) -> str:
    return "\n".join(f"# {line}" for line in wrap(" ".join(text.split()), _WIDTH, subsequent_indent="  "))

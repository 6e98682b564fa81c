"""Names of folders and files that a shell allows: they reach settings, database and command lines as they are."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muai_lab.report.repetition import _written
from muai_lab.settings.compose import compose
from muai_lab.settings.overrides import parse_overrides, quoted, with_open_mappings
from muai_lab.tuning.storage import DATABASE, alone, open_storage, shown, storage_url

NAMES = (
    "50%", "%41", "a?b=c", "a#b", "two words", "it's", 'say "x"', "a'b\"c", "back\\slash", "end\\", "a\\'b", "${x}",
    "\\${x}", "{SCHEMA_VERSION}", "a=b,c", "[x]", "é ü", "~x", "a:b@c", "null", "12",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_quoted_override_is_read_as_it_was(name: str) -> None:
    folder = f"studies/{name}"

    read = compose([f"tuning.study={quoted(folder)}", f"model.checkpoint={quoted(name)}"]).settings

    assert (read.tuning.study, read.model.checkpoint) == (folder, name)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12))
def test_any_text_can_be_an_override_of_a_printed_command(text: str) -> None:
    argument = shlex.split(shlex.join([f"key={_written(text)}"]))[0]

    parsed, problems = parse_overrides([argument])

    assert not problems
    if "${" not in text:
        assert parsed[0].value() == text


@pytest.mark.parametrize("name", ["plain", "50%", "%41", "a?b=c#d", 'it\'s "x"', "{SCHEMA_VERSION}${x}\\", "é ü"])
def test_a_study_lives_in_the_folder_of_its_name(tmp_path: Path, name: str) -> None:
    import optuna

    directory = tmp_path / name
    directory.mkdir()
    url = storage_url(directory, None)

    with alone(url):
        storage = open_storage(url)
    optuna.create_study(study_name="s", storage=storage)

    assert shown(url) == str(directory / DATABASE)
    assert sorted(path.name for path in directory.iterdir()) == [DATABASE, f"{DATABASE}.lock"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_new_entry_of_an_open_mapping_needs_no_sign_of_hydras() -> None:
    arguments = ["workload=mix", "workload.parts.long.weight=2", "+workload.parts.a.weight=1", "--multirun", "seed=1"]

    given_to_hydra = with_open_mappings(arguments)

    assert given_to_hydra == ["workload=mix", "++workload.parts.long.weight=2", *arguments[2:]]

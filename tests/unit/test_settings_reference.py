"""The generated pages are in step with the schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from muai_lab.settings.catalogue import keys_by_path
from muai_lab.settings.environment import variables
from muai_lab.settings.reference import example_file, reference_page
from muai_lab.settings.resolve import load_settings

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("path", "generate", "command"),
    [
        ("config/optimization.example.yaml", example_file, "config example"),
        ("docs/configuration.md", reference_page, "config reference"),
    ],
)
def test_the_committed_page_is_what_the_schema_generates(path: str, generate, command: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == generate(), f"run `python -m muai_lab {command}`"


def test_the_example_sets_every_key_of_the_file_to_its_default() -> None:
    resolved = load_settings(ROOT / "config/optimization.example.yaml", {})
    set_by_file = {path for path, origin in resolved.origins.items() if origin.layer == "file"}

    assert set_by_file == {key.path for key in keys_by_path().values() if key.env_long and key.kind != "mapping"}
    assert resolved.settings.optimization == load_settings(environ={}, config_file=None).settings.optimization


def test_both_pages_name_every_variable_and_the_reference_every_key() -> None:
    example, reference = example_file(), reference_page()

    for name in variables():
        assert name in example
        assert f"| `{name}` |" in reference
    for key in keys_by_path().values():
        assert f"| `{key.name}` |" in reference

"""HTML pages from templates: self-contained (no script, no font, no image from elsewhere), printable, escaped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from muai_lab.errors import RunError
from muai_lab.files import write_whole
from muai_lab.wording import setting_text


def render_page(template: str, context: Mapping[str, Any], *, package: str = "muai_lab.report") -> str:
    """Fill in a template of `package`, which may extend the templates here; texts are escaped unless `Markup`."""
    packages = dict.fromkeys((package, "muai_lab.report"))
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, "templates") for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["setting"] = setting_text
    return environment.get_template(template).render(context)


def write_page(target: Path, page: str) -> Path:
    """Write a page as a whole or not at all. Raises RunError if it cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, page)
    except OSError as problem:
        raise RunError(f"cannot write {target}: {problem.strerror or problem}") from problem
    return target

"""Hydra, set up with our configuration groups and with base nodes generated from the settings' schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, SecretStr

import muai_lab
from muai_lab.errors import MuaiError, SettingsError
from muai_lab.settings.catalogue import Branch, Key, VariantBranch, catalogue
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.resolve import load_settings

PRIMARY = "config"
BASE_NODE = "muai_settings"
SEARCH_SPACES = "search_space"
"""The folder beside the groups that is no group: the tuner reads its files, and tuning.search_space chooses one."""
_HIDDEN = "***"


def groups_folder() -> Path:
    """Return the folder of the configuration groups: in a wheel inside the package, in a checkout `conf/`."""
    package = Path(muai_lab.__file__).resolve().parent
    for folder in (package / "_hydra", package.parent / "conf"):
        if (folder / f"{PRIMARY}.yaml").is_file():
            return folder
    raise MuaiError(f"the configuration groups are missing: neither {package / '_hydra'} nor {package.parent / 'conf'}")


@contextmanager
def hydra_session(overrides: Sequence[Override]) -> Iterator[ConfigLoader]:
    """Set up Hydra with our groups and base nodes; at the end, restore the set-up from before."""
    register_base_nodes(overrides)
    with initialize_config_dir(str(groups_folder()), job_name="muai_lab", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        yield hydra.config_loader


def register_base_nodes(overrides: Sequence[Override]) -> None:
    """Register every key of the settings with Hydra, with the values of file and environment, for `--cfg job`.

    The nodes hold defaults if the file itself is swept or if a layer has errors. The job's resolution then reads the
    layers again, and reports the errors.
    """
    named = [override for override in overrides if override.key_or_group == "config_file"]
    file = named[-1].value() if named and not named[-1].is_sweep_override() else None
    try:
        settings = load_settings(file if isinstance(file, str) else None).settings
    except SettingsError:
        settings = LabSettings()
    node = _base_node(catalogue(), settings)
    node["config_file"] = None
    ConfigStore.instance().store(name=BASE_NODE, node=node, provider="muai_lab")


def _base_node(node: Branch | VariantBranch, section: BaseModel | None) -> dict[str, Any]:
    """Plain values of every key; for a choice the keys of all its kinds, null if the kind in force has no such key."""
    data: dict[str, Any] = {}
    for group in [node] if isinstance(node, Branch) else node.kinds.values():
        for name, child in group.children.items():
            value: Any = getattr(section, name, None)
            if isinstance(child, Key):
                data.setdefault(name, _plain(value))
            else:  # kinds may share a section that is itself a choice, with other kinds in each
                data[name] = {**_base_node(child, value), **data.get(name, {})}
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return _HIDDEN
    if isinstance(value, str):
        return value.replace("${", "\\${")  # otherwise omegaconf would read an interpolation
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Return Hydra's composed configuration with its `hydra` node; needs an open `hydra_session`."""
    try:
        return hydra_compose(PRIMARY, list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError([hydra_message(error)]) from None


def hydra_message(error: HydraException | OmegaConfBaseException) -> str:
    """Return the message of a Hydra or omegaconf error in one line, without their internals."""
    noise = (
        "full_key:",
        "reference_type=",
        "object_type=",
        "To append to your config",
        "Search path:",
        "Config search path:",
        "\t",
    )
    texts = [str(reason) for reason in (error, error.__cause__) if reason is not None]
    lines = [line for text in texts for line in text.splitlines()]
    options = [line.strip() for line in lines if line.startswith("\t") and "://" not in line]
    told = " ".join(line.strip() for line in lines if line.strip() and not line.strip(" ").startswith(noise))
    return f"{told} {', '.join(options)}" if options else told

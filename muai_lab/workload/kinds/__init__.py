"""The kinds of workload, a module each: `source(workload, streams, maker)` in the module named after the kind."""

from __future__ import annotations

from importlib import import_module

from muai_lab.settings.workload import WorkloadSettings
from muai_lab.workload.prompts import PromptMaker
from muai_lab.workload.randomness import RandomStreams
from muai_lab.workload.source import Source


def open_source(workload: WorkloadSettings, streams: RandomStreams, maker: PromptMaker) -> Source:
    """Return the requests of a workload, one arrival after another.

    Raises:
        RunError: A file cannot be read, or prompts of the wanted lengths cannot be made.
    """
    source: Source = import_module(f"{__name__}.{workload.kind}").source(workload, streams, maker)
    return source

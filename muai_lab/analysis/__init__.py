"""Analysis of runs: frames, metric definitions, statistics, comparison, summary.

    from muai_lab.analysis import load_run
    run = load_run("runs/…")
    run.requests["ttft_s"].describe()

The names below are loaded on first use, so that `import muai_lab.analysis` alone imports neither pandas nor matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muai_lab.lazy import lazy_names

if TYPE_CHECKING:
    from muai_lab.analysis.change import Difference as Difference
    from muai_lab.analysis.comparison import Comparison as Comparison
    from muai_lab.analysis.comparison import compare as compare
    from muai_lab.analysis.comparison import difference as difference
    from muai_lab.analysis.frames import Run as Run
    from muai_lab.analysis.frames import find_runs as find_runs
    from muai_lab.analysis.frames import load_run as load_run
    from muai_lab.analysis.metrics import METRICS as METRICS
    from muai_lab.analysis.metrics import Metric as Metric
    from muai_lab.analysis.noise import Noise as Noise
    from muai_lab.analysis.noise import run_noise as run_noise
    from muai_lab.analysis.pairing import Group as Group
    from muai_lab.analysis.pairing import load_group as load_group
    from muai_lab.analysis.summary import summarise as summarise
    from muai_lab.analysis.summary_schema import Summary as Summary
    from muai_lab.analysis.sweep import load_runs as load_runs
    from muai_lab.analysis.views import as_aiperf as as_aiperf
    from muai_lab.analysis.views import as_guidellm as as_guidellm
    from muai_lab.analysis.views import as_vllm as as_vllm
    from muai_lab.window import Window as Window

_HOME = {
    "Comparison": "comparison",
    "Difference": "change",
    "Group": "pairing",
    "METRICS": "metrics",
    "Metric": "metrics",
    "Noise": "noise",
    "Run": "frames",
    "Summary": "summary_schema",
    "Window": "window",
    "as_aiperf": "views",
    "as_guidellm": "views",
    "as_vllm": "views",
    "compare": "comparison",
    "difference": "comparison",
    "find_runs": "frames",
    "load_group": "pairing",
    "load_run": "frames",
    "load_runs": "sweep",
    "run_noise": "noise",
    "summarise": "summary",
}

__all__ = sorted(_HOME)

__getattr__, __dir__ = lazy_names(__name__, _HOME)

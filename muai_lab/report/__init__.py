"""Results for people: tables, HTML pages, plots, and the sentences in them.

    from muai_lab.analysis import load_run
    from muai_lab.report import write_report
    write_report(load_run("runs/…"), "report.html")

The names below are loaded on first use, so that `import muai_lab.report` alone imports neither pandas nor matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muai_lab.lazy import lazy_names

if TYPE_CHECKING:
    from muai_lab.report.run_page import render_report as render_report
    from muai_lab.report.run_page import write_report as write_report
    from muai_lab.report.run_table import result_table as result_table
    from muai_lab.report.sweep_page import write_sweep_report as write_sweep_report
    from muai_lab.report.sweep_series import save_sweep_picture as save_sweep_picture
    from muai_lab.report.sweep_table import comparison_table as comparison_table

_HOME = {
    "comparison_table": "sweep_table",
    "render_report": "run_page",
    "result_table": "run_table",
    "save_sweep_picture": "sweep_series",
    "write_report": "run_page",
    "write_sweep_report": "sweep_page",
}

__all__ = sorted(_HOME)

__getattr__, __dir__ = lazy_names(__name__, _HOME)

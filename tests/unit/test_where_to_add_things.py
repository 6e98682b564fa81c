"""A metric and a recorded field, added to a copy of the package, touch the files that `docs/structure.md` names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

Edits = Mapping[str, Sequence[tuple[str, str]]]
"""By file, texts that are put before others."""

A_FORMULA = """
def decode(records: pd.DataFrame) -> pd.Series:
    return seconds_between(records["last_content_ns"], records["first_content_ns"])


"""
ITS_METRIC = """
    Metric(
        "decode",
        "decoding",
        "Time of decoding",
        "last chunk - first chunk",
        ("first_content_ns", "last_content_ns"),
        "no content came",
        decode,
        shown=("comparison", "plot"),
    ),
"""
A_COLUMN = """
    RecordColumn("server_decode_ns", INTEGER, "time of decoding, as the server states it", DURATION),
"""
ITS_ATTRIBUTE = """
    server_decode_ns: int | None = None
"""
ITS_MEASUREMENT = """
            self._record.server_decode_ns = nanoseconds(phases.get("decode_ms"))
"""
FORMULA_OF_THE_FIELD = """
def server_decode(records: pd.DataFrame) -> pd.Series:
    value_ns = records["server_decode_ns"].to_numpy(dtype="float64", na_value=np.nan)
    return pd.Series(value_ns / NS_PER_S, index=records.index)


"""
METRIC_OF_THE_FIELD = """
    Metric(
        "server_decode",
        "server decoding",
        "Time of decoding in the server",
        "as the server states it",
        ("server_decode_ns",),
        "the server does not state it",
        server_decode,
    ),
"""

BEFORE_METRIC_CLASS = "@dataclass(frozen=True, slots=True)\nclass Metric:"
BEFORE_END_OF_METRICS = ')\n"""Every metric, in the order'

A_METRIC: Edits = {
    "muai_lab/analysis/metrics.py": [(BEFORE_METRIC_CLASS, A_FORMULA), (BEFORE_END_OF_METRICS, ITS_METRIC)],
}
A_RECORDED_FIELD: Edits = {
    "muai_lab/request_record.py": [
        ('    RecordColumn("asked_prompt_tokens"', A_COLUMN),
        ("    chunk_t_ns: array[int] =", ITS_ATTRIBUTE),
    ],
    "muai_lab/load/completion_stream.py": [("            self._record.server_prefill_ns =", ITS_MEASUREMENT)],
    "muai_lab/analysis/metrics.py": [
        (BEFORE_METRIC_CLASS, FORMULA_OF_THE_FIELD),
        (BEFORE_END_OF_METRICS, METRIC_OF_THE_FIELD),
    ],
}

SHOW = """

import json, sys
from pathlib import Path
from tests.unit.synthetic_run import record, write_run
from muai_lab.analysis import load_run, summarise
from muai_lab.analysis.key_figures import FIGURES
from muai_lab.load.completion_stream import CompletionStream
from muai_lab.load.records import records_table
from muai_lab.report.run_table import result_table
from muai_lab.request_record import RequestRecord
from muai_lab.window import Window

seen = RequestRecord(0, max_tokens=1, intended_ns=0)
stream = CompletionStream(seen)
stream.take([b'{"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}'], 5)
stream.take([b'{"choices":[],"x_muai":{"queue_ms":1,"prefill_ms":2,"decode_ms":3}}'], 6)
stream.finish()
seen.end("ok", 7)
rows = [
    record(i, due=0.1 * i, sent=0.1 * i, chunks=[0.1 * i + 0.05, 0.1 * i + 0.09], server_decode_ns=3_000_000)
    for i in range(50)
]
run = load_run(write_run(Path(sys.argv[1]), rows))
summary = summarise(run)
print(json.dumps({
    "recorded": records_table([seen], Window(0, 0, 10, 10))["server_decode_ns"].to_pylist(),
    "columns": list(run.requests.columns),
    "latency": {name: found and found.p50 and found.p50.value for name, found in summary.latency.items()},
    "rows": [row for grid in result_table(summary).grids for row in grid.rows],
    "figures": list(FIGURES),
}))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the package shows after both additions."""
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "muai_lab", copy / "muai_lab")
    for edits in (A_METRIC, A_RECORDED_FIELD):
        for file, insertions in edits.items():
            _insert(copy / file, insertions)
    path = os.pathsep.join([str(copy), str(ROOT / "tests" / "unit")])
    done = subprocess.run(
        [sys.executable, "-c", SHOW, str(copy / "run")],
        env=os.environ | {"PYTHONPATH": path},
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _insert(file: Path, insertions: Sequence[tuple[str, str]]) -> None:
    text = file.read_text(encoding="utf-8")
    for before, inserted in insertions:
        assert text.count(before) == 1, f"{file.name}: {before!r}"
        text = text.replace(before, inserted.removeprefix("\n") + before)
    file.write_text(text, encoding="utf-8")


def test_a_metric_touches_one_file_and_is_in_frames_summary_table_and_comparisons(shown: dict[str, Any]) -> None:
    assert len(A_METRIC) == 1

    assert "decode_s" in shown["columns"]
    assert shown["latency"]["decode_s"] == pytest.approx(0.04)
    assert [row[:3] for row in shown["rows"] if row[0] == "decoding"] == [["decoding", "40.0", "40.0"]]
    assert "p50 decode" in shown["figures"]


def test_a_recorded_field_touches_the_record_its_measurement_and_what_shows_it(shown: dict[str, Any]) -> None:
    assert len(A_RECORDED_FIELD) <= 3

    assert shown["recorded"] == [3_000_000]
    assert "server_decode_ns" in shown["columns"]
    assert [row[:3] for row in shown["rows"] if row[0] == "server decoding"] == [["server decoding", "3.00", "3.00"]]

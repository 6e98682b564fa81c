"""The pages in a real browser: nothing loaded, nothing cut off, readable in light and dark, usable by keyboard."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from muai_lab.analysis import compare, load_run
from muai_lab.analysis.capacity_schema import CapacityStudy
from muai_lab.report import render_report
from muai_lab.report.capacity_page import render_capacity
from muai_lab.report.comparison_page import render_comparison
from muai_lab.report.sweep_page import render_sweep_report
from tests.unit.capacity_document import capacity_document, probe

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian: apt-get install chromium)")

PAGES = ("report", "sweep", "comparison", "capacity")
DARK, LIGHT = "0", "1"  # Chromium's numbers for preferredColorScheme

# Written into a copy of the page.
LOOK = f"<script>{(Path(__file__).parent / 'look_at_page.js').read_text(encoding='utf-8')}</script>"


def made_run(path: Path, *, slower: float = 1.0, limit: int = 8) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from muai_lab.request_record import REQUESTS_SCHEMA

    rng = np.random.default_rng(limit)
    rows: list[dict[str, Any]] = []
    for index in range(600):
        due = index * 0.05
        chunks = due + slower * (0.05 * rng.lognormal(0.0, 0.3) + np.cumsum(rng.lognormal(-4.6, 0.2, size=8)))
        failed = index % 97 == 5
        stamps = [int((100.0 + t) * 1e9) for t in chunks]
        rows.append(
            dict.fromkeys(REQUESTS_SCHEMA.names)
            | {
                "index": index, "phase": "measure", "intended_ns": int((100.0 + due) * 1e9),
                "sent_ns": int((100.0002 + due) * 1e9), "status": "error" if failed else "ok",
                "error": "HTTP 500: <b>the engine died</b>" if failed else None, "prompt_tokens": 40,
                "max_tokens": 8, "stream_end_ns": stamps[-1], "read_together": 0,
            }
            | ({} if failed else {
                "first_content_ns": stamps[0], "last_token_ns": stamps[-1], "output_tokens": 8,
                "server_queue_ns": 5_000_000, "server_prefill_ns": 20_000_000, "chunk_t_ns": stamps,
                "chunk_tokens": [1] * 8,
            })
        )  # fmt: skip
    path.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=REQUESTS_SCHEMA), path / "requests.parquet")
    window = {"load_start_ns": 0.0, "measure_start_ns": 2.0, "measure_end_ns": 30.0, "drain_end_ns": 31.0}
    manifest = {
        "status": "complete",
        "window": {name: int((100.0 + t) * 1e9) for name, t in window.items()},
        "schedule_hash": "5c4ed01e",
        "engine": {"name": "pytorch", "version": "2.13.0", "device": "cpu", "dtype": "fp32"},
        "model": {"name": "qwen_chat", "content_hash": "abc"},
        "load": {"kind": "poisson", "rate": 20.0, "target": "server"},
        "generator": {"verdict": "ok", "cpu_share": 0.1, "send_lag_p99_s": 0.001},
        "versions": {"python": "3.11"},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    settings = f"optimization:\n  batcher:\n    max_batch_size: {limit}\nslo:\n  ttft_ms: 100\n  quantile: 0.9\n"
    (path / "config.yaml").write_text(settings)
    return path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each kind of page, made from made-up records."""
    folder = tmp_path_factory.mktemp("pages")
    a, b = (
        load_run(made_run(folder / name, slower=by, limit=size)) for name, by, size in (("a", 1, 8), ("b", 1.3, 16))
    )
    shares = [(8.0, 1.0), (16.0, 0.995), (32.0, 0.4), (22.6, 0.97), (17.0, 0.99)]
    capacity = capacity_document(
        bracket_rps={"kept": 16.0, "lost": 22.6},
        probes=[probe(number, rate, share, edge=number > 2) for number, (rate, share) in enumerate(shares)],
    )
    return {
        "report": render_report(a),
        "sweep": render_sweep_report([a, b], folder),
        "comparison": render_comparison(compare([a], [b])),
        "capacity": render_capacity(msgspec.convert(capacity, CapacityStudy), folder),
    }


def browse(profile: Path, *arguments: str) -> str:
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=90, check=True).stdout


Look = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def look(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Look:
    """What the browser makes of a page, looked at once for all tests."""
    folder = tmp_path_factory.mktemp("browser")

    @cache
    def seen(name: str, *, width: int, scheme: str) -> dict[str, Any]:
        file = folder / f"{name}.html"
        file.write_text(pages[name].replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
        flags = [
            f"--window-size={width},1000",
            f"--blink-settings=preferredColorScheme={scheme}",
            "--virtual-time-budget=3000",
        ]
        dom = browse(folder / "profile", *flags, "--dump-dom", file.as_uri())
        found = re.search(r"<output>(.*?)</output>", dom, re.S)
        assert found is not None, dom[-2000:]
        return dict(json.loads(html.unescape(found[1])))

    return seen


@pytest.mark.parametrize("name", PAGES)
def test_a_page_stands_alone_and_has_the_structure_that_a_screen_reader_needs(look: Look, name: str) -> None:
    found = look(name, width=1200, scheme=LIGHT)

    assert found["resources"] == 0
    assert found["language"] == "en"
    assert found["landmarks"] == [1, 1, 1]
    assert found["headings"][0] == 1
    assert found["headings"].count(1) == 1
    steps = np.diff(found["headings"])
    assert steps.max(initial=0) <= 1, found["headings"]
    assert (found["heads"], found["captions"], found["pictures"], found["regions"]) == (0, 0, 0, 0)
    assert found["drawn"]
    assert min(found["drawn"]) > 80


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize(("scheme", "width"), [(LIGHT, 1200), (DARK, 1200), (LIGHT, 500)])
def test_a_page_is_readable_in_light_and_dark_and_on_a_small_screen(
    look: Look, name: str, scheme: str, width: int
) -> None:
    found = look(name, width=width, scheme=scheme)

    assert found["dark"] is (scheme == DARK)
    assert found["faint"] == []
    assert found["wider"] <= 0


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_walked_by_keyboard(look: Look, name: str) -> None:
    found = look(name, width=500, scheme=LIGHT)

    assert found["skip"] == "#content"
    assert found["unreachable"] == []
    assert max(found["tabindexes"]) == 0  # the order of focus is that of the page


def test_a_report_prints(pages: dict[str, str], tmp_path: Path) -> None:
    file, pdf = tmp_path / "report.html", tmp_path / "report.pdf"
    file.write_text(pages["report"], encoding="utf-8")

    browse(tmp_path / "profile", f"--print-to-pdf={pdf}", "--no-pdf-header-footer", file.as_uri())

    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 2

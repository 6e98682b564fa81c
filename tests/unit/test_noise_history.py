"""The machine's A/A history: what one comparison adds, later ones use; damage and foreign files change nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from muai_lab.analysis import load_run
from muai_lab.analysis.frames import Run
from muai_lab.analysis.moderation import Variance
from muai_lab.analysis.noise_history import Circumstances, NoiseHistory, key_of
from tests.unit.synthetic_run import record, write_run

Make = Callable[..., Run]
KEY = Circumstances("machine", "server pytorch", "open")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run of its own start, of which only the manifest matters."""

    def run(name: str, **written: object) -> Run:
        manifest = {"started": name} | dict(written.pop("manifest", {}))  # type: ignore[call-overload]
        return load_run(write_run(tmp_path / name, [record()], manifest=manifest, **written))

    return run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a history that does not exist yet."""
    return tmp_path / "cache" / "noise_history.jsonl"


def test_what_is_added_is_read_under_its_key_and_figure(make: Make, path: Path) -> None:
    a, b = make("a"), make("b")
    added = Variance(4e-4, 2.0)

    assert NoiseHistory.read(path).add(KEY, [a, b], {"tokens": added}) is None

    history = NoiseHistory.read(path)
    assert history.past(KEY, "tokens") == [added]
    assert history.past(KEY, "p50 ttft") == []
    assert history.past(Circumstances("machine", "server pytorch", "closed"), "tokens") == []
    assert history.past(None, "tokens") == []


def test_a_run_never_judges_itself_and_counts_once(make: Make, path: Path) -> None:
    # Given a comparison, and a sweep that holds its runs and more
    runs = [make(name) for name in "abcd"]
    NoiseHistory.read(path).add(KEY, runs[:2], {"tokens": Variance(1e-4, 1.0)})
    NoiseHistory.read(path).add(KEY, runs, {"tokens": Variance(2e-4, 3.0)})
    NoiseHistory.read(path).add(KEY, runs[2:], {"tokens": Variance(3e-4, 1.0)})

    # Then the larger one counts, and nothing for a comparison of any of its runs
    history = NoiseHistory.read(path)
    assert history.past(KEY, "tokens") == [Variance(2e-4, 3.0)]
    assert history.past(KEY, "tokens", without=[runs[0]]) == []
    assert len(path.read_text().splitlines()) == 2


def test_comparisons_that_share_a_baseline_count_once_and_are_written_once(make: Make, path: Path) -> None:
    # Given two candidates against one baseline, each compared twice
    base, one, other = make("base"), make("one"), make("other")
    for _ in range(2):
        for candidate, value in ((one, 1e-4), (other, 2e-4)):
            NoiseHistory.read(path).add(KEY, [base, candidate], {"tokens": Variance(value, 2.0)})

    # Then the baseline's noise counts once, and a comparison of the first still knows the second
    history = NoiseHistory.read(path)
    assert history.past(KEY, "tokens") == [Variance(1e-4, 2.0)]
    assert history.past(KEY, "tokens", without=[one]) == [Variance(2e-4, 2.0)]
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "damage",
    [
        b"\x00\xff\xfe not text\n",
        b"{\n",
        b"[]\n",
        b"null\n",
        b'{"version": 99, "runs": ["x"], "variances": {"tokens": [0.1, 2]}}\n',
        b'{"version": 1, "runs": [], "variances": {"tokens": [0.1, 2]}}\n',
        b'{"version": 1, "runs": ["x"], "variances": [1]}\n',
        b'{"version": 1, "runs": ["x"], "variances": {"tokens": [NaN, 2]}}\n',
        b'{"version": 1, "runs": ["x"], "variances": {"tokens": [-1, 2]}}\n',
        b'{"version": 1, "runs": ["x"], "variances": {"tokens": [0.1, 1e300]}}\n',
        b'{"version": 1, "runs": ["x"], "variances": {"tokens": ["0.1", true]}}\n',
        b'{"version": 1, "runs": ["x"], "variances": {"no such figure": [0.1, 2]}}\n',
        b'{"version": 1, "runs": ["x"], "variances": {"tokens": [0.1',
    ],
)
def test_damaged_and_foreign_lines_count_as_absent(make: Make, path: Path, damage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(damage)

    NoiseHistory.read(path).add(KEY, [make("a"), make("b")], {"tokens": Variance(1e-4, 2.0)})

    assert NoiseHistory.read(path).past(KEY, "tokens") == [Variance(1e-4, 2.0)]


def test_a_file_that_cannot_be_written_is_a_note(make: Make, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")

    history = NoiseHistory.read(blocked / "noise_history.jsonl")

    assert history.past(KEY, "tokens") == []
    note = history.add(KEY, [make("a")], {"tokens": Variance(1e-4, 2.0)})
    assert note is not None
    assert note.endswith("set MUAI_CACHE_DIR to a directory that can be written")
    directory = NoiseHistory.read(tmp_path)
    assert directory.add(KEY, [make("b")], {"tokens": Variance(1e-4, 2.0)}) is not None


def test_a_run_compared_with_itself_or_its_copy_tells_no_noise(make: Make, path: Path) -> None:
    run, copy = make("a"), make("copy", manifest={"started": "a"})

    NoiseHistory.read(path).add(KEY, [run, copy], {"tokens": Variance(1e-6, 2.0)})

    assert not path.exists()


def test_no_history_keeps_nothing(make: Make) -> None:
    history = NoiseHistory()

    assert history.add(KEY, [make("a")], {"tokens": Variance(1e-4, 2.0)}) is None
    assert history.past(KEY, "tokens") == []


def test_comparisons_that_end_at_once_do_not_mix_their_lines(make: Make, path: Path) -> None:
    runs = [make(str(number)) for number in range(8)]
    threads = [
        threading.Thread(target=NoiseHistory.read(path).add, args=(KEY, [run], {"tokens": Variance(1e-4, 2.0)}))
        for run in runs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(NoiseHistory.read(path).past(KEY, "tokens")) == 8


def test_a_file_that_grew_large_loses_its_older_half(make: Make, path: Path) -> None:
    path.parent.mkdir()
    line = json.dumps({"version": 1, "note": "x" * 1000})
    path.write_text(f"{line}\n" * 2500)

    NoiseHistory.read(path).add(KEY, [make("a")], {"tokens": Variance(1e-4, 2.0)})

    assert len(path.read_text().splitlines()) == 1251
    assert NoiseHistory.read(path).past(KEY, "tokens") == [Variance(1e-4, 2.0)]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_key_is_machine_target_and_kind_of_load(make: Make) -> None:
    other_cpu = {"cpu": "Another CPU", "cores": 64}
    runs = {
        "same": make("same"),
        "again": make("again", manifest={"schedule_hash": "other"}),
        "machine": make("machine", manifest={"hardware": other_cpu}),
        "engine": make("engine", manifest={"engine": {"name": "onnx"}}),
        "load": make("load", manifest={"load": {"kind": "closed", "concurrency": 8}}),
        "url": make("url", config={"target": {"kind": "endpoint", "url": "http://one/v1"}}),
        "other url": make("other url", config={"target": {"kind": "endpoint", "url": "http://two/v1"}}),
    }

    keys = {name: key_of([run]) for name, run in runs.items()}

    assert keys["same"] == keys["again"]
    assert len({keys[name] for name in runs if name != "again"}) == len(runs) - 1
    assert key_of([runs["same"], runs["load"]]) is None
    assert key_of([]) is None
    assert "one" not in str(keys["url"])

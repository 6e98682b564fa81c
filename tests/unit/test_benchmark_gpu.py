"""`python -m benchmarks.gpu`: all of it on a CPU but what only a GPU has, then its decisions by fakes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_facts
from benchmarks.gpu import Part, PartFailed, carry_out, main, missing_packages, run_rows, shown, test_rows
from benchmarks.gpu_facts import Row, VendorPeak
from benchmarks.gpu_measure import SMALL, Peaks, Sizes, prefill_operations, serving, step_bytes

test_rows.__test__ = False  # type: ignore[attr-defined]  # its name is the field's, not a test's

CPU = torch.device("cpu")


def test_on_a_cpu_all_that_is_measured_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--device", "cpu", "--parts", "facts,peaks,checks,serving", "--out", str(tmp_path)])

    assert status == 0
    content = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["name"]: row["value"] for part in content["parts"] for row in part["rows"]}
    assert [part["status"] for part in content["parts"]] == ["done"] * 4
    assert rows["decode, 3 streams: rate"] == pytest.approx(3000 / rows["decode, 3 streams: step"])
    assert rows["T5, fp32: tokens"].startswith("equal")
    page = (tmp_path / "gpu.md").read_text()
    assert "| decode, 1 streams: step |" in page
    assert "prefill, 2 × 16 tokens: of the measured product" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_how_to_try_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--parts", "decode"], "there is no part decode: facts, peaks"),
        (["--minutes", "0"], "give more than 0"),
        (["--minutes", "nan"], "give more than 0"),
        (["--out", "/proc/none/gpu"], "choose another folder with --out"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--device", "cpu", "--small", *arguments])

    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def part(name: str, needs: dict[str, str] | None = None, least_s: float = 0.0, error: Exception | None = None) -> Part:
    def work(_left: Any) -> list[Row]:
        if error is not None:
            raise error
        return [Row(name, 1)]

    return Part(name, name.title(), needs or {}, least_s, 10.0, work)


def test_parts_without_packages_or_time_are_skipped_with_the_reason_and_failures_stop_nothing() -> None:
    told: list[str] = []
    parts = [
        part("bare", {"json": "json", "none_such": "none-such", "nor_this": "nor-this"}),
        part("long", least_s=100.0),
        part("broken", error=ValueError("no")),
        part("wrong", error=PartFailed("2 of 3", [Row("passed", 1)])),
        part("good"),
    ]

    assert missing_packages(parts[1]) == ""
    outcomes = {outcome.name: outcome for outcome in carry_out(parts, 60.0, lambda outcome: told.append(outcome.name))}

    assert told == [part.name for part in parts]
    assert outcomes["bare"].reason == "packages are missing: pip install none-such nor-this"
    assert outcomes["long"].reason.startswith("takes 100 s at least, and 60 s are left")
    assert (outcomes["broken"].status, outcomes["broken"].reason) == ("failed", "ValueError: no")
    assert (outcomes["wrong"].status, outcomes["wrong"].rows) == ("failed", [Row("passed", 1)])
    assert outcomes["good"].status == "done"


def test_when_the_time_is_over_the_rest_is_skipped() -> None:
    (outcome,) = carry_out([part("good")], -1.0, lambda _outcome: None)

    assert outcome.status == "skipped"


def test_measurements_that_the_time_is_too_short_for_say_so() -> None:
    rows = serving(CPU, SMALL, lambda: 0.0, Peaks())

    missing = [row for row in rows if row.note == "no time was left"]
    assert len(missing) == len(SMALL.streams) + len(SMALL.prompts)
    assert all(row.value is None for row in missing)


CASES = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"/><testcase name="c">{}</testcase>
<testcase name="d"><skipped message="needs a GPU"/></testcase></testsuite></testsuites>"""


def test_tests_are_counted() -> None:
    rows = {row.name: row for row in test_rows(CASES.format(""))}

    assert [row.value for row in rows.values()] == [3, 0, 1]
    assert rows["tests skipped"].note == "needs a GPU"


@pytest.mark.parametrize("end", ['<failure message="x"/>', '<error message="x"/>'])
def test_a_failed_test_fails_the_part_and_is_named(end: str) -> None:
    with pytest.raises(PartFailed, match="1 of 4 tests failed") as caught:
        test_rows(CASES.format(end))

    assert caught.value.rows[1] == Row("tests failed", 1, note="c")


def test_no_test_that_passed_is_a_failure() -> None:
    with pytest.raises(PartFailed, match="0 passed"):
        test_rows("<testsuites><testsuite/></testsuites>")


def test_a_run_is_told_by_its_summary(tmp_path: Path) -> None:
    summary = {
        "validity": {"valid": True, "verdict": "valid", "reason": None},
        "identity": {"device": "NVIDIA H100", "engine": "pytorch", "dtype": "bf16"},
        "throughput": {"output_tokens_per_s": {"value": 5.0}},
        "latency": {"ttft_s": {"mean": {"value": 0.25}}, "tpot_s": None},
        "server": {"gpu_memory_max_bytes": 2**30},
    }
    rows = {row.name: row for row in run_rows(summary, tmp_path)}

    assert rows["output"].value == 5.0
    assert (rows["TTFT, mean"].value, rows["TPOT, mean"].value) == (250.0, None)
    assert rows["GPU memory, most, by the server's metric"].value == 1024
    assert rows["report"].note == "was not written"
    with pytest.raises(PartFailed, match="not valid: too slow"):
        run_rows(summary | {"validity": {"valid": False, "verdict": "x", "reason": "too slow"}}, tmp_path)


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started() -> None:
    with pytest.raises(PartFailed, match="not done after"):
        gpu._ran(["bash", "-c", "sleep 100 & sleep 100"], 0.1)


def model(*, tied: bool) -> SimpleNamespace:
    """A model of 10 × 4 embeddings and 100 other parameters in 16 bits."""
    embeddings = torch.nn.Parameter(torch.zeros((10, 4), dtype=torch.bfloat16))
    output = embeddings if tied else torch.nn.Parameter(torch.zeros((10, 4), dtype=torch.bfloat16))
    inner = torch.nn.Parameter(torch.zeros(100, dtype=torch.bfloat16))
    parameters = [embeddings, inner] if tied else [embeddings, inner, output]
    return SimpleNamespace(
        parameters=lambda: iter(parameters),
        get_input_embeddings=lambda: SimpleNamespace(weight=embeddings),
        get_output_embeddings=lambda: SimpleNamespace(weight=output),
        config=SimpleNamespace(num_hidden_layers=2, num_attention_heads=2, head_dim=3, hidden_size=6),
    )


def test_a_step_reads_every_weight_once_and_each_streams_keys_and_values() -> None:
    assert step_bytes(model(tied=True), streams=3, positions=7, position_bytes=11) == 2 * 140 + 3 * 7 * 11
    assert step_bytes(model(tied=False), streams=3, positions=7, position_bytes=11) == 2 * (140 + 3 * 4) + 3 * 7 * 11


@pytest.mark.parametrize("tied", [True, False])
def test_a_prefill_multiplies_each_weight_with_each_token_and_the_output_with_the_last(tied: bool) -> None:
    # 100 weights, 5 tokens; 40 weights of the output, once; 15 pairs, 2 layers, 2 heads of 3, twice a product and sum.
    assert prefill_operations(model(tied=tied), 2, 5) == 2 * (2 * 100 * 5 + 2 * 40 + 4 * 2 * 2 * 3 * 15)


def test_a_known_device_has_its_vendors_peaks_and_a_part_of_one_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    assert gpu_facts.vendor_peak(torch.device("cuda")) == VendorPeak(989, 3.35, gpu_facts._H100)

    name += " MIG 1g.10gb"
    assert gpu_facts.vendor_peak(torch.device("cuda")) is None
    assert gpu_facts.vendor_peak(CPU) is None


def test_the_vendors_peaks_are_plausible() -> None:
    for peak in gpu_facts.VENDOR_PEAKS.values():
        assert 50 < peak.tflops < 5000
        assert 0.2 < peak.tb_per_s < 10
        assert "NVIDIA" in peak.source


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("x", "x"),
        (12345, "12,345"),
        (1234.5, "1,234"),
        (12.345, "12.3"),
        (0.001234, "0.00123"),
        (0.0, "0"),
    ],
)
def test_numbers_are_shown_with_what_counts(value: float | str | None, text: str) -> None:
    assert shown(value) == text


def test_the_state_of_a_gpu_is_read_once_with_units(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [str(number) for number in range(len(gpu_facts._STATE))]
    said[6] = "P0"
    monkeypatch.setattr(gpu_facts, "_smi", lambda _names: said)

    rows = gpu_facts.state(torch.device("cuda"), "now")

    assert rows[0] == Row("SM clock, now", 0.0, "MHz")
    assert rows[6] == Row("performance state, now", "P0")
    assert gpu_facts.state(CPU, "now") == []


def test_sizes_of_the_whole_are_those_of_qwen2_half_a_billion() -> None:
    whole: Sizes = gpu.WHOLE
    shape = whole.model
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    kept = 2 * shape["num_key_value_heads"] * width // shape["num_attention_heads"]
    layer = 2 * width * width + width * kept + (width + kept) + 3 * width * inner + 2 * width
    parameters = shape["vocab_size"] * width + shape["num_hidden_layers"] * layer + width

    assert parameters == pytest.approx(494e6, rel=0.001)
    assert whole.streams == (1, 32, 128)

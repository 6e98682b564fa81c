"""The serving metrics: names, labels, and what each event does to them."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from muai_lab.monitoring.machine import MachineMetrics
from muai_lab.monitoring.observers import observers_for, open_exporter
from muai_lab.monitoring.prometheus import PrometheusObserver
from muai_lab.monitoring.serving_metrics import ServingMetrics
from muai_lab.request_status import STATUSES
from muai_lab.settings.monitoring import MonitoringSettings, PrometheusSettings
from muai_lab.stack.events import (
    Admitted,
    CacheLookup,
    CacheState,
    Event,
    Failed,
    Finished,
    Lost,
    Queued,
    Rejected,
    Step,
    StepFailed,
    Token,
    Tuned,
    TunerNoted,
)

MODEL_ENGINE = {"model": "m", "engine": "e"}

# The specification's list, word by word: sample family -> label names.
SPECIFIED = {
    "inference_latency_seconds": ("histogram", {"model", "engine"}),
    "inference_requests_total": ("counter", {"model", "engine", "status"}),
    "throughput_requests_per_second": ("gauge", {"model"}),
    "gpu_memory_used_bytes": ("gauge", {"gpu_id"}),
    "cpu_usage_percent": ("gauge", set()),
    "kv_cache_hit_rate": ("gauge", {"model"}),
    "batch_size": ("histogram", {"model"}),
}


class Board:
    """One observer in a registry of its own, with a clock that stands where it is put."""

    def __init__(self) -> None:
        self.now = 100.0
        self.metrics = ServingMetrics(clock=lambda: self.now)
        self.registry = CollectorRegistry()
        self.registry.register(self.metrics)
        self.observer = self.metrics.observer("m", "e")

    def see(self, *events: Event) -> None:
        self.observer.observe(events)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def finished(name: str = "r", *, at: float = 100.0, queued_at: float = 98.0) -> Finished:
    return Finished(name, at, "stop", 5, 3, queued_at=queued_at, admitted_at=99.0, first_token_at=99.5)


def test_names_types_and_labels_are_those_of_the_specification() -> None:
    board = Board()
    board.see(CacheLookup("r", 1.0, 4, cached_tokens=1))
    board.registry.register(MachineMetrics(gpu=lambda: [("0", 1)]))

    families = {family.name: family for family in text_string_to_metric_families(text(board.registry))}

    for name, (kind, labels) in SPECIFIED.items():
        family = families[name.removesuffix("_total")]
        assert family.type == kind
        assert {frozenset(sample.labels) - {"le"} for sample in family.samples} == {frozenset(labels)}
        suffixes = {sample.name.removeprefix(name) for sample in family.samples}
        assert suffixes == ({"_bucket", "_count", "_sum"} if kind == "histogram" else {""})


def test_everything_else_has_a_prefix_of_its_own_and_no_creation_times() -> None:
    board = Board()
    board.registry.register(MachineMetrics())

    names = {family.name for family in text_string_to_metric_families(text(board.registry))}

    assert "_created" not in text(board.registry)
    assert all(name.startswith("muai_") for name in names - {name.removesuffix("_total") for name in SPECIFIED})
    assert {
        "muai_running_sequences",
        "muai_waiting_requests",
        "muai_prompt_tokens",
        "muai_output_tokens",
        "muai_step_seconds",
        "muai_time_to_first_token_seconds",
        "muai_process_resident_bytes",
    } <= names


def test_it_is_valid_openmetrics_too() -> None:
    board = Board()
    board.see(finished(), Step(2.0, 1.0, 3, 0, 3, 3, 0))
    rendered = generate_openmetrics(board.registry).decode()

    names = {family.name for family in parse_openmetrics(rendered)}

    assert "inference_latency_seconds" in names


def test_every_status_is_there_from_the_start_and_counts() -> None:
    board = Board()
    assert [board.value("inference_requests_total", **MODEL_ENGINE, status=status) for status in STATUSES] == [0] * 5

    board.see(finished("a"), finished("b"), Rejected(1.0, "full"))
    board.see(*(Failed("x", 1.0, status, "", 0.0) for status in ("error", "cancelled", "timeout")))

    counts = {status: board.value("inference_requests_total", **MODEL_ENGINE, status=status) for status in STATUSES}
    assert counts == {"ok": 2, "error": 1, "rejected": 1, "cancelled": 1, "timeout": 1}


def test_latency_runs_from_queued_to_finished_and_the_first_token_likewise() -> None:
    board = Board()
    board.see(finished(at=100.0, queued_at=98.0))

    assert board.value("inference_latency_seconds_count", **MODEL_ENGINE) == 1
    assert board.value("inference_latency_seconds_sum", **MODEL_ENGINE) == 2.0
    assert board.value("inference_latency_seconds_bucket", **MODEL_ENGINE, le="1.5") == 0
    assert board.value("inference_latency_seconds_bucket", **MODEL_ENGINE, le="2.5") == 1
    assert board.value("inference_latency_seconds_bucket", **MODEL_ENGINE, le="+Inf") == 1
    assert board.value("muai_time_to_first_token_seconds_sum", **MODEL_ENGINE) == 1.5


def test_an_upper_bound_belongs_to_its_bucket() -> None:
    board = Board()
    board.see(Step(2.0, 1.0, 8, 0, 8, 8, 0))

    assert board.value("batch_size_bucket", model="m", le="4.0") == 0
    assert board.value("batch_size_bucket", model="m", le="8.0") == 1
    assert board.value("batch_size_sum", model="m") == 8
    assert board.value("muai_step_seconds_sum", **MODEL_ENGINE) == 1.0


def test_throughput_is_over_the_last_ten_seconds() -> None:
    board = Board()
    board.see(*(finished(f"r{at}", at=float(at)) for at in range(91, 101)))

    assert board.value("throughput_requests_per_second", model="m") == 1.0
    board.now = 105.0
    assert board.value("throughput_requests_per_second", model="m") == pytest.approx(0.6)
    board.now = 200.0
    assert board.value("throughput_requests_per_second", model="m") == 0.0


def test_waiting_and_running_follow_each_request_through() -> None:
    board = Board()

    def load() -> tuple[float | None, float | None]:
        running = board.value("muai_running_sequences", **MODEL_ENGINE)
        return board.value("muai_waiting_requests", model="m"), running

    board.see(Queued("a", 1.0, 3), Queued("b", 1.0, 4))
    assert load() == (2, 0)
    board.see(Admitted("a", 2.0, 1.0, 3))
    assert load() == (1, 1)
    board.see(Failed("b", 3.0, "cancelled", "", 1.0))  # while it waited
    assert load() == (0, 1)
    board.see(Admitted("a", 3.0, 1.0, 3))  # run again on another engine
    assert load() == (0, 1)
    board.see(Lost("a", 4.0, "the engine died", 1.0))
    assert load() == (0, 0)
    assert board.value("inference_requests_total", **MODEL_ENGINE, status="error") == 0
    board.see(Admitted("a", 5.0, 1.0, 3), finished("a"))
    assert load() == (0, 0)


def test_tokens_are_counted() -> None:
    board = Board()
    board.see(Admitted("a", 2.0, 1.0, 30), *(Token("a", 2.0, 7, index) for index in range(5)))

    assert board.value("muai_prompt_tokens_total", **MODEL_ENGINE) == 30
    assert board.value("muai_output_tokens_total", **MODEL_ENGINE) == 5


def test_the_hit_rate_is_missing_without_a_cache_and_a_share_of_prompt_tokens_with_one() -> None:
    board = Board()
    board.see(Admitted("a", 2.0, 1.0, 30))
    assert board.value("kv_cache_hit_rate", model="m") is None

    board.see(CacheLookup("b", 2.0, 60, cached_tokens=45), CacheLookup("c", 2.0, 30, cached_tokens=0))
    assert board.value("kv_cache_hit_rate", model="m") == 0.5


def test_what_the_prefix_cache_holds_is_shown_and_what_it_gave_up_adds_up() -> None:
    board = Board()
    assert board.value("muai_prefix_cache_bytes", **MODEL_ENGINE) is None

    board.see(CacheState(1.0, 600, 6, evicted_blocks=2, budget_bytes=1000))
    board.see(CacheState(2.0, 400, 4, evicted_blocks=3, budget_bytes=500))

    assert board.value("muai_prefix_cache_bytes", **MODEL_ENGINE) == 400
    assert board.value("muai_prefix_cache_budget_bytes", **MODEL_ENGINE) == 500
    assert board.value("muai_prefix_cache_evictions_total", **MODEL_ENGINE) == 5


def test_steps_that_raised_are_counted() -> None:
    board = Board()
    assert board.value("muai_failed_steps_total", **MODEL_ENGINE) == 0

    board.see(StepFailed(2.0, 1.0, 3, "the engine raised"))

    assert board.value("muai_failed_steps_total", **MODEL_ENGINE) == 1


def test_a_model_that_fell_back_to_another_engine_is_one_model() -> None:
    board = Board()
    second = board.metrics.observer("m", "f")
    board.see(finished("a"), Step(2.0, 1.0, 2, 0, 2, 2, 0))
    second.observe([finished("b"), Step(2.0, 1.0, 3, 0, 3, 3, 0)])

    assert board.value("throughput_requests_per_second", model="m") == pytest.approx(0.2)
    assert board.value("batch_size_count", model="m") == 2
    assert board.value("inference_latency_seconds_count", model="m", engine="e") == 1
    assert board.value("inference_latency_seconds_count", model="m", engine="f") == 1


def test_a_model_that_is_loaded_again_goes_on_counting() -> None:
    metrics = ServingMetrics()

    assert metrics.observer("m", "e") is metrics.observer("m", "e")


@pytest.mark.parametrize(
    "settings",
    [MonitoringSettings(enabled=False), MonitoringSettings(prometheus=PrometheusSettings(enabled=False))],
)
def test_switched_off_there_is_nothing_to_observe_with(settings: MonitoringSettings) -> None:
    exporter = open_exporter(settings)

    assert exporter is None
    assert observers_for(exporter, "m", "e") == []


def test_switched_on_each_model_has_its_observer_in_a_registry_of_the_process_own() -> None:
    first, second = open_exporter(MonitoringSettings()), open_exporter(MonitoringSettings())
    assert first is not None
    assert second is not None

    (observer,) = observers_for(first, "m", "e")

    assert isinstance(observer, PrometheusObserver)
    observer.observe([Token("r", 1.0, 7, 0)])
    assert first.registry.get_sample_value("muai_output_tokens_total", MODEL_ENGINE) == 1
    assert second.registry.get_sample_value("muai_output_tokens_total", MODEL_ENGINE) is None


def text(registry: CollectorRegistry) -> str:
    return generate_latest(registry).decode()


def test_the_tuner_s_settings_decisions_and_shifts_can_be_seen() -> None:
    board = Board()

    board.see(
        Tuned(1.0, "max_batch_size", 4, 4, "began", "in force"),
        Tuned(2.0, "max_batch_size", 4, 8, "tried", "requests wait"),
        Tuned(3.0, "max_batch_size", 4, 8, "kept", "better"),
        Tuned(4.0, "max_batch_size", 8, 16, "tried", "onward"),
        Tuned(5.0, "max_batch_size", 16, 8, "reverted", "worse"),
        TunerNoted(6.0, "shift", "arrivals"),
    )

    knob = {**MODEL_ENGINE, "knob": "max_batch_size"}
    assert board.value("muai_tuner_value", **knob) == 8
    assert board.value("muai_tuner_decisions_total", **knob, outcome="tried") == 2
    assert board.value("muai_tuner_decisions_total", **knob, outcome="kept") == 1
    assert board.value("muai_tuner_decisions_total", **knob, outcome="reverted") == 1
    assert board.value("muai_tuner_decisions_total", **knob, outcome="began") is None
    assert board.value("muai_tuner_notes_total", **MODEL_ENGINE, kind="shift") == 1

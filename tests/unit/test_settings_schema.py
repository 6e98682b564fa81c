"""The sections hold the specification's keys with its defaults, options and ranges."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from muai_lab.settings.catalogue import keys_by_path
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.monitoring import AnomalySettings, MonitoringSettings
from muai_lab.settings.schema import BatcherSettings, CacheSettings, OptimizationSettings, TunerSettings

SPECIFIED_DEFAULTS = {
    "optimization.enabled": True,
    "optimization.engine_preference": ("vllm", "deepspeed", "onnx", "pytorch"),
    "optimization.fallback_on_error": True,
    "optimization.vllm.enabled": True,
    "optimization.vllm.tensor_parallel_size": 1,
    "optimization.vllm.dtype": "auto",
    "optimization.vllm.max_model_len": None,
    "optimization.vllm.gpu_memory_utilization": 0.9,
    "optimization.vllm.swap_space": 4,
    "optimization.deepspeed.enabled": True,
    "optimization.deepspeed.tensor_parallel": 1,
    "optimization.deepspeed.pipeline_parallel": 1,
    "optimization.deepspeed.dtype": "fp16",
    "optimization.deepspeed.replace_with_kernel_inject": True,
    "optimization.onnx.enabled": True,
    "optimization.onnx.execution_providers": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "optimization.onnx.optimization_level": "all",
    "optimization.onnx.enable_quantization": False,
    "optimization.batcher.enabled": True,
    "optimization.batcher.max_batch_size": 32,
    "optimization.batcher.batch_timeout_ms": 50,
    "optimization.batcher.adaptive_batching": True,
    "optimization.batcher.min_batch_size": 1,
    "optimization.cache.enabled": True,
    "optimization.cache.max_memory_mb": 4096,
    "optimization.cache.eviction_policy": "lru",
    "optimization.tuner.enabled": False,
    "optimization.tuner.observation_window_seconds": 300,
    "optimization.tuner.tuning_interval_seconds": 60,
    "optimization.tuner.enable_batch_size_tuning": True,
    "optimization.tuner.enable_timeout_tuning": True,
    "optimization.tuner.enable_cache_size_tuning": True,
    "monitoring.enabled": True,
    "monitoring.prometheus.enabled": True,
    "monitoring.prometheus.port": 9090,
    "monitoring.prometheus.host": "0.0.0.0",
    "monitoring.prometheus.path": "/metrics",
    "monitoring.tracing.enabled": True,
    "monitoring.tracing.endpoint": "http://localhost:4317",
    "monitoring.tracing.sample_rate": 1.0,
    "monitoring.tracing.service_name": "muai-orchestration",
    "monitoring.tracing.export_timeout_ms": 30000,
    "monitoring.anomaly.enabled": True,
    "monitoring.anomaly.latency_threshold_ms": 1000.0,
    "monitoring.anomaly.error_rate_threshold": 0.05,
    "monitoring.anomaly.memory_threshold_percent": 90.0,
    "monitoring.anomaly.throughput_threshold_rps": 1.0,
    "monitoring.anomaly.alert_rate_limit_seconds": 300,
    "monitoring.anomaly.alert_destinations": ("log",),
    "monitoring.anomaly.webhook_url": None,
    "monitoring.server.enabled": False,
    "monitoring.server.host": "0.0.0.0",
    "monitoring.server.port": 8000,
    "monitoring.server.queue_capacity": 100,
    "monitoring.server.preload_models": (),
    "monitoring.server.graceful_shutdown_timeout": 30,
    "monitoring.server.health_check_path": "/health",
    "monitoring.server.readiness_check_path": "/ready",
}
EXTENSIONS = {
    "optimization.models",
    "optimization.step_timeout_s",
    "optimization.vllm.enforce_eager",
    "optimization.onnx.dtype",
    "optimization.onnx.threads",
    "optimization.batcher.latency_target_ms",
    "optimization.batcher.max_prefill_tokens",
    "optimization.batcher.max_slots",
    "optimization.pytorch.device",
    "optimization.pytorch.dtype",
    "optimization.pytorch.max_model_len",
    "optimization.pytorch.threads",
    "optimization.tuner.ttft_target_ms",
    "optimization.tuner.tpot_target_ms",
    "optimization.tuner.cache_max_memory_mb",
    "optimization.tuner.state_directory",
    "monitoring.anomaly.alertmanager_url",
    "monitoring.server.request_timeout_s",
    "monitoring.server.client_timeout_s",
    "monitoring.server.max_connections",
}


def in_file_sections(path: str) -> bool:
    return path.startswith(("optimization.", "monitoring."))


def test_the_specification_s_keys_have_its_defaults() -> None:
    defaults = {path: key.default for path, key in keys_by_path().items() if path in SPECIFIED_DEFAULTS}

    assert defaults == SPECIFIED_DEFAULTS


def test_keys_beyond_the_specification_are_marked_as_extensions_and_nothing_else_is() -> None:
    keys = {path: key for path, key in keys_by_path().items() if in_file_sections(path)}

    assert {path for path, key in keys.items() if key.extension} == EXTENSIONS
    assert set(keys) == set(SPECIFIED_DEFAULTS) | EXTENSIONS


@pytest.mark.parametrize(
    ("path", "valid", "invalid"),
    [
        ("optimization.vllm.gpu_memory_utilization", [0.0, 1.0, 0.85, 1], [-0.01, 1.01, "0.9", True, None]),
        ("optimization.vllm.tensor_parallel_size", [1, 8], [0, 1.0, True]),
        ("optimization.vllm.max_model_len", [None, 1, 4096], [0, "4096"]),
        ("optimization.vllm.dtype", ["auto", "fp16", "fp32", "bf16"], ["float16", None, 16]),
        ("optimization.vllm.swap_space", [0, 4], [-1, 0.5]),
        ("optimization.deepspeed.dtype", ["auto", "fp16", "fp32", "bf16"], ["float16", "int8"]),
        ("optimization.onnx.optimization_level", ["none", "basic", "extended", "all"], ["max", None]),
        (
            "optimization.onnx.execution_providers",
            [["TensorrtExecutionProvider"]],
            [[], ["ROCm"], "CPUExecutionProvider"],
        ),
        ("optimization.engine_preference", [["onnx", "pytorch"]], [[], ["onnx", "onnx"], ["tgi"], "pytorch", None]),
        ("optimization.batcher.max_batch_size", [1, 128], [0, -1, 2.5]),
        ("optimization.batcher.batch_timeout_ms", [0, 100], [-1, 0.5]),
        ("optimization.cache.max_memory_mb", [0, 1], [-1]),
        ("optimization.cache.eviction_policy", ["lru", "fifo"], ["lfu"]),
        ("optimization.tuner.observation_window_seconds", [1], [0]),
        ("monitoring.prometheus.port", [0, 65535], [-1, 65536, "9090"]),
        ("monitoring.prometheus.path", ["/", "/metrics"], ["metrics", "", "/a b", "/a?b"]),
        ("monitoring.tracing.endpoint", ["localhost:4317", "https://c:4317"], ["ftp://c", "", "http://u:p@c:1", "a b"]),
        ("monitoring.tracing.sample_rate", [0.0, 1.0], [-0.1, 1.1, float("nan")]),
        ("monitoring.tracing.export_timeout_ms", [1], [0]),
        ("monitoring.anomaly.latency_threshold_ms", [0.1, 5], [0.0, float("inf")]),
        ("monitoring.anomaly.error_rate_threshold", [0.0, 1.0], [-0.1, 1.5]),
        ("monitoring.anomaly.memory_threshold_percent", [0, 100], [-1, 101]),
        ("monitoring.anomaly.alert_destinations", [["log", "webhook", "alertmanager"], []], [["mail"], ["log", "log"]]),
        ("monitoring.anomaly.webhook_url", [None, "https://hooks.example/x"], ["hooks.example", "file:///x"]),
        ("monitoring.server.port", [0, 65535], [65536]),
        ("monitoring.server.queue_capacity", [1], [0]),
        ("monitoring.server.preload_models", [[], ["qwen_chat"]], [[""], ["a", "a"], "qwen_chat"]),
        ("monitoring.server.graceful_shutdown_timeout", [0], [-1]),
        ("monitoring.server.health_check_path", ["/healthz"], ["healthz"]),
        ("arrival.rate", [0.5, 8], [0, -1]),
        ("slo.quantile", [0.5, 0.99], [0, 1, 1.5]),
        ("target.url", ["http://h:1/v1", "https://h"], ["h:1", "ftp://h", "http://", "http://h:99999"]),
        ("target.api_key_env", ["OPENAI_API_KEY"], ["sk-123", ""]),
        ("seed", [0, 7], [-1, 1.5]),
    ],
)
def test_what_a_key_takes_and_what_it_refuses(path: str, valid: list[object], invalid: list[object]) -> None:
    key = keys_by_path()[path]

    for value in valid:
        key.check(value)
    for value in invalid:
        with pytest.raises(ValueError, match=r"expected|named more than once|credentials"):
            key.check(value)


def test_settings_are_frozen() -> None:
    settings = LabSettings()

    with pytest.raises(ValidationError):
        settings.optimization.batcher.max_batch_size = 1  # type: ignore[misc]


def test_values_that_do_not_go_together_are_refused_when_built_directly_too() -> None:
    with pytest.raises(ValidationError, match=r"min_batch_size \(8\) is above max_batch_size \(4\)"):
        BatcherSettings(min_batch_size=8, max_batch_size=4)


def test_a_tuner_whose_window_is_shorter_than_its_interval_is_refused() -> None:
    conflicts = list(TunerSettings.model_construct(observation_window_seconds=30).conflicts())

    assert [conflict.keys for conflict in conflicts] == [("tuning_interval_seconds", "observation_window_seconds")]
    assert "tuning_interval_seconds (60) is above observation_window_seconds (30)" in conflicts[0].message


def test_a_bound_of_the_cache_below_its_size_is_refused() -> None:
    with pytest.raises(
        ValidationError, match=r"cache.max_memory_mb \(200\) is above tuner.cache_max_memory_mb \(100\)"
    ):
        OptimizationSettings(cache=CacheSettings(max_memory_mb=200), tuner=TunerSettings(cache_max_memory_mb=100))


@pytest.mark.parametrize("destination", ["webhook", "alertmanager"])
def test_a_destination_without_its_address_is_a_configuration_error(destination: str) -> None:
    conflicts = list(AnomalySettings.model_construct(alert_destinations=(destination,)).conflicts())

    assert [conflict.keys for conflict in conflicts] == [("alert_destinations", f"{destination}_url")]


def test_metrics_and_server_may_not_share_a_port_unless_it_is_any_free_one() -> None:
    def with_ports(port: int) -> object:
        return MonitoringSettings.model_validate(
            {"prometheus": {"port": port}, "server": {"enabled": True, "port": port}}
        )

    with pytest.raises(ValidationError, match="both 8000"):
        with_ports(8000)
    assert with_ports(0)


def test_every_key_is_documented() -> None:
    assert [path for path, key in keys_by_path().items() if not key.description.endswith((".", "`"))] == []

"""Everything that the specification prints, loads unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from muai_lab.settings.resolve import load_settings

# Copies of the specification's blocks, so that the test says the same where the specification is not at hand.
STRUCTURE = """\
optimization:
  enabled: true
  engine_preference: [vllm, deepspeed, onnx, pytorch]
  fallback_on_error: true
  vllm: {...}
  deepspeed: {...}
  onnx: {...}
  batcher: {...}
  cache: {...}
  tuner: {...}

monitoring:
  enabled: true
  prometheus: {...}
  tracing: {...}
  anomaly: {...}
  server: {...}
"""
GLOBAL = """\
optimization:
  # Enable/disable all optimization features
  enabled: true

  # Engine preference order (first available is used)
  engine_preference:
    - vllm        # Highest priority
    - deepspeed
    - onnx
    - pytorch     # Fallback

  # Automatically fallback to next engine on error
  fallback_on_error: true
"""
VLLM = """\
optimization:
  vllm:
    enabled: true
    tensor_parallel_size: 1
    dtype: auto
    max_model_len: null
    gpu_memory_utilization: 0.9
    swap_space: 4
"""
DEEPSPEED = """\
optimization:
  deepspeed:
    enabled: true
    tensor_parallel: 1
    pipeline_parallel: 1
    dtype: fp16
    replace_with_kernel_inject: true
"""
ONNX = """\
optimization:
  onnx:
    enabled: true
    execution_providers:
      - CUDAExecutionProvider
      - CPUExecutionProvider
    optimization_level: all
    enable_quantization: false
"""
BATCHER = """\
optimization:
  batcher:
    enabled: true
    max_batch_size: 32
    batch_timeout_ms: 50
    adaptive_batching: true
    min_batch_size: 1
"""
CACHE = """\
optimization:
  cache:
    enabled: true
    max_memory_mb: 4096
    eviction_policy: lru
"""
TUNER = """\
optimization:
  tuner:
    enabled: false
    observation_window_seconds: 300
    tuning_interval_seconds: 60
    enable_batch_size_tuning: true
    enable_timeout_tuning: true
    enable_cache_size_tuning: true
"""
PROMETHEUS = """\
monitoring:
  prometheus:
    enabled: true
    port: 9090
    host: "0.0.0.0"
    path: "/metrics"
"""
TRACING = """\
monitoring:
  tracing:
    enabled: true
    endpoint: "http://localhost:4317"
    sample_rate: 1.0
    service_name: "muai-orchestration"
    export_timeout_ms: 30000
"""
ANOMALY = """\
monitoring:
  anomaly:
    enabled: true
    latency_threshold_ms: 1000.0
    error_rate_threshold: 0.05
    memory_threshold_percent: 90.0
    throughput_threshold_rps: 1.0
    alert_rate_limit_seconds: 300
    alert_destinations:
      - log
    webhook_url: null
"""
SERVER = """\
monitoring:
  server:
    enabled: false
    host: "0.0.0.0"
    port: 8000
    queue_capacity: 100
    preload_models:
      - qwen_chat
      - t5_summarizer
    graceful_shutdown_timeout: 30
    health_check_path: "/health"
    readiness_check_path: "/ready"
"""
BLOCKS = (
    STRUCTURE, GLOBAL, VLLM, DEEPSPEED, ONNX, BATCHER, CACHE, TUNER, PROMETHEUS, TRACING, ANOMALY, SERVER,
)  # fmt: skip
EXPORTS = {
    "MUAI_OPT_ENABLED": "true",
    "MUAI_OPT_VLLM_ENABLED": "true",
    "MUAI_OPT_VLLM_TENSOR_PARALLEL": "2",
    "MUAI_OPT_VLLM_DTYPE": "fp16",
    "MUAI_OPT_VLLM_GPU_MEMORY": "0.9",
    "MUAI_OPT_DEEPSPEED_ENABLED": "true",
    "MUAI_OPT_DEEPSPEED_TENSOR_PARALLEL": "2",
    "MUAI_OPT_ONNX_ENABLED": "true",
    "MUAI_OPT_BATCHER_ENABLED": "true",
    "MUAI_OPT_BATCHER_MAX_SIZE": "32",
    "MUAI_OPT_BATCHER_TIMEOUT": "50",
    "MUAI_OPT_CACHE_ENABLED": "true",
    "MUAI_OPT_CACHE_MAX_MEMORY": "4096",
    "MUAI_OPT_TUNER_ENABLED": "false",
    "MUAI_MON_ENABLED": "true",
    "MUAI_MON_PROMETHEUS_ENABLED": "true",
    "MUAI_MON_PROMETHEUS_PORT": "9090",
    "MUAI_MON_TRACING_ENABLED": "true",
    "MUAI_MON_TRACING_ENDPOINT": "http://localhost:4317",
    "MUAI_MON_TRACING_SAMPLE_RATE": "1.0",
    "MUAI_MON_ANOMALY_ENABLED": "true",
    "MUAI_MON_ANOMALY_LATENCY_THRESHOLD": "1000.0",
    "MUAI_MON_SERVER_ENABLED": "false",
    "MUAI_MON_SERVER_PORT": "8000",
    "MUAI_MON_SERVER_QUEUE_CAPACITY": "100",
    "MUAI_MON_SERVER_PRELOAD_MODELS": "qwen_chat,t5_summarizer",
}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_yaml_block_loads_unchanged(block: str, tmp_path: Path) -> None:
    file = tmp_path / "optimization.yaml"
    file.write_text(block, encoding="utf-8")

    resolved = load_settings(file, {})

    assert "file" in {entry.origin.layer for entry in resolved.entries()}


def test_the_placeholders_of_the_overview_set_nothing(tmp_path: Path) -> None:
    file = tmp_path / "optimization.yaml"
    file.write_text(STRUCTURE, encoding="utf-8")

    resolved = load_settings(file, {})

    assert set(resolved.origins) == {
        "config_file",
        "optimization.enabled",
        "optimization.engine_preference",
        "optimization.fallback_on_error",
        "monitoring.enabled",
    }


def test_every_export_line_sets_its_key() -> None:
    resolved = load_settings(environ=EXPORTS)

    assert {str(origin) for origin in resolved.origins.values()} == set(EXPORTS)
    assert resolved.settings.optimization.vllm.tensor_parallel_size == 2
    assert resolved.settings.optimization.deepspeed.tensor_parallel == 2
    assert resolved.settings.optimization.vllm.dtype == "fp16"
    assert resolved.settings.monitoring.server.preload_models == ("qwen_chat", "t5_summarizer")


def test_the_copies_here_are_what_the_specification_prints(shared: Path) -> None:
    text = (shared / "spec/optimization-and-monitoring.md").read_text(encoding="utf-8")

    text = re.sub(r" +$", "", text, flags=re.MULTILINE)

    assert re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) == list(BLOCKS)
    assert dict(re.findall(r"^export (\w+)=(.*)$", text, re.MULTILINE)) == EXPORTS

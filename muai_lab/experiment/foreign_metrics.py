"""The metrics of other servers under our names.

The names are from each server's own documentation: vLLM (docs, "Production Metrics", v0.32), Text Generation Inference
(docs, "Metrics"), SGLang (docs, "Production Metrics"), Triton (docs, "Metrics") and its TensorRT-LLM backend (README,
"Triton Metrics"). Only metrics of the same meaning are translated; all are kept under their own names as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.samples import Sample

OURS = "muai_running_sequences"


@dataclass(frozen=True, slots=True)
class Translation:
    """One of a server's samples. labels: Labels that it must have. scale: Our unit ÷ theirs."""

    theirs: str
    ours: str
    labels: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0

    def of(self, sample: Sample) -> Sample | None:
        """Return the sample under our name; None if it is another one."""
        if sample.name != self.theirs or any(sample.labels.get(key) != value for key, value in self.labels.items()):
            return None
        return Sample(self.ours, sample.labels, sample.value * self.scale)


@dataclass(frozen=True, slots=True)
class MetricsDialect:
    """The metrics of one server. mark: A sample name that only it has."""

    server: str
    mark: str
    translations: tuple[Translation, ...]

    def translate(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yield the samples of one page that have a name of ours, under that name."""
        for sample in samples:
            for translation in self.translations:
                if (translated := translation.of(sample)) is not None:
                    yield translated


def _histogram(theirs: str, ours: str) -> tuple[Translation, ...]:
    return tuple(Translation(f"{theirs}_{part}", f"{ours}_{part}") for part in ("bucket", "sum", "count"))


DIALECTS = (
    MetricsDialect(
        "vLLM",
        "vllm:num_requests_running",
        (
            Translation("vllm:num_requests_running", "muai_running_sequences"),
            Translation("vllm:num_requests_waiting", "muai_waiting_requests"),
            Translation("vllm:prompt_tokens_total", "muai_prompt_tokens_total"),
            Translation("vllm:generation_tokens_total", "muai_output_tokens_total"),
            Translation("vllm:prefix_cache_queries_total", "muai_prefix_lookup_tokens_total"),
            Translation("vllm:prefix_cache_hits_total", "muai_prefix_hit_tokens_total"),
        ),
    ),
    MetricsDialect(
        "SGLang",
        "sglang:num_running_reqs",
        (
            Translation("sglang:num_running_reqs", "muai_running_sequences"),
            Translation("sglang:num_queue_reqs", "muai_waiting_requests"),
            Translation("sglang:prompt_tokens_total", "muai_prompt_tokens_total"),
            Translation("sglang:generation_tokens_total", "muai_output_tokens_total"),
            Translation("sglang:cache_hit_rate", "kv_cache_hit_rate"),
        ),
    ),
    MetricsDialect(
        "Text Generation Inference",
        "tgi_queue_size",
        (
            Translation("tgi_batch_current_size", "muai_running_sequences"),
            Translation("tgi_queue_size", "muai_waiting_requests"),
            Translation("tgi_request_input_length_sum", "muai_prompt_tokens_total"),
            Translation("tgi_request_generated_tokens_sum", "muai_output_tokens_total"),
            *_histogram("tgi_batch_next_size", "batch_size"),
            *_histogram("tgi_batch_forward_duration", "muai_step_seconds"),
        ),
    ),
    MetricsDialect(
        "Triton with TensorRT-LLM",
        "nv_trt_llm_request_metrics",
        (
            Translation("nv_trt_llm_request_metrics", "muai_running_sequences", {"request_type": "scheduled"}),
            Translation("nv_trt_llm_request_metrics", "muai_waiting_requests", {"request_type": "waiting"}),
            Translation("nv_gpu_memory_used_bytes", "gpu_memory_used_bytes"),
            Translation("nv_cpu_utilization", "cpu_usage_percent", scale=100.0),
        ),
    ),
    MetricsDialect(
        "Triton",
        "nv_inference_pending_request_count",
        (
            Translation("nv_inference_pending_request_count", "muai_waiting_requests"),
            Translation("nv_gpu_memory_used_bytes", "gpu_memory_used_bytes"),
            Translation("nv_cpu_utilization", "cpu_usage_percent", scale=100.0),
        ),
    ),
)


def dialect_of(samples: Iterable[Sample]) -> MetricsDialect | None:
    """Return the dialect of a page; None for our own server, which needs no translation, and for unknown servers."""
    names = {sample.name for sample in samples}
    return None if OURS in names else next((dialect for dialect in DIALECTS if dialect.mark in names), None)

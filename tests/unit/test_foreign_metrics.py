"""The metrics of other servers under our names."""

from __future__ import annotations

import pytest

from muai_lab.experiment.foreign_metrics import DIALECTS, dialect_of
from muai_lab.experiment.scrape import samples_of

VLLM = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} 3.0
vllm:num_requests_running{{engine="1",model_name="m"}} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} 2.0
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{{engine="0",model_name="m"}} {queries}
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{{engine="0",model_name="m"}} {hits}
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{{engine="0",model_name="m"}} 500.0
"""
SGLANG = """\
sglang:num_running_reqs{model_name="m"} 5.0
sglang:num_queue_reqs{model_name="m"} 6.0
sglang:cache_hit_rate{model_name="m"} 0.25
"""
TGI = """\
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 7
# TYPE tgi_queue_size gauge
tgi_queue_size 8
# TYPE tgi_batch_next_size histogram
tgi_batch_next_size_bucket{le="1"} 1
tgi_batch_next_size_bucket{le="+Inf"} 3
tgi_batch_next_size_sum 12
tgi_batch_next_size_count 3
"""
TRITON = """\
nv_trt_llm_request_metrics{model="m",request_type="scheduled",version="1"} 9
nv_trt_llm_request_metrics{model="m",request_type="waiting",version="1"} 10
nv_trt_llm_request_metrics{model="m",request_type="max",version="1"} 512
nv_inference_pending_request_count{model="m",version="1"} 11
nv_cpu_utilization 0.5
"""


def translated(page: str) -> dict[str, float]:
    """A page under our names; samples of one name summed."""
    samples = samples_of(page.encode())
    assert samples is not None
    dialect = dialect_of(samples)
    assert dialect is not None
    values: dict[str, float] = {}
    for sample in dialect.translate(samples):
        values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def test_vllms_are_translated() -> None:
    assert translated(VLLM.format(queries=1200, hits=950)) == {
        "muai_running_sequences": 7.0,
        "muai_waiting_requests": 2.0,
        "muai_output_tokens_total": 500.0,
        "muai_prefix_lookup_tokens_total": 1200.0,
        "muai_prefix_hit_tokens_total": 950.0,
    }


def test_sglangs_are_translated() -> None:
    assert translated(SGLANG) == {
        "muai_running_sequences": 5.0,
        "muai_waiting_requests": 6.0,
        "kv_cache_hit_rate": 0.25,
    }


def test_tgis_are_translated_with_their_histograms() -> None:
    values = translated(TGI)

    assert (values["muai_running_sequences"], values["muai_waiting_requests"]) == (7.0, 8.0)
    assert (values["batch_size_sum"], values["batch_size_count"]) == (12.0, 3.0)


def test_tritons_are_told_apart_by_a_label() -> None:
    assert translated(TRITON) == {
        "muai_running_sequences": 9.0,
        "muai_waiting_requests": 10.0,
        "cpu_usage_percent": 50.0,
    }


@pytest.mark.parametrize(
    "page", ["muai_running_sequences 1\nvllm:num_requests_running 1\n", "some_other_server_requests 1\n"]
)
def test_ours_and_unknown_ones_are_left_alone(page: str) -> None:
    samples = samples_of(page.encode())

    assert samples is not None
    assert dialect_of(samples) is None


@pytest.mark.parametrize("page", [b"<!doctype html><html><body>hello</body></html>", b"\xff\xfe"])
def test_a_page_that_is_none_has_no_samples(page: bytes) -> None:
    assert not samples_of(page)


def test_each_server_is_known_by_a_mark_of_its_own() -> None:
    marks = [dialect.mark for dialect in DIALECTS]

    assert len(set(marks)) == len(marks)

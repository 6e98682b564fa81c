"""Calls into DeepSpeed leave no traces in the process, and say what DeepSpeed did."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed

from muai_lab.engines.deepspeed import library
from muai_lab.engines.deepspeed.prepare import check_shares
from muai_lab.errors import EngineError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def deepspeed() -> Any:
    return library.import_deepspeed(CPU)


def tiny(kind: str) -> torch.nn.Module:
    from transformers import OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "opt":
        return OPTForCausalLM(OPTConfig(**sizes, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=16))
    return Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, intermediate_size=16))


def test_variables_are_set_for_a_while_and_those_of_the_user_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USERS_OWN", "theirs")
    monkeypatch.delenv("NOT_SET", raising=False)
    with library.environment(USERS_OWN="ours", NOT_SET="ours"):
        assert (os.environ["USERS_OWN"], os.environ["NOT_SET"]) == ("theirs", "ours")
    assert os.environ["USERS_OWN"] == "theirs"
    assert "NOT_SET" not in os.environ


@pytest.mark.usefixtures("deepspeed")
def test_importing_deepspeed_leaves_neither_variables_nor_a_handler_on_standard_output() -> None:
    assert "DS_ACCELERATOR" not in os.environ
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ
    assert logging.getLogger("DeepSpeed").handlers == []


@pytest.mark.usefixtures("deepspeed")
def test_on_one_rank_the_model_is_cast_and_nothing_of_it_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny("qwen2")
    prepared = library.init_inference(model, torch.bfloat16, CPU, rank=0, ranks=1)
    assert {parameter.dtype for parameter in prepared.parameters()} == {torch.bfloat16}
    assert library.replaced_layers(prepared) == 0
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize(
    ("kind", "device", "wanted", "reason"),
    [
        ("opt", "cpu", False, "switched off by replace_with_kernel_inject"),
        ("qwen2", "cpu", True, "DeepSpeed has no injection policy for Qwen2ForCausalLM"),
        ("opt", "cpu", True, "DeepSpeed has these kernels for CUDA only"),
        ("opt", "cuda", True, "which continuous batching needs"),
    ],
)
def test_why_kernels_are_not_injected(kind: str, device: str, wanted: bool, reason: str) -> None:
    refusal = library.injection_refusal(tiny(kind), torch.device(device), wanted=wanted)
    assert refusal is not None
    assert reason in refusal


def test_injecting_all_the_same_fails_on_a_cpu(deepspeed: Any) -> None:
    """The evidence for the reason: DeepSpeed has a policy for OPT, but its operations are not implemented here."""
    with pytest.raises(ValueError, match="not been implemented on CPU"):
        deepspeed.init_inference(tiny("opt"), dtype=torch.float32, replace_with_kernel_inject=True)


def test_a_group_is_left_as_if_it_had_never_been(deepspeed: Any, tmp_path: Path) -> None:
    from deepspeed.comm import comm
    from deepspeed.inference.engine import InferenceEngine

    before = dict(os.environ)
    hook = sys.excepthook
    with library.process_group(CPU, rank=0, ranks=1, meeting_point=tmp_path / "ranks"):
        assert distributed.get_backend() == "gloo"
        assert sys.excepthook is hook
        assert comm.cdb.shm_comm_op is None  # nothing was compiled for it
    assert not distributed.is_initialized()
    assert comm.cdb is None
    assert InferenceEngine.inference_mp_group is None
    assert "__compatible_ops__" not in vars(deepspeed.ops)
    assert dict(os.environ) == before


@pytest.mark.usefixtures("deepspeed")
def test_a_group_that_the_process_is_in_already_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # this group's replaces it
    store = distributed.FileStore(str(tmp_path / "others"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with (
            pytest.raises(EngineError, match="already part of a group"),
            library.process_group(CPU, rank=0, ranks=1, meeting_point=tmp_path / "ranks"),
        ):
            pytest.fail("a second group was made")
        assert distributed.is_initialized()
    finally:
        distributed.destroy_process_group()


def test_ranks_must_compute_together_what_the_whole_model_does() -> None:
    logits = torch.tensor([[1.0, 2.0, -3.0]])
    check_shares(logits, logits + 1e-3)
    with pytest.raises(EngineError, match=r"tensor_parallel=1"):
        check_shares(logits, -logits)

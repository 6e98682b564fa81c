"""What is changed in an exported graph, and when one is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper

from muai_lab.engines.onnx.decoder_graph import set_windows, take_lengths
from muai_lab.engines.onnx.loading import choose_dtype
from muai_lab.engines.onnx.proof import check_logits
from muai_lab.engines.onnx.session import Binding, choose_providers, default_threads, open_session
from muai_lab.errors import EngineError
from muai_lab.settings.schema import OnnxSettings


def decoder(layers: int = 3, *, extra_input: str | None = None) -> Any:
    """A graph as the builder makes it, as far as masks and windows go."""
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["lasts"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["total"]),
    ]
    for layer in range(layers):
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        source = f"hidden.{layer}"
        nodes.append(helper.make_node("Identity", [extra_input or "input_ids"], [source]))
        nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [source, "", "", *past, "lasts", "total"],
                [f"attended.{layer}"],
                domain="com.microsoft",
                local_window_size=-1,
            )
        )
    past_names = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    names = ["input_ids", "attention_mask", *past_names, *([extra_input] if extra_input else [])]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "decoder",
            [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in names],
            [helper.make_tensor_value_info(f"attended.{layer}", TensorProto.FLOAT, None) for layer in range(layers)],
        )
    )


def windows(model: Any) -> list[int]:
    return [
        helper.get_node_attr_value(node, "local_window_size")
        for node in model.graph.node
        if node.op_type == "GroupQueryAttention"
    ]


def test_the_mask_is_replaced_by_the_lengths_it_stood_for() -> None:
    model = decoder()

    take_lengths(model)

    inputs = {entry.name: entry.type.tensor_type.elem_type for entry in model.graph.input}
    assert "attention_mask" not in inputs
    assert inputs["last_positions"] == inputs["longest"] == TensorProto.INT32
    assert {node.op_type for node in model.graph.node} == {"Identity", "GroupQueryAttention"}
    assert [node.output[0] for node in model.graph.node][:2] == ["hidden.0", "attended.0"]


def test_a_graph_that_needs_more_than_the_slots_give_is_refused() -> None:
    with pytest.raises(EngineError, match="'images'"):
        take_lengths(decoder(extra_input="images"))


def test_a_graph_without_attention_over_slots_is_refused() -> None:
    with pytest.raises(EngineError, match="GroupQueryAttention"):
        take_lengths(decoder(layers=0))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SimpleNamespace(), [-1, -1, -1]),
        (SimpleNamespace(sliding_window=None), [-1, -1, -1]),
        (SimpleNamespace(sliding_window=16), [16, 16, 16]),
        (
            SimpleNamespace(sliding_window=16, layer_types=["full_attention", "sliding_attention", "full_attention"]),
            [-1, 16, -1],
        ),
    ],
)
def test_every_layer_gets_its_own_window(config: Any, expected: list[int]) -> None:
    model = decoder()

    set_windows(model, config)

    assert windows(model) == expected


def test_a_graph_whose_logits_are_the_checkpoint_s_is_kept() -> None:
    expected = torch.randn(9, 50, generator=torch.Generator().manual_seed(0))

    check_logits(expected + 1e-5, expected)


@pytest.mark.parametrize("found", [torch.zeros(9, 50), torch.full((9, 50), float("nan"))])
def test_a_graph_that_computes_something_else_is_refused(found: torch.Tensor) -> None:
    with pytest.raises(EngineError, match="does not compute what the checkpoint does"):
        check_logits(found, torch.ones(9, 50))


def test_fp32_is_what_a_cpu_and_t5_get() -> None:
    assert choose_dtype("auto", torch.device("cpu"), encoder_decoder=False) == "fp32"
    assert choose_dtype("auto", torch.device("cuda"), encoder_decoder=True) == "fp32"
    assert choose_dtype("auto", torch.device("cuda"), encoder_decoder=False) == "fp16"


def test_t5_in_half_precision_is_refused() -> None:
    with pytest.raises(EngineError, match=r"T5 .* optimization\.onnx\.dtype"):
        choose_dtype("fp16", torch.device("cuda"), encoder_decoder=True)


def test_a_gpu_provider_needs_pytorch_to_see_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: built_in)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    providers = choose_providers(built_in)

    assert providers.serving == ("CPUExecutionProvider",)
    assert providers.device == torch.device("cpu")
    assert "sees no CUDA device" in providers.skipped["CUDAExecutionProvider"]


def test_threads_are_at_most_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muai_lab.engines.onnx.session.usable_cores", lambda: 2.5)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 8)
    assert default_threads() == 3

    monkeypatch.setattr("psutil.cpu_count", lambda logical: 2)
    assert default_threads() == 2


def test_a_file_that_is_no_graph_ends_in_a_reason(tmp_path: Any) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(EngineError, match="cannot load the exported graph"):
        open_session(tmp_path / "model.onnx", OnnxSettings(), ("CPUExecutionProvider",))


def test_memory_with_gaps_is_never_bound_by_its_address() -> None:
    session: Any = SimpleNamespace(io_binding=lambda: SimpleNamespace(bind_input=lambda *bound: None))

    with pytest.raises(ValueError, match="contiguous"):
        Binding(session).input("x", torch.zeros(4, 4)[:, 1:])

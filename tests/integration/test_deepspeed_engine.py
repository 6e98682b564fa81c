"""The DeepSpeed engine on the embedded models: on one rank, and shared out over two."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from muai_lab.engines.base import PrefillChunk, Sampling, StepEngine
from muai_lab.engines.catalogue import ENGINES
from muai_lab.engines.deepspeed.engine import DeepSpeedEngine
from muai_lab.errors import EngineError
from muai_lab.models.registry import ModelSource, resolve_model
from muai_lab.settings.schema import OptimizationSettings

MODELS = ("qwen_chat", "t5_summarizer")
PROMPTS = (tuple(range(300, 341)), tuple(range(700, 707)), (1500, 20, 633))
PREFILL = [PrefillChunk(0, PROMPTS[0])]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def optimization(**deepspeed: object) -> OptimizationSettings:
    return OptimizationSettings.model_validate(
        {"deepspeed": {"dtype": "fp32", **deepspeed}, "pytorch": {"device": "cpu", "dtype": "fp32"}}
    )


def open_engine(source: ModelSource, *, slots: int = 4, **deepspeed: object) -> DeepSpeedEngine:
    return DeepSpeedEngine(source, optimization(**deepspeed), slots=slots)


def outputs(engine: StepEngine, sampling: Sampling | None = None) -> list[list[int]]:
    """Tokens of three ragged sequences; the second joins while the first runs, the third takes the first's slot."""
    first, second, third = (PrefillChunk(slot, prompt) for slot, prompt in zip((0, 1, 0), PROMPTS, strict=True))
    if sampling is not None:
        first, second, third = (replace(chunk, sampling=sampling) for chunk in (first, second, third))
    rows: list[list[int]] = [[], [], []]
    rows[0] += [token for token in engine.prefill([first]) if token is not None]
    rows[0] += [engine.decode([0])[0] for _ in range(6)]
    rows[1] += [token for token in engine.prefill([second]) if token is not None]
    for _ in range(6):
        one, two = engine.decode([0, 1])
        rows[0].append(one)
        rows[1].append(two)
    engine.release(0)
    rows[2] += [token for token in engine.prefill([third]) if token is not None]
    for _ in range(6):
        two, three = engine.decode([1, 0])
        rows[1].append(two)
        rows[2].append(three)
    engine.release(0)
    engine.release(1)
    return rows


def workers() -> list[psutil.Process]:
    """The other ranks that live below this process, which may have children of other tests' engines too."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "muai_lab.engines.deepspeed.worker" in child.cmdline():
                found.append(child)
    return found


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest) -> ModelSource:
    return resolve_model(request.param)


@pytest.fixture(scope="module")
def chat() -> ModelSource:
    return resolve_model("qwen_chat")


@pytest.fixture(scope="module")
def reference(source: ModelSource) -> Iterator[StepEngine]:
    engine = ENGINES["pytorch"].make(optimization(), source, slots=4)
    assert isinstance(engine, StepEngine)
    yield engine
    engine.close()


def test_one_rank_gives_the_tokens_of_pytorch(source: ModelSource, reference: StepEngine) -> None:
    engine = open_engine(source)
    assert outputs(engine) == outputs(reference)
    assert engine.worker_process_ids == []
    assert engine.info.details["communication"] is None
    engine.close()


def test_two_ranks_refuse_a_second_group_give_the_tokens_of_pytorch_and_leave_nothing_behind(
    source: ModelSource, reference: StepEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    process, threads = psutil.Process(), torch.get_num_threads()
    environment, open_files, running = dict(os.environ), process.num_fds(), set(threading.enumerate())
    engine = open_engine(source, tensor_parallel=2)
    workers = [psutil.Process(pid) for pid in engine.worker_process_ids]
    assert len(workers) == 1
    with pytest.raises(EngineError, match="already part of a group"):
        open_engine(source, tensor_parallel=2)
    assert outputs(engine) == outputs(reference)
    seeded = Sampling(temperature=0.8, top_p=0.9, seed=7)
    assert outputs(engine, seeded) == outputs(reference, seeded)
    details = engine.info.details
    assert (details["tensor_parallel"], details["communication"]) == (2, "gloo")
    # Every linear layer is sharded, and in T5 two tables of relative positions stay plain embeddings.
    linears = [layer for layer in engine_module(source).modules() if type(layer) is torch.nn.Linear]
    assert details["replaced_layers"] == len(linears)
    engine.close()
    engine.close()
    assert not any(worker.is_running() for worker in workers)
    assert not torch.distributed.is_initialized()
    assert torch.get_num_threads() == threads
    assert dict(os.environ) == environment
    assert process.num_fds() == open_files
    assert set(threading.enumerate()) == running
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_prompt_may_begin_with_a_copy_of_which_every_rank_holds_its_share(chat: ModelSource, ranks: int) -> None:
    prompt, slots = PROMPTS[0], (0, 1)
    engine = open_engine(chat, tensor_parallel=ranks)
    try:
        expected = [*engine.prefill([PrefillChunk(0, prompt)]), *engine.decode([0])]
        blocks = engine.copy_out(0, 0, 32, 16)
        # fp32: 4 layers × keys and values × 2 heads × 64 dimensions; over all ranks as much as on one.
        assert [block.nbytes for block in blocks] == [16 * 4 * 2 * 2 * 64 * 4] * 2
        engine.release(0)
        for slot in slots:
            engine.copy_in(slot, blocks)
        for slot in slots:
            tokens = [*engine.prefill([PrefillChunk(slot, prompt[32:], start=32)]), *engine.decode([slot])]
            assert tokens == expected
            engine.release(slot)
        del blocks  # the other ranks drop their shares before the next step
        engine.prefill([PrefillChunk(0, prompt)])
        assert len(engine.copy_out(0, 16, 32, 16)) == 1
    finally:
        engine.close()


def engine_module(source: ModelSource) -> torch.nn.Module:
    from muai_lab.engines.pytorch.loading import load_model

    return load_model(source, torch.float32, torch.device("cpu"))


def test_what_was_not_injected_is_recorded_and_logged(chat: ModelSource, caplog: pytest.LogCaptureFixture) -> None:
    engine = open_engine(chat)
    engine.close()
    details = engine.info.details
    assert (details["kernel_inject"], details["replaced_layers"]) == (False, 0)
    assert "no injection policy for Qwen2ForCausalLM" in str(details["kernel_inject_refused"])
    assert "runs without DeepSpeed's kernels" in caplog.text


@pytest.mark.parametrize(
    ("deepspeed", "reason"),
    [
        ({"dtype": "fp16"}, "fp16 (the default) does not run on a CPU"),
        ({"pipeline_parallel": 2}, "no pipeline parallelism"),
        ({"tensor_parallel": 4096}, "tensor_parallel is 4096"),
    ],
)
def test_what_is_unavailable_is_refused_when_opened_too(
    chat: ModelSource, deepspeed: dict[str, object], reason: str
) -> None:
    with pytest.raises(EngineError) as raised:
        open_engine(chat, **deepspeed)
    assert raised.value.engine == "deepspeed"
    assert reason in raised.value.reason


@pytest.mark.parametrize("ranks", [1, 2])
def test_corrupt_weights_are_an_error_of_this_engine_and_no_process_stays(
    chat: ModelSource, tmp_path: Path, ranks: int
) -> None:
    assert chat.path is not None
    for file in chat.path.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    with pytest.raises(EngineError, match="cannot load") as raised:
        open_engine(replace(chat, path=tmp_path), tensor_parallel=ranks)
    assert raised.value.engine == "deepspeed"
    assert workers() == []
    assert not torch.distributed.is_initialized()


def test_layers_that_are_shared_out_wrongly_are_noticed_at_load(tmp_path: Path) -> None:
    """Phi-3 keeps queries, keys and values in one layer, which AutoTP cuts in the wrong places."""
    from transformers import Phi3Config, Phi3ForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    Phi3ForCausalLM(Phi3Config(**sizes, **heads)).save_pretrained(tmp_path)
    source = ModelSource("phi", tmp_path, None, "local", None, False, "phi3")
    open_engine(source).close()
    with pytest.raises(EngineError, match="shares this model out wrongly"):
        open_engine(source, tensor_parallel=2)
    assert workers() == []


def test_bf16_runs_on_a_cpu_until_a_rank_dies_between_steps_which_ends_the_next_step(chat: ModelSource) -> None:
    engine = open_engine(chat, dtype="bf16", tensor_parallel=2)
    assert engine.info.dtype == "bf16"
    assert all(len(set(row)) > 2 for row in outputs(engine))

    engine.prefill(PREFILL)
    (worker,) = engine.worker_process_ids
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(EngineError, match=rf"rank 1 \(process {worker}\) was killed by SIGKILL"):
        engine.decode([0])
    engine.release(0)
    engine.close()
    assert workers() == []


def test_a_rank_that_dies_within_a_step_ends_it(chat: ModelSource) -> None:
    """Stopped first, so that our rank surely waits for it inside an operation when it is killed."""
    engine = open_engine(chat, tensor_parallel=2)
    engine.prefill(PREFILL)
    (worker,) = engine.worker_process_ids
    os.kill(worker, signal.SIGSTOP)
    kill = threading.Timer(1.0, os.kill, (worker, signal.SIGKILL))
    kill.start()
    with pytest.raises(EngineError, match="was killed by SIGKILL"):
        engine.decode([0])
    kill.join()
    engine.close()
    assert not torch.distributed.is_initialized()


def test_a_rank_that_dies_while_it_loads_ends_the_start(chat: ModelSource) -> None:
    def kill_the_first_child() -> None:
        while not (children := workers()):
            pass
        children[0].kill()

    killer = threading.Thread(target=kill_the_first_child)
    killer.start()
    with pytest.raises(EngineError, match=r"rank 1 .* was killed by SIGKILL"):
        open_engine(chat, tensor_parallel=2)
    killer.join()
    assert workers() == []
    assert not torch.distributed.is_initialized()


def test_ranks_ignore_what_the_terminal_sends_and_end_with_a_first_rank_that_is_killed() -> None:
    """In a program without a main guard, which the ranks must not run again."""
    program = """
import sys
from muai_lab.engines.base import PrefillChunk
from muai_lab.engines.deepspeed.engine import DeepSpeedEngine
from muai_lab.garbage import collect_rarely
from muai_lab.models.registry import resolve_model
from muai_lab.settings.schema import OptimizationSettings
collect_rarely()
settings = OptimizationSettings.model_validate({"deepspeed": {"dtype": "fp32", "tensor_parallel": 2}})
engine = DeepSpeedEngine(resolve_model("qwen_chat"), settings, slots=1)
engine.prefill([PrefillChunk(0, [5, 6])])
print(*engine.worker_process_ids, flush=True)
for line in sys.stdin:
    print(*engine.decode([0]), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        (worker,) = (psutil.Process(int(pid)) for pid in first.stdout.readline().split())
        worker.send_signal(signal.SIGINT)
        worker.send_signal(signal.SIGTERM)
        first.stdin.write("step\n")
        first.stdin.flush()
        assert int(first.stdout.readline()) >= 0
        first.kill()
        worker.wait(timeout=100)


def test_a_closed_engine_says_so(chat: ModelSource) -> None:
    engine = open_engine(chat)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.prefill(PREFILL)

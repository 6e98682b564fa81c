"""The vLLM engine for real, on the CPU: what the conformance suite does not ask of every engine.

The engine runs as its driver runs it: on a loop in a thread that is not the main one. A test may leave it dead; the
next one then gets a new one (a start takes half a minute, so those that kill stand last).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from muai_lab.engines.base import PrefillChunk, Sampling, StreamedTokens
from muai_lab.engines.pytorch.engine import PyTorchEngine
from muai_lab.engines.vllm import engine as vllm_engine
from muai_lab.engines.vllm.engine import VllmEngine
from muai_lab.engines.vllm.processes import alive
from muai_lab.errors import EngineError, InvalidRequest
from muai_lab.models.registry import ModelSource, resolve_model
from muai_lab.settings.schema import OptimizationSettings
from tests.integration.vllm_engines import (
    OUTPUT_TOKENS,
    PROMPT,
    SLOTS,
    Engines,
    LoopThread,
    ask,
    has_open,
    reports,
    running,
    tokens_of,
)

BLOCK_TOKENS = 128  # vLLM's on a CPU; prefixes are cached in whole blocks


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="module")
def expected() -> list[int]:
    """The tokens of PyTorch."""
    engine = PyTorchEngine(resolve_model("qwen_chat"), OptimizationSettings(), slots=1)
    tokens = [token for token in engine.prefill([PrefillChunk(0, PROMPT)]) if token is not None]
    while len(tokens) < OUTPUT_TOKENS:
        tokens += engine.decode([0])
    engine.close()
    return tokens


@pytest.fixture(scope="module")
def source(expected: list[int], tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """The embedded model, whose end of text is a token that it really produces, and not its first."""
    folder = tmp_path_factory.mktemp("model") / "chat"
    embedded = resolve_model("qwen_chat").path
    assert embedded is not None
    shutil.copytree(embedded, folder)
    end = next(token for token in expected[4:] if token not in expected[:4])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    return resolve_model("chat", str(folder))


SCRIPT = """
import asyncio
from muai_lab.engines.vllm.engine import VllmEngine
from muai_lab.garbage import collect_rarely
from muai_lab.models.registry import resolve_model
from muai_lab.settings.schema import OptimizationSettings

collect_rarely()

async def main():
    settings = OptimizationSettings.model_validate({"cache": {"max_memory_mb": 64}})
    engine = VllmEngine(resolve_model("qwen_chat"), settings, slots=1)
    await engine.start()
    print(*engine.pids, flush=True)
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A process with an engine of its own. It starts beside the engine of this process: each start is long."""
    script = tmp_path_factory.mktemp("script") / "start.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def engines(loop: LoopThread, source: ModelSource) -> Iterator[Engines]:
    engines = Engines(loop, source)
    yield engines
    engines.close()


@pytest.fixture
def engine(engines: Engines) -> VllmEngine:
    return engines.get()


def test_it_says_what_serves(engine: VllmEngine) -> None:
    info = engine.info
    assert (info.name, info.device, info.dtype, info.max_model_len) == ("vllm", "cpu", "fp32", 8192)
    assert info.details["max_num_seqs"] == SLOTS
    assert info.details["kv_cache_mb"] == 256
    # 2 (keys, values) x 4 layers x 2 heads x 64 x 4 bytes a token
    assert info.details["kv_blocks"] == 256 * 2**20 // (4096 * BLOCK_TOKENS)
    assert info.details["enforce_eager"] is True


def test_greedy_tokens_are_those_of_pytorch(engine: VllmEngine, loop: LoopThread, expected: list[int]) -> None:
    seen = loop.run(reports(ask(engine)))
    assert tokens_of(seen) == expected
    assert [report.finish_reason for report in seen] == [None] * (len(seen) - 1) + ["length"]


def test_the_end_of_text_ends_the_output_and_belongs_to_it_though_vllm_has_no_tokenizer(
    engine: VllmEngine, loop: LoopThread, expected: list[int]
) -> None:
    (end,) = engine.eos_token_ids
    seen = loop.run(reports(ask(engine, ignore_eos=False)))
    assert tokens_of(seen) == expected[: expected.index(end) + 1]
    assert seen[-1].finish_reason == "stop"


def test_tokens_that_come_together_carry_the_engines_own_stamp(engine: VllmEngine, loop: LoopThread) -> None:
    async def slow_reader() -> tuple[float, list[tuple[StreamedTokens, float]]]:
        began, seen = time.monotonic(), []
        async for report in ask(engine, max_tokens=80):
            seen.append((report, time.monotonic()))
            if len(seen) == 3:
                await has_open(engine, 0)  # the rest has come by then
        return began, seen

    began, seen = loop.run(slow_reader())
    assert sum(len(report.tokens) for report, _ in seen) == 80
    assert max(len(report.tokens) for report, _ in seen) > 1
    stamps = [report.at for report, _ in seen]
    assert None not in stamps
    assert stamps == sorted(stamps)
    assert all(began < report.at <= arrived for report, arrived in seen if report.at is not None)


def test_a_prompt_that_was_seen_before_is_served_from_the_prefix_cache_in_blocks(
    engine: VllmEngine, loop: LoopThread
) -> None:
    prompt = [7, *range(500, 800)]
    first, second = (loop.run(reports(ask(engine, prompt, max_tokens=2))) for _ in range(2))
    assert first[0].cached_tokens == 0
    assert second[0].cached_tokens == len(prompt) // BLOCK_TOKENS * BLOCK_TOKENS
    assert tokens_of(first) == tokens_of(second)


@pytest.mark.parametrize("seed", [0, -1, 2**64 + 5])
def test_any_integer_is_a_seed_that_repeats_the_tokens_alone_and_in_company(
    engine: VllmEngine, loop: LoopThread, seed: int
) -> None:
    sampling = Sampling(temperature=1.5, seed=seed)

    async def alone_and_in_company() -> tuple[list[StreamedTokens], list[StreamedTokens]]:
        alone = await reports(ask(engine, sampling=sampling))
        company = [reports(ask(engine, range(200 + n, 240 + n), max_tokens=30)) for n in range(5)]
        return alone, (await asyncio.gather(reports(ask(engine, sampling=sampling)), *company))[0]

    alone, in_company = loop.run(alone_and_in_company())
    assert tokens_of(alone) == tokens_of(in_company)


def test_a_closed_iterator_and_a_cancelled_reader_free_the_engine_at_once(engine: VllmEngine, loop: LoopThread) -> None:
    async def give_up_on_twice_as_many_as_run() -> list[StreamedTokens]:
        streams = [ask(engine, max_tokens=8000) for _ in range(SLOTS)]
        for stream in streams:
            await anext(stream)
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]  # a generator
        readers = [asyncio.create_task(reports(ask(engine, max_tokens=8000))) for _ in range(SLOTS)]
        await has_open(engine, SLOTS)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        assert engine._llm.get_num_unfinished_requests() == 0
        return await reports(ask(engine))  # would come after minutes if those before were still being served

    assert len(tokens_of(loop.run(give_up_on_twice_as_many_as_run()))) == OUTPUT_TOKENS


def test_more_requests_than_slots_all_get_what_they_asked_for(engine: VllmEngine, loop: LoopThread) -> None:
    async def many() -> list[list[StreamedTokens]]:
        return await asyncio.gather(
            *(reports(ask(engine, range(100, 110 + 3 * n), max_tokens=1 + n % 17)) for n in range(32))
        )

    assert [len(tokens_of(seen)) for seen in loop.run(many())] == [1 + n % 17 for n in range(32)]


def test_a_request_that_vllm_refuses_is_that_requests_error_alone(engine: VllmEngine, loop: LoopThread) -> None:
    with pytest.raises(InvalidRequest, match="8192"):
        loop.run(reports(ask(engine, [5] * 9000)))
    loop.run(engine.check())
    assert len(tokens_of(loop.run(reports(ask(engine))))) == OUTPUT_TOKENS


def test_the_surroundings_of_our_process_are_as_before(engine: VllmEngine) -> None:
    assert engine.pids
    assert "VLLM_NO_USAGE_STATS" not in os.environ
    assert "libgomp" not in os.environ.get("LD_PRELOAD", "")
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_when_the_server_is_killed_its_engine_ends_too(server: subprocess.Popen[str]) -> None:
    assert server.stdout is not None
    assert server.stderr is not None
    processes = running([int(pid) for pid in server.stdout.readline().split()])
    server.kill()
    assert server.stderr.read() == "", "vLLM writes to our terminal"
    assert len(processes) >= 2
    assert not psutil.wait_procs([process for process in processes if alive(process)], timeout=100)[1]


def copied(source: ModelSource, folder: Path) -> ModelSource:
    assert source.path is not None
    shutil.copytree(source.path, folder)
    return resolve_model(folder.name, str(folder))


def fails_to_start(loop: LoopThread, source: ModelSource, settings: dict[str, Any] | None = None) -> str:
    """The reason; nothing of the engine is left."""
    engine = VllmEngine(source, OptimizationSettings.model_validate(settings or {}), slots=1)
    with pytest.raises(EngineError) as failure:
        loop.run(engine.start())
    assert not [process for process in running(engine.pids) if alive(process)]
    with pytest.raises(EngineError) as later:
        loop.run(engine.check())
    assert later.value.reason == failure.value.reason
    return failure.value.reason


def test_a_damaged_file_of_weights_is_named(loop: LoopThread, source: ModelSource, tmp_path: Path) -> None:
    half = copied(source, tmp_path / "half")
    weights = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert fails_to_start(loop, half).startswith(f"cannot load half: {weights} is damaged (")


def test_a_missing_tensor_is_named_though_vllm_would_serve_without_it(
    loop: LoopThread, source: ModelSource, tmp_path: Path
) -> None:
    holed = copied(source, tmp_path / "holed")
    weights = tmp_path / "holed" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    reason = fails_to_start(loop, holed)
    assert "lack 1 tensors" in reason
    assert "model.layers.1.mlp.up_proj.weight" in reason


def test_an_architecture_that_vllm_does_not_know_is_refused(
    loop: LoopThread, source: ModelSource, tmp_path: Path
) -> None:
    foreign = copied(source, tmp_path / "foreign")
    config = tmp_path / "foreign" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["OtherForCausalLM"]}))
    assert "OtherForCausalLM" in fails_to_start(loop, foreign)


def test_what_fails_in_vllms_own_process_is_told_with_the_cause_and_the_key_to_change(
    loop: LoopThread, source: ModelSource
) -> None:
    reason = fails_to_start(loop, source, {"cache": {"max_memory_mb": 1}})
    assert reason.startswith("cannot start with chat: ValueError: To serve at least one request")
    assert "raise optimization.cache.max_memory_mb" in reason


def test_a_start_that_is_given_up_ends_what_it_had_begun(loop: LoopThread, source: ModelSource) -> None:
    engine = VllmEngine(source, OptimizationSettings(), slots=1)

    async def give_up() -> None:
        starting = asyncio.create_task(engine.start())
        while not engine.pids:
            engine._processes.note()
            await asyncio.sleep(0.1)
        starting.cancel()
        await asyncio.wait((starting,))
        assert starting.cancelled()

    loop.run(give_up())
    assert not [process for process in running(engine.pids) if alive(process)]


def test_a_killed_engine_process_ends_every_open_request_with_an_engine_error(
    engine: VllmEngine, loop: LoopThread
) -> None:
    async def under_load() -> list[object]:
        readers = [asyncio.create_task(reports(ask(engine, max_tokens=8000))) for _ in range(2 * SLOTS)]
        await has_open(engine, 2 * SLOTS)
        os.kill(engine.pids[0], signal.SIGKILL)
        async with asyncio.timeout(100):
            return list(await asyncio.gather(*readers, return_exceptions=True))

    ends = loop.run(under_load())
    assert {type(end) for end in ends} == {EngineError}
    assert "was killed by signal 9" in str(ends[0])
    with pytest.raises(EngineError, match="was killed by signal 9"):
        loop.run(engine.check())
    with pytest.raises(EngineError, match="was killed by signal 9"):
        loop.run(reports(ask(engine)))


async def check_until_it_fails(engine: VllmEngine) -> None:
    while True:
        await asyncio.sleep(0.1)
        await engine.check()


def test_an_engine_that_hangs_is_given_up_and_its_open_requests_end(
    engine: VllmEngine, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> list[object]:
        readers = [asyncio.create_task(reports(ask(engine, max_tokens=8000))) for _ in range(3)]
        await has_open(engine, 3)
        await engine.check()  # it lives
        for pid in engine.pids:
            os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(vllm_engine, "STALL_S", 1.0)
        async with asyncio.timeout(100):
            with pytest.raises(EngineError, match=r"it made no step for \d+ s with 3 requests open"):
                await check_until_it_fails(engine)
            return list(await asyncio.gather(*readers, return_exceptions=True))

    ends = loop.run(hang())
    assert {type(end) for end in ends} == {EngineError}
    assert "it made no step" in str(ends[0])
    assert not [process for process in running(engine.pids) if alive(process)]
    with pytest.raises(EngineError, match="it made no step"):
        loop.run(engine.check())
    with pytest.raises(EngineError, match="it made no step"):
        loop.run(reports(ask(engine)))

"""The vLLM streaming engine, over its AsyncLLM."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from muai_lab.engines.base import EngineInfo, Sampling, StreamedTokens, StreamingEngine
from muai_lab.engines.vllm.arguments import DTYPES, advice, engine_arguments
from muai_lab.engines.vllm.environment import EngineLog, start_environment
from muai_lab.engines.vllm.probe import NAME, availability, installed_build, supports
from muai_lab.engines.vllm.processes import EngineProcesses
from muai_lab.engines.vllm.weights import check_weights
from muai_lab.errors import EngineError, InvalidRequest, RequestError

if TYPE_CHECKING:
    from muai_lab.models.registry import ModelSource
    from muai_lab.settings.schema import OptimizationSettings

log = logging.getLogger(__name__)

STALL_S = 60.0
"""Longest time without a step while requests are open. A step has at most a few thousand prompt tokens: under half a
minute for billions of parameters on a CPU. vLLM's own limit for one step is 300 s."""

CLOSE_S = 15.0
"""Longest wait for vLLM to end its processes (5 s, more on a busy machine); then they are killed."""

_ONE_START = threading.Lock()  # the environment and the list of child processes belong to the whole process


class VllmEngine(StreamingEngine):
    """Serves a decoder with vLLM, on CPUs or GPUs; the model runs in vLLM's own processes."""

    def __init__(self, source: ModelSource, optimization: OptimizationSettings, *, slots: int) -> None:
        """Check and map the settings; nothing is loaded yet. Raises EngineError if they cannot work here."""
        available = availability(optimization)
        reason = available.reason or supports(optimization, source)
        if reason is not None:
            raise EngineError(NAME, reason)
        build = installed_build()
        self._cpu = build is not None and build.cpu
        self._version, self._device = available.version or "", available.device or ""
        self._source = source
        self._arguments = engine_arguments(source, optimization, slots=slots, cpu=self._cpu)
        self.slots = slots
        self.vocab_size = self._arguments.vocab_size
        self.eos_token_ids = frozenset(self._arguments.eos_token_ids)
        self._llm: Any = None
        self._clock: Any = None
        self._log: EngineLog | None = None
        self._processes = EngineProcesses()
        self._failure: str | None = None
        self._open = 0
        self._busy_since = 0.0

    @property
    def pids(self) -> tuple[int, ...]:
        """Ids of the engine's processes; empty before the start."""
        return self._processes.pids

    async def start(self) -> None:
        """See `StreamingEngine.start`. Takes about 25 s on a CPU, most of it vLLM's imports in three processes."""
        for warning in self._arguments.warnings:
            log.warning("%s", warning)
        loading = asyncio.ensure_future(asyncio.to_thread(self._load))
        try:
            await asyncio.shield(loading)
            await self._llm.get_supported_tasks()  # the first exchange with the engine, on this loop
        except asyncio.CancelledError:
            self._failure = "its start was cancelled"
            while not loading.done():  # it ends with the processes that it waits for
                self._processes.kill()
                await asyncio.wait((loading,), timeout=0.1)
            loading.exception()  # retrieved, else asyncio logs it
            await self.close()
            raise
        except Exception:
            await self.close()
            raise
        self.info = self._describe()

    async def generate(
        self,
        request_id: str,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        max_tokens: int,
        ignore_eos: bool,
        cache_salt: str = "",
    ) -> AsyncIterator[StreamedTokens]:
        """See `StreamingEngine.generate`. Raises InvalidRequest or RequestError for an error of this request only."""
        from muai_lab.engines.vllm import library

        llm = self._live()
        caching = self._arguments.effective["prefix_caching"] is True
        if self._open == 0:
            self._busy_since = time.monotonic()
        self._open += 1
        outputs = None
        try:
            stop = () if ignore_eos else self._arguments.eos_token_ids
            parameters = library.sampling_params(sampling, max_tokens=max_tokens, stop_token_ids=stop)
            outputs = llm.generate(library.prompt_input(prompt, cache_salt), parameters, request_id)
            async for output in outputs:
                tokens = library.report(output, caching=caching)
                if tokens.finish_reason not in (None, "stop", "length"):
                    raise RequestError(f"vLLM ended the request: {tokens.finish_reason}")
                yield tokens
        except library.EngineDeadError as error:
            raise self._dead() from error
        except library.VLLMClientError as error:
            raise InvalidRequest(str(error)) from error
        except library.EngineGenerateError as error:
            if self._llm is None or self._llm.errored:
                raise self._dead() from error
            raise RequestError(f"vLLM could not run the request: {error.__cause__}") from error
        finally:
            self._open -= 1
            if outputs is not None:
                await outputs.aclose()  # aborts the request in the engine, if it still runs there

    async def check(self) -> None:
        """See `StreamingEngine.check`. An engine that hangs is killed, so that its open requests end."""
        if self._live().errored or self._processes.failure() is not None:
            raise self._dead()
        silent_s = time.monotonic() - max(self._clock.last_step_at, self._busy_since)
        if self._open and silent_s > STALL_S:
            self._failure = f"it made no step for {silent_s:.0f} s with {self._open} requests open"
            await asyncio.to_thread(self._processes.kill)
            raise self._dead()

    async def close(self) -> None:
        """See `StreamingEngine.close`."""
        self._failure = self._failure or "the engine is closed"
        llm, self._llm, self._clock = self._llm, None, None
        if llm is not None:
            from muai_lab.engines.vllm.library import release

            await asyncio.to_thread(llm.shutdown, CLOSE_S)
            await asyncio.sleep(0)  # vLLM leaves the closing of its sockets to this loop
            release(llm)
        await asyncio.to_thread(self._processes.kill)
        if self._log is not None:
            self._log.close()
            self._log = None
            # vLLM's objects are in reference cycles; at the end of the interpreter they would print to the terminal.
            del llm
            await asyncio.to_thread(_collect)

    def _load(self) -> None:
        with _ONE_START:
            self._log = EngineLog()
            with start_environment(self._log):
                self._processes.begin()
                try:
                    from muai_lab.engines.vllm.library import open_llm

                    check_weights(self._source)
                    if self._failure is None:
                        self._llm, self._clock = open_llm(self._arguments.keywords)
                except EngineError as error:
                    self._failure = error.reason
                except Exception as error:  # vLLM passes on the errors of its many libraries
                    log.debug("vLLM did not start", exc_info=True)
                    self._failure = f"cannot start with {self._source.name}: {self._reason(error)}"
                finally:
                    self._processes.settle()
                    self._log.unlink()
        # Raised here, because the traceback of vLLM's own error would keep its partial objects and their sockets.
        if self._llm is None:
            raise EngineError(NAME, self._failure or "its start was cancelled")

    def _live(self) -> Any:
        if self._llm is None:
            raise EngineError(NAME, self._failure or "the engine is not started")
        return self._llm

    def _dead(self) -> EngineError:
        """Return the error that says why the engine no longer serves."""
        if self._failure is None:
            cause = None if self._log is None else self._log.root_cause()
            ended = self._processes.failure() or "its engine stopped"
            self._failure = ended if cause is None else f"{ended}: {cause}"
        return EngineError(NAME, self._failure)

    def _reason(self, error: Exception) -> str:
        """Return the error of the innermost process, else the first error of a validation, with our advice."""
        cause = None if self._log is None else self._log.root_cause()
        if cause is None:
            if hasattr(error, "errors"):  # pydantic's: vLLM checks its configuration with it
                cause = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            else:
                cause = f"{type(error).__name__}: {error}"
        return advice(cause.splitlines()[0])

    def _describe(self) -> EngineInfo:
        model, cache = self._llm.model_config, self._llm.vllm_config.cache_config
        names = {theirs: ours for ours, theirs in DTYPES.items()}
        dtype = str(model.dtype).removeprefix("torch.")
        return EngineInfo(
            name=NAME,
            version=self._version,
            device=self._device,
            dtype=names.get(dtype, dtype),
            max_model_len=model.max_model_len,
            details={
                **self._arguments.effective,
                "build": "cpu" if self._cpu else "gpu",
                "kv_blocks": cache.num_gpu_blocks,
                "kv_block_tokens": cache.block_size,
            },
        )


def _collect() -> None:
    """Collect garbage, also among the objects that the server has frozen."""
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:  # else the objects of a failed start would never be collected, and would print at the end
        gc.freeze()

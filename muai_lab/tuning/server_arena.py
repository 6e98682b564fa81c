"""The arena that counts: a `serve` process of our own on this machine, under load over HTTP."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muai_lab.errors import RunError
from muai_lab.experiment.measured import READY_TIMEOUT_S, ServedBy, server_arguments, who_serves
from muai_lab.experiment.server_process import ServerProcess, ServerReady
from muai_lab.load.event_loop import run_on_fast_loop, signals_end
from muai_lab.load.generator import LoadResult, generate
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.plan import LoadPlan
from muai_lab.settings.dump import child_environment, dump_optimization_yaml
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.slo import Slo, slo_of
from muai_lab.tuning.admin import TOKEN_VARIABLE, NotLive, differs_only_live, reconfigure
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.block import BlockResult, judge, judge_soak
from muai_lab.tuning.quality import ForcedAnswer, HttpAsk, compare, within
from muai_lab.tuning.soak import Soak
from muai_lab.workload.schedule import Schedule

if TYPE_CHECKING:
    from muai_lab.tuning.blocks import LoadBlocks

_DEATH_CHECK_S = 0.25
_STOP_S = 60.0
_REASON_CHARACTERS = 600


class ServerArena:
    """Keeps a server, changes it live where that is possible, and replays the blocks.

    slots: what the engine is opened with, so that the batch size can change live up to it; None opens it with exactly
    what each configuration says, as production will. reference: greedy answers of the model in fp32, made when they are
    first needed; None if outputs are not compared. encoder_decoder: of the model. stage: is called with slow work.
    """

    def __init__(
        self,
        settings: LabSettings,
        blocks: LoadBlocks,
        directory: Path,
        *,
        slots: int | None = None,
        reference: Callable[[], Sequence[ForcedAnswer]] | None = None,
        encoder_decoder: bool = False,
        stage: Callable[[str], None] = lambda what: None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._blocks = blocks
        self._directory = directory
        self._slots = slots
        self._reference = reference
        self._encoder_decoder = encoder_decoder
        self._stage = stage
        self._environ = environ
        self._token = secrets.token_urlsafe(24)
        self._process: ServerProcess | None = None
        self._ready: ServerReady | None = None
        self._running: OptimizationSettings | None = None
        self._served_by: ServedBy | None = None
        self._salt = ""
        self.starts = 0

    def apply(self, optimization: OptimizationSettings, *, restart: bool = False) -> bool:
        """See `Arena.apply`."""
        self._salt = secrets.token_urlsafe(12)  # prompts of earlier trials are not found in the cache any more
        wanted = self._opened(optimization)
        if not restart and self._running is not None and self._ready is not None and self._takes_live(wanted):
            try:
                reconfigure(self._ready.url, self._token, self._settings.model.name, wanted)
            except NotLive:
                pass  # the reason does not matter: a restart brings it about, or says better why it cannot
            else:
                self._running = wanted
                return False
        self._start(wanted)
        return True

    def replay(self, block: int) -> BlockResult:
        """See `Arena.replay`."""
        result = self._offer(self._blocks.block(block), self._blocks.plan)
        return judge(result, self._slo, self._settings.load.request_timeout_s)

    def soak(self, number: int, seconds: float, *, rate: float | None = None) -> Soak:
        """See `Arena.soak`."""
        blocks = self._blocks if rate is None else self._blocks.at_rate(rate)
        result = self._offer(*blocks.soak(number, seconds))
        assert self._slo is not None, "soak windows judge an SLO"
        timeout_s, slices = self._settings.load.request_timeout_s, self._settings.tuning.blocks
        return judge_soak(result, self._slo, timeout_s, slices, stationary=blocks.stationary)

    def agreement(self) -> Agreement | None:
        """See `Arena.agreement`."""
        least = self._settings.tuning.min_agreement
        if self._reference is None or least is None:
            return None
        reference = self._reference()
        if (most_tokens := self.serving().get("max_model_len")) is not None:
            reference = within(reference, most_tokens, encoder_decoder=self._encoder_decoder)
        self._stage("comparing greedy tokens with fp32")
        process = self._process
        try:
            return compare(self.ask, reference, least)
        except RunError as error:
            death = None if process is None else process.failure()
            raise ConfigurationFailed(_short(death or str(error))) from error

    @property
    def ask(self) -> HttpAsk:
        """Asks the server for greedy tokens."""
        assert self._ready is not None, "apply() comes first"
        return HttpAsk(self._ready.url, self._settings.model.name, f"greedy {self._salt}", self._encoder_decoder)

    def serving(self) -> Mapping[str, Any]:
        """See `Arena.serving`."""
        return dict((self._served_by and self._served_by.engine) or {})

    def close(self) -> None:
        """End the server."""
        process, self._process = self._process, None
        self._ready = self._running = None
        if process is not None:
            process.stop(grace_s=_STOP_S)

    @cached_property
    def _slo(self) -> Slo | None:
        return slo_of({"slo": self._settings.slo.model_dump()})

    def _opened(self, optimization: OptimizationSettings) -> OptimizationSettings:
        """The configuration with slots for the largest batch of the space."""
        if self._slots is None:
            return optimization
        slots = max(self._slots, optimization.batcher.max_batch_size)
        return optimization.model_copy(update={"batcher": optimization.batcher.model_copy(update={"max_slots": slots})})

    def _takes_live(self, wanted: OptimizationSettings) -> bool:
        assert self._running is not None, "asked only while a server runs"
        alive = self._process is not None and self._process.running
        if not alive or not differs_only_live(self._running, wanted):
            return False
        # vLLM has its prefix cache inside; it learns of it at its start only.
        return self.serving().get("name") != "vllm" or self._running.cache == wanted.cache

    def _start(self, wanted: OptimizationSettings) -> None:
        self.close()
        self._directory.mkdir(parents=True, exist_ok=True)
        settings = self._settings.model_copy(update={"optimization": wanted})
        config = self._directory.resolve() / "optimization.yaml"
        try:
            config.write_text(dump_optimization_yaml(settings), encoding="utf-8")
        except OSError as error:
            raise RunError(
                f"cannot write {config}: {error.strerror}; free space or choose another tuning.study"
            ) from error
        environment = child_environment(settings, self._environ) | {TOKEN_VARIABLE: self._token}
        self._stage("starting the server")
        self.starts += 1
        process = ServerProcess(
            server_arguments(settings, config), environment=environment, log=self._directory / "server.log"
        )
        process.__enter__()
        self._process = process
        try:
            self._ready = process.wait_ready(READY_TIMEOUT_S)
            self._served_by = who_serves(self._ready.url, settings.model.name)
            self._running = wanted
            self._stage("warming up")
            self._offer(self._blocks.warmup, self._blocks.warmup_plan)
        except RunError as error:
            self.close()
            raise ConfigurationFailed(_short(str(error))) from error
        except BaseException:
            process.stop(grace_s=2.0)
            self._process = None
            raise

    def _offer(self, schedule: Schedule, plan: LoadPlan) -> LoadResult:
        assert self._ready is not None, "apply() comes first"
        process = self._process
        assert process is not None, "apply() comes first"
        target = HttpTarget.of(self._settings, self._ready.url, self._environ, cache_salt=self._salt)
        try:
            result = run_on_fast_loop(_generate(schedule, target, plan, process))
        except RunError as error:
            raise ConfigurationFailed(_short(process.failure() or str(error))) from error
        if (death := process.failure()) is not None:
            self.close()
            raise ConfigurationFailed(_short(death))
        return result


async def _generate(schedule: Schedule, target: HttpTarget, plan: LoadPlan, process: ServerProcess) -> LoadResult:
    """The load, ended early when the server dies: what follows would only be refused connections."""
    load = asyncio.ensure_future(generate(schedule, target, plan))

    async def end_on_death() -> None:
        while process.running:  # noqa: ASYNC110 (another process has no event to wait for)
            await asyncio.sleep(_DEATH_CHECK_S)
        load.cancel()

    watch = asyncio.ensure_future(end_on_death())
    with signals_end(load) as raised:
        try:
            result = await load
        except asyncio.CancelledError:
            if process.running and not raised:
                raise
            if not raised:
                raise RunError("the server died") from None
        finally:
            watch.cancel()
    if raised:
        raise raised[0]
    return result


def _short(reason: str) -> str:
    """The beginning and the end of an error: what failed, and the last lines of the server's log."""
    reason = "\n".join(line.rstrip() for line in reason.splitlines())
    if len(reason) <= _REASON_CHARACTERS:
        return reason
    return f"{reason[:200]} … {reason[-(_REASON_CHARACTERS - 200) :]}"

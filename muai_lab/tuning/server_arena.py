"""The arena of a tuning: a server under test of our own on this machine, under load over HTTP."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muai_lab.errors import RunError
from muai_lab.experiment.server_calls import HttpAsk, NotLive
from muai_lab.experiment.server_under_test import ServerUnderTest
from muai_lab.files import write_whole
from muai_lab.load.generator import LoadResult
from muai_lab.load.plan import LoadPlan
from muai_lab.settings.changes import with_values
from muai_lab.settings.dump import dump_optimization_yaml
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.slo import Slo, slo_of
from muai_lab.tuning.agreement import Agreement
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.block_result import BlockResult, judge, judge_soak
from muai_lab.tuning.quality import ForcedAnswer, compare, within
from muai_lab.tuning.soak import Soak
from muai_lab.workload.schedule import Schedule

if TYPE_CHECKING:
    from muai_lab.tuning.load_blocks import LoadBlocks

_STOP_AT_ONCE_S = 2.0
_REASON_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class ArenaSetup:
    """The parts that all arenas of a tuning share.

    settings: Of the tuning. blocks: The load. directory: Of the study; each arena has a directory in it.
    encoder_decoder: True if the model's answer is no part of its prompt. stage: Called with the name of slow work.
    environ: Variables of this process.
    """

    settings: LabSettings
    blocks: LoadBlocks
    directory: Path
    encoder_decoder: bool = False
    stage: Callable[[str], None] = lambda what: None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)


class ServerArena:
    """Keeps a server, changes it live if that is possible, and replays the blocks. See `Arena`."""

    def __init__(
        self,
        setup: ArenaSetup,
        name: str,
        *,
        slots: int | None = None,
        reference: Callable[[], Sequence[ForcedAnswer]] | None = None,
    ) -> None:
        """Prepare an arena. Its server starts with the first configuration.

        Args:
            setup: The parts that it shares with other arenas.
            name: Of its directory.
            slots: Slots that the engine is opened with, so that the batch size can change live up to it. None opens it
                with exactly what each configuration says, as production does.
            reference: Returns greedy answers of the model in fp32, when they are first needed; None if outputs are not
                compared.
        """
        self._setup = setup
        self._settings = setup.settings
        self._directory = setup.directory / name
        self._slots = slots
        self._reference = reference
        self._server: ServerUnderTest | None = None
        self._engine: Mapping[str, Any] = {}
        self._salt = ""
        self.starts = 0

    def apply(self, optimization: OptimizationSettings, *, restart: bool = False) -> bool:
        """See `Arena.apply`."""
        self._salt = secrets.token_urlsafe(12)  # prompts of earlier trials are not found in the cache any more
        wanted = self._opened(optimization)
        if not restart and self._server is not None:
            try:
                self._server.reconfigure(wanted)
            except NotLive:
                pass  # the reason does not matter: a restart brings it about, or says better why it cannot
            else:
                return False
        self._start(wanted)
        return True

    def replay(self, block: int) -> BlockResult:
        """See `Arena.replay`."""
        blocks = self._setup.blocks
        result = self._offer(blocks.block(block), blocks.plan)
        return judge(result, self._slo, self._settings.load.request_timeout_s)

    def soak(self, number: int, seconds: float, *, rate: float | None = None) -> Soak:
        """See `Arena.soak`."""
        blocks = self._setup.blocks if rate is None else self._setup.blocks.at_rate(rate)
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
            reference = within(reference, most_tokens, encoder_decoder=self._setup.encoder_decoder)
        self._setup.stage("comparing greedy tokens with fp32")
        try:
            return compare(self.ask, reference, least)
        except RunError as error:
            raise ConfigurationFailed(_short(self._running.failure() or str(error))) from error

    @property
    def ask(self) -> HttpAsk:
        """Asks the server for greedy tokens."""
        return self._running.ask(f"greedy {self._salt}", encoder_decoder=self._setup.encoder_decoder)

    def serving(self) -> Mapping[str, Any]:
        """See `Arena.serving`."""
        return dict(self._engine)

    def close(self) -> None:
        """End the server."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()

    @property
    def _running(self) -> ServerUnderTest:
        assert self._server is not None, "apply() comes first"
        return self._server

    @cached_property
    def _slo(self) -> Slo | None:
        return slo_of({"slo": self._settings.slo.model_dump()})

    def _opened(self, optimization: OptimizationSettings) -> OptimizationSettings:
        """The configuration with slots for the largest batch of the space."""
        if self._slots is None:
            return optimization
        slots = max(self._slots, optimization.batcher.max_batch_size)
        return with_values(optimization, {"batcher": {"max_slots": slots}})

    def _start(self, wanted: OptimizationSettings) -> None:
        self.close()
        settings = self._settings.model_copy(update={"optimization": wanted})
        self._write(settings)
        self._setup.stage("starting the server")
        self.starts += 1
        server = ServerUnderTest(settings, self._directory, self._setup.environ, reconfigurable=True)
        try:
            self._server = server.start()
            self._engine = server.served_by.engine or {}
            self._setup.stage("warming up")
            self._offer(self._setup.blocks.warmup, self._setup.blocks.warmup_plan)
        except RunError as error:
            self.close()
            raise ConfigurationFailed(_short(str(error))) from error
        except BaseException:
            if self._server is not None:
                server.stop(grace_s=_STOP_AT_ONCE_S)
                self._server = None
            raise

    def _write(self, settings: LabSettings) -> None:
        """Write the configuration that the server reads. Raises RunError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        config = self._directory.resolve() / "optimization.yaml"
        try:
            write_whole(config, dump_optimization_yaml(settings))
        except OSError as error:
            raise RunError(
                f"cannot write {config}: {error.strerror}; free space or choose another tuning.study"
            ) from error

    def _offer(self, schedule: Schedule, plan: LoadPlan) -> LoadResult:
        server = self._running
        try:
            return server.offer(schedule, plan, cache_salt=self._salt)
        except RunError as error:
            death = server.failure()
            if death is not None:
                self.close()
            raise ConfigurationFailed(_short(death or str(error))) from error


def _short(reason: str) -> str:
    """The beginning and the end of an error: what failed, and the last lines of the server's log."""
    reason = "\n".join(line.rstrip() for line in reason.splitlines())
    if len(reason) <= _REASON_CHARACTERS:
        return reason
    return f"{reason[:200]} … {reason[-(_REASON_CHARACTERS - 200) :]}"

"""The server under test: the `serve` process that runs one `optimization.yaml`, and all that is done to it."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from muai_lab.errors import RunError
from muai_lab.experiment.load_until_death import until_death
from muai_lab.experiment.server_calls import HttpAsk, NotLive, ServedBy, reconfigure, who_serves
from muai_lab.experiment.server_process import STOP_S, ServerProcess, ServerReady
from muai_lab.load.event_loop import run_on_fast_loop
from muai_lab.load.generator import LoadResult, generate
from muai_lab.load.openai_http import HttpTarget
from muai_lab.load.plan import LoadPlan
from muai_lab.server.admin_call import TOKEN_VARIABLE
from muai_lab.settings.dump import child_environment
from muai_lab.settings.lab import LabSettings
from muai_lab.settings.live import differs_only_live
from muai_lab.settings.overrides import quoted
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.workload.schedule import Schedule

# Loading a large checkpoint, exporting it, compiling: minutes, but not for ever.
_READY_TIMEOUT_S = 900.0


class ServerUnderTest:
    """One server. As a context manager it runs inside the context and is gone behind it, however it is left.

    optimization: The configuration that it runs now. served_by: The engine that served it at the start.
    """

    def __init__(
        self,
        settings: LabSettings,
        directory: Path,
        environ: Mapping[str, str] = os.environ,
        *,
        reconfigurable: bool = False,
    ) -> None:
        """Prepare a server.

        Args:
            settings: Of the measurement.
            directory: Holds the `optimization.yaml` that the server reads, and gets its log.
            environ: Variables of this process. Those that set settings are left out, since the file has them.
            reconfigurable: True if the server may be changed while it runs.
        """
        self.optimization = settings.optimization
        self.served_by = ServedBy(None)
        self._settings = settings
        self._environ = environ
        self._token = secrets.token_urlsafe(24) if reconfigurable else None
        admin = {} if self._token is None else {TOKEN_VARIABLE: self._token}
        self._process = ServerProcess(
            server_arguments(settings, directory.resolve() / "optimization.yaml"),
            environment=child_environment(settings, environ) | admin,
            log=directory / "server.log",
        )
        self._ready: ServerReady | None = None

    def start(self) -> ServerUnderTest:
        """Start it. Raises RunError with the end of its log if it does not become ready."""
        self._process.__enter__()
        try:
            self._ready = self._process.wait_ready(_READY_TIMEOUT_S)
            self.served_by = self.serving()
        except BaseException as error:
            self._process.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def stop(self, *, grace_s: float = STOP_S) -> None:
        """End it: in order, or by force after `grace_s` seconds."""
        self._process.stop(grace_s=grace_s)

    def __enter__(self) -> ServerUnderTest:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)

    @property
    def ready(self) -> ServerReady:
        """Its addresses."""
        assert self._ready is not None, "the server was started"
        return self._ready

    @property
    def stopped_cleanly(self) -> bool:
        """True if it stopped in order when it was asked to."""
        return bool(self._process.stopped_cleanly)

    def failure(self) -> str | None:
        """Return why the server is gone, if it ended by itself; None while it runs."""
        return self._process.failure()

    def serving(self) -> ServedBy:
        """Ask which engine serves. Raises RunError if the server does not answer that."""
        return who_serves(self.ready.url, self._settings.model.name)

    def reconfigure(self, wanted: OptimizationSettings) -> None:
        """Change the running server. Raises NotLive if it needs a restart, or does not run any more."""
        live = differs_only_live(self.optimization, wanted) and self._process.running
        # vLLM has its prefix cache inside, and reads the settings of that at its start only.
        cache_inside = (self.served_by.engine or {}).get("name") == "vllm"
        if self._token is None or not live or (cache_inside and self.optimization.cache != wanted.cache):
            raise NotLive("the change needs a restart")
        reconfigure(self.ready.url, self._token, self._settings.model.name, wanted)
        self.optimization = wanted

    def ask(self, cache_salt: str, *, encoder_decoder: bool) -> HttpAsk:
        """Return a function that asks for greedy tokens. See `HttpAsk`."""
        return HttpAsk(self.ready.url, self._settings.model.name, cache_salt, encoder_decoder)

    def target(self, *, cache_salt: str | None = None) -> HttpTarget:
        """Return the server as the target of a load."""
        return HttpTarget.of(self._settings, self.ready.url, self._environ, cache_salt=cache_salt)

    def offer(self, schedule: Schedule, plan: LoadPlan, *, cache_salt: str) -> LoadResult:
        """Offer a load until its end. Raises RunError if the server died, and what a signal's handler raised."""
        result, ended = run_on_fast_loop(self._load(schedule, plan, self.target(cache_salt=cache_salt)))
        if ended is not None:
            raise ended
        if (death := self.failure()) is not None:
            raise RunError(death)
        return result

    async def _load(
        self, schedule: Schedule, plan: LoadPlan, target: HttpTarget
    ) -> tuple[LoadResult, BaseException | None]:
        return await until_death(asyncio.ensure_future(generate(schedule, target, plan)), self.failure)


def server_arguments(settings: LabSettings, config: Path) -> list[str]:
    """Return the arguments of `serve` for a measurement.

    Args:
        settings: Of the measurement.
        config: The file that production would run, an absolute path.
    """
    arguments = [
        f"config_file={quoted(str(config))}",
        f"model.name={quoted(settings.model.name)}",
        # The file stays the one that production runs; only the addresses are the measurement's own.
        "monitoring.server.host=127.0.0.1",
        "monitoring.server.port=0",
        "monitoring.prometheus.host=127.0.0.1",
        "monitoring.prometheus.port=0",
        f"monitoring.server.preload_models=[{quoted(settings.model.name)}]",
    ]
    if settings.model.checkpoint is not None:
        arguments.append(f"model.checkpoint={quoted(settings.model.checkpoint)}")
    return arguments

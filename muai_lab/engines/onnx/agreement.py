"""The share of tokens for which an int8 graph agrees with the graph it was quantised from, on this processor.

Kernels differ between processors, and so does the agreement. It is measured on the machine that serves, in a process of
its own, and kept for this kind of processor. A cache from another kind of processor holds no value for this one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import onnxruntime
from filelock import FileLock

from muai_lab.engines.onnx.child_process import carry_out
from muai_lab.engines.onnx.graph_cache import graph_directory, source_order
from muai_lab.engines.onnx.recipe import Recipe
from muai_lab.errors import EngineError
from muai_lab.files import write_whole
from muai_lab.models.embedded import cache_dir
from muai_lab.models.registry import ModelSource
from muai_lab.processor import Processor, this_processor

AGREEMENT_FILE = "agreement.json"

_VERSION = 1  # raise it if the measurement changes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Int8Agreement:
    """share: of `positions` positions, those at which both graphs choose the same greedy token."""

    share: float
    positions: int


@dataclass(frozen=True, slots=True)
class SessionKind:
    """The facts of a session that choose its kernels: execution providers in order, and the level of optimisation."""

    providers: tuple[str, ...]
    optimization_level: Literal["none", "basic", "extended", "all"]


Measure = Callable[[ModelSource, Recipe, Path, SessionKind], Int8Agreement]


def agreement_here(
    source: ModelSource,
    recipe: Recipe,
    quantized: Path,
    session: SessionKind,
    *,
    measure: Measure | None = None,
    processor: Processor | None = None,
) -> Int8Agreement | None:
    """Return the agreement on this kind of processor; measure it if it is not known yet (seconds to minutes, once).

    Args:
        source: The model.
        recipe: The recipe of the int8 graph.
        quantized: Directory of the int8 graph.
        session: The session that serves.
        measure: Measures, instead of a process of its own.
        processor: The processor, by default that of this machine.

    Returns:
        The agreement. None, with a warning, if it cannot be measured, for example without memory for both graphs.
    """
    measured_under = {
        "version": _VERSION,
        "onnxruntime": onnxruntime.__version__,
        "session": asdict(session),
        "processor": asdict(processor or this_processor()),
    }
    key = hashlib.sha256(json.dumps(measured_under, sort_keys=True).encode()).hexdigest()[:12]
    kept = cache_dir() / "onnx_agreement" / f"{quantized.name}-{key}.json"
    if (known := _read(kept)) is not None:
        return known
    try:
        with _turn(kept):
            if (known := _read(kept)) is not None:
                return known  # another process measured it while this one waited
            found = (measure or _measure_in_child)(source, recipe, quantized, session)
            _keep(kept, {**asdict(found), **measured_under})
            return found
    except (OSError, EngineError) as error:
        reason = error.reason if isinstance(error, EngineError) else str(error)
        log.warning("cannot measure how often int8 chooses the tokens of %s: %s", recipe.dtype, reason)
        return None


def _measure_in_child(source: ModelSource, recipe: Recipe, quantized: Path, session: SessionKind) -> Int8Agreement:
    order = {
        "source": source_order(source),
        "recipe": asdict(recipe),
        "base": str(graph_directory(source, recipe.without_int8())),
        "quantized": str(quantized),
        "session": asdict(session),
    }
    log.info("measuring on this processor how often int8 chooses the tokens of %s", recipe.dtype)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        directory = Path(scratch)
        carry_out("muai_lab.engines.onnx.agreement_process", order, directory, task=f"compare int8 with {recipe.dtype}")
        found = _read(directory / AGREEMENT_FILE)
    assert found is not None, "the process ended well without a result"
    return found


@contextmanager
def _turn(kept: Path) -> Iterator[None]:
    """Let one process at a time measure, if the cache can be written."""
    with ExitStack() as held:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(f"{kept}.lock"))
        yield


def _read(file: Path) -> Int8Agreement | None:
    """Return the agreement in the file; None if it holds no valid one."""
    try:
        fields: Any = json.loads(file.read_text(encoding="utf-8"))
        share, positions = float(fields["share"]), int(fields["positions"])
    except (OSError, ValueError, TypeError, LookupError, OverflowError):
        return None
    return Int8Agreement(share, positions) if 0.0 <= share <= 1.0 and positions > 0 else None


def _keep(file: Path, fields: Mapping[str, Any]) -> None:
    try:
        write_whole(file, json.dumps(fields, indent=1) + "\n")
    except OSError as error:
        log.warning("cannot keep int8's agreement in %s (%s): it is measured at each start", file.parent, error)

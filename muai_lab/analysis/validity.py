"""The verdict on a run: valid, or the worst problem with its reason and the next step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from muai_lab.analysis import server_series
from muai_lab.analysis.attainment import met
from muai_lab.analysis.client_part import allowing, doubt_of, footnote
from muai_lab.analysis.frames import Run
from muai_lab.analysis.samples import completed_requests
from muai_lab.analysis.statistics import QUANTILES, min_samples, quantile_name
from muai_lab.analysis.steadiness import NOT_STEADY, UNKNOWN, Steadiness, Trend, steadiness
from muai_lab.analysis.summary_schema import ReportedTrend, Validity
from muai_lab.analysis.visibility import asked_and_got, visibility, visibility_warnings
from muai_lab.slo import Slo
from muai_lab.wording import duration, number, percent, plural

VALID = "valid"
PARTIAL = "partial"
FAILED = "failed"
SATURATED = "client_saturated"
NOTHING = "nothing measured"
ENGINE_CHANGED = "engine changed"
OVERLOADED = "overloaded"
REQUESTS_FAILED = "requests failed"
TOO_SHORT = "window too short"

UNANSWERED = (NOTHING, OVERLOADED, REQUESTS_FAILED)
"""Verdicts on runs whose requests failed."""

FAILURE_LIMIT = 0.01
"""Share of failed requests above which the successful ones do not represent the run."""

# A window shorter than the first number of answers holds few whole ones; the advised length holds the second number.
_ANSWERS_IN_WINDOW = 5
_ANSWERS_TO_ADVISE = 20
_SPARE_REQUESTS = 1.2  # advised number of requests ÷ the number that the rate so far needs
_REFUSALS = ("rejected", "timeout")

__all__ = [
    "ENGINE_CHANGED", "FAILED", "NOTHING", "NOT_STEADY", "OVERLOADED", "PARTIAL", "REQUESTS_FAILED", "SATURATED",
    "TOO_SHORT", "UNANSWERED", "VALID", "cut_short", "validity_of",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of a run: its name, the reason in words, and the next step for the user."""

    verdict: str
    reason: str
    next_step: str


def validity_of(run: Run) -> Validity:
    """Return the verdict on a run, with its evidence and warnings."""
    measured = run.measured
    waiting = server_series.series(run.server_metrics, server_series.WAITING)
    steady = steadiness(run.requests, waiting, run.window)
    found = (
        _ended_early(run)
        or _engine_changed(run)
        or _requests_failed(run)
        or _client_at_fault(run)
        or _nothing_measured(run)
        or _overloaded(run)
        or _too_short(run)
        or _not_steady(run, steady)
    )
    generator = run.manifest.get("generator") or {}
    return Validity(
        verdict=VALID if found is None else found.verdict,
        valid=found is None,
        reason=None if found is None else found.reason,
        next_step=None if found is None else found.next_step,
        status=run.status,
        failed=int((measured["status"] != "ok").sum()),
        due=len(measured),
        generator=generator.get("verdict"),
        steadiness=str(steady),
        trends=tuple(map(_trend, steady.trends)),
        warnings=tuple(_warnings(run, measured, steady, found)),
    )


def _trend(found: Trend) -> ReportedTrend:
    low, high = found.interval
    return ReportedTrend(signal=found.signal, change=found.relative, low=low, high=high, smallest_found=found.smallest)


def _ended_early(run: Run) -> Finding | None:
    if run.complete:
        return None
    reason = run.notes[0] if run.notes else "the run did not end by itself"
    if run.status == "failed":
        return Finding(FAILED, reason, "mend the cause, and give the same command again")
    return Finding(PARTIAL, reason, "give the same command again, and let it end")


def _engine_changed(run: Run) -> Finding | None:
    if not (change := run.manifest.get("engine_change")):
        return None
    return Finding(ENGINE_CHANGED, str(change), "see server.log for the cause, or choose one engine with engine=…")


def _client_at_fault(run: Run) -> Finding | None:
    generator = run.manifest.get("generator") or {}
    verdict = generator.get("verdict")
    if verdict in (None, "ok"):
        return None
    reason = str(generator.get("reason") or "the load generator was the bottleneck")
    advice = generator.get("advice") or (
        "lower the load, raise load.processes, or run the load generator on a machine of its own"
    )
    return Finding(str(verdict), reason, str(advice))


def _nothing_measured(run: Run) -> Finding | None:
    measured = run.measured
    if (measured["status"] == "ok").any():
        return None
    if measured.empty:
        step = "raise load.duration_s, lower load.warmup_s, or raise load.requests"
        answer_s = _answer_s(run.requests)
        if run.window is not None and run.window.duration_s <= 0:
            step = "lower load.warmup_s, or raise load.requests: all requests were sent during the warm-up"
        elif answer_s is not None:
            step = f"an answer takes {duration(answer_s)}: set load.duration_s={_advised_s(answer_s)}"
        return Finding(NOTHING, "no request was due in the measurement window", step)
    reason = f"none of {plural(len(measured), 'request')} succeeded{_commonest_error(measured)}"
    return Finding(NOTHING, reason, "see the errors in report.html, and the server's log")


def _requests_failed(run: Run) -> Finding | None:
    """Errors of the server, which no delay of the client can explain."""
    failed, refused = _failed(run)
    if not len(failed) or refused * 2 >= len(failed) or len(failed) == len(run.measured):
        return None
    step = "see the failures in report.html and the server's log; the figures are those of the other requests only"
    return Finding(REQUESTS_FAILED, f"{_failures(run, failed)}{_commonest_error(failed)}", step)


def _overloaded(run: Run) -> Finding | None:
    failed, refused = _failed(run)
    if not len(failed) or refused * 2 < len(failed):
        return None
    served = _served_rps(run)
    step = f"lower arrival.rate below {number(served)} requests/s" if served else "lower arrival.rate"
    step += ", or find the limit with the command `capacity`"
    if run.closed_loop:
        step = "lower arrival.concurrency, or raise load.request_timeout_s if the answers are wanted all the same"
    reason = f"{_failures(run, failed)}, {refused:,} of them refused or out of time{_commonest_error(failed)}"
    return Finding(OVERLOADED, reason, step)


def _failed(run: Run) -> tuple[pd.DataFrame, int]:
    """The failed requests of the window, none if they are few enough; and the number refused or timed out."""
    measured = run.measured
    failed = measured[measured["status"] != "ok"]
    if len(failed) <= FAILURE_LIMIT * len(measured):
        failed = failed.iloc[:0]
    return failed, int(failed["status"].isin(_REFUSALS).sum())


def _failures(run: Run, failed: pd.DataFrame) -> str:
    due = len(run.measured)
    return f"{len(failed):,} of {plural(due, 'request')} failed ({percent(len(failed) / due)})"


def _too_short(run: Run) -> Finding | None:
    answer_s = _answer_s(run.requests)
    if run.window is None or answer_s is None or answer_s <= run.window.duration_s:
        return None
    reason = (
        f"the window of {duration(run.window.duration_s)} is shorter than an answer ({duration(answer_s)}, median): "
        "few requests begin and end in it"
    )
    return Finding(TOO_SHORT, reason, f"set load.duration_s={_advised_s(answer_s)}")


def _not_steady(run: Run, steady: Steadiness) -> Finding | None:
    if steady.verdict != NOT_STEADY:
        return None
    reason = "; ".join(steady.reasons)
    if " rose " in f" {reason} ":
        served = _served_rps(run)
        limit = f" (it served {number(served)} requests/s)" if served else ""
        step = f"lower arrival.rate{limit}, find the limit with the command `capacity`, or raise load.warmup_s"
        if run.closed_loop:
            step = "raise load.warmup_s and load.duration_s, or look for what else runs on the server"
        return Finding(NOT_STEADY, reason, step)
    warmup_s = run.window.start_s if run.window else 0.0
    return Finding(NOT_STEADY, reason, f"raise load.warmup_s to {max(10, math.ceil(2 * warmup_s))}")


def _warnings(run: Run, measured: pd.DataFrame, steady: Steadiness, found: Finding | None) -> list[str]:
    reason = None if found is None else found.reason
    ok = measured[measured["status"] == "ok"]
    warnings = [note for note in run.notes if note != reason]
    if cut := cut_short(run):
        warnings.append(cut)
    failed = len(measured) - len(ok)
    if len(ok) and failed:
        warnings.append(
            f"{failed} of {len(measured)} requests in the window failed; latencies are those of the successful ones"
        )
    answer_s = _answer_s(run.requests)
    if found is None and run.window is not None and answer_s and run.window.duration_s < _ANSWERS_IN_WINDOW * answer_s:
        warnings.append(
            f"the window of {duration(run.window.duration_s)} holds few answers one after another (each takes "
            f"{duration(answer_s)}); set load.duration_s={_advised_s(answer_s)}"
        )
    short = [quantile_name(q) for q in QUANTILES if 0 < len(ok) < min_samples(q)]
    if short:
        needed = ", ".join(f"{quantile_name(q)}: {min_samples(q)}" for q in QUANTILES if len(ok) < min_samples(q))
        warnings.append(
            f"too few successful requests in the window ({len(ok)}) for {', '.join(short)}; needed at least {needed}"
        )
    generator = run.manifest.get("generator") or {}

    def samples(column: str) -> int:
        return int(ok[column].notna().sum()) if column in ok else len(ok)

    warnings += [note] if (note := footnote(generator, samples)) else []
    if run.slo is not None:
        warnings += _slo_warnings(measured, run.slo, generator)
    if steady.verdict == UNKNOWN and len(ok):
        warnings.append(f"steadiness {steady}")
    if known := prompts_known(run):
        warnings.append(known)
    return [*warnings, *visibility_warnings(visibility(run), asked_and_got(run))]


def _slo_warnings(measured: pd.DataFrame, slo: Slo, generator: Mapping[str, Any]) -> Iterator[str]:
    if (doubt := doubt_of(generator, slo)) and len(measured):
        kept, at_best = (met(measured, bounds).mean() for bounds in (slo, allowing(generator, slo)))
        if kept < slo.quantile <= at_best:
            yield f"{doubt}: the SLO may have been missed for that alone"
    ok = measured[measured["status"] == "ok"]
    if slo.tpot_ms is not None and len(ok) and (ok["tokens"] <= 1).fillna(False).all():
        yield "the TPOT bound applies to no request of the window: every answer has one token"


def prompts_known(run: Run) -> str | None:
    """Return the sentence on prompts that the cache of an endpoint may know from earlier runs; None without any."""
    load = run.manifest.get("load") or {}
    prompts = load.get("prompts") or {}
    if load.get("target") != "endpoint" or not prompts:
        return None
    if prompts.get("reused"):
        return "load.reuse_prompts: the endpoint's cache may know all prompts from earlier runs"
    unsalted = prompts.get("unsalted") or 0
    if unsalted:
        short = plural(unsalted, "prompt")
        return f"{short} too short to be changed: the endpoint's cache may know them from earlier runs"
    return None


def cut_short(run: Run) -> str | None:
    """Return the sentence for a window that is shorter than configured; None if it is whole."""
    wanted_s = (run.config.get("load") or {}).get("duration_s")
    if run.window is None or not isinstance(wanted_s, int | float) or run.window.duration_s >= 0.98 * wanted_s:
        return None
    cut = f"the window was cut short: {duration(run.window.duration_s)} of {duration(float(wanted_s))}"
    if run.window.duration_s > 0 and run.complete and run.closed_loop:
        longer = (run.window.start_s + wanted_s) / (run.window.start_s + run.window.duration_s)
        cut += f"; load.requests={_rounded_up(len(run.requests) * longer * _SPARE_REQUESTS)} fills it"
    return cut


def _rounded_up(count: float) -> int:
    """A number of at least `count` with two digits that are not zero."""
    unit: int = 10 ** max(0, len(str(math.ceil(count))) - 2)
    return math.ceil(count / unit) * unit


def _answer_s(requests: pd.DataFrame) -> float | None:
    """Median time of an answer over all successful requests of the run, in seconds."""
    answers = requests.loc[requests["status"] == "ok", "e2e_s"].dropna()
    return float(answers.median()) if len(answers) else None


def _advised_s(answer_s: float) -> int:
    return max(10, math.ceil(_ANSWERS_TO_ADVISE * answer_s / 10.0) * 10)


def _served_rps(run: Run) -> float | None:
    if run.window is None or run.window.duration_s <= 0:
        return None
    return float(completed_requests(run).amounts.sum()) / run.window.duration_s


def _commonest_error(failed: pd.DataFrame) -> str:
    errors = failed["error"].dropna().value_counts()
    return f", most often: {errors.index[0]}" if len(errors) else ""


def validity_line(validity: Validity) -> str:
    """Return the verdict in one line."""
    if validity.valid:
        facts = [f"run {validity.status}"]
        if validity.generator:
            facts.append(f"load generator {validity.generator}")
        facts.append(validity.steadiness.split(":")[0].replace("unknown", "steadiness unknown"))
        if validity.failed:
            facts.append(f"{validity.failed:,} of {plural(validity.due, 'request')} failed")
        line = f"valid: {', '.join(facts)}"
    else:
        line = f"NOT VALID, {validity.verdict}: {validity.reason}"
    return f"{line}; next: {validity.next_step}" if validity.next_step else line

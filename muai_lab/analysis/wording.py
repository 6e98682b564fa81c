"""How figures are written for people: sensible digits, units, whole sentences. Shared by the table and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MISSING = "-"

SHORT_NAMES = {
    "ttft_s": "TTFT",
    "ttft_from_intended_s": "TTFT from intended",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2e_s": "E2E",
    "e2e_from_intended_s": "E2E from intended",
    "send_lag_s": "send lag",
}


def number(value: float | None) -> str:
    """Three significant digits below 1,000, whole numbers above; `-` for what is missing."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    decimals = 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    written = f"{value:.{decimals}f}"
    return written if float(written) else f"{value:.2g}"


def count(value: float | None) -> str:
    """A whole number with separators; `-` for what is missing."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.0f}"


def milliseconds(value_s: float | None) -> str:
    """Seconds written as a number of milliseconds, without the unit."""
    return number(None if value_s is None else value_s * 1e3)


def duration(value_s: float | None) -> str:
    """Seconds with the unit that suits: `250 µs`, `28.6 ms`, `3.40 s`."""
    if value_s is None or not math.isfinite(value_s):
        return MISSING
    if abs(value_s) < 0.001 and value_s != 0:
        return f"{number(value_s * 1e6)} µs"
    if abs(value_s) < 1.0:
        return f"{number(value_s * 1e3)} ms"
    return f"{number(value_s)} s"


def percent(value: float | None) -> str:
    """A share as a percentage; never rounded up to 100 % or down to 0 %."""
    if value is None or not math.isfinite(value):
        return MISSING
    written = f"{value * 100:.1f}"
    if written == "100.0":
        written = "100" if value == 1.0 else ">99.9"
    elif written == "0.0":
        written = "0" if value == 0.0 else "<0.1"
    return f"{written.removesuffix('.0')} %"


def size(value_bytes: float | None) -> str:
    """Bytes in binary units: `381 MiB`."""
    if value_bytes is None or not math.isfinite(value_bytes):
        return MISSING
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(value_bytes) < 1024 or unit == "GiB":
            return f"{number(value_bytes)} {unit}"
        value_bytes /= 1024
    return MISSING


def plural(count: int, noun: str) -> str:
    """`1 request`, `20 requests`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def value_of(estimate: Mapping[str, Any] | None) -> float | None:
    """The figure of an estimate of a summary; None where there is none."""
    return None if estimate is None else estimate.get("value")


def interval(estimate: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    """`16.4 to 19.8`, or nothing where no interval is known."""
    if estimate is None or estimate.get("low") is None or estimate.get("high") is None:
        return ""
    return f"{number(estimate['low'] * scale)} to {number(estimate['high'] * scale)}"


def estimate_of(summary: Mapping[str, Any], column: str, figure: str) -> Mapping[str, Any] | None:
    """One estimate of a latency metric (`mean`, `p50`, ...) of a summary."""
    latency = summary["latency"].get(column)
    found = latency.get(figure) if latency else None
    return found if isinstance(found, Mapping) else None


def clients_part(summary: Mapping[str, Any], column: str, figure: str) -> float | None:
    """Seconds of a figure that can be the load generator's own delay; None unless they are too many to be ignored."""
    client = (summary["latency"].get(column) or {}).get("client") or {"marked": ()}
    return float(client["may_add_s"][figure]) if figure in client["marked"] else None


def judged(summary: Mapping[str, Any], metric: str) -> str:
    """The column of `ttft` or `e2e` that counts: from the intended time where the run has one (open loop)."""
    from_intended = f"{metric}_from_intended_s"
    return from_intended if summary["latency"].get(from_intended) else f"{metric}_s"


def verdict_line(summary: Mapping[str, Any]) -> str:
    """The first line of every result: is it valid, and if not, why."""
    return validity_line(summary["validity"])


def validity_line(validity: Mapping[str, Any]) -> str:
    """`verdict_line` from the summary's part `validity` alone."""
    if validity["valid"]:
        facts = [f"run {validity['status']}"]
        if validity["generator"]:
            facts.append(f"load generator {validity['generator']}")
        facts.append(str(validity["steadiness"]).split(":")[0].replace("unknown", "steadiness unknown"))
        if failed := validity.get("failed"):
            facts.append(f"{failed:,} of {plural(validity['due'], 'request')} failed")
        line = f"valid: {', '.join(facts)}"
    else:
        line = f"NOT VALID, {validity['verdict']}: {validity['reason']}"
    return f"{line}; next: {validity['next_step']}" if validity.get("next_step") else line


def engine_line(summary: Mapping[str, Any]) -> str:
    """The engine that really served, with version, device and dtype."""
    identity = summary["identity"]
    if not identity["engine"]:
        return "not known"
    where = ", ".join(str(part) for part in (identity["device"], identity["dtype"]) if part)
    named = " ".join(str(part) for part in (identity["engine"], identity["engine_version"]) if part)
    return f"{named} ({where})" if where else named


def agreement_line(summary: Mapping[str, Any]) -> str | None:
    """How often the greedy token is still that of fp32, for an engine in int8; None for others."""
    details = summary["identity"]["engine_details"]
    if "int8_greedy_agreement_with_fp32" not in details:
        return None
    found = details["int8_greedy_agreement_with_fp32"]
    if found is None:
        return f"not measured: how many greedy tokens are those of fp32 is not known ({details.get('quantization')})"
    return (
        f"{percent(found)} of greedy tokens are those of fp32 (int8, {details['int8_agreement_positions']} positions)"
    )


def load_line(summary: Mapping[str, Any]) -> str:
    """What was asked of the system: `poisson arrivals at 20.0 requests/s`, `closed loop, 8 at a time`."""
    identity = summary["identity"]
    kind = identity["arrival"]
    unit = "session" if identity.get("sessions") else "request"
    if kind == "closed":
        return f"closed loop, {plural(int(identity['concurrency'] or 0), unit)} at a time"
    if kind is None:
        return "not known"
    return f"open loop, {kind} arrivals at {number(identity['rate_rps'])} {unit}s/s"


def workload_line(summary: Mapping[str, Any]) -> str | None:
    """Name of the workload and, where the name does not say it, its kind."""
    name, kind = summary["identity"].get("workload"), summary["identity"].get("workload_kind")
    return name if name == kind or kind is None else f"{name} ({kind})"


def prompts_line(summary: Mapping[str, Any]) -> str | None:
    """What a server's prefix cache could have known of the prompts; None if that was not recorded."""
    prompts = summary["identity"].get("prompts")
    if not prompts:
        return None
    within = f"{percent(prompts['repeated_share'])} of their text repeats within the run"
    if prompts["reused"]:
        return f"perhaps known to the server from earlier runs (load.reuse_prompts); {within}"
    return f"new to the server; {within}"


def headline(summary: Mapping[str, Any]) -> str:
    """The result in two or three plain sentences."""
    counts = summary["requests"]
    if not counts["due"]:
        return "No request was due in the measurement window, so nothing was measured."
    if not counts["ok"]:
        return f"None of the {plural(counts['due'], 'request')} in the measurement window succeeded."
    if counts["ok"] * 2 < counts["due"]:
        return (
            f"Only {counts['ok']:,} of {plural(counts['due'], 'request')} in the measurement window were answered. "
            "The figures of these few do not describe the system under this load."
        )
    sentences = [_served(summary)]
    if cut := summary["window"].get("cut_short"):
        sentences.append(f"{cut[0].upper()}{cut[1:]}.")
    column = judged(summary, "ttft")
    half, tail = (value_of(estimate_of(summary, column, figure)) for figure in ("p50", "p99"))
    if half is not None:
        sentence = f"Half of the answers began within {duration(half)}"
        if tail is not None:
            own_s = clients_part(summary, column, "p99")
            own = "" if own_s is None else f" (up to {duration(own_s)} of them the load generator's own delay)"
            sentence += f", 99 of 100 within {duration(tail)}{own}"
        sentences.append(f"{sentence}.")
    if summary["slo"] and summary["slo"]["attainment"]:
        sentences.append(_kept(summary["slo"]))
    return " ".join(sentences)


def _served(summary: Mapping[str, Any]) -> str:
    """The rates: of what was offered, what was answered (the same requests); apart from it, what was completed.

    Completions are answers that arrived in the window, to requests of the warm-up too: they may exceed the offer.
    """
    identity, throughput, counts = summary["identity"], summary["throughput"], summary["requests"]
    engine = identity["engine"] or "The server"
    model = f", asked for {identity['asked_model']}," if identity.get("asked_model") else ""
    completed = number(value_of(throughput["requests_per_s"]))
    tokens = value_of(throughput["output_tokens_per_s"])
    carried = "" if tokens is None else f" ({number(tokens)} output tokens per second)"
    if identity["arrival"] not in (None, "closed"):
        answered, offered = (number(throughput.get(name)) for name in ("answered_rps", "offered_rps"))
        told = f"answered {answered} of the {offered} requests per second that were offered, and completed {completed}"
        told += f" per second{carried}"
    else:
        told = f"served {completed} requests per second{carried}"
        if identity["concurrency"]:
            told += f" to {plural(int(identity['concurrency']), 'client')} that each wait for their answer"
    sentence = f"{engine}{model} {told}"
    if failed := counts["due"] - counts["ok"]:
        sentence += f"; {failed:,} of {plural(counts['due'], 'request')} failed"
    return f"{sentence}."


def _kept(slo: Mapping[str, Any]) -> str:
    kept = "kept" if slo["met"] else "not kept"
    sentence = (
        f"The SLO was {kept}: {percent(value_of(slo['attainment']))} of the requests met it, "
        f"{percent(slo['quantile'])} were to."
    )
    unseen = (slo.get("missed") or {}).get("not_judgeable", 0)
    if unseen:
        sentence += f" {plural(unseen, 'request')} could not be judged: the client did not see the times."
    return sentence


def setting_text(value: Any) -> str:
    """A setting as it is written on a command line: `null`, `true`, `8` (also for 8.0), `a,b`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list):
        return ",".join(setting_text(entry) for entry in value)
    return str(value)

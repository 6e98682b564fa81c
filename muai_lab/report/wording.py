"""Sentences about a run, from its summary. Shared by the table and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muai_lab.analysis.estimates import clients_part, estimate_of, judged, value_of
from muai_lab.analysis.validity import validity_line
from muai_lab.wording import duration, number, percent, plural


def interval(estimate: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    """`16.4 to 19.8`, or nothing where no interval is known."""
    if estimate is None or estimate.get("low") is None or estimate.get("high") is None:
        return ""
    return f"{number(estimate['low'] * scale)} to {number(estimate['high'] * scale)}"


def verdict_line(summary: Mapping[str, Any]) -> str:
    """The first line of every result: is it valid, and if not, why."""
    return validity_line(summary["validity"])


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

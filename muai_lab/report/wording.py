"""Sentences about a run, from its summary. The table and the report share them."""

from __future__ import annotations

from muai_lab.analysis.attainment import NOT_JUDGEABLE
from muai_lab.analysis.capacity_schema import CapacityEstimate
from muai_lab.analysis.summary_schema import ReportedEstimate, SloSummary, Summary, value_of
from muai_lab.analysis.validity import validity_line
from muai_lab.wording import duration, number, percent, plural


def interval(estimate: ReportedEstimate | CapacityEstimate | None, scale: float = 1.0) -> str:
    """`16.4 to 19.8`, or nothing if no interval is known."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{number(estimate.low * scale)} to {number(estimate.high * scale)}"


def verdict_line(summary: Summary) -> str:
    """The first line of every result: the validity of the run, and the reason if it is not valid."""
    return validity_line(summary.validity)


def engine_line(summary: Summary) -> str:
    """The engine that served, with version, device and dtype."""
    identity = summary.identity
    return engine_text(identity.engine, identity.engine_version, identity.device, identity.dtype)


def engine_text(name: str | None, version: str | None, device: str | None, dtype: str | None) -> str:
    """`pytorch 2.13.0 (cpu, fp32)`."""
    if not name:
        return "not known"
    named = f"{name} {version}" if version else name
    where = ", ".join(part for part in (device, dtype) if part)
    return f"{named} ({where})" if where else named


def agreement_line(summary: Summary) -> str | None:
    """The share of greedy tokens that are those of fp32, for an engine in int8; None for other engines."""
    details = summary.identity.engine_details
    if "int8_greedy_agreement_with_fp32" not in details:
        return None
    found = details["int8_greedy_agreement_with_fp32"]
    if found is None:
        return f"not measured: how many greedy tokens are those of fp32 is not known ({details.get('quantization')})"
    return (
        f"{percent(found)} of greedy tokens are those of fp32 (int8, {details['int8_agreement_positions']} positions)"
    )


def load_line(summary: Summary) -> str:
    """The offered load: `open loop, poisson arrivals at 20.0 requests/s`, `closed loop, 8 requests at a time`."""
    identity = summary.identity
    unit = "session" if identity.sessions else "request"
    if identity.closed_loop:
        return f"closed loop, {plural(identity.concurrency or 0, unit)} at a time"
    if identity.arrival is None:
        return "not known"
    return f"open loop, {identity.arrival} arrivals at {number(identity.rate_rps)} {unit}s/s"


def workload_line(summary: Summary) -> str | None:
    """The name of the workload, with its kind if the name is another."""
    name, kind = summary.identity.workload, summary.identity.workload_kind
    return name if name == kind or kind is None else f"{name} ({kind})"


def prompts_line(summary: Summary) -> str | None:
    """The share of the prompts that a server's prefix cache can have known; None if that was not recorded."""
    prompts = summary.identity.prompts
    if prompts is None:
        return None
    within = f"{percent(prompts.repeated_share)} of their text repeats within the run"
    if prompts.reused:
        return f"perhaps known to the server from earlier runs (load.reuse_prompts); {within}"
    return f"new to the server; {within}"


def headline(summary: Summary) -> str:
    """The result in two or three plain sentences."""
    counts = summary.requests
    if not counts.due:
        return "No request was due in the measurement window, so nothing was measured."
    if not counts.ok:
        return f"None of the {plural(counts.due, 'request')} in the measurement window succeeded."
    if counts.ok * 2 < counts.due:
        return (
            f"Only {counts.ok:,} of {plural(counts.due, 'request')} in the measurement window were answered. "
            "The figures of these few do not describe the system under this load."
        )
    sentences = [_served(summary)]
    if cut := summary.window.cut_short:
        sentences.append(f"{cut[0].upper()}{cut[1:]}.")
    column = summary.judged("ttft")
    half, tail = (value_of(summary.estimate(column, statistic)) for statistic in ("p50", "p99"))
    if half is not None:
        sentence = f"Half of the answers began within {duration(half)}"
        if tail is not None:
            own_s = summary.client_part_s(column, "p99")
            own = "" if own_s is None else f" (up to {duration(own_s)} of them the load generator's own delay)"
            sentence += f", 99 of 100 within {duration(tail)}{own}"
        sentences.append(f"{sentence}.")
    if summary.slo is not None and summary.slo.attainment is not None:
        sentences.append(_slo_sentence(summary.slo))
    return " ".join(sentences)


def _served(summary: Summary) -> str:
    """The rates: the share of the offered requests that were answered, and all completed requests.

    Completed requests are answers that arrived in the window, also to requests of the warm-up: they may exceed the
    offered ones.
    """
    identity, throughput, counts = summary.identity, summary.throughput, summary.requests
    engine = identity.engine or "The server"
    model = f", asked for {identity.asked_model}," if identity.asked_model else ""
    completed = number(value_of(throughput.requests_per_s))
    tokens = value_of(throughput.output_tokens_per_s)
    carried = "" if tokens is None else f" ({number(tokens)} output tokens per second)"
    if identity.arrival is not None and not identity.closed_loop:
        answered, offered = number(throughput.answered_rps), number(throughput.offered_rps)
        clause = (
            f"answered {answered} of the {offered} requests per second that were offered, and completed {completed}"
        )
        clause += f" per second{carried}"
    else:
        clause = f"served {completed} requests per second{carried}"
        if identity.concurrency:
            clause += f" to {plural(identity.concurrency, 'client')} that each wait for their answer"
    sentence = f"{engine}{model} {clause}"
    if counts.failed:
        sentence += f"; {counts.failed:,} of {plural(counts.due, 'request')} failed"
    return f"{sentence}."


def _slo_sentence(slo: SloSummary) -> str:
    verdict = "met" if slo.met else "not met"
    sentence = (
        f"The SLO was {verdict}: {percent(value_of(slo.attainment))} of the requests were within its bounds, "
        f"{percent(slo.quantile)} are required."
    )
    unseen = (slo.missed or {}).get(NOT_JUDGEABLE, 0)
    if unseen:
        sentence += f" {plural(unseen, 'request')} could not be judged: the client did not see the times."
    return sentence

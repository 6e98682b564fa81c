"""Answers whose tokens or times the client could not see, and answers that differ from what was asked for.

A time that the client did not see is missing. This module counts the requests concerned and gives the reason. All
counts are over the successful requests that were due in the measurement window.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from muai_lab.analysis.frames import Run
from muai_lab.analysis.metrics import itl
from muai_lab.analysis.summary_schema import AskedAndGot, AskedTotals, Visibility
from muai_lab.wording import percent

COMPARABLE_LIMIT = 0.05
"""Relative difference between the tokens asked for and received up to which a run is comparable with others."""

# Tokenizers add a few special tokens; a chat template adds its roles and separators.
_PROMPT_SLACK = {"completions": 4, "chat": 64}
# A gap of less than this share of the request's mean gap: the chunk was held back and came with the one before.
_BURST_GAP = 0.05
_NOTEWORTHY = 0.2


def visibility(run: Run) -> Visibility:
    """Count the answers whose tokens or times are missing, and those from which the client inferred something."""
    ok = _successful(run)
    tokens = ok["tokens"].to_numpy(dtype="float64", na_value=np.nan)
    several = ~(tokens <= 1)
    merged = ok["read_together"].fillna(0).to_numpy(dtype=np.int64)
    return Visibility(
        answers=len(ok),
        without_tokens=int(np.isnan(tokens).sum()),
        without_tpot=int((several & ok["tpot_s"].isna().to_numpy()).sum()),
        together=int(ok["together"].sum()),
        unseen=int((ok["unseen_tokens"].fillna(0) > 1).sum()),
        unseen_tokens=int(ok["unseen_tokens"].fillna(0).sum()),
        read_together=int(merged.sum()),
        burst_share=_burst_share(run),
        notes={str(note): int(times) for note, times in ok["note"].dropna().value_counts().items()},
    )


def asked_and_got(run: Run) -> AskedAndGot | None:
    """Compare the prompt and output tokens asked for with those received; None without a successful request."""
    ok = _successful(run)
    if ok.empty:
        return None
    workload = run.config.get("workload") or {}
    slack = _PROMPT_SLACK.get(str(workload.get("api")), 4)
    exact = bool(workload.get("ignore_eos", True))
    prompts = _sums(ok["asked_prompt_tokens"], ok["prompt_tokens"], slack=slack)
    outputs = _sums(ok["max_tokens"], ok["tokens"], may_be_less=not exact)
    deviations = [part.deviation for part in (prompts, outputs) if part is not None]
    comparable = all(abs(deviation) <= COMPARABLE_LIMIT for deviation in deviations)
    return AskedAndGot(prompt_tokens=prompts, output_tokens=outputs, comparable=comparable)


def _sums(asked: pd.Series, got: pd.Series, *, slack: int = 0, may_be_less: bool = False) -> AskedTotals | None:
    both = asked.notna() & got.notna()
    if not both.any():
        return None
    wanted = asked[both].to_numpy(dtype=np.float64)
    counted = got[both].to_numpy(dtype=np.float64)
    difference = counted - wanted
    excess = np.sign(difference) * np.maximum(np.abs(difference) - np.maximum(slack, 0.02 * wanted * (slack > 0)), 0.0)
    if may_be_less:
        excess = np.maximum(excess, 0.0)
    return AskedTotals(
        requests=int(both.sum()),
        less=int((excess < 0).sum()),
        more=int((excess > 0).sum()),
        asked_median=float(np.median(wanted)),
        got_median=float(np.median(counted)),
        deviation=float(excess.sum() / wanted.sum()) if wanted.sum() else 0.0,
    )


def visibility_warnings(seen: Visibility, asked: AskedAndGot | None) -> Iterator[str]:
    """Yield the warnings of the verdict: what the client did not see and why, and what it asked for and did not get."""
    answers = seen.answers
    if not answers:
        return
    if seen.without_tokens:
        yield (
            f"the server counts no tokens in {_of(seen.without_tokens, answers)}: token rates and TPOT leave these "
            "out; name the model's tokenizer with target.tokenizer to count them here"
        )
    untimed = seen.without_tpot - seen.together - seen.without_tokens
    if untimed > 0:
        yield (
            f"the tokens of each chunk are unknown in {_of(untimed, answers)}: TPOT is missing there (the server gives "
            "no usage per chunk, and chunks carry several tokens)"
        )
    if seen.together:
        yield (
            f"all chunks arrive together in {_of(seen.together, answers)}: something between server and client "
            "buffers (a proxy, compression), so ITL and TPOT are missing there and TTFT is that of the buffer"
        )
    elif (seen.burst_share or 0.0) > _NOTEWORTHY:
        yield (
            f"{percent(seen.burst_share)} of the chunks arrive together with the one before: something between "
            "server and client buffers, or the client was late; ITL describes the bursts"
        )
    if seen.unseen:
        yield (
            f"the final usage reveals tokens that no chunk carried in {_of(seen.unseen, answers)} "
            f"({seen.unseen_tokens:,} tokens): E2E includes them, TPOT is that of the tokens seen"
        )
    for note, times in seen.notes.items():
        yield f"{note} ({_of(times, answers)})"
    if asked is not None:
        yield from _asked_warnings(asked)


def _asked_warnings(asked: AskedAndGot) -> Iterator[str]:
    prompts, outputs = asked.prompt_tokens, asked.output_tokens
    if prompts is not None and (prompts.less or prompts.more):
        yield (
            f"prompts of {prompts.asked_median:.0f} tokens (median) were asked, and the server counts "
            f"{prompts.got_median:.0f}, in {_of(prompts.less + prompts.more, prompts.requests)}: it has "
            "another tokenizer, or a limit; name its tokenizer with target.tokenizer"
        )
    if outputs is not None and outputs.less:
        yield _other_length(outputs, outputs.less, "fewer", "ignore_eos is not honoured")
    if outputs is not None and outputs.more:
        yield _other_length(outputs, outputs.more, "more", "max_tokens is not honoured")
    if not asked.comparable:
        yield (
            f"asked and got differ by more than {COMPARABLE_LIMIT:.0%}: this run is not comparable with one whose "
            "server honoured the request"
        )


def _other_length(outputs: AskedTotals, answers: int, which: str, why: str) -> str:
    return (
        f"{outputs.asked_median:.0f} output tokens (median) were asked, and {outputs.got_median:.0f} came, in "
        f"{_of(answers, outputs.requests)} {which} than asked: {why}"
    )


def _burst_share(run: Run) -> float | None:
    """Share of the chunks that came with, or at once after, the one before; None if none can be judged.

    Only answers of at least four chunks are judged, by the mean gap of the request.
    """
    requests, chunks = run.requests, run.chunks
    counts = (requests["in_window"] & (requests["status"] == "ok") & ~requests["together"]).to_numpy(dtype=np.bool_)
    gaps = itl(chunks.row, chunks.t_ns)
    row = chunks.row[np.flatnonzero(chunks.row[1:] == chunks.row[:-1]) + 1]
    per_row = np.bincount(row, minlength=len(requests))
    mean_gap = np.bincount(row, weights=gaps, minlength=len(requests)) / np.maximum(per_row, 1)
    judged = counts[row] & (per_row[row] >= 3)
    merged = int(requests.loc[counts, "read_together"].fillna(0).sum())
    events = int(judged.sum()) + merged
    if not events:
        return None
    return (int((gaps[judged] < _BURST_GAP * mean_gap[row[judged]]).sum()) + merged) / events


def _successful(run: Run) -> pd.DataFrame:
    measured = run.measured
    return measured[measured["status"] == "ok"]


def _of(some: int, of: int) -> str:
    return f"{some:,} of {of:,} answers"

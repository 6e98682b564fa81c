"""Teacher forcing over HTTP: the greedy token of a configuration at each position of an fp32 answer.

The configuration continues a prompt by decode steps of its own, which fill its key/value cache as for any request. Up
to the first token that differs, its prefix is that of fp32. After that token a new request follows, whose prompt ends
with the fp32 tokens up to there. So every position has the prefix of fp32, one difference does not count for all that
follow, and the method works with any engine. The first token of such a new request comes from a prefill that no answer
has; it is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from muai_lab.errors import InvalidRequest, ModelError, RunError
from muai_lab.tuning.agreement import Agreement, PromptAgreement, agreement_of
from muai_lab.tuning.search_space import Point, SearchSpace, Value
from muai_lab.workload.prompts import PromptTokenizer
from muai_lab.workload.schedule import Schedule, ScheduledRequest

PROMPTS, TOKENS = 64, 24
"""Prompts of a comparison, and tokens of each answer: 1,536 positions, of which decode steps make 1,472."""

_FEWEST_PROMPTS = 24
_ENOUGH_POSITIONS = 1000
_FRUITLESS = 5  # schedules in a row without a new prompt, after which the search for prompts ends
_AT_ONCE = 8
_MAY_CHANGE_OUTPUTS = ("dtype", "enable_quantization", "replace_with_kernel_inject")

Ids = list[int]
GreedyDecode = Callable[[Sequence[int], Sequence[int], int], Sequence[int]]
"""Returns the greedy tokens that follow: (prompt, tokens of the answer so far, number of tokens)."""


@dataclass(frozen=True, slots=True)
class ForcedAnswer:
    """A prompt and its greedy answer in fp32, as token ids."""

    prompt: Ids
    answer: Ids


def may_change_outputs(space: SearchSpace) -> bool:
    """True if the space moves a key that can change the tokens of an answer."""
    return any(path.rpartition(".")[2] in _MAY_CHANGE_OUTPUTS for path in space.paths)


def of_outputs(point: Point) -> dict[str, Value]:
    """Return the part of a point that can change the tokens of an answer; equal parts give the same tokens."""
    return {path: value for path, value in point.items() if path.rpartition(".")[2] in _MAY_CHANGE_OUTPUTS}


def prompts_of(
    schedules: Iterable[Schedule],
    tokenizer: PromptTokenizer,
    context_tokens: int | None,
    *,
    chat: bool,
) -> list[Ids]:
    """Return the first `PROMPTS` different prompts of the schedules, as token ids.

    A prompt that leaves no room for an answer loses its beginning. If the schedules hold very few different prompts,
    generated ones of the same lengths are added.

    Args:
        schedules: Read only as far as necessary.
        tokenizer: Of the model.
        context_tokens: Longest sequence of the model, prompt and answer together; None if it is not known.
        chat: True if prompts are sent as conversations.
    """
    most = None if context_tokens is None else max(context_tokens - TOKENS, 1)
    found: dict[tuple[int, ...], None] = {}
    fruitless = 0
    for schedule in schedules:
        known = len(found)
        for request in schedule:
            ids = None if request.turn else _ids_of(request, tokenizer, chat=chat)
            if ids:
                found.setdefault(tuple(ids if most is None else ids[-most:]))
            if len(found) == PROMPTS:
                return [list(prompt) for prompt in found]
        fruitless = 0 if len(found) > known else fruitless + 1
        if fruitless == _FRUITLESS:
            break
    lengths = [len(prompt) for prompt in found] or [TOKENS]
    random = np.random.default_rng(0)
    for place in range(_FEWEST_PROMPTS - len(found)):
        try:
            made = tokenizer.prompt_of(lengths[place % len(lengths)], random)[1]
        except ModelError:
            break  # this tokenizer has no ordinary words: only the prompts of the workload are left
        found.setdefault(tuple(made))
    return [list(prompt) for prompt in found]


def _ids_of(request: ScheduledRequest, tokenizer: PromptTokenizer, *, chat: bool) -> Ids | None:
    """The prompt as the server reads it; None if the model's chat template refuses it."""
    if request.prompt_ids is not None:
        ids: Ids = request.prompt_ids.tolist()
        return ids
    if not chat:
        return tokenizer.encode(request.text())
    try:
        return tokenizer.encode_chat([dict(message) for message in request.conversation()])
    except (InvalidRequest, KeyError, TypeError):
        return None


def greedy_answers(ask: GreedyDecode, prompts: Sequence[Ids], end_tokens: frozenset[int]) -> list[ForcedAnswer]:
    """Return the greedy answer to each prompt.

    Answers end after an end token, unless too few positions remain then. Raises RunError if `ask` fails.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        whole = list(pool.map(lambda prompt: list(ask(prompt, (), TOKENS)), prompts))
    ended = [_until_end(answer, end_tokens) for answer in whole]
    answers = ended if sum(map(len, ended)) >= _ENOUGH_POSITIONS else whole
    return [ForcedAnswer(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _until_end(answer: Ids, end_tokens: frozenset[int]) -> Ids:
    ends = [place for place, token in enumerate(answer) if token in end_tokens]
    return answer[: ends[0] + 1] if ends else answer


def within(reference: Sequence[ForcedAnswer], most_tokens: int, *, encoder_decoder: bool) -> list[ForcedAnswer]:
    """Return the reference, as far as an engine has room for it.

    Args:
        reference: Prompts and their answers.
        most_tokens: Longest sequence of the engine.
        encoder_decoder: True if a prompt takes none of the answer's room.
    """
    rooms = [most_tokens if encoder_decoder else most_tokens - len(one.prompt) for one in reference]
    return [
        ForcedAnswer(one.prompt, one.answer[:room])
        for one, room in zip(reference, rooms, strict=True)
        if room > 0 and len(one.prompt) <= most_tokens
    ]


def compare(ask: GreedyDecode, reference: Sequence[ForcedAnswer], least: float) -> Agreement:
    """Compare greedy tokens with those of the reference.

    The comparison ends early once the lower bound stays below `least` even if all positions left agree. That is an
    exact curtailment: it accepts nothing that the whole comparison would refuse.

    Args:
        ask: Returns the greedy tokens of the configuration.
        reference: Prompts and their fp32 answers.
        least: The agreement that is required.

    Raises:
        RunError: `ask` fails.
    """
    answers: list[PromptAgreement] = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for first in range(0, len(reference), _AT_ONCE):
            part = reference[first : first + _AT_ONCE]
            answers += pool.map(lambda forced: forced_positions(ask, forced), part)
            left = [len(forced.answer) for forced in reference[len(answers) :]]
            if not agreement_of([*answers, *(PromptAgreement(count, count - 1, count) for count in left)]).keeps(least):
                break
    return agreement_of(answers)


def forced_positions(ask: GreedyDecode, forced: ForcedAnswer) -> PromptAgreement:
    """Compare one prompt by teacher forcing. Raises RunError if `ask` fails."""
    answer, at = forced.answer, 0
    positions = decoded = agreed = 0
    # A last position after a new request would come from the prefill, which is not counted.
    while at < len(answer) - (at > 0):
        tokens = ask(forced.prompt, answer[:at], len(answer) - at)
        same = _common(tokens, answer[at:])
        asked = same + (same < len(tokens))
        if not asked:
            raise RunError("the server ends an answer without a token when its greedy tokens are asked for")
        uncounted = at > 0
        positions += asked - uncounted
        decoded += asked - 1
        agreed += max(same - uncounted, 0)
        at += asked
    return PromptAgreement(positions, decoded, agreed, len(answer))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning."""
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return place
    return min(len(one), len(other))

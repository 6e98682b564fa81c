"""Whether a configuration still says what the model says: greedy tokens against those of fp32.

Every context is a text of the workload, read up to its end; the answer is the one token that follows greedily. Each is
asked by itself (teacher forcing), so that one difference does not count for all that come after it.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from muai_lab.errors import RunError
from muai_lab.tuning.search_space import Point, SearchSpace, Value
from muai_lab.workload.schedule import Schedule

CONTEXTS = 96
_AT_ONCE = 8
_TIMEOUT_S = 120.0
_MAY_CHANGE_OUTPUTS = ("dtype", "enable_quantization", "replace_with_kernel_inject")

Context = str | list[int]


def may_change_outputs(space: SearchSpace) -> bool:
    """Whether the space moves a key that can change what the model says."""
    return any(path.rpartition(".")[2] in _MAY_CHANGE_OUTPUTS for path in space.paths)


def of_outputs(point: Point) -> dict[str, Value]:
    """The part of a point that can change what the model says; equal parts say the same."""
    return {path: value for path, value in point.items() if path.rpartition(".")[2] in _MAY_CHANGE_OUTPUTS}


def contexts_of(schedules: Iterable[Schedule]) -> list[Context]:
    """The first `CONTEXTS` different prompts of the schedules."""
    found: dict[str, Context] = {}
    for schedule in schedules:
        for request in schedule:
            context: Context | None = request.prompt if request.prompt_ids is None else request.prompt_ids.tolist()
            if context:
                found.setdefault(json.dumps(context), context)
            if len(found) == CONTEXTS:
                return list(found.values())
    return list(found.values())


def greedy_tokens(url: str, model: str, contexts: Sequence[Context]) -> list[str]:
    """The text of the one token that follows each context. Raises RunError when the server does not answer."""

    def ask(context: Context) -> str:
        body = {"model": model, "prompt": context, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            f"{url}/v1/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return str(json.load(answer)["choices"][0]["text"])

    try:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(ask, contexts))
    except (OSError, ValueError, LookupError) as error:
        raise RunError(f"the server does not answer when its greedy tokens are asked for: {error}") from error


def agreement(tokens: Sequence[str], reference: Sequence[str]) -> float:
    """Share of the tokens that are those of the reference."""
    return sum(one == other for one, other in zip(tokens, reference, strict=True)) / len(reference)

"""The token counts that a server states about an answer, in any place of an event."""

from __future__ import annotations

from typing import Any

from muai_lab.load.foreign_values import COUNT_LIMIT, count

NO_CLAIM = -1
"""The value for a count of output tokens that an event does not state."""

BEYOND_TOTAL = (
    "usage.total_tokens exceeds prompt_tokens + completion_tokens: the answer cost tokens that are not counted here, "
    "such as hidden thoughts"
)


def usage_of(event: dict[str, Any]) -> dict[str, Any] | None:
    """Return the usage object of an event, None if it has none.

    Its places: OpenAI's own, that of Groq (`x_groq.usage`), of Moonshot (beside the choice), and the timings of
    llama.cpp.
    """
    usage = event.get("usage") or _elsewhere(event)
    return usage if type(usage) is dict else None


def _elsewhere(event: dict[str, Any]) -> Any:
    if type(groq := event.get("x_groq")) is dict and groq.get("usage"):
        return groq["usage"]
    if type(timings := event.get("timings")) is dict:
        # llama.cpp leaves the prompt's cached part out of `prompt_n`, so that is no count of the prompt.
        return {"completion_tokens": timings.get("predicted_n")}
    choices = event.get("choices")
    if type(choices) is list and choices and type(choices[0]) is dict:
        return choices[0].get("usage")
    return None


def claimed_tokens(usage: dict[str, Any]) -> int:
    """Return the output tokens that a usage states, `NO_CLAIM` if none."""
    if type(claimed := usage.get("completion_tokens")) is int and 0 < claimed <= COUNT_LIMIT:
        return claimed  # of every chunk of most servers
    return _first_count(usage, "completion_tokens", "output_tokens", otherwise=NO_CLAIM)


def prompt_tokens(usage: dict[str, Any]) -> int | None:
    """Return the prompt tokens that a usage states; 0 is a placeholder, since no prompt is empty."""
    return _first_count(usage, "prompt_tokens", "input_tokens", otherwise=0) or None


def cached_tokens(usage: dict[str, Any]) -> int | None:
    """Return the prompt tokens from the server's cache, None if it states none."""
    details = usage.get("prompt_tokens_details")
    found = count(details.get("cached_tokens")) if type(details) is dict else None
    return found if found is not None else count(usage.get("prompt_cache_hit_tokens"))


def reasoning_tokens(usage: dict[str, Any]) -> int:
    """Return the reasoning tokens that a usage states, 0 if none."""
    details = usage.get("completion_tokens_details")
    return (count(details.get("reasoning_tokens")) or 0) if type(details) is dict else 0


def exceeds_its_parts(usage: dict[str, Any]) -> bool:
    """True if the total is larger than prompt and output together."""
    total, prompt, output = count(usage.get("total_tokens")), prompt_tokens(usage), claimed_tokens(usage)
    return total is not None and prompt is not None and output != NO_CLAIM and total > prompt + output


def _first_count(usage: dict[str, Any], *names: str, otherwise: int) -> int:
    for name in names:
        if (found := count(usage.get(name))) is not None:
            return found
    return otherwise

"""Calls to a running server of ours: who serves, another configuration, greedy tokens."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from muai_lab.errors import RunError
from muai_lab.server.admin_call import ADMIN_PATH
from muai_lab.settings.live import live_changes
from muai_lab.settings.schema import OptimizationSettings

_ASK_TIMEOUT_S = 10.0
_RECONFIGURE_TIMEOUT_S = 60.0
_TOKENS_TIMEOUT_S = 600.0
_JSON = {"Content-Type": "application/json"}


class NotLive(RunError):
    """The running server does not take a change: it must be started with it."""


@dataclass(frozen=True, slots=True)
class ServedBy:
    """The engine that serves.

    engine: As in the manifest; None if it cannot be known. skipped: (engine, reason) of those that do not serve.
    """

    engine: Mapping[str, Any] | None
    skipped: Sequence[Sequence[str]] = ()


def who_serves(url: str, model: str) -> ServedBy:
    """Ask a server which engine serves a model. Raises RunError if it does not answer that."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models/{quote(model)}", timeout=_ASK_TIMEOUT_S) as answer:
            serving = json.load(answer)["serving"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"the server does not say who serves {model}: {error}") from error
    return ServedBy(serving["engine"], serving["skipped"])


def reconfigure(url: str, token: str, model: str, optimization: OptimizationSettings) -> None:
    """Apply the live keys of a configuration. Raises NotLive if the server refuses them or does not answer."""
    request = urllib.request.Request(
        f"{url}{ADMIN_PATH}",
        data=json.dumps({"model": model, "optimization": live_changes(optimization)}).encode(),
        headers={"Authorization": f"Bearer {token}", **_JSON},
        method="PATCH",
    )
    try:
        with urllib.request.urlopen(request, timeout=_RECONFIGURE_TIMEOUT_S) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        raise NotLive(f"the server refuses a change: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise NotLive(f"the server does not answer the admin call: {error}") from error


@dataclass(frozen=True, slots=True)
class HttpAsk:
    """Asks a server for greedy tokens.

    url: Of the server. cache_salt: Keeps these prompts apart from those of the load. encoder_decoder: True if the
    model's answer is no part of its prompt.
    """

    url: str
    model: str
    cache_salt: str = ""
    encoder_decoder: bool = False

    def __call__(self, prompt: Sequence[int], begun: Sequence[int], count: int) -> list[int]:
        """Return the greedy tokens that follow.

        Args:
            prompt: Token ids.
            begun: Tokens of the answer so far.
            count: Number of tokens to return.

        Raises:
            RunError: The server does not answer with token ids.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": count,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "cache_salt": self.cache_salt,
        }
        if self.encoder_decoder and begun:
            body["x_muai_output"] = list(begun)
        elif begun:
            body["prompt"] += begun
        request = urllib.request.Request(f"{self.url}/v1/completions", data=json.dumps(body).encode(), headers=_JSON)
        try:
            with urllib.request.urlopen(request, timeout=_TOKENS_TIMEOUT_S) as answer:
                ids: list[int] = json.load(answer)["choices"][0]["token_ids"]
                return ids
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")[:300]
            raise RunError(f"the server refuses to be asked for its greedy tokens: {told}") from error
        except (OSError, ValueError, LookupError) as error:
            raise RunError(f"the server does not answer when its greedy tokens are asked for: {error}") from error

"""Greedy answers of the model in fp32 on plain PyTorch: the reference for those of every configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from muai_lab.errors import RunError
from muai_lab.files import write_whole
from muai_lab.settings.schema import OptimizationSettings
from muai_lab.tuning.quality import ForcedAnswer, Ids, greedy_answers
from muai_lab.tuning.server_arena import ArenaSetup, ServerArena

REFERENCE = "reference.json"


class Fp32Answers:
    """The answers by the name of their prompts (see `LoadBlocks.prompts`), measured when they are first needed.

    One server of its own gives them all. They are kept in the study's directory.
    """

    def __init__(self, setup: ArenaSetup, end_tokens: frozenset[int]) -> None:
        """setup: Of the tuning. end_tokens: Of the model."""
        self._setup = setup
        self._end_tokens = end_tokens
        self._known: Mapping[str, list[ForcedAnswer]] | None = None

    def of(self, name: str) -> list[ForcedAnswer]:
        """Return the answers to these prompts. Raises RunError if fp32 cannot be served here, or without a prompt."""
        if self._known is None:
            prompts = self._setup.blocks.prompts
            if not all(prompts.values()):
                raise RunError(
                    "outputs are to be compared with those in fp32, and the workload holds no prompt that the model's "
                    "chat template takes; tuning.min_agreement=null does not compare"
                )
            self._known = self._kept(prompts) or self._ask(prompts)
        return self._known[name]

    def _kept(self, prompts: Mapping[str, list[Ids]]) -> Mapping[str, list[ForcedAnswer]] | None:
        """The answers of an earlier process of the study; None if there are none to these prompts."""
        try:
            known = json.loads((self._setup.directory / REFERENCE).read_text(encoding="utf-8"))
            found = {name: [ForcedAnswer(**entry) for entry in known[name]] for name in prompts}
        except (OSError, ValueError, TypeError, LookupError):
            return None  # none yet, or that of an earlier version of the program
        return found if {name: [one.prompt for one in answers] for name, answers in found.items()} == prompts else None

    def _ask(self, prompts: Mapping[str, list[Ids]]) -> Mapping[str, list[ForcedAnswer]]:
        self._setup.stage("asking the model in fp32 for its greedy tokens")
        plain = OptimizationSettings.model_validate(
            {
                "engine_preference": ["pytorch"],
                "models": self._setup.settings.optimization.models,
                "pytorch": {"dtype": "fp32"},
            }
        )
        arena = ServerArena(replace(self._setup, stage=lambda what: None), "reference")
        try:
            arena.apply(plain)
            found = {name: greedy_answers(arena.ask, asked, self._end_tokens) for name, asked in prompts.items()}
        except RunError as error:
            raise RunError(
                f"outputs are to be compared with those in fp32, and plain PyTorch does not serve that here: {error}; "
                "tuning.min_agreement=null does not compare"
            ) from error
        finally:
            arena.close()
        entries = {name: [asdict(answer) for answer in answers] for name, answers in found.items()}
        target = self._setup.directory / REFERENCE
        try:
            write_whole(target, json.dumps(entries) + "\n")
        except OSError as error:
            raise RunError(
                f"cannot write {target}: {error.strerror}; free space and run the same command again"
            ) from error
        return found

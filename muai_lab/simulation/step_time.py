"""A model of the duration of an engine's step, from the work in it.

The model is linear in seven features of the step, each of which takes time on every transformer:

* a forward pass for prefill, and one for decode (a fixed time each);
* prompt tokens (the matrix products), and pairs of a prompt token and a position that it attends to;
* sequences that decode, and positions that they attend to;
* positions that are copied between slots and the prefix cache.

A linear model can be fitted to measured steps by least squares (`StepTime.fit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class StepWork:
    """The work of one step.

    prefill_tokens: prompt tokens. prefill_pairs: positions that these attend to (themselves included), in total.
    decode_sequences: sequences that get one more token. decode_positions: positions that these attend to, in total.
    copied_positions: into the prefix cache, and out of it.
    """

    prefill_tokens: int = 0
    prefill_pairs: int = 0
    decode_sequences: int = 0
    decode_positions: int = 0
    copied_positions: int = 0


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds per unit of each feature, at least 0.

    prefill_s, decode_s: once for a step with prompt tokens, with sequences that decode. prefill_token_s,
    prefill_pair_s, decode_sequence_s, decode_position_s, copy_position_s: per unit of the feature of that name.
    """

    prefill_s: float
    prefill_token_s: float
    prefill_pair_s: float
    decode_s: float
    decode_sequence_s: float
    decode_position_s: float
    copy_position_s: float = 0.0

    def seconds(self, work: StepWork) -> float:
        """Return the duration of a step with this work, in seconds."""
        total = self.copy_position_s * work.copied_positions
        if work.prefill_tokens:
            total += self.prefill_s
            total += self.prefill_token_s * work.prefill_tokens + self.prefill_pair_s * work.prefill_pairs
        if work.decode_sequences:
            total += self.decode_s
            total += self.decode_sequence_s * work.decode_sequences + self.decode_position_s * work.decode_positions
        return total

    @classmethod
    def fit(cls, works: Sequence[StepWork], seconds: Sequence[float]) -> StepTime:
        """Return the coefficients with the least squared relative error over measured steps.

        The error is relative, so that the many short steps count as much as the few long ones. A coefficient that would
        be negative is fixed at 0, because the feature takes less time than the noise, and the others are fitted again.

        Args:
            works: The work of each step.
            seconds: The measured duration of each step.

        Raises:
            ValueError: There are fewer steps than coefficients.
        """
        features = np.array([_features(work) for work in works], dtype=np.float64)
        took = np.array(seconds, dtype=np.float64)
        if len(took) < len(_NAMES):
            raise ValueError(f"{len(took)} steps cannot fit {len(_NAMES)} coefficients: measure more of them")
        rows = features / took[:, None]
        used = [column for column in range(len(_NAMES)) if rows[:, column].any()]
        while True:
            scale = np.linalg.norm(rows[:, used], axis=0)  # tokens and pairs differ by orders of magnitude
            solved = np.linalg.lstsq(rows[:, used] / scale, np.ones(len(took)), rcond=None)[0] / scale
            if (solved >= 0).all():
                break
            used.pop(int(np.argmin(solved * scale)))
        coefficients = dict.fromkeys(_NAMES, 0.0)
        coefficients.update({_NAMES[column]: float(value) for column, value in zip(used, solved, strict=True)})
        return cls(**coefficients)


_NAMES = tuple(StepTime.__dataclass_fields__)


def _features(work: StepWork) -> tuple[int, ...]:
    return (
        work.prefill_tokens > 0,
        work.prefill_tokens,
        work.prefill_pairs,
        work.decode_sequences > 0,
        work.decode_sequences,
        work.decode_positions,
        work.copied_positions,
    )


EMBEDDED_CHAT = StepTime(
    prefill_s=0.0041,
    prefill_token_s=3.7e-5,
    prefill_pair_s=3.6e-8,
    decode_s=0.0031,
    decode_sequence_s=6.3e-5,
    decode_position_s=2.2e-7,
    copy_position_s=1.0e-6,
)
"""The embedded chat model on PyTorch, fp32, 2 cores: as `python -m benchmarks.step_time` fitted it (November 2026)."""

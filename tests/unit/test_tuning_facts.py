"""The facts that make the trials of a study comparable: trials of another processor are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from muai_lab.errors import RunError
from muai_lab.models.registry import ModelSource
from muai_lab.settings.lab import LabSettings
from muai_lab.tuning.facts import study_identity
from muai_lab.tuning.identity import Identity, check_same
from muai_lab.tuning.search_space import SearchSpace

SETTINGS = LabSettings()


def identity(**facts: object) -> Identity:
    machine: dict[str, Any] = {
        "cpu": "AMD EPYC", "cpu_family": "AuthenticAMD family 25 model 1", "instruction_sets": ["avx", "avx2"],
        "instruction_limits": {}, "cores": 2, "memory_bytes": 8 * 2**30, "gpus": [],
    }  # fmt: skip
    return study_identity(
        SETTINGS,
        ModelSource("small", Path(), None, "local", "c" * 64, False, "qwen2"),
        machine | facts,
        "hash",
        engine="onnx",
        space=SearchSpace(()),
        present=SETTINGS.optimization,
    )


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"instruction_sets": ["avx", "avx2", "avx512_vnni"]}, 'machine.instruction_sets: "avx avx2" in the study'),
        ({"instruction_sets": None}, '"not known" now'),
        ({"cpu_family": "AuthenticAMD family 23 model 49"}, "machine.cpu_family"),
        (
            {"instruction_limits": {"ONEDNN_MAX_CPU_ISA": "SSE41"}},
            'machine.instruction_limits: [] in the study, ["ONEDNN_MAX_CPU_ISA=SSE41"] now',
        ),
    ],
)
def test_a_study_takes_no_trials_of_another_processor(facts: dict[str, object], named: str) -> None:
    check_same(identity(), identity(), "study")

    with pytest.raises(RunError) as refused:
        check_same(identity(), identity(**facts), "study")
    assert named in str(refused.value)

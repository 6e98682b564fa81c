"""A/A noise from repeats: what is left when configurations and schedules are taken out."""

from __future__ import annotations

import numpy as np
import pytest

from muai_lab.analysis.noise import run_noise


def test_configurations_and_schedules_do_not_count_as_noise() -> None:
    # Given four configurations over five schedules, with 3 % noise on top of large effects of both
    rng = np.random.default_rng(0)
    effects = np.log([[1.0], [2.0], [4.0], [8.0]]) + rng.normal(0.0, 0.5, size=(1, 5))

    # When the noise is estimated again and again
    found = [run_noise(np.exp(effects + rng.normal(0.0, 0.03, size=(4, 5))).tolist()) for _ in range(200)]

    # Then it is the 3 %, with the degrees of freedom that are left
    assert np.mean([noise.sd for noise in found if noise]) == pytest.approx(0.03, rel=0.05)
    assert {(noise.freedom, noise.shared_schedules) for noise in found if noise} == {(12, True)}


def test_repeats_of_one_configuration_cannot_tell_schedules_from_noise() -> None:
    noise = run_noise([[1.00, 1.10, 0.90]])

    assert noise is not None
    assert (noise.freedom, noise.shared_schedules) == (2, False)
    assert noise.sd == pytest.approx(0.1, rel=0.02)
    assert noise.difference == pytest.approx(4.303 * np.sqrt(2) * noise.sd, rel=1e-3)


@pytest.mark.parametrize("figures", [[], [[1.0]], [[1.0], [2.0]], [[None, None]], [[0.0, 0.0]], [[float("nan"), 1.0]]])
def test_without_repeats_there_is_nothing_to_tell_noise_by(figures: list) -> None:
    assert run_noise(figures) is None


def test_a_repeat_that_one_configuration_lacks_is_left_out_of_all() -> None:
    noise = run_noise([[1.0, 1.1, None], [2.0, 2.2, 2.4]])

    assert noise is not None
    assert noise.freedom == 1
    assert noise.sd == pytest.approx(0.0, abs=1e-12)

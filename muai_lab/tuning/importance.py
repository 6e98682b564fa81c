"""The importance of each key in a study, by its trials."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from muai_lab.tuning.objective import Objective
from muai_lab.tuning.search_space import SearchSpace
from muai_lab.tuning.trials import TrialRecord

# With fewer configurations for each key than this, an importance is a guess.
FEWEST_FOR_A_KEY = 3


def importance_of(trials: Sequence[TrialRecord], space: SearchSpace, objective: Objective) -> dict[str, float]:
    """Return the share of each key in the differences between good trials, most important first.

    The method is PED-ANOVA (Watanabe et al. 2023). Pruned trials count with their value so far; Optuna by itself would
    use complete ones only, of which pruning leaves few. Keys with a condition are left out. The result is empty if
    there are too few different configurations, or nothing varies.
    """
    import optuna

    seen = [trial for trial in trials if trial.outcome in ("measured", "pruned") and trial.values]
    paths = [parameter.path for parameter in space if not parameter.when]
    if len({trial.key for trial in seen}) < FEWEST_FOR_A_KEY * len(paths) or not paths:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(direction=objective.direction)
        distributions = {parameter.path: parameter.distribution() for parameter in space}
        for trial in seen:
            within = {path: value for path, value in trial.point.items() if path in distributions}
            try:
                study.add_trial(
                    optuna.trial.create_trial(
                        params=within,
                        distributions={path: distributions[path] for path in within},
                        value=trial.values[0] if trial.values else None,
                    )
                )
            except ValueError:
                continue  # the present value of a key may lie beside its range
        try:
            found = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), params=paths
            )
        except (ValueError, RuntimeError):
            return {}  # the same value everywhere
    return {path: share for path, share in found.items() if share == share}

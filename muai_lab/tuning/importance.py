"""How much each key matters in a study, by what its trials show."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

# With fewer trials an importance is a guess.
FEWEST_TRIALS = 8


def importance_of(study: optuna.Study, objective: str) -> dict[str, float]:
    """Share of each key in the variation of the objective (PED-ANOVA, Watanabe et al. 2023), most important first.

    Empty where there are too few trials, or nothing varies.
    """
    import optuna

    index = list(study.metric_names or [objective]).index(objective)
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < FEWEST_TRIALS:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(
                study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                target=lambda trial: trial.values[index],
            )
        except (ValueError, RuntimeError):
            return {}  # too few points, or the same value everywhere: there is nothing to share out
    return dict(found)


def importances(study: optuna.Study, objective: str) -> list[str]:
    """Keys from the least to the most important; empty where that is not known."""
    return list(reversed(importance_of(study, objective)))

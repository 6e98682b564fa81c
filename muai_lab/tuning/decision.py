"""The second phase of a tuning: from the searches to a verdict. Keep the changes that earn their place, and confirm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from muai_lab.settings.tuning import TuningSettings
from muai_lab.tuning.arena import ConfigurationFailed
from muai_lab.tuning.bench import Unmeasurable
from muai_lab.tuning.confirmation import PairPlan, confirm
from muai_lab.tuning.contribution import Earned, changes, earn
from muai_lab.tuning.export import with_changes
from muai_lab.tuning.finalists import Searched, best_of, claimed_by_another, hoped_gain, what_keeps_the_slo
from muai_lab.tuning.importance import importance_of
from muai_lab.tuning.publication import Publication, Ruling
from muai_lab.tuning.session import TuningSession
from muai_lab.tuning.trials import Standing, TrialNoise, missed_bounds, noise_of
from muai_lab.wording import plural

_LONGER = 1.5  # windows of a second confirmation, relative to the length that the first one needed


def best_of_all(
    session: TuningSession, searches: Sequence[Searched], publication: Publication
) -> tuple[Searched, Standing] | None:
    """The best configuration of all engines; the summary of each search goes into the result."""
    publication.note(engines=(*session.left_out, *(searched.summary() for searched in searches)))
    best = best_of(searches, session.objectives[0])
    if best is not None:
        searched, standing = best
        noise = _noise(searched)
        publication.note(noise=noise.run, noise_samples=noise.samples, drift=noise.drift)
        publication.note_best(searched.engine, searched.problem, standing)
    return best


def decide(session: TuningSession, searches: Sequence[Searched], publication: Publication) -> Ruling:
    """Decide what becomes of the best configuration, with further measurements if they can confirm it.

    Raises:
        ConfigurationFailed, Unmeasurable: The best configuration cannot be measured any more.
        Interrupted: A stop was requested.
    """
    best = best_of_all(session, searches, publication)
    if not session.settings.tuning.confirm:
        return Ruling("unconfirmed", "tuning.confirm is off: only searched")
    if (other := claimed_by_another(searches[-1].study)) is not None:
        return Ruling("unconfirmed", other)
    if best is None:
        return Ruling("nothing better", "no configuration was measured to its end")
    searched, standing = best
    missed = missed_bounds(standing, searched.constraints_of_trials)
    preference = session.preference(searched.engine)
    found = changes(searched.problem.present, standing.point)
    if searched.soak_missed(standing):
        return _nothing_keeps_the_slo(session, searched, standing)
    if not found and preference is None:
        reason = f"the present configuration is the best that was found ({searched.stopped})"
        return Ruling("nothing better", reason, {"missed": missed})
    if missed is not None and _hopeless(searched, standing):
        reason = "nothing keeps every bound, so that nothing could be confirmed; lower the load or relax the slo"
        return Ruling("refused", reason, {"missed": missed})
    earned = _earned(session, searched, standing) if found else Earned({}, ())
    publication.note(
        contributions=earned.contributions,
        reduction=earned.reduction,
        changes=earned.kept,
        engine_preference=preference,
        missed=missed,
    )
    if not earned.kept and preference is None:
        return Ruling("nothing better", "no change was worth more than the noise by itself", {"changes": {}})
    today = next((one for one in searches if one.engine == session.serving_today()), None)
    hoped = hoped_gain(today, standing, searched.problem.objective)
    return _confirmed(session, searched, standing, publication, hoped)


def _noise(searched: Searched) -> TrialNoise:
    return noise_of(searched.study.records(), searched.problem.objective)


def _hopeless(searched: Searched, standing: Standing) -> bool:
    """True if the best misses its bounds by more than noise explains."""
    disagrees = standing.runs[0].violations.get("agreement", 0.0) > 0.0
    return disagrees or standing.violation > 2.0 * _noise(searched).run


def _nothing_keeps_the_slo(session: TuningSession, searched: Searched, standing: Standing) -> Ruling:
    with session.bench(searched.engine, searched.problem) as bench:
        soaks = session.soaks(searched.study, bench)
        assert soaks is not None, "there was a soak window"
        rate = session.settings.arrival.rate if session.blocks.stationary else None
        reason, missed = what_keeps_the_slo(soaks, standing, rate)
    return Ruling("refused", reason, {"missed": missed})


def _earned(session: TuningSession, searched: Searched, standing: Standing) -> Earned:
    problem = searched.problem
    count = len(changes(problem.present, standing.point))
    session.watcher.stage(f"what each of {plural(count, 'change')} is worth by itself")
    least_promising_first = list(reversed(importance_of(searched.study.records(), problem.space, problem.objective)))
    with session.bench(searched.engine, problem) as bench:
        measuring = replace(bench, soak_s=searched.soak_s(standing), noise=_noise(searched).of_runs)
        return earn(measuring, standing.point, order=least_promising_first, after_key=session.watcher.tried)


def _confirmed(
    session: TuningSession, searched: Searched, standing: Standing, publication: Publication, hoped: float | None
) -> Ruling:
    """Confirm the changes that the result holds now."""
    settings, tuning, result = session.settings, session.settings.tuning, publication.result
    winner = with_changes(settings, result.changes, result.engine_preference).optimization
    session.watcher.stage(f"confirming the winner: {tuning.confirm_pairs} pairs of runs or more, on fresh load")
    plan = PairPlan(tuning.confirm_pairs, tuning.most_pairs, hoped)
    try:
        with session.production_bench(searched.problem) as bench:
            measuring = replace(bench, soak_s=searched.soak_s(standing), noise=_noise(searched).of_runs)
            found = confirm(measuring, settings.optimization, winner, plan, session.watcher)
            if found.longer_s is not None and (seconds := _length_for(found.longer_s, tuning)) is not None:
                session.watcher.stage(f"the pairs once more, with soak windows of {seconds:.0f} s: {found.reason}")
                found = confirm(
                    replace(measuring, soak_s=seconds), settings.optimization, winner, plan, session.watcher
                )
    except (ConfigurationFailed, Unmeasurable) as error:
        return Ruling("refused", f"the confirmation failed: {error}")
    if found.accepted:
        return Ruling("confirmed", found.reason, {"confirmation": found})
    return Ruling("refused", f"the winner was not confirmed: {found.reason}", {"confirmation": found})


def _length_for(needed_s: float, tuning: TuningSettings) -> float | None:
    """Return the length of soak windows for a queue that needs so long; None if the settings do not allow it.

    The windows of a confirmation are planned by those of the search, each of which shows the memory only roughly. Pairs
    with too short windows are dropped for their length, whatever gain they show.
    """
    if tuning.soak_s is not None or needed_s > tuning.soak_most_s:
        return None
    return min(_LONGER * needed_s, tuning.soak_most_s)

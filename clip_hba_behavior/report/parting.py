"""From which epoch on two runs are not the same, by the comparison that `clip-hba diff` makes."""

from collections.abc import Sequence
from dataclasses import dataclass

from clip_hba_behavior.report.groups import shortened
from clip_hba_behavior.report.sources import RunRecord
from clip_hba_behavior.reproducibility.record.epoch import Epoch, compare_epochs
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.verification.diff import diff_runs
from clip_hba_behavior.verification.settings import Setting

_MOST_SETTINGS = 8


@dataclass(frozen=True)
class Parting:
    """Where a run leaves the first one.

    Attributes:
        run: the name of the run.
        epoch: the first that differs; None if there is none, or they could not be compared.
        what: differs in it; or what was found to be equal, or why nothing could be compared.
        settings: that differ, the likeliest cause first: the first run's value, then the run's.
    """

    run: str
    epoch: int | None
    what: str
    settings: str = ""


def partings(records: Sequence[RunRecord], session: Session) -> list[Parting]:
    """Compare each run with the first: states, ledgers and results where both are runs, else results alone."""
    first, *others = records
    found = []
    for done, other in enumerate(others, start=1):
        is_table = first.config is None or other.config is None
        found.append(_by_results(first, other) if is_table else _by_states(first, other, session))
        session.interruptible().report("comparing runs", done, len(others))
    return found


def _by_states(first: RunRecord, other: RunRecord, session: Session) -> Parting:
    try:
        difference = diff_runs(first.path, other.path, with_replay=False, session=session)
    except BadInputError as error:
        return Parting(other.name, None, f"not compared: {error}")
    if difference.epoch is not None:
        return Parting(other.name, difference.epoch, str(difference.thing), _settings(difference.settings))
    if difference.problems:
        return Parting(other.name, None, f"records disagree: {difference.problems[0]}")
    return Parting(other.name, None, f"nothing: {len(difference.epochs)} states are equal to the last bit")


def _settings(found: Sequence[Setting]) -> str:
    some = [f"{each.name} {shortened(each.first)} | {shortened(each.second)}" for each in found[:_MOST_SETTINGS]]
    more = [f"{len(found) - len(some)} more: see clip-hba diff"] if len(found) > len(some) else []
    return ", ".join([*some, *more])


def _by_results(first: RunRecord, other: RunRecord) -> Parting:
    both = sorted(first.rows.keys() & other.rows.keys())
    if not both:
        return Parting(other.name, None, "not compared: they have no epoch in common")
    for epoch in both:
        found = compare_epochs(Epoch(epoch, row=first.rows[epoch]), Epoch(epoch, row=other.rows[epoch]))
        if found:
            return Parting(other.name, epoch, f"{found[0].name} in the results")
    return Parting(other.name, None, f"nothing: the results of {len(both)} epochs are equal to the last digit")

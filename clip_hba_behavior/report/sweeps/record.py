"""What a report of sweeps is of: their plans, the rows of their runs, the effects beside their nulls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.report.sources import RunRecord, Source, read_records
from clip_hba_behavior.reproducibility.record.session import Report
from clip_hba_behavior.sweep.collected import Collected, collect
from clip_hba_behavior.sweep.effect import Effect
from clip_hba_behavior.sweep.effects import Effects, effects_of
from clip_hba_behavior.sweep.plan import Plan

# Of each measure: what it is called, and how its difference from the baseline is labelled.
MEASURE_NAMES = {"behavioral_rsa_rho": "behavioural RSA", "test_loss": "test loss"}
KIND_NAMES = {  # as in docs/PERTURBATIONS.md
    "random_target": "targets drawn at random",
    "label_shuffle": "the batch’s own targets, swapped among its images",
    "image_noise": "images in which every pixel is standard normal after normalisation",
    "uniform_images": "images in which every pixel is 0.5 after normalisation",
}
UNITS = {"behavioral_rsa_rho": "Spearman’s rho", "test_loss": "mean squared error"}


@dataclass(frozen=True)
class SweepRecord:
    """What there is of one sweep.

    Attributes:
        name: for a person, other than the names of the other sweeps of the report.
        prefix: of the names of its figures and tables, which are unique in a report; empty for a single sweep.
        file: the sweep's YAML file.
        collected: how far its runs are, and the rows of those that are done.
        baseline: the run that all are forks of.
        effects: of every perturbed run at every epoch from its first perturbed one on.
    """

    name: str
    prefix: str
    file: Path
    collected: Collected
    baseline: RunRecord
    effects: Effects

    @property
    def plan(self) -> Plan:
        """Return which runs the sweep consists of."""
        return self.collected.plan

    def has_null(self) -> bool:
        """Return whether any effect has the matched null."""
        return any(effect.matched is not None for effect in self.effects.effects)

    def runs(self, *kinds: str) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of each run of these kinds, epoch by epoch."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.collected.rows:
            if row["kind"] in kinds:
                found.setdefault(row["run"], []).append(row)
        yield from found.values()

    def effects_of(self, measure: str) -> Iterator[Effect]:
        """Yield the effects of one measure."""
        return (effect for effect in self.effects.effects if effect.measure == measure)


def read_sweep(file: Path, plan: Plan, name: str, prefix: str, report: Report) -> SweepRecord:
    """Read what there is of a sweep.

    Raises:
        BadInputError: the baseline, or a run, is not what the sweep's file says.
        StoppedError: the baseline's own results are not all there.
    """
    collected = collect(plan, report)
    baseline = read_records([Source("run", plan.baseline)])[0]
    return SweepRecord(name, prefix, file, collected, baseline, effects_of(collected.rows, later_epochs=True))


def styles_of(records: Sequence[SweepRecord]) -> Mapping[str, int]:
    """Return the colour, dash and marker of each kind: the same in every figure of a report."""
    kinds = dict.fromkeys(kind for record in records for kind in record.plan.file.kinds)
    return {kind: number for number, kind in enumerate(kinds)}

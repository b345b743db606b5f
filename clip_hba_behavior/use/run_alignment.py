"""`clip-hba alignment`: how well the model of a run agrees with people, and how sure that is."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.data.things import read_human_halves
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.rsa.dimensions import CORRECTION, DimensionCorrelations, dimension_correlations
from clip_hba_behavior.rsa.noise_ceiling import NoiseCeiling, noise_ceiling
from clip_hba_behavior.rsa.rank_correlation import rank_correlation
from clip_hba_behavior.rsa.resampling import PERMUTATIONS
from clip_hba_behavior.run.results import P_VALUE_CAVEAT, RESULTS_NAME
from clip_hba_behavior.use.alignment import Alignment, alignment_of
from clip_hba_behavior.use.evaluation import Evaluator
from clip_hba_behavior.verification.claims import ELSEWHERE

FALSE_DISCOVERY_RATE = 0.05
_NAMED = 3  # dimensions at either end


@dataclass(frozen=True)
class RunAlignment:
    """The alignment of one epoch's model, with what belongs to it.

    Attributes:
        run: its directory.
        epoch: number of completed epochs.
        synthetic: whether the data are the synthetic data set, so that nothing is said of people.
        alignment: over the held-out images.
        recorded_rho: what the run's results say of this epoch; None where they have no row of it.
        ceiling: None where no split halves are given.
        dimensions: of the embedding, over the test images.
        prompts: their names.
    """

    run: Path
    epoch: int
    synthetic: bool
    alignment: Alignment
    recorded_rho: float | None
    ceiling: NoiseCeiling | None
    dimensions: DimensionCorrelations
    prompts: tuple[str, ...]

    def agrees_with_record(self) -> bool:
        """Whether rho is the recorded one, within what another machine may differ by; true where none is."""
        if self.recorded_rho is None:
            return True
        found, recorded = self.alignment.rho, self.recorded_rho
        if math.isnan(found) or math.isnan(recorded):
            return math.isnan(found) and math.isnan(recorded)
        return abs(found - recorded) <= ELSEWHERE.absolute["behavioral_rsa_rho"]

    def to_json(self) -> str:
        """Return all of it for a program; what is undefined is null."""
        columns = (each.tolist() for each in (self.dimensions.r, self.dimensions.p, self.dimensions.p_adjusted))
        per_dimension = [
            dict(zip(("prompt", "r", "p", "p_adjusted"), row, strict=True))
            for row in zip(self.prompts, *columns, strict=True)
        ]
        content = {
            "run": str(self.run),
            "epoch": self.epoch,
            "synthetic_data": self.synthetic,
            "alignment": dataclasses.asdict(self.alignment),
            "recorded_rho": self.recorded_rho,
            "noise_ceiling": None if self.ceiling is None else self.ceiling._asdict(),
            "dimensions": {
                "correction": CORRECTION,
                "num_tests": self.dimensions.num_tests,
                "num_images": self.dimensions.num_images,
                "permutations": self.dimensions.permutations,
                "each": per_dimension,
            },
            "caveat": P_VALUE_CAVEAT,
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False)

    def lines(self) -> Iterator[str]:
        """Yield lines for a person."""
        found = self.alignment
        yield f"{self.run}, epoch {self.epoch}"
        if self.synthetic:
            yield "The data are the synthetic data set: images, targets and RDM are drawn, none is of people."
        compared = f"the {'synthetic' if self.synthetic else 'human'} RDM of {found.num_images} images"
        yield f"Spearman's rho of the model's RDM and {compared}: {found.rho:.4f}"
        yield (
            f"  {100 * found.level:.0f} % interval {found.interval[0]:.4f} to {found.interval[1]:.4f}, standard "
            f"deviation {found.sd:.4f} (percentiles of {found.resamples:,} resamples of the images)"
        )
        yield (
            f"  p {found.p_greater:.4g} one-sided, {found.p_two_sided:.4g} two-sided (Mantel's test, "
            f"{found.permutations:,} permutations of the images, under which rho's standard deviation is "
            f"{found.null_sd:.4f})" + (f"; {found.p_note()}" if found.p_note() else "")
        )
        if self.ceiling is not None:
            yield (
                f"  noise ceiling {self.ceiling.maximum:.4f}: split-half rho {self.ceiling.split_half:.4f}, "
                f"reliability {self.ceiling.reliability:.4f} (Spearman-Brown), and its root"
            )
        yield from self._dimension_lines()
        yield f"{RESULTS_NAME}: {P_VALUE_CAVEAT}"

    def _dimension_lines(self) -> Iterator[str]:
        found = self.dimensions
        yield (
            f"Pearson's r of predictions and targets over {found.num_images} test images, dimension by dimension:"
        )
        if found.num_tests:
            significant = int((found.p_adjusted <= FALSE_DISCOVERY_RATE).sum())
            yield (
                f"  median {np.nanmedian(found.r):.3f}; {significant} of {found.num_tests} differ from 0 "
                f"at a false discovery rate of {FALSE_DISCOVERY_RATE} ({found.permutations:,} permutations, "
                f"{CORRECTION})"
            )
            order = [index for index in np.argsort(-found.r, kind="stable") if not np.isnan(found.r[index])]
            for name, some in (("highest", order[:_NAMED]), ("lowest", order[::-1][:_NAMED])):
                yield f"  {name}: " + ", ".join(f"{self.prompts[each]} {found.r[each]:.3f}" for each in some)
            if left_out := [self.prompts[index] for index in np.flatnonzero(np.isnan(found.r))]:
                yield f"  not tested, because predictions or targets are constant: {', '.join(left_out)}"
        else:
            yield "  none could be tested: they are constant, or there are less than three images"


@numerics_left_as_they_were()
def align_run(
    run: Path,
    epoch: int | None,
    split_half: Path | None,
    keys: Mapping[str, Any],
    session: Session,
    permutations: int = PERMUTATIONS,
) -> RunAlignment:
    """Evaluate the model of a run against the human RDM and the test images' targets.

    Args:
        run: its directory.
        epoch: number of completed epochs; None for the best one.
        split_half: `RDM48_triplet_splithalf.mat`, for the noise ceiling.
        keys: of a configuration, where data and backbone are now.
        session: told of the progress.
        permutations: of images, of both tests.

    Raises:
        BadInputError: the run, its data, the checkpoint or the split halves cannot be used.
    """
    evaluator = Evaluator(run, keys, session)
    ceiling = None
    if split_half is not None:
        ceiling = read_ceiling(split_half, evaluator.human_rdm, evaluator.human_rdm_file)
    evaluation = evaluator.evaluate(epoch)
    row = evaluator.recorded.get(evaluation.epoch)
    return RunAlignment(
        run=evaluator.path,
        epoch=evaluation.epoch,
        synthetic=evaluator.synthetic,
        alignment=alignment_of(evaluation.held_out, evaluator.human_rdm, permutations=permutations),
        recorded_rho=None if row is None else row["behavioral_rsa_rho"],
        ceiling=ceiling,
        dimensions=dimension_correlations(evaluation.test, evaluator.test_targets, permutations),
        prompts=evaluator.prompts,
    )


def read_ceiling(split_half: Path, human_rdm: NDArray[np.float64], human_rdm_file: Path) -> NoiseCeiling:
    """Return the noise ceiling of a human RDM from RDMs of the two halves of its data.

    Args:
        split_half: `RDM48_triplet_splithalf.mat`.
        human_rdm: `[48, 48]`.
        human_rdm_file: where it was read.

    Raises:
        BadInputError: the file cannot be read, or holds halves of other data.
    """
    first, second = read_human_halves(split_half)
    ceiling = noise_ceiling(first, second)
    whole, _ = rank_correlation((first + second) / 2, human_rdm)
    if not whole > ceiling.split_half:
        raise BadInputError(
            f"{split_half} does not hold halves of the data of {human_rdm_file}\n"
            f"  rank correlation of their mean with that RDM: {whole:.4f}\n"
            f"  expected: more than that of the halves, {ceiling.split_half:.4f}\n"
            "  give the file that belongs to this RDM"
        )
    return ceiling


def _plain(value: Any) -> Any:
    """Return what JSON has a form for: what is undefined is None."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value

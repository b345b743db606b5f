"""The page of one run."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clip_hba_behavior.report.alignment import alignment_over_epochs, matrices, pairs
from clip_hba_behavior.report.blocks import Block, Command, Facts, Missing, Page, Section, Text, sentence
from clip_hba_behavior.report.certificates import Certificate
from clip_hba_behavior.report.dimensions import dimensions, galleries
from clip_hba_behavior.report.evaluation import Checkpoints, Evaluation, EveryEpoch, Parameters
from clip_hba_behavior.report.figure import Figure
from clip_hba_behavior.report.history import alignment_recorded, epoch_times, losses, trajectory
from clip_hba_behavior.report.movement import movement
from clip_hba_behavior.report.provenance import about_run, environment_facts, repeated
from clip_hba_behavior.report.sources import RunRecord
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.assembly import is_synthetic
from clip_hba_behavior.run.checkpoint import read_named
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.use.alignment import Alignment, alignment_of
from clip_hba_behavior.use.run_alignment import read_ceiling

Draw = Callable[[Figure], Figure]
_FEWEST_IMAGES = 3  # for a correlation


@dataclass(frozen=True)
class Request:
    """What a run's page is to show beside the run.

    Attributes:
        keys: of the configuration that are others than the run's, such as where the data are now.
        device: where the model computes.
        split_half: the file of the RDMs of two halves of the human data, for the noise ceiling.
        certificates: of verifications of this run.
    """

    keys: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    split_half: Path | None = None
    certificates: Sequence[Certificate] = ()


@numerics_left_as_they_were()
def run_page(
    record: RunRecord, request: Request, session: Session, draw: Draw = lambda figure: figure
) -> tuple[Page, list[str]]:
    """Make the page of a run.

    Args:
        record: of the run.
        request: what to show.
        session: told of the progress.
        draw: given each figure as soon as it is there, and returns it.

    Returns:
        The page, and a line for each thing that was left out because something could not be read.

    Raises:
        BadInputError: `split_half` cannot be read, or holds halves of other data.
    """
    training = [draw(losses(record)), draw(trajectory(record))]
    time = _time(record, draw)
    checkpoints, left_out = _read_checkpoints(record, session)
    left_out = [*record.notes, *left_out]
    parameters = _parameters(record, checkpoints, draw)
    evaluation: Evaluation | None = None
    every: EveryEpoch | None = None
    problem = ""
    if any(epoch in record.rows for epoch in checkpoints):
        try:
            models = Checkpoints(record, checkpoints, request.keys, request.device, session)
            evaluation = models.best()
            # drawn while the other checkpoints predict, the one that takes longest first
            dimension_blocks, of_the_best = _dimensions(record, evaluation, draw), _of_the_best(evaluation, draw)
            every = models.every_epoch()
        except BadInputError as error:
            evaluation, problem = None, str(error)
    else:
        problem = f"{record.path} has no checkpoint of an epoch with results"
    if evaluation is None or every is None:
        left_out.append(problem)
        alignment = None
        missing = _no_data(record, "intervals, RDMs and pairs", problem)
        alignment_blocks: list[Block] = [draw(alignment_recorded(record)), missing]
        dimension_blocks = [_no_data(record, "dimensions and images", problem)]
    else:
        alignment = alignment_of(evaluation.predictions, evaluation.human_rdm)
        alignment_blocks = [*_over_epochs(record, request, evaluation, every, draw), *of_the_best]
    sections = [
        Section("summary", "Summary", _summary(record, request, evaluation, every, alignment)),
        Section("training", "Training", training),
        Section("alignment-with-people", "Alignment with people", alignment_blocks),
        Section("dimensions-and-images", "Dimensions and images", dimension_blocks),
        Section("parameters", "Parameters", parameters),
        Section("time", "Time", time),
        Section("environment", "Environment", [Facts(environment_facts(record))]),
        Section("repeat", "Repeat it", _repeat(record)),
    ]
    if left_out:
        told = [Text(sentence(_relative(record, each))) for each in left_out]
        sections[0] = Section("summary", "Summary", [*sections[0].blocks, *told])
    lead = "A CLIP fine-tuned on human behaviour: what this run did, epoch by epoch, and what its model predicts."
    return Page("index.html", f"Run {record.name}", lead, sections), left_out


def _relative(record: RunRecord, problem: str) -> str:
    """Return what is wrong with the names of the run's own files below its directory: a page may be handed on."""
    return problem.replace(f"{RunDirectory.at(record.path).path}/", "").replace(f"{record.path.absolute()}/", "")


def _read_checkpoints(record: RunRecord, session: Session) -> tuple[dict[int, Parameters], list[str]]:
    """Return the parameters of each checkpoint, and why others could not be read."""
    files = list_checkpoints(RunDirectory.at(record.path).checkpoints)
    found: dict[int, Parameters] = {}
    problems = []
    for done, (epoch, path) in enumerate(files.items(), start=1):
        try:
            found[epoch] = read_named(path).parameters
        except BadInputError as error:
            problems.append(str(error))
        session.interruptible().report("reading checkpoints", done, len(files))
    return found, problems


def _summary(
    record: RunRecord,
    request: Request,
    evaluation: Evaluation | None,
    every: EveryEpoch | None,
    alignment: Alignment | None,
) -> list[Block]:
    best = record.best_epoch() if evaluation is None else evaluation.epoch
    row = record.rows[best]
    which = "with the lowest test loss"
    if best != record.best_epoch():
        which += f" of those with a checkpoint that can be read; epoch {record.best_epoch()} has a lower one"
    facts = [*about_run(record), ("Model looked at", f"that of epoch {best}, {which}{_named_best(record)}")]
    facts.append(
        (
            "Test loss",
            f"{row['test_loss']:.4f} (mean squared error of the test images; the epoch was chosen by it)",
        )
    )
    if alignment is None:
        facts.append(("Behavioural RSA", f"{row['behavioral_rsa_rho']:.3f} (Spearman’s rho, as recorded)"))
    else:
        low, high = alignment.interval
        facts += [
            (
                "Behavioural RSA",
                f"{alignment.rho:.3f} (Spearman’s rho), {alignment.level:.0%} interval {low:.3f} to {high:.3f} by "
                f"{alignment.resamples:,} resamples of the {alignment.num_images} images",
            ),
            (
                "Its p",
                f"{alignment.p_greater:.4f}, one-sided, by {alignment.permutations:,} permutations of the images’ "
                f"labels (Mantel){f'; {note}' if (note := alignment.p_note()) else ''}",
            ),
        ]
    if every is not None:
        same = every.largest_difference == 0
        found = "equal in every epoch" if same else f"within {every.largest_difference:.2g} in every epoch"
        if math.isinf(every.largest_difference):
            found = "not equal: in an epoch, one of the two is undefined"
        facts.append(("Recorded RSA and that of the checkpoints", found))
    blocks: list[Block] = [Facts(facts)]
    blocks += [Facts(each.facts()) for each in request.certificates]
    if not request.certificates:
        verify = command_line("verify", "checkpoints", record.path, "--json", record.path / "certificate.json")
        blocks.append(
            Missing("a certificate", "None of this run’s is in its directory, and none was named.", verify)
        )
    return blocks


def _named_best(record: RunRecord) -> str:
    """Say so where `best.json`, which counts the state before training too, names an epoch without results."""
    try:
        named, loss = RunDirectory.at(record.path).read_best()
    except BadInputError as error:
        return f". {sentence(_relative(record, str(error)))}"
    if named in record.rows:
        return ""
    return (
        f". Its loss was lower still after epoch {named} ({loss:.4f}), with which the run began: best.json names "
        "that one, and clip-hba predict, rdm, alignment and export take it unless told another --epoch"
    )


def _over_epochs(
    record: RunRecord, request: Request, evaluation: Evaluation, every: EveryEpoch, draw: Draw
) -> list[Block]:
    ceiling = None
    if request.split_half is not None:
        ceiling = read_ceiling(request.split_half, evaluation.human_rdm, evaluation.human_rdm_file)
    blocks: list[Block] = [draw(alignment_over_epochs(record, every, ceiling))]
    if ceiling is None and not (record.config is not None and is_synthetic(record.config)):  # it has no halves
        again = command_line("report", record.path, "--split-half", "RDM48_triplet_splithalf.mat")
        blocks.append(
            Missing("the noise ceiling", "The RDMs of two halves of the human data were not given.", again)
        )
    return blocks


def _of_the_best(evaluation: Evaluation, draw: Draw) -> list[Block]:
    if np.isnan(evaluation.model_rdm()).any():
        why = "The model predicts the same value in all dimensions of an image: its correlations are undefined."
        return [Missing("RDMs and pairs", why)]
    return [draw(matrices(evaluation)), draw(pairs(evaluation))]


def _dimensions(record: RunRecord, evaluation: Evaluation, draw: Draw) -> list[Block]:
    assert record.config is not None  # without it nothing is evaluated
    if len(evaluation.test_images) < _FEWEST_IMAGES:
        return [Missing("dimensions and images", f"There are fewer than {_FEWEST_IMAGES} test images.")]
    text = (
        "Error: mean squared error over the dimensions, of test images; the epoch was chosen by their mean. Below "
        "it the largest ones, predicted and measured."
    )
    return [draw(dimensions(evaluation)), Text(text), *galleries(evaluation, record.config.preprocessing)]


def _no_data(record: RunRecord, what: str, problem: str) -> Missing:
    again = command_line("report", record.path, "--config", "where-the-data-are.yaml")
    why = f"They need the run’s data, backbone and checkpoints. {sentence(_relative(record, problem))}"
    return Missing(what, why, again)


def _parameters(record: RunRecord, checkpoints: Mapping[int, Parameters], draw: Draw) -> list[Block]:
    if len(checkpoints) < 2:
        return [Missing("what moved in the parameters", "There are fewer than two checkpoints.")]
    return [draw(movement(record, checkpoints))]


def _time(record: RunRecord, draw: Draw) -> list[Block]:
    found = epoch_times(record)
    return [Missing("times", "The run’s log tells of none.")] if found is None else [draw(found)]


def _repeat(record: RunRecord) -> list[Block]:
    again = Path(f"{RunDirectory.at(record.path).path.name}-again")
    return [
        Command("This trains the run again, from its recorded configuration:", repeated(record, again)),
        Command(
            "This finds the first bit in which the two differ, if any:", command_line("diff", record.path, again)
        ),
    ]

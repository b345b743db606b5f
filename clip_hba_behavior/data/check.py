"""Look at everything that a run would read, and say all that is wrong with it at once."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_hba_behavior.config import PreprocessingRule
from clip_hba_behavior.data.image_files import find_images, missing_images_message
from clip_hba_behavior.data.problems import group_problems
from clip_hba_behavior.data.row_order import RowOrder, row_order, wrong_order_message
from clip_hba_behavior.data.survey import Survey, survey_images
from clip_hba_behavior.data.things import (
    NUM_DIMENSIONS,
    NUM_HUMAN_IMAGES,
    TARGET_FAULTS,
    AnnotationTable,
    DataError,
    Fault,
    examine_annotations,
    read_human_rdm,
    read_prompts,
    unsafe_name_reason,
)

# In the right order THINGS' rows reach 0.86, in alphabetical order 0.04. A run warns of less, see `row_order`: a
# model's targets may agree with people less than these do.
LEAST_ROW_ORDER_CORRELATION = 0.5
_SHOWN = 5


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found.

    Attributes:
        num_train_images: rows of the training table.
        num_inference_images: rows of the held-out images' table.
        num_missing: images of both tables that are not there.
        num_bad_targets: targets of both tables that are no finite number.
        num_duplicates: rows whose image stands in an earlier row of the same table.
        num_overlapping: images that stand in both tables.
        prompts: none where they cannot be read.
        row_order: how far the held-out targets agree with the human RDM; None where that cannot be computed.
        survey: what was found in the images.
        problems: sentences; none if all is well.
        model: further lines, on backbone and tokenizer; see `assembly.check_data_of`.
    """

    num_train_images: int
    num_inference_images: int
    num_missing: int
    num_bad_targets: int
    num_duplicates: int
    num_overlapping: int
    prompts: tuple[str, ...]
    row_order: RowOrder | None
    survey: Survey
    problems: tuple[str, ...]
    model: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether a run can use the data."""
        return not self.problems

    def __str__(self) -> str:
        """Return the counts, then the problems, for a terminal."""
        images = self.survey
        modes = ", ".join(f"{count} {mode}" for mode, count in images.modes.items())
        lines = [
            f"training images:       {self.num_train_images}",
            f"held-out images:       {self.num_inference_images}",
            f"in both tables:        {self.num_overlapping}",
            f"duplicate rows:        {self.num_duplicates}",
            f"missing images:        {self.num_missing}",
            f"unreadable images:     {len(images.unreadable)}",
            f"image modes:           {modes or 'none'}",
            f"turned by EXIF:        {images.num_turned}",
            f"small images:          {images.num_small}",
            f"one-coloured images:   {images.num_constant}",
            f"equal images:          {images.num_equal}",
            f"bad targets:           {self.num_bad_targets}",
            f"prompts:               {len(self.prompts)}",
            *self.model,
            f"row order correlation: {self.row_order or 'unknown'}",
        ]
        if images.unusual:
            lines += ["unusual, but no problem:", *(f"- {text}" for text in images.unusual)]
        if self.ok:
            return "\n".join([*lines, "no problems"])
        count = "1 problem:" if len(self.problems) == 1 else f"{len(self.problems)} problems:"
        return "\n".join([*lines, count, *(f"- {text}" for text in self.problems)])


@dataclass
class _Findings:
    """Counts and sentences gathered on the way."""

    num_bad_targets: int = 0
    num_duplicates: int = 0
    problems: list[str] = field(default_factory=list)


def check_data(
    csv_file: Path,
    img_dir: Path,
    inference_csv_file: Path,
    rdm_file: Path,
    prompts_file: Path,
    *,
    image_suffix: str | None = None,
    num_prompts: int = NUM_DIMENSIONS,
    rule: PreprocessingRule = 2,
    image_size: int = 224,
    progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Check tables, images, row order and prompts; what is wrong with one keeps no other from being checked.

    Args:
        csv_file: table of the training images.
        img_dir: the directory of all images.
        inference_csv_file: table of the held-out images.
        rdm_file: `RDM48_triplet.mat`.
        prompts_file: one prompt a line.
        image_suffix: of the files, if it is not that of the names in the tables.
        num_prompts: how many are expected.
        rule: by which images are read: the configuration's `preprocessing`.
        image_size: of the backbone; smaller images are counted.
        progress: called after each image with the number opened and the number to open.
    """
    findings = _Findings()
    train = _check_table(csv_file, findings)
    inference = _check_table(inference_csv_file, findings)
    train_names, inference_names = (table.image_names if table else () for table in (train, inference))

    overlap = sorted(set(train_names) & set(inference_names))
    if overlap:
        findings.problems.append(overlap_message(overlap, csv_file, inference_csv_file))
    names = dict.fromkeys(name for name in (*train_names, *inference_names) if not unsafe_name_reason(name))
    num_missing, present = _find_images(img_dir, tuple(names), image_suffix, findings)
    survey = survey_images(present, rule, image_size, progress)
    findings.problems.extend(group_problems((_reason(message), message) for message in survey.unreadable))
    order = _check_row_order(inference, rdm_file, findings)
    try:
        prompts = read_prompts(prompts_file, num_prompts)
    except DataError as error:
        findings.problems.append(str(error))
        prompts = ()
    return DataReport(
        num_train_images=len(train_names),
        num_inference_images=len(inference_names),
        num_missing=num_missing,
        num_bad_targets=findings.num_bad_targets,
        num_duplicates=findings.num_duplicates,
        num_overlapping=len(overlap),
        prompts=prompts,
        row_order=order,
        survey=survey,
        problems=tuple(findings.problems),
    )


def _check_table(path: Path, findings: _Findings) -> AnnotationTable | None:
    table, problems = examine_annotations(path)
    faults = [problem.fault for problem in problems]
    findings.num_bad_targets += sum(fault in TARGET_FAULTS for fault in faults)
    findings.num_duplicates += faults.count(Fault.DUPLICATE)
    findings.problems.extend(group_problems((problem.kind(), problem.message) for problem in problems))
    return table


def _find_images(
    img_dir: Path, names: Sequence[str], suffix: str | None, findings: _Findings
) -> tuple[int, list[Path]]:
    """Return how many images are missing, and where the others are."""
    try:
        found = find_images(img_dir, names, suffix)
    except DataError as error:
        findings.problems.append(str(error))
        return (0 if img_dir.is_dir() else len(names)), []
    present = [path for path in found if path is not None]
    if len(present) < len(names):
        findings.problems.append(missing_images_message(img_dir, names, found, suffix))
    return len(names) - len(present), present


def _check_row_order(table: AnnotationTable | None, rdm_file: Path, findings: _Findings) -> RowOrder | None:
    """Compare the held-out targets with the human RDM, if there are both."""
    try:
        human_rdm = read_human_rdm(rdm_file)
    except DataError as error:
        findings.problems.append(str(error))
        return None
    if table is None:
        return None
    if len(table.image_names) != NUM_HUMAN_IMAGES:
        findings.problems.append(
            f"{table.path} has {len(table.image_names)} images\n"
            f"  expected: {NUM_HUMAN_IMAGES}, one for each row of {rdm_file}\n  give the table of these images"
        )
        return None
    order = row_order(table.targets, human_rdm)
    if order is None:  # a bad target, which is a problem already, or a constant row or RDM
        findings.problems.append(
            f"{table.path}: the order of the rows cannot be checked against {rdm_file}: "
            "the correlation is undefined; repair bad or constant targets"
        )
    elif order.looks_wrong or order.rho < LEAST_ROW_ORDER_CORRELATION:
        expected = f"at least {LEAST_ROW_ORDER_CORRELATION}"
        findings.problems.append(wrong_order_message(order, table.path, rdm_file, expected))
    return order


def _reason(message: str) -> str:
    """Return why an image cannot be read, without what is this image's own: its path, numbers, values."""
    return re.sub(r"\d+|'.*'", "", message.partition(": ")[2])


def overlap_message(names: Sequence[str], csv_file: Path | str, inference_csv_file: Path | str) -> str:
    """Return the message on images that are both trained on and held out."""
    some = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    count = "1 image stands" if len(names) == 1 else f"{len(names)} images stand"
    return (
        f"{count} in both {csv_file} and {inference_csv_file}: {some}; held-out images must not be trained on\n"
        "  remove them from one of the tables"
    )

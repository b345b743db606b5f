"""The page of one run."""

from clip_hba_behavior.report.blocks import Page, Section
from clip_hba_behavior.report.history import losses, trajectory
from clip_hba_behavior.report.sources import RunRecord


def run_page(record: RunRecord) -> Page:
    """Return the page of a run."""
    return Page(
        "index.html",
        f"Run {record.name}",
        "CLIP fine-tuned on human behaviour: what one run did, epoch by epoch.",
        [Section("training", "Training", [losses(record), trajectory(record)])],
    )

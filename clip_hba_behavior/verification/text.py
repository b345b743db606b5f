"""A verification for a person: a block an epoch, a table, one closing line."""

import io

from rich import box
from rich.console import Console
from rich.table import Table

from clip_hba_behavior.reproducibility.record.judge import MEANING, Verdict
from clip_hba_behavior.run.results import P_VALUE_CAVEAT
from clip_hba_behavior.verification.outcome import COMPLETE, EpochOutcome, Metric, Verification, percent

_LABELS = {
    "train_loss": "Train Loss: ",
    "test_loss": "Test Loss:  ",
    "behavioral_rsa_rho": "RSA Rho:    ",
    "behavioral_rsa_p_value": "RSA p-value:",
}
_HEADLINES = {
    Verdict.REPRODUCIBLE: "✅ EPOCH {} PASSED: Training results are reproducible!",
    Verdict.CONSISTENT: "✅ EPOCH {} PASSED: Training results are consistent.",
    Verdict.DIFFERENT: "❌ EPOCH {} FAILED: Training results are not reproducible.",
    Verdict.UNTESTED: "❔ EPOCH {} could not be tested.",
}


def epoch_block(outcome: EpochOutcome) -> str:
    """Return what an epoch showed, in the guide's form."""
    lines = [*outcome.notes, _HEADLINES[outcome.word].format(outcome.epoch)]
    if outcome.holds != COMPLETE:
        lines.append(f"   The file holds {outcome.holds}, not {COMPLETE}.")
    if outcome.order:
        lines.append(f"   Batch order: {outcome.order}")
    if outcome.max_parameter_difference is not None:
        tensors = outcome.num_differing_tensors
        lines.append(
            f"   Maximum parameter difference: {outcome.max_parameter_difference:.2e}"
            + ("" if tensors is None else f"  ({_tensors_differ(tensors)})")
        )
    elif outcome.num_differing_tensors is not None:
        lines.append(f"   Digests of the state in the ledger: {_tensors_differ(outcome.num_differing_tensors)}")
    lines += [f"   {_metric(each)}" for each in outcome.metrics]
    lines += ["   " + line.replace("\n", "\n   ") for line in outcome.differences]
    if outcome.cause is not None:
        label = "Why not every bit" if outcome.word is Verdict.CONSISTENT else "Likely cause"
        lines.append(f"   {label}: {outcome.cause}")
    return "\n".join(lines)


def _tensors_differ(number: int) -> str:
    return "0 bits differ" if number == 0 else "1 tensor differs" if number == 1 else f"{number} tensors differ"


def _metric(metric: Metric) -> str:
    if metric.same():
        return f"{_LABELS[metric.name]} 0.00% difference"
    if metric.name.endswith("p_value"):  # of values such as 1e-50 a ratio says nothing
        return f"{_LABELS[metric.name]} {metric.recorded:.3g} recorded, {metric.replayed:.3g} replayed"
    return f"{_LABELS[metric.name]} {percent(metric.relative_difference())} difference"


def summary(verification: Verification) -> str:
    """Return the table of all epochs, what concerns the whole run, and the closing line."""
    # within 80 columns
    table = Table(title="All epochs: tensors that differ, and by how much; losses and RSA", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    for column in ("epoch", "verdict", "level", "differing", "largest", "train", "test", "RSA"):
        table.add_column(column, justify="left" if column == "verdict" else "right")
    for each in verification.epochs:
        metrics = {metric.name: metric for metric in each.metrics}
        largest = each.max_parameter_difference
        table.add_row(
            str(each.epoch),
            each.word.value,
            each.claim.level if each.claim is not None else "-",
            "-" if each.num_differing_tensors is None else str(each.num_differing_tensors),
            "-" if largest is None else f"{largest:.1e}",
            *(
                percent(metrics[name].relative_difference()) if name in metrics else "-"
                for name in ("train_loss", "test_loss")
            ),
            _absolute(metrics.get("behavioral_rsa_rho")),
        )
    text = io.StringIO()
    Console(file=text, width=80, highlight=False).print(table)
    lines = [text.getvalue().rstrip()]
    lines += [f"note: {note}" for note in verification.notes]
    if any(metric.name == "behavioral_rsa_p_value" for each in verification.epochs for metric in each.metrics):
        lines.append(f"note: {P_VALUE_CAVEAT}")
    lines += [f"problem: {problem}" for problem in verification.problems]
    claim = verification.claim()
    if claim is not None and not claim.is_complete:
        lines += [f"equal bits are not claimed: {reason}" for reason in claim.reasons]
    elif claim is not None:
        lines.append(f"claim level {claim.level}: {MEANING[claim.level]}")
        lines += [f"  because {reason}" for reason in claim.reasons]
    lines.append(closing_line(verification))
    return "\n".join(lines)


def _absolute(metric: Metric | None) -> str:
    return "-" if metric is None else f"{abs(metric.replayed - metric.recorded):.1e}"


def closing_line(verification: Verification) -> str:
    """Return the verdict in one line."""
    word, epochs = verification.word(), verification.epochs
    counts = {each: sum(outcome.word is each for outcome in epochs) for each in Verdict}
    extent = f"the first {verification.num_steps} steps of " if verification.num_steps else ""
    if word is Verdict.REPRODUCIBLE:
        compared = "every batch and loss" if verification.num_steps else "every state, step and result"
        compared += " on record" if verification.notes else ""
        return f"reproducible: {extent}{len(epochs)} of {len(epochs)} epochs repeat to the last bit, {compared}"
    if word is Verdict.CONSISTENT:
        name = "consistent" if verification.is_complete() else "consistent but not complete"
        largest = verification.largest_difference()
        return (
            f"{name}: {extent}{_epochs(len(epochs))} within tolerance"
            + (f", {largest}" if largest is not None else "")
            + "; equal bits are not claimed"
        )
    tail = ", ".join(f"{count} {each.value}" for each, count in counts.items() if count)
    first = next((each.epoch for each in epochs if each.word is word), None)
    where = f"; first: epoch {first}" if first is not None else "; the run's records disagree"
    return f"{word.value}: of {_epochs(len(epochs))} {tail}{where}"


def _epochs(number: int) -> str:
    return f"{number} epoch{'s' if number != 1 else ''}"

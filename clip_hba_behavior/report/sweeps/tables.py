"""Tables of a sweep: its controls, effects and claims, and the runs that are not in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from clip_hba_behavior.report.blocks import Block, Command, Facts, Missing, Text, Titled, sentence
from clip_hba_behavior.report.figure import Cell, Table
from clip_hba_behavior.report.sweeps.null import LEVEL
from clip_hba_behavior.report.sweeps.record import SweepRecord
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.sweep.collected import not_in_the_table
from clip_hba_behavior.sweep.columns import EFFECT_COLUMNS
from clip_hba_behavior.sweep.nulls import least_p_text

_SHOWN_EFFECTS = (
    "kind", "length", "start_epoch", "seed", "measure", "when", "epoch", "effect", "matched_null_runs",
    "matched_null_mean", "matched_null_spread", "matched_p_value", "family_epoch_p_value", "adjusted_p_value",
    "wider_null_runs", "wider_p_value",
)  # fmt: skip


def controls(record: SweepRecord) -> list[Block]:
    """Say of how many unperturbed forks every bit is the baseline's, and name those that differ."""
    there, failed = record.collected.controls(), record.collected.failed_controls()
    if not there:
        why = "The sweep has none that is done: unperturbed forks, which must be the baseline."
        if record.plan.file.controls:
            return [Missing("controls", why, command_line("sweep", "resume", record.file))]
        return [
            Missing("controls", f"{why} Set controls: true in the sweep’s file, and run it again.", _run(record))
        ]
    rows = [_control_row(rows) for rows in record.runs("none")]
    blocks: list[Block] = [
        Text(f"{len(there) - len(failed)} of {len(there)} controls are equal to the baseline to the last bit."),
        Titled(
            f"{record.prefix}controls",
            "Controls",
            "Forks without a perturbation. Equal: the SHA-256 of the complete training state (parameters, "
            "optimizer, random streams, counters) is the baseline’s after every epoch.",
            Table(("control", "first epoch", "epochs compared", "equal", "first epoch that differs"), rows),
        ),
    ]
    for name in failed:
        where = command_line("diff", record.plan.baseline, record.plan.path(name))
        blocks.append(
            Command(f"Control {name} is not the baseline, so no effect here can be trusted. Where:", where)
        )
    return blocks


def _control_row(rows: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    first = rows[0]
    differs = next((row["epoch"] for row in rows if not row["equals_baseline"]), None)
    return first["run"], first["perturb_epoch"], len(rows), differs is None, differs


def effects(record: SweepRecord) -> list[Block]:
    """Return the claims, the table of effects, and what is said beside them."""
    blocks: list[Block] = []
    if record.collected.rows and not record.has_null():
        why = (
            "There is no matched null, so no effect has a p: add null_seeds: 19 to the sweep’s file (19 is the "
            "least for 0.05), and run it again; what is done stays."
        )
        blocks.append(Missing("p-values", why, _run(record)))
    blocks += [Text(sentence(note)) for note in record.effects.notes if record.has_null()]
    if record.has_null():
        blocks.append(Text(_least_p_text(record)))
    if record.effects.families:
        blocks += [_claims(record), _rules("family_p_value", "family_epoch_p_value", "adjusted_p_value")]
    rows = list(record.effects.rows())
    if rows:
        blocks += [
            Titled(
                f"{record.prefix}effects",
                "Effects beside their nulls",
                "Each run alone, not corrected for their number. The rules of the columns stand below.",
                Table(_SHOWN_EFFECTS, [tuple(row[name] for name in _SHOWN_EFFECTS) for row in rows]),
            ),
            _rules(*_SHOWN_EFFECTS[5:]),
        ]
    return blocks


def _least_p_text(record: SweepRecord) -> str:
    """Say which p is the least, so that it is not taken for a measure of the effect."""
    sizes = {
        "matched": [len(each.matched.effects) for each in record.effects.effects if each.matched is not None],
        "wider": [len(each.wider.effects) for each in record.effects.effects if each.wider is not None],
    }
    least = ", ".join(
        f"{least_p_text(size)} is the least that {size} null runs can give ({name} null)"
        for name, those in sizes.items()
        for size in sorted({min(those), max(those)} if those else ())
    )
    return f"{sentence(least)} An effect larger than all of theirs has that p, however large it is."


def _rules(*columns: str) -> Facts:
    """Return how columns come about, each beside its name."""
    return Facts([(name, EFFECT_COLUMNS[name].rule) for name in columns])


def _claims(record: SweepRecord) -> Titled:
    rows: list[tuple[Cell, ...]] = [
        (
            each.kind,
            each.length,
            each.seed,
            each.measure,
            each.when,
            len(each.start_epochs),
            len(each.null_seeds),
            each.p_value,
            _at_most(each.start_epochs, each.epoch_p_values),
            "too few null runs"
            if each.adjusted_p_values is None
            else _at_most(each.start_epochs, each.adjusted_p_values),
        )
        for each in record.effects.families
    ]
    return Titled(
        f"{record.prefix}claims",
        "One claim for all start epochs",
        "Each row asks once whether the perturbation did anything at any of its m start epochs; nothing corrects "
        "across the rows. Claimed: family_epoch_p_value of at most 0.05. Found: adjusted_p_value of at most 0.05.",
        Table(
            (
                "kind", "length", "seed", "measure", "when", "m", "K", "family_p_value", "claimed at epochs",
                "found by Benjamini and Hochberg",
            ),
            rows,
        ),
    )  # fmt: skip


def _at_most(starts: Sequence[int], p_values: Sequence[float]) -> str:
    chosen = [str(start) for start, p in zip(starts, p_values, strict=True) if p <= LEVEL]
    return ", ".join(chosen) or "none"


def not_there(record: SweepRecord) -> list[Block]:
    """Name the runs that are missing, under way, failed or left out, with the command that goes on."""
    collected = record.collected
    others = {name: found for name, found in collected.states.items() if found.state != "done"}
    blocks: list[Block] = []
    rows: list[tuple[Cell, ...]] = [
        (name, found.state, found.epoch, " ".join(found.detail.split())) for name, found in others.items()
    ]
    rows += [
        (name, "damaged", collected.states[name].epoch, " ".join(problem.split()))
        for name, problem in collected.problems.items()
        if name not in others
    ]
    if rows:
        blocks += [
            Titled(
                f"{record.prefix}not-there",
                "Runs that are not in this report",
                f"{len(rows)} of {len(collected.states)} runs.",
                Table(("run", "state", "newest epoch", "what is wrong"), rows),
            ),
            Command("This does what is missing, and nothing else:", command_line("sweep", "resume", record.file)),
        ]
    else:
        blocks.append(Text(f"All {len(collected.states)} runs of the sweep are done and in this report."))
    blocks += [Text(sentence(line.strip())) for line in not_in_the_table(record.plan)]
    return blocks


def _run(record: SweepRecord) -> str:
    return command_line("sweep", "run", record.file)

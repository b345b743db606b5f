"""The page of several sweeps: effects over their baselines, each of which counts once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from clip_hba_behavior.report.blocks import Block, Facts, Page, Section, Text, Titled, sentence
from clip_hba_behavior.report.figure import Figure, Level, Mark, Panel, Series, Table
from clip_hba_behavior.report.groups import groups_of
from clip_hba_behavior.report.sweeps.by_start import epochs_text, start_panel
from clip_hba_behavior.report.sweeps.null import LEVEL
from clip_hba_behavior.report.sweeps.record import MEASURE_NAMES, SweepRecord
from clip_hba_behavior.run.checkpoint_files import name_epochs
from clip_hba_behavior.sweep.claims import OverBaselines
from clip_hba_behavior.sweep.effect import When
from clip_hba_behavior.sweep.effects import Effects, effects_of

_TITLES: dict[When, str] = {
    "perturbed": "after the first perturbed epoch",
    "window_end": "after the last perturbed epoch",
    "last": "at the end",
}


def over_baselines_page(records: Sequence[SweepRecord], files: Sequence[str], styles: Mapping[str, int]) -> Page:
    """Make the page of several sweeps, or of one that has several baselines.

    Args:
        records: of the sweeps, two or more; several may have one baseline.
        files: of their own pages.
        styles: the colour, dash and marker of each kind.
    """
    effects = effects_of([row for record in records for row in record.collected.rows])
    sections = [Section("summary", "Summary", _summary(records, effects))]
    whens: tuple[When, ...] = ("perturbed", "window_end", "last")
    for when in whens:
        chosen = [each for each in effects.over_baselines if each.when == when]
        figures = [
            _figure(of, when, measure, styles)
            for measure in MEASURE_NAMES
            if (of := [each for each in chosen if each.measure == measure])
        ]
        if figures:
            sections.append(Section(when.replace("_", "-"), _TITLES[when].capitalize(), figures))
    if effects.over_baselines:
        sections.append(Section("numbers", "Numbers", [_table(effects.over_baselines)]))
    lead = (
        "The same perturbations of several baselines: what they did in all of them."
        if len(_baselines(records, effects)) > 1
        else "Several sweeps of one baseline: each has its own page, and nothing is averaged over baselines."
    )
    links = [(file, f"Sweep {record.name}") for file, record in zip(files, records, strict=True)]
    return Page("index.html", _title(records), lead, sections, links)


def _title(records: Sequence[SweepRecord]) -> str:
    if len({record.plan.directory for record in records}) == 1:
        return f"Sweep {records[0].plan.directory.name} of {len(records)} baselines"
    return f"{len(records)} sweeps"


def _baselines(records: Sequence[SweepRecord], effects: Effects) -> set[str]:
    """Return a directory of each baseline; that of a sweep without a finished run is known by its path alone."""
    paths = [record.plan.baseline for record in records]
    return {effects.baselines.first_of.get(str(path), str(path.resolve())) for path in paths}


def _summary(records: Sequence[SweepRecord], effects: Effects) -> list[Block]:
    facts = [
        (
            record.name,
            f"{record.collected.num_done()} of {len(record.collected.states)} runs done; baseline "
            f"{record.plan.baseline.name}; controls equal to the last bit: "
            f"{len(record.collected.controls()) - len(record.collected.failed_controls())} of "
            f"{len(record.collected.controls())}{_claims(record)}",
        )
        for record in records
    ]
    notes = list(effects.baselines.notes())
    of_sweeps: dict[str, list[str]] = {}  # of each note the sweeps that have it
    for record in records:
        for note in record.effects.notes:
            of_sweeps.setdefault(note, []).append(record.name)
    texts = [
        "The baseline is the random unit: runs of one baseline share its weights and its order of images, so they "
        "are not independent of each other. An effect of a baseline is the mean over its seeds; each baseline "
        "counts once.",
        *(f"{', '.join(names)}: {note}." for note, names in of_sweeps.items() if note not in notes),
        *_differing_baselines(records),
    ]
    texts += [sentence(note) for note in notes]
    if len(_baselines(records, effects)) == 1:
        texts.append(f"All have the baseline {records[0].plan.baseline.name}: a mean over baselines takes two.")
    elif not effects.over_baselines:
        texts.append("No effect is there in two baselines or more yet.")
    return [Facts(facts), *(Text(each) for each in texts)]


def _claims(record: SweepRecord) -> str:
    """Say how many of a sweep's claims hold: an interval over few baselines may hold 0 where each is clear."""
    families = record.effects.families
    held = sum(each.p_value <= LEVEL for each in families)
    return f"; claims with p of at most {LEVEL}: {held} of {len(families)}" if families else ""


def _differing_baselines(records: Sequence[SweepRecord]) -> list[str]:
    """Say which settings the baselines do not share: a mean over them is then over the settings too."""
    groups = groups_of([replace(record.baseline, name=record.name) for record in records])
    if len(groups) == 1:
        return []
    found = "; ".join(f"{', '.join(run.name for run in group.runs)}: {group.settings}" for group in groups)
    return [
        f"The baselines differ in more than their seed. {found}. Means and intervals over baselines are over "
        "these settings too."
    ]


def _figure(found: Sequence[OverBaselines], when: When, measure: str, styles: Mapping[str, int]) -> Figure:
    lengths = (
        sorted({each.length for each in found}) if when != "perturbed" else [min(each.length for each in found)]
    )
    name = MEASURE_NAMES[measure]
    baselines = _number(found)
    return Figure(
        f"baselines-{when.replace('_', '-')}-{measure.replace('_', '-')}",
        f"Change of {name} {_TITLES[when]}",
        f"The {name} of the perturbed run minus its baseline’s: mean of {baselines} (line), each "
        "baseline (points), and the 95 % t interval of the mean (bars), which takes the baselines’ effects for "
        "normal. Numbers: in “Effects over baselines” below.",
        f"Change of {name} {_TITLES[when]}, by start epoch, over {baselines}.",
        tuple(
            _panel([each for each in found if each.length == length], when, measure, length, styles)
            for length in lengths
        ),
    )


def _number(found: Sequence[OverBaselines]) -> str:
    """Say how many baselines there are, and which start epochs have fewer: their intervals are far wider."""
    most = max(len(each.baselines) for each in found)
    fewer: dict[int, list[int]] = {}
    for start, number in sorted({(each.start_epoch, len(each.baselines)) for each in found}):
        if number < most:
            fewer.setdefault(number, []).append(start)
    named = "; ".join(f"{number} at {name_epochs(starts)}" for number, starts in fewer.items())
    return f"{most} baselines{f' ({named})' if named else ''}"


def _panel(
    found: Sequence[OverBaselines], when: When, measure: str, length: int, styles: Mapping[str, int]
) -> Panel:
    starts = sorted({each.start_epoch for each in found})
    kinds = [kind for kind in styles if any(each.kind == kind for each in found)]
    step = 0.05 * min((after - before for before, after in pairwise(starts)), default=1)
    marks: list[Mark] = [Level(0.0)]
    for place, kind in enumerate(kinds):
        of = sorted((each for each in found if each.kind == kind), key=lambda each: each.start_epoch)
        shift = step * (place - (len(kinds) - 1) / 2)  # beside each other, or the bars would hide each other
        points = [
            (each.start_epoch + shift, value, name)
            for each in of
            for value, name in zip(each.values, each.baselines, strict=True)
        ]
        marks.append(
            Series(
                [x for x, _, _ in points], [y for _, y, _ in points], style=styles[kind], kind="points",
                hover=[f"{kind}, {name.rpartition('/')[2]}" for _, _, name in points], is_faint=True,
            )
        )  # fmt: skip
        marks.append(
            Series(
                [each.start_epoch + shift for each in of], [each.mean for each in of], kind, styles[kind], "both",
                [each.low for each in of], [each.high for each in of],
                hover=[f"{kind}, start {each.start_epoch}, {len(each.baselines)} baselines" for each in of],
            )
        )  # fmt: skip
    title = "" if when == "perturbed" else f"perturbed for {epochs_text(length)}"
    return start_panel(marks, measure, title, starts)


def _table(found: Sequence[OverBaselines]) -> Titled:
    return Titled(
        "over-baselines",
        "Effects over baselines",
        "mean, low and high: over the baselines, with the 95 % t interval. p: of the Wilcoxon signed-rank "
        "test, two-sided; none with fewer than six baselines, where it cannot be below 0.05. Not corrected for "
        "the number of rows.",
        Table(
            ("kind", "length", "start_epoch", "measure", "when", "baselines", "mean", "low", "high", "p"),
            [
                (
                    each.kind, each.length, each.start_epoch, each.measure, each.when, len(each.baselines),
                    each.mean, each.low, each.high, each.p_value,
                )
                for each in found
            ],
        ),
    )  # fmt: skip

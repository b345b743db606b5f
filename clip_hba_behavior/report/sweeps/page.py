"""The page of one sweep."""

from collections import Counter
from collections.abc import Mapping

from clip_hba_behavior.report.blocks import Block, Command, Facts, Page, Section, Text
from clip_hba_behavior.report.provenance import about_run, environment_facts
from clip_hba_behavior.report.sweeps import tables
from clip_hba_behavior.report.sweeps.by_start import effect_by_start, final_by_start
from clip_hba_behavior.report.sweeps.heat_maps import best_by_length, over_epochs
from clip_hba_behavior.report.sweeps.record import KIND_NAMES, SweepRecord
from clip_hba_behavior.report.sweeps.recovery import recovery_curves, recovery_medians
from clip_hba_behavior.run.advice import command_line

# Alignment before the loss, in every section.
_MEASURES = ("behavioral_rsa_rho", "test_loss")


def sweep_page(record: SweepRecord, styles: Mapping[str, int], file: str = "index.html") -> Page:
    """Make the page of a sweep.

    Args:
        record: of the sweep.
        styles: the colour, dash and marker of each kind.
        file: the page's name.
    """
    sections = [
        Section("summary", "Summary", _summary(record)),
        Section("not-there", "Runs that are missing", tables.not_there(record)),
        Section("controls", "Controls", tables.controls(record)),
    ]
    if record.effects.effects:
        sections += _results(record, styles)
    else:
        sections.append(Section("effects", "Effects", [Text("No perturbed run is done yet.")]))
    sections += [
        Section("environment", "Environment of the baseline", [Facts(environment_facts(record.baseline))]),
        Section("repeat", "Repeat it", _repeat(record)),
    ]
    lead = "Forks of one baseline, each perturbed for some epochs: what that changed, and what of it is noise."
    return Page(file, f"Sweep {record.name}", lead, sections)


def _results(record: SweepRecord, styles: Mapping[str, int]) -> list[Section]:
    """Return the sections with figures."""
    return [
        Section("change", "At the perturbed epoch", [effect_by_start(record, each, styles) for each in _MEASURES]),
        Section("effects", "Effects and claims", tables.effects(record)),
        Section("epochs", "Over all epochs", [each for of in _MEASURES for each in over_epochs(record, of)]),
        Section("best", "Best of each run", [best_by_length(record, each) for each in _MEASURES]),
        Section("recovery", "Recovery", [*recovery_curves(record), recovery_medians(record)]),
        Section("final", "Final performance", [final_by_start(record, each, styles) for each in _MEASURES]),
    ]


def _summary(record: SweepRecord) -> list[Block]:
    plan, collected, baseline = record.plan, record.collected, record.baseline
    best, last = baseline.best_epoch(), max(baseline.rows)
    states = Counter(found.state for found in collected.states.values())
    there, failed = collected.controls(), collected.failed_controls()
    null = {row["run"] for row in collected.rows if row["kind"] == "reorder"}
    wider = {row["run"] for row in collected.rows if row["kind"] == "reseed"}
    facts = [
        ("Baseline", plan.baseline.name),
        *about_run(baseline),
        ("Baseline’s lowest test loss", f"{baseline.rows[best]['test_loss']:.4f}, after epoch {best}"),
        (
            "Baseline’s behavioural RSA",
            f"{baseline.rows[last]['behavioral_rsa_rho']:.3f} (Spearman’s rho), after epoch {last}",
        ),
        ("State after it", baseline.digests.get(last, "not recorded")),
        ("Runs", ", ".join(f"{number} {state}" for state, number in states.items())),
        ("Perturbations", "\n".join(f"{kind}: {KIND_NAMES[kind]}" for kind in plan.file.kinds)),
        ("Perturbed epochs", ", ".join(map(str, plan.file.lengths))),
        ("Start epochs", ", ".join(str(start) for start in sorted({run.epoch for run in plan.runs()}))),
        ("Seeds", ", ".join(map(str, plan.file.seeds))),
        ("Controls equal to the last bit", f"{len(there) - len(failed)} of {len(there)}"),
        ("Matched null", f"{len(null)} runs (reorder: other order within the window, nothing else)"),
        ("Wider null", f"{len(wider)} runs (reseed: other random streams in every later epoch)"),
    ]
    blocks: list[Block] = [Facts(facts)]
    blocks += [Text(f"{each}.") for each in baseline.notes]
    return blocks


def _repeat(record: SweepRecord) -> list[Block]:
    config = record.file.read_text(encoding="utf-8")
    return [
        Command(
            "This does every run of the sweep that is not there; in another directory, all of them:",
            command_line("sweep", "run", record.file),
        ),
        Command("The sweep’s file:", config.strip()),
        Command(
            "This replays a random epoch of ten runs, and compares the bits:",
            command_line("sweep", "verify", record.file, "--sample", 10),
        ),
    ]

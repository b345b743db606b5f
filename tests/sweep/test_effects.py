"""Effects from a table's rows: which runs are compared with which, and what is claimed of many."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.sweep.columns import EFFECT_COLUMNS
from clip_hba_behavior.sweep.effects import effects_of
from clip_hba_behavior.sweep.nulls import least_p_note

LAST = 8


def run_of(
    kind: str, start: int, length: int, seed: int, loss: float, rsa: float = 0.0, baseline: str = "b"
) -> Iterator[dict[str, Any]]:
    """Rows of a run whose differences from the baseline are these in its first epoch, and halve in each other."""
    for epoch in range(start, LAST + 1):
        yield {
            "run": f"e{start:03}_{kind}_l{length}_s{seed}",
            "parent": baseline,
            "kind": kind,
            "perturb_epoch": start,
            "perturb_length": length,
            "seed": seed,
            "epoch": epoch,
            "baseline_state_digest": f"{baseline} {epoch}",
            "test_loss_minus_baseline": loss / 2 ** (epoch - start),
            "behavioral_rsa_rho_minus_baseline": rsa / 2 ** (epoch - start),
        }


def sweep_of(
    kinds: dict[str, float],
    starts: tuple[int, ...] = (2, 4),
    num_null: int = 19,
    baseline: str = "b",
    length: int = 1,
) -> list[dict[str, Any]]:
    """Perturbed runs of a loss each, and null runs of losses between -1 and 1."""
    chance = np.random.Generator(np.random.Philox(len(baseline)))
    rows: list[dict[str, Any]] = []
    for start in starts:
        rows += run_of("none", start, 0, 0, 0.0, baseline=baseline)
        for kind, loss in kinds.items():
            rows += run_of(kind, start, length, 0, loss, -loss / 10, baseline)
        for seed in range(1, num_null + 1):
            loss, rsa = chance.uniform(-1, 1, 2).tolist()
            rows += run_of("reorder", start, length, seed, loss, rsa / 10, baseline)
    return rows


def test_an_effect_is_compared_with_the_null_of_its_own_start_length_and_epoch() -> None:
    rows = sweep_of({"random_target": 5.0}) + sweep_of({"random_target": 0.0}, num_null=3, length=2)
    rows += [row for seed in (1, 2) for row in run_of("reseed", 2, 0, seed, 0.5)]
    found = {(each.start_epoch, each.length, each.measure, each.when): each for each in effects_of(rows).effects}
    first = found[2, 1, "test_loss", "perturbed"]
    assert (first.value, first.epoch) == (5.0, 2)
    assert first.matched is not None
    own = {
        row["seed"]: row["test_loss_minus_baseline"]
        for row in rows
        if (row["kind"], row["perturb_epoch"], row["perturb_length"], row["epoch"]) == ("reorder", 2, 1, 2)
    }
    assert dict(zip(first.matched.seeds, first.matched.effects, strict=True)) == own
    assert first.matched.p_value == 1 / 20
    assert first.wider is not None
    assert (first.wider.kind, first.wider.effects, first.wider.p_value) == ("reseed", (0.5, 0.5), 1 / 3)
    assert found[4, 1, "test_loss", "perturbed"].wider is None
    longer = found[2, 2, "test_loss", "window_end"]
    assert longer.epoch == 3
    assert longer.matched is not None
    assert (len(longer.matched.seeds), longer.matched.p_value) == (3, 1.0)
    assert found[2, 1, "test_loss", "last"].epoch == LAST
    assert found[2, 1, "behavioral_rsa_rho", "perturbed"].value == -0.5
    assert (2, 1, "test_loss", "window_end") not in found  # it is the perturbed epoch


def test_controls_and_null_runs_are_no_effects() -> None:
    assert {each.kind for each in effects_of(sweep_of({"random_target": 1.0})).effects} == {"random_target"}
    assert effects_of(sweep_of({})).effects == ()


def test_later_epochs_are_compared_on_demand() -> None:
    rows = sweep_of({"random_target": 5.0}, starts=(2,))
    assert {each.epoch for each in effects_of(rows).effects} == {2, LAST}
    later = effects_of(rows, later_epochs=True)
    assert [each.epoch for each in later.effects if each.measure == "test_loss"] == list(range(2, LAST + 1))
    assert all(each.matched is not None for each in later.effects)
    assert later.families == effects_of(rows).families
    assert list(later.rows()) == list(effects_of(rows).rows())


def test_one_claim_for_all_start_epochs_is_made_from_seeds_that_all_have() -> None:
    rows = sweep_of({"random_target": 5.0, "label_shuffle": 0.2}, starts=(2, 3, 4))
    rows = [row for row in rows if (row["kind"], row["perturb_epoch"], row["seed"]) != ("reorder", 3, 7)]
    families = {(each.kind, each.measure, each.when): each for each in effects_of(rows).families}
    strong = families["random_target", "test_loss", "perturbed"]
    assert strong.start_epochs == (2, 3, 4)
    assert strong.null_seeds == tuple(seed for seed in range(1, 20) if seed != 7)
    assert strong.p_value == 1 / 19
    assert strong.epoch_p_values == (1 / 19,) * 3
    assert families["label_shuffle", "test_loss", "perturbed"].p_value > 0.5
    assert families["random_target", "behavioral_rsa_rho", "last"].p_value == 1 / 19


def test_a_claim_names_the_start_epochs_that_it_is_made_for() -> None:
    rows = sweep_of({"random_target": 5.0}, starts=(2, 3))
    weak = [row | {"test_loss_minus_baseline": 0.1} if row["perturb_epoch"] == 3 else row for row in rows]
    weak = [new if new["kind"] == "random_target" else old for new, old in zip(weak, rows, strict=True)]
    (family,) = (
        each for each in effects_of(weak).families if (each.measure, each.when) == ("test_loss", "perturbed")
    )
    assert family.p_value == family.epoch_p_values[0] == 1 / 20
    assert family.epoch_p_values[1] > 0.5


def test_a_claim_says_why_nothing_is_adjusted_and_which_null_would_do() -> None:
    few = effects_of(sweep_of({"random_target": 5.0}))
    assert all(each.adjusted_p_values is None for each in few.families)
    assert (
        "no p-value is adjusted for 2 epochs by Benjamini and Hochberg: with 19 null runs none is below 0.05, and "
        "a single one would have to be at most 0.025; null_seeds: 39 would do "
        "(claims: perturbed of length 1, last of length 1)"
    ) in few.notes
    enough = effects_of(sweep_of({"random_target": 5.0}, num_null=39))
    assert [each.adjusted_p_values for each in enough.families[:1]] == [(1 / 40, 1 / 40)]
    assert enough.notes == ()
    assert [row["adjusted_p_value"] for row in enough.rows()][:1] == [1 / 40]


def test_without_a_null_there_are_effects_and_what_to_add() -> None:
    found = effects_of(sweep_of({"random_target": 5.0}, num_null=0))
    assert len(found.effects) == 8
    assert not any(each.matched for each in found.effects)
    assert found.families == ()
    assert list(found.rows()) == []
    assert "add null_seeds: 19 to the sweep's file" in found.notes[0]


def test_a_small_null_is_named_as_such() -> None:
    (first, *_) = effects_of(sweep_of({"random_target": 5.0}, starts=(2,), num_null=4)).notes
    assert first == "with 4 null runs no p-value is below 0.2; null_seeds: 19 is the least for 0.05"
    for num_null, least in ((5, "0.1667"), (7, "0.125")):  # the p of the largest effect, as the table shows it
        assert f"no p-value is below {least};" in least_p_note(num_null)


@pytest.mark.parametrize("number", [1, 3, 6])
def test_over_several_baselines_each_counts_once(number: int) -> None:
    rows = [
        row
        for size in range(1, number + 1)
        for row in sweep_of({"random_target": 4.0 + size}, baseline="b" * size)
    ]
    rows += run_of("random_target", 2, 1, 1, 7.0, baseline="b")  # a second seed of the first
    found = effects_of(rows)
    over = [
        each
        for each in found.over_baselines
        if (each.start_epoch, each.measure, each.when) == (2, "test_loss", "perturbed")
    ]
    if number == 1:
        assert over == []
        return
    (one,) = over
    assert one.values == (6.0, *(4.0 + size for size in range(2, number + 1)))
    assert one.low < one.mean < one.high
    assert one.mean == pytest.approx(np.mean(one.values))
    assert (one.p_value is None) is (number < 6)
    assert any("over 3 baselines there is a t interval" in note for note in found.notes) is (number == 3)
    assert {family.baseline for family in found.families} == {"b" * size for size in range(1, number + 1)}


def over_at(rows: list[dict[str, Any]], when: str) -> dict[int, tuple[tuple[str, ...], tuple[float, ...]]]:
    """Of each start epoch the baselines and their values, of the test loss."""
    return {
        each.start_epoch: (each.baselines, each.values)
        for each in effects_of(rows).over_baselines
        if (each.measure, each.when) == ("test_loss", when)
    }


def copied(rows: list[dict[str, Any]], **keys: Any) -> list[dict[str, Any]]:
    """The rows as they would be of another directory, with the same states."""
    return [row | {"parent": "copy"} | keys for row in rows]


def test_copies_of_a_baseline_count_once_and_are_named() -> None:
    rows = sweep_of({"random_target": 5.0})
    copies = copied(rows)
    note = "b, copy are one baseline, and count once: they have training states in common, to the last bit"
    assert effects_of([*rows, *copies]).over_baselines == ()
    assert note in effects_of([*rows, *copies]).notes
    other = sweep_of({"random_target": 8.0}, baseline="bb")
    joined = [*rows, *copies, *other]
    assert over_at(joined, "perturbed") == over_at([*rows, *other], "perturbed")
    assert over_at(joined, "perturbed")[2] == (("b", "bb"), (5.0, 8.0))
    assert any(each.startswith("over 2 baselines there is a t interval") for each in effects_of(joined).notes)
    # another seed of the copy is another seed of the baseline
    more = copied([*run_of("random_target", 2, 1, 1, 7.0)])
    assert over_at([*joined, *more], "perturbed")[2] == (("b", "bb"), (6.0, 8.0))
    assert note not in effects_of([*rows, *other]).notes


def test_a_row_that_joins_two_directories_joins_all_that_were_taken_for_them() -> None:
    """a and c have no epoch in common, and b has one with each."""
    rows = [*run_of("random_target", 2, 1, 0, 5.0, baseline="a")][:2]
    rows += [row | {"parent": "c"} for row in run_of("random_target", 5, 1, 0, 5.0, baseline="a")]
    assert effects_of(rows).baselines.number() == 2
    rows += [row | {"parent": "b"} for row in run_of("random_target", 2, 1, 0, 5.0, baseline="a")]
    assert effects_of(rows).baselines.first_of == {"a": "a", "c": "a", "b": "a"}


def test_sweeps_that_end_after_different_epochs_have_no_mean_at_the_end_and_say_so() -> None:
    rows = sweep_of({"random_target": 5.0})
    other = sweep_of({"random_target": 8.0}, baseline="bb")
    assert over_at([*rows, *other], "last").keys() == {2, 4}
    shorter = [row for row in other if row["epoch"] < LAST]
    assert over_at([*rows, *shorter], "last") == {}
    assert over_at([*rows, *shorter], "perturbed").keys() == {2, 4}
    said = "\n".join(effects_of([*rows, *shorter]).notes)
    assert "nothing is averaged over baselines at the end" in said
    assert (
        "b after epoch 8, bb after epoch 7; have all end after epoch 8 (clip-hba resume BASELINE --set epochs=8)"
        in said
    )
    assert "end" not in "\n".join(effects_of([*rows, *other]).notes)


def test_runs_of_one_baseline_that_end_after_different_epochs_are_named() -> None:
    rows = sweep_of({"random_target": 5.0})
    shorter = [row for row in rows if row["kind"] != "reorder" or row["epoch"] < 7]
    assert any(
        "runs from b end after different epochs, 6 to 8: at the end each is compared at its own" in each
        for each in effects_of(shorter).notes
    )


def test_tables_of_one_baseline_are_joined_and_must_agree() -> None:
    rows = sweep_of({"random_target": 5.0})
    null = [row for row in rows if row["kind"] == "reorder"]
    perturbed = [row for row in rows if row["kind"] != "reorder"]
    assert effects_of([*perturbed, *null, *rows]) == effects_of(rows)
    other = [row | {"test_loss_minus_baseline": 5.5} for row in rows if row["kind"] == "random_target"]
    with pytest.raises(
        BadInputError, match="two tables have other results of e002_random_target_l1_s0, a fork of b"
    ):
        effects_of([*rows, *other])


def test_rows_have_the_columns_that_are_described() -> None:
    rows = list(effects_of(sweep_of({"random_target": 5.0})).rows())
    assert [list(row) for row in rows] == [list(EFFECT_COLUMNS)] * len(rows)
    for row in rows:
        for name, value in row.items():
            assert value is None or type(value) is EFFECT_COLUMNS[name].type, name


def test_a_null_run_against_the_others_is_found_as_often_as_any() -> None:
    """What happens where nothing is: each reorder run in turn taken for a perturbation."""
    rows = sweep_of({}, starts=(2, 3, 4, 5), num_null=20)
    p_values = []
    for seed in range(1, 21):
        taken = [
            row | {"kind": "random_target"} if (row["kind"], row["seed"]) == ("reorder", seed) else row
            for row in rows
        ]
        (family,) = (
            each for each in effects_of(taken).families if (each.measure, each.when) == ("test_loss", "perturbed")
        )
        p_values.append(family.p_value)
    assert sorted(p_values) == pytest.approx([number / 20 for number in range(1, 21)])


def test_an_undefined_rsa_is_no_effect_and_not_another_result() -> None:
    rows = sweep_of({"random_target": 5.0}, starts=(2,))
    rows[LAST - 1]["behavioral_rsa_rho_minus_baseline"] = float("nan")
    assert rows[LAST - 1]["kind"] == "random_target"
    found = effects_of([*rows, *(dict(row) for row in rows)])
    undefined = [each for each in found.effects if np.isnan(each.value)]
    assert [(each.epoch, each.matched and each.matched.p_value) for each in undefined] == [(2, 1.0)]


def test_runs_that_stop_early_are_each_compared_at_their_own_last_epoch() -> None:
    """The perturbed run stops in epoch 4; two null runs stopped before, one of them with its window."""
    rows = list(run_of("random_target", 2, 1, 0, 8.0))[:3]
    rows += list(run_of("reorder", 2, 1, 1, 4.0))[:2]
    rows += list(run_of("reorder", 2, 1, 2, 4.0))[:1]
    rows += run_of("reorder", 2, 1, 3, 64.0)
    last = next(each for each in effects_of(rows).effects if each.when == "last")
    assert (last.epoch, last.value) == (4, 2.0)
    assert last.matched is not None
    assert dict(zip(last.matched.seeds, last.matched.effects, strict=True)) == {1: 2.0, 3: 1.0}
    assert last.matched.p_value == 2 / 3


def test_a_null_without_a_common_seed_makes_no_claim_and_says_so() -> None:
    rows = [row for start in (2, 4) for row in run_of("random_target", start, 1, 0, 5.0)]
    rows += [*run_of("reorder", 2, 1, 1, 1.0), *run_of("reorder", 4, 1, 2, 1.0)]
    found = effects_of(rows)
    assert {(each.start_epoch, each.matched and each.matched.p_value) for each in found.effects} == {
        (2, 1 / 2),
        (4, 1 / 2),
    } | {(start, 1.0) for start in (2, 4)}  # an RSA of 0
    assert found.families == ()
    assert any("no claim for all start epochs of random_target, length 1" in note for note in found.notes)
    assert not any("no claim" in note for note in effects_of(sweep_of({"random_target": 5.0})).notes)

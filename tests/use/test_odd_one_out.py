"""Odd-one-out choices against known answers, and the command on a trained run."""

import csv
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clip_hba_behavior import BadInputError, load_model
from clip_hba_behavior.use.odd_one_out import SIMILARITIES, list_images, odd_one_out_accuracy, read_triplets
from clip_hba_behavior.use.request import CEILINGS, triplet_ceiling
from fresh_process import Outcome

ClipHba = Callable[..., Outcome]


def file_of(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_images_of_two_kinds_are_told_apart(similarity: str) -> None:
    kinds = np.array([[5, 0, 1], [4, 0, 1], [6, 1, 0], [0, 5, 1], [1, 6, 0]], dtype=np.float32)
    triplets = np.array([[0, 1, 3], [2, 0, 4], [3, 4, 1], [1, 2, 3]])
    right = odd_one_out_accuracy(kinds, triplets, similarity)
    assert (right.share, right.interval, right.num_ties) == (1.0, (1.0, 1.0), 0)
    wrong = odd_one_out_accuracy(kinds, triplets[:, [0, 2, 1]], similarity)
    assert (wrong.share, wrong.interval) == (0.0, (0.0, 0.0))
    assert right.relative_to(CEILINGS["brain-score"][0]) == pytest.approx((1 - 1 / 3) / (0.6767 - 1 / 3))


def test_the_two_similarities_differ_where_lengths_do() -> None:
    rows = np.array([[1, 0], [1, 0.2], [9, 9]], dtype=np.float32)
    triplet = np.array([[0, 1, 2]])
    assert odd_one_out_accuracy(rows, triplet, "cosine").share == 1.0
    assert odd_one_out_accuracy(rows, triplet, "dot product").share == 0.0


def test_equally_odd_images_count_as_a_guess() -> None:
    same = np.ones((3, 4), dtype=np.float32)
    found = odd_one_out_accuracy(same, np.array([[0, 1, 2]] * 5), "dot product")
    assert (found.share, found.num_ties) == (pytest.approx(1 / 3), 5)


def test_a_random_model_is_at_chance_and_the_interval_is_that_of_resampled_triplets() -> None:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((60, 8)).astype(np.float32)
    rows[1] = rows[0]  # some ties
    triplets = np.array([rng.choice(60, 3, replace=False) for _ in range(400)])
    found = odd_one_out_accuracy(rows, triplets, "dot product")
    low, high = found.interval
    assert low < 1 / 3 < high
    assert odd_one_out_accuracy(rows, triplets, "dot product") == found

    each = [odd_one_out_accuracy(rows, triplet[None], "dot product", resamples=1).share for triplet in triplets]
    means = rng.choice(np.array(each), (20_000, len(each))).mean(axis=1)
    assert found.interval == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.004)
    assert found.share == pytest.approx(np.mean(each))


def test_triplets_are_read_with_the_odd_one_in_the_column_that_is_named(tmp_path: Path) -> None:
    path = file_of(tmp_path / "t.txt", "0 1 2", "3\t0  1", "2,1,3")
    last = [[0, 1, 2], [3, 0, 1], [2, 1, 3]]
    assert read_triplets(path, "last", 4).tolist() == last
    assert read_triplets(path, "first", 4).tolist() == [[b, c, a] for a, b, c in last]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 1 4", r"line 2: index 4 means no image\n  expected: 0 to 3, for 4 images"),
        ("-1 1 2", "line 2: index -1 means no image"),
        ("0 1", "line 2: no triplet"),
        ("0 1 2 3", "line 2: no triplet"),
        ("", "line 2: no triplet"),
        ("0 1.5 2", "line 2: no triplet"),
        ("2 1 2", "line 2: an image is in it twice"),
        ("0_1 2 3", "line 2: no triplet"),  # which int() would take
        ("\u0663 1 2", "line 2: no triplet"),
    ],
)
def test_a_line_that_is_no_triplet_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "t.txt", "0 1 2", line)
    with pytest.raises(BadInputError, match=reason):
        read_triplets(path, "last", 4)


def test_no_triplets_and_no_images_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="has no triplets: it is empty"):
        read_triplets(file_of(tmp_path / "t.txt"), "last", 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match="there are no images in"):
        list_images(tmp_path / "empty")
    with pytest.raises(BadInputError, match="line 2: it is empty"):
        list_images(file_of(tmp_path / "list.txt", "a.png", "", "b.png"))
    for name in ("0.2", "1.5", "all"):
        with pytest.raises(BadInputError, match=f"--ceiling {name}: expected brain-score, or a number"):
            triplet_ceiling(name)
    assert triplet_ceiling("0.6722") == (0.6722, "as given")


def test_sorted_names_are_the_order_of_things(things: Path, tmp_path: Path) -> None:
    """The first column of the tables is each image's index among the 1,854 of THINGS."""
    for table in ("spose_embedding66d_rescaled_1806train.csv", "spose_embedding66d_rescaled_48val.csv"):
        with (things / table).open(newline="") as file:
            rows = [(int(row[0]), row[1]) for row in itertools.islice(csv.reader(file), 1, None)]
        for index, name in rows:
            folder = tmp_path / "images" / (re.sub(r"_\d+[a-z]*\.jpg$", "", name) if index % 2 else "")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(str(index))
    found = list_images(tmp_path / "images")
    assert [int(path.read_text()) for path in found] == list(range(1854))


def test_the_command_says_what_it_compared(finished_run: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    images = finished_run.parent / "data" / "images"
    names = sorted(path.name for path in images.iterdir())
    chosen = list(range(0, len(names), 3))
    lines = [f"{a} {b} {c}" for a, b, c in itertools.combinations(chosen[:12], 3)]
    triplets = file_of(tmp_path / "triplets.txt", *lines)
    predictions = load_model(finished_run, device="cpu").predict([images / name for name in names])
    arguments = (triplets, "--images", images, "--device", "cpu", "--ceiling", "brain-score")
    for odd in ("last", "first"):
        done = clip_hba("odd-one-out", finished_run, *arguments, "--odd", odd)
        assert done.code == 0, done.output
        for similarity in SIMILARITIES:
            found = odd_one_out_accuracy(predictions, read_triplets(triplets, odd, len(names)), similarity)
            low, high = found.interval
            assert f"{found.share:.4f}, 95% interval {low:.4f} to {high:.4f}" in done.output
        assert f"0 is {names[0]}, {len(names) - 1} is {names[-1]}" in done.output
        assert f"{len(lines)} of {triplets}, of 12 images, the odd one out in the {odd} column" in done.output
        assert "chance:        0.3333" in done.output
        assert "noise ceiling: 0.6767, of THINGS' triplets, by Brain-Score's benchmark Hebart2023" in done.output

    hint = "lies below chance as a whole mostly means that the odd one out is in another column (--odd"
    alike = predictions.astype(np.float64) @ predictions.astype(np.float64).T
    backwards = []
    for triplet in itertools.combinations(chosen[:12], 3):
        a, b, odd_one = max(itertools.permutations(triplet), key=lambda each: alike[each[0], each[1]])
        backwards.append(f"{odd_one} {a} {b}")
    file_of(tmp_path / "backwards.txt", *backwards)
    arguments_of_it = (tmp_path / "backwards.txt", "--images", images, "--device", "cpu")
    done = clip_hba("odd-one-out", finished_run, *arguments_of_it)
    assert "dot product:   0.0000" in done.output
    assert f"{hint} first)" in done.output
    done = clip_hba("odd-one-out", finished_run, *arguments_of_it, "--odd", "first")
    assert "dot product:   1.0000" in done.output
    assert hint not in done.output

    listed = file_of(tmp_path / "list.txt", *(str(images / name) for name in reversed(names)))
    done = clip_hba("odd-one-out", finished_run, triplets, "--images", listed, "--device", "cpu")
    assert done.code == 0, done.output
    assert f"in the order of its lines: 0 is {names[-1]}" in done.output
    assert "noise ceiling: none given" in done.output

    some = tmp_path / "some"
    some.mkdir()
    for name in names[:3]:
        (some / name).write_bytes((images / name).read_bytes())
    (some / "aardvark.heic").touch()
    done = clip_hba("odd-one-out", finished_run, file_of(triplets, "0 1 2"), "--images", some, "--device", "cpu")
    assert done.code == 0, done.output
    assert f"{some}: 1 other file left out, such as aardvark.heic" in done.output

    file_of(triplets, *lines, f"0 1 {len(names)}")
    done = clip_hba("odd-one-out", finished_run, *arguments)
    assert done.code == 2
    assert f"{triplets}, line {len(lines) + 1}: index {len(names)} means no image" in done.output

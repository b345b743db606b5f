import csv
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from clip_hba_behavior.data.check import DataReport, check_data
from clip_hba_behavior.rsa.rank_correlation import correlation_distances

THINGS = Path(__file__).parents[3] / "shared" / "things"
with_things = pytest.mark.skipif(not THINGS.is_dir(), reason="the THINGS tables are not here")

HELD_OUT = [f"held_{index:02d}b.png" for index in range(48)]
TRAIN = [f"train_{index:02d}b.png" for index in range(4)]


def targets_of(count: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).random((count, 66))


def write_table(path: Path, names: list[str], targets: np.ndarray) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "image_name", *range(66)])
        for index, (name, row) in enumerate(zip(names, targets.tolist(), strict=True)):
            writer.writerow([index, name, *map(repr, row)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    held_out = targets_of(48, 1)
    write_table(tmp_path / "train.csv", TRAIN, targets_of(4, 0))
    write_table(tmp_path / "held_out.csv", HELD_OUT, held_out)
    distances = correlation_distances(held_out)
    scipy.io.savemat(tmp_path / "rdm.mat", {"RDM48_triplet": (distances + distances.T) / 2})
    (tmp_path / "prompts.txt").write_text("prompt\n" * 66)
    (tmp_path / "images").mkdir()
    for index, name in enumerate((*TRAIN, *HELD_OUT)):
        image = Image.new("RGB", (224, 224), (index, 0, 0))
        image.putpixel((0, 0), (255, 255, 255))
        image.save(tmp_path / "images" / name)
    return tmp_path


def check(data: Path, **others: Path) -> DataReport:
    files = {
        "csv_file": data / "train.csv",
        "img_dir": data / "images",
        "inference_csv_file": data / "held_out.csv",
        "rdm_file": data / "rdm.mat",
        "prompts_file": data / "prompts.txt",
    }
    return check_data(**{**files, **others})


def test_good_data_has_no_problems_and_every_image_is_opened(data: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check_data(
        data / "train.csv",
        data / "images",
        data / "held_out.csv",
        data / "rdm.mat",
        data / "prompts.txt",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert report == DataReport(4, 48, 0, 0, 0, 0, ("prompt",) * 66, report.row_order, report.survey, ())
    assert report.survey.modes == {"RGB": 52}
    assert report.row_order.rho == pytest.approx(1.0)
    assert report.ok
    assert seen == [(done, 52) for done in range(1, 53)]
    assert str(report).splitlines()[-2:] == [
        "row order correlation: 1.0000, above 100.0 % of 999 random orders",
        "no problems",
    ]


@with_things
@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("spose_embedding66d_rescaled_48val_reordered.csv", "0.8644"),
        ("spose_embedding66d_rescaled_48val.csv", "0.0365"),
    ],
)
def test_the_real_rows_in_alphabetical_order_are_found_out(tmp_path: Path, table: str, expected: str) -> None:
    report = check_data(
        THINGS / "spose_embedding66d_rescaled_1806train.csv",
        tmp_path,
        THINGS / table,
        THINGS / "RDM48_triplet.mat",
        THINGS / "prompts66.txt",
    )
    assert report.row_order is not None
    assert f"{report.row_order.rho:.4f}" == expected
    assert (report.num_train_images, report.num_inference_images, report.num_missing) == (1806, 48, 1854)
    assert (report.num_overlapping, report.num_duplicates, report.num_bad_targets) == (0, 0, 0)
    wrong_order = [text for text in report.problems if "wrong order" in text]
    if expected == "0.8644":
        assert wrong_order == []
    else:
        assert wrong_order == [
            f"the rows of {THINGS / table} look to be in the wrong order: their targets' dissimilarities agree "
            f"with {THINGS / 'RDM48_triplet.mat'} to a rank correlation of 0.0365, above 78.0 % of 999 random "
            "orders\n  expected: at least 0.5 (0.8644 for THINGS)\n  give the table whose rows are in the RDM's "
            "order, such as spose_embedding66d_rescaled_48val_reordered.csv"
        ]


def test_missing_and_unreadable_images_are_counted_and_named(data: Path) -> None:
    (data / "images" / TRAIN[0]).unlink()
    (data / "images" / HELD_OUT[3]).unlink()
    (data / "images" / HELD_OUT[3]).write_bytes(b"\x89PNG\r\n\x1a\n")
    report = check(data)
    assert (report.num_missing, len(report.survey.unreadable)) == (1, 1)
    assert not report.ok
    assert len(report.problems) == 2
    assert report.problems[0].startswith(f"{data / 'images'}: 1 of 52 images are missing: {TRAIN[0]}\n")
    assert report.problems[1].startswith(f"{data / 'images' / HELD_OUT[3]}: the image cannot be read: ")


def test_bad_targets_duplicates_overlap_and_hostile_names_are_all_reported(data: Path) -> None:
    targets = targets_of(5, 0)
    targets[1, 7] = np.nan
    targets[2, 3] = np.inf
    write_table(data / "train.csv", [TRAIN[0], TRAIN[0], HELD_OUT[9], "../secret.png", TRAIN[1]], targets)
    report = check(data)
    assert (report.num_train_images, report.num_bad_targets, report.num_duplicates) == (5, 2, 1)
    assert (report.num_overlapping, report.num_missing) == (1, 0)
    text = "\n".join(report.problems)
    assert "column 7: 'nan' is not finite" in text
    assert "column 3: 'inf' is not finite" in text
    assert f"line 3: image {TRAIN[0]} is there already, in line 2" in text
    assert "image name '../secret.png' has a path separator" in text
    assert f"1 image stands in both {data / 'train.csv'} and {data / 'held_out.csv'}: {HELD_OUT[9]}; " in text
    assert len(report.problems) == 5
    assert "5 problems:" in str(report)


@pytest.mark.parametrize("key", ["csv_file", "img_dir", "inference_csv_file", "rdm_file", "prompts_file"])
def test_one_missing_file_is_one_problem_and_the_rest_is_checked(data: Path, key: str) -> None:
    complete = check(data)
    report = check(data, **{key: data / "nowhere"})
    assert len(report.problems) == 1
    assert report.problems[0].startswith(f"{data / 'nowhere'}: there is no such ")
    assert report.num_train_images == (0 if key == "csv_file" else 4)
    assert report.num_inference_images == (0 if key == "inference_csv_file" else 48)
    assert len(report.prompts) == (0 if key == "prompts_file" else 66)
    assert report.num_missing == (52 if key == "img_dir" else 0)
    if key in ("inference_csv_file", "rdm_file"):
        assert report.row_order is None
        assert "row order correlation: unknown" in str(report)
    else:
        assert report.row_order == complete.row_order


def test_everything_missing_is_five_problems(data: Path) -> None:
    nowhere = data / "nowhere"
    assert len(check_data(nowhere, nowhere, nowhere, nowhere, nowhere).problems) == 5


def test_rows_in_the_wrong_order_are_a_problem(data: Path) -> None:
    write_table(data / "held_out.csv", HELD_OUT[::-1], targets_of(48, 1)[::-1])
    report = check(data)
    assert report.row_order is not None
    assert report.row_order.rho < 0.5
    assert len(report.problems) == 1
    assert f"the rows of {data / 'held_out.csv'} look to be in the wrong order: " in report.problems[0]


def test_a_table_that_does_not_fit_the_rdm_is_a_problem(data: Path) -> None:
    write_table(data / "held_out.csv", HELD_OUT[:47], targets_of(47, 1))
    report = check(data)
    assert report.row_order is None
    assert report.problems == (
        f"{data / 'held_out.csv'} has 47 images\n  expected: 48, one for each row of {data / 'rdm.mat'}\n"
        "  give the table of these images",
    )


def test_constant_targets_leave_the_row_order_unknown(data: Path) -> None:
    targets = targets_of(48, 1)
    targets[5] = 0.1
    write_table(data / "held_out.csv", HELD_OUT, targets)
    report = check(data)
    assert report.row_order is None
    assert len(report.problems) == 1
    assert "the order of the rows cannot be checked" in report.problems[0]

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.stats
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoConfig, AutoTokenizer, CLIPTokenizer

import fresh_process
from clip_hba_behavior.data import standin, standin_record
from clip_hba_behavior.data.drawing import glyph_counts
from clip_hba_behavior.data.standin import (
    PROMPTS,
    correlation_distances,
    draw_image,
    draw_latents,
    standin_backbone_directory,
    write_images,
    write_standin_dataset,
)


def read_table(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["", "image_name", *map(str, range(66))]
    assert [row[0] for row in rows] == [str(index) for index in range(len(rows))]
    return [row[1] for row in rows], np.array([[float(value) for value in row[2:]] for row in rows])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("standin")
    write_standin_dataset(directory)
    return directory


def test_prompts_are_66_different_ones() -> None:
    assert len(PROMPTS) == len(set(PROMPTS)) == 66


def test_a_latent_does_not_depend_on_how_many_are_drawn() -> None:
    assert draw_latents(3, seed=5).tobytes() == draw_latents(20, seed=5)[:3].tobytes()
    assert draw_latents(3, seed=5).tobytes() != draw_latents(3, seed=6).tobytes()
    assert draw_latents(0, seed=5).shape == (0, 66)


def test_latents_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256(draw_latents(50, seed=0).astype("<f8").tobytes()).hexdigest()
    assert digest == "fdba15810e852ea10122a783783bdb555300aaaa3562988435d21c9ffb323eaf"


def test_latents_have_the_statistics_of_spose() -> None:
    latents = draw_latents(480, seed=0)
    assert latents.dtype == np.float64
    assert latents.min() > 0
    assert latents.max() < 100
    assert latents.mean() == pytest.approx(5.7, abs=0.5)
    assert latents.std() == pytest.approx(10, abs=1)
    assert np.percentile(latents, [50, 90, 99]) == pytest.approx([2, 14, 53], rel=0.2)
    assert latents[:, 0].mean() > 3 * latents[:, 20].mean() > 3 * latents[:, 65].mean()


def test_a_latent_always_gives_the_same_pixels() -> None:
    latents = draw_latents(4, seed=1)
    pixels = b"".join(draw_image(latent).tobytes() for latent in latents)
    assert pixels == b"".join(draw_image(latent).tobytes() for latent in latents.copy())
    assert hashlib.sha256(pixels).hexdigest() == "cbc4cb3122daa4cc4137d59bafe0affb121b5a4945714fe1a28eabfa1d167da3"


@pytest.mark.parametrize("dimension", range(66))
def test_each_dimension_is_visible_and_unlike_the_others(dimension: int) -> None:
    only_this = np.zeros(66)
    only_this[dimension] = 50
    next_one = np.roll(only_this, 1)
    empty = draw_image(np.zeros(66)).tobytes()
    assert len({empty, draw_image(only_this).tobytes(), draw_image(next_one).tobytes()}) == 3
    assert glyph_counts(only_this)[dimension] == 8


def test_a_full_grid_serves_the_largest_values_first() -> None:
    counts = glyph_counts(np.linspace(0, 100, 66))
    assert counts.sum() == 64
    assert counts[65] == 17
    assert counts[:60].sum() == 0


@pytest.mark.parametrize("size", [32, 64, 224])
def test_a_picture_has_the_size_asked_for(size: int) -> None:
    image = draw_image(draw_latents(1, seed=0)[0], size)
    assert (image.mode, image.size) == ("RGB", (size, size))


def test_helpful_errors(tmp_path: Path) -> None:
    latent = np.zeros(66)
    with pytest.raises(ValueError, match="size 63: expected a multiple of 8, at least 32"):
        draw_image(latent, 63)
    with pytest.raises(ValueError, match=r"shape \(65,\): expected \(66,\)"):
        draw_image(latent[1:])
    for wrong in (-1.0, np.nan):
        with pytest.raises(ValueError, match="expected finite values from 0 to 100"):
            draw_image(latent + wrong)
    with pytest.raises(ValueError, match="seed -1: expected 0 to"):
        draw_latents(1, seed=-1)
    with pytest.raises(ValueError, match="2 names for 1 rows"):
        write_images(tmp_path, ["a.png", "b.png"], latent[None])
    with pytest.raises(ValueError, match=r"found suffix '\.gif', expected \.png"):
        write_images(tmp_path, ["a.gif"], latent[None])
    with pytest.raises(ValueError, match="RDM of 2 held-out images: expected at least 3"):
        write_standin_dataset(tmp_path, num_inference=2)


def test_a_dataset_has_the_same_bytes_each_time(dataset: Path, tmp_path: Path) -> None:
    write_standin_dataset(tmp_path)
    files = sorted(path.relative_to(dataset) for path in dataset.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 480 + 48 + 5
    for file in files:
        assert (dataset / file).read_bytes() == (tmp_path / file).read_bytes(), file


SMALL = {"num_images": 6, "num_inference": 4}
SMALL_FILES = 6 + 4 + 4


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each picture that is drawn from now on, its size."""
    sizes: list[int] = []

    def draw(latent: NDArray[np.float64], size: int) -> Image.Image:
        sizes.append(size)
        return draw_image(latent, size)

    monkeypatch.setattr(standin, "draw_image", draw)
    return sizes


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_dataset_is_drawn_once(drawn: list[int], tmp_path: Path) -> None:
    assert write_standin_dataset(tmp_path, **SMALL) == ()
    assert len(drawn) == 10
    before = contents(tmp_path)
    assert len(before) == SMALL_FILES + 1
    drawn.clear()
    assert write_standin_dataset(tmp_path, **SMALL) == ()
    assert not drawn
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["images/drawn_0003.png", "images/heldout_0001.png", "annotations.csv"])
@pytest.mark.parametrize("is_removed", [True, False])
def test_a_changed_file_is_put_back_and_named(name: str, is_removed: bool, tmp_path: Path) -> None:
    write_standin_dataset(tmp_path, **SMALL)
    before = contents(tmp_path)
    (tmp_path / name).unlink() if is_removed else (tmp_path / name).write_bytes(before[name] + b"x")
    assert write_standin_dataset(tmp_path, **SMALL) == (name,)
    assert contents(tmp_path) == before
    assert write_standin_dataset(tmp_path, **SMALL) == ()


@pytest.mark.parametrize("record", [None, b"", b"no JSON", b"[]", b"{}", b"[" * 10_000])
def test_without_its_record_a_dataset_is_drawn_again_and_nothing_else(
    record: bytes | None, drawn: list[int], tmp_path: Path
) -> None:
    write_standin_dataset(tmp_path, **SMALL)
    before = contents(tmp_path)
    drawn.clear()
    path = tmp_path / "dataset.json"
    path.unlink() if record is None else path.write_bytes(record)
    assert write_standin_dataset(tmp_path, **SMALL) == ()
    assert len(drawn) == 10
    assert contents(tmp_path) == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"image_size": 32}, {"num_images": 5}, {"num_inference": 5}])
def test_other_numbers_give_another_dataset(change: dict[str, int], tmp_path: Path) -> None:
    write_standin_dataset(tmp_path / "a", **SMALL)
    write_standin_dataset(tmp_path / "a", **(SMALL | change))
    write_standin_dataset(tmp_path / "b", **(SMALL | change))
    left = contents(tmp_path / "a")
    assert left | contents(tmp_path / "b") == left


@pytest.mark.parametrize("name", ["_SOURCES", "_LIBRARIES"])
def test_another_drawing_or_library_draws_again(
    name: str, drawn: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_standin_dataset(tmp_path, **SMALL)
    drawn.clear()
    monkeypatch.setattr(standin_record, name, getattr(standin_record, name)[:-1])
    assert write_standin_dataset(tmp_path, **SMALL) == ()
    assert len(drawn) == 10


def test_a_complete_dataset_in_a_directory_that_cannot_be_written_to_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_standin_dataset(tmp_path, **SMALL)
    (tmp_path / "dataset.json").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(standin_record, "replace", refuse)
    monkeypatch.setattr(standin, "replace", refuse)
    assert write_standin_dataset(tmp_path, **SMALL) == ()


def test_processes_that_draw_at_once_leave_one_complete_dataset(tmp_path: Path) -> None:
    together = [
        fresh_process.start(write_standin_dataset, tmp_path / "data", output=tmp_path / f"{number}.txt")
        for number in range(3)
    ]
    for process in together:
        process.join(60)
        assert process.exitcode == 0
    write_standin_dataset(tmp_path / "alone")
    assert contents(tmp_path / "data") == contents(tmp_path / "alone")


def test_a_smaller_dataset_holds_the_same_first_images(dataset: Path, tmp_path: Path) -> None:
    write_standin_dataset(tmp_path, num_images=5, num_inference=4)
    for table, count in (("annotations.csv", 5), ("inference48.csv", 4)):
        names, targets = read_table(tmp_path / table)
        all_names, all_targets = read_table(dataset / table)
        assert names == all_names[:count]
        assert targets.tobytes() == all_targets[:count].tobytes()
        for name in names:
            assert (tmp_path / "images" / name).read_bytes() == (dataset / "images" / name).read_bytes()


def test_tables_read_back_exactly_and_name_every_image(dataset: Path) -> None:
    names, targets = read_table(dataset / "annotations.csv")
    held_out_names, held_out = read_table(dataset / "inference48.csv")
    assert targets.tobytes() == draw_latents(480, seed=0).tobytes()
    assert held_out.shape == (48, 66)
    assert not set(names) & set(held_out_names)
    assert {*names, *held_out_names} == {path.name for path in (dataset / "images").iterdir()}
    for name in (names[0], held_out_names[-1]):
        with Image.open(dataset / "images" / name) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
    assert (dataset / "prompts.txt").read_text().splitlines() == list(PROMPTS)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_human_like_rdm_agrees_with_the_held_out_targets(seed: int, tmp_path: Path) -> None:
    write_standin_dataset(tmp_path, num_images=1, seed=seed)
    rdm = scipy.io.loadmat(tmp_path / "RDM48_triplet.mat")["RDM48_triplet"]
    _, held_out = read_table(tmp_path / "inference48.csv")
    assert (rdm.dtype, rdm.shape) == (np.float64, (48, 48))
    assert (rdm == rdm.T).all()
    assert (np.diag(rdm) == 0).all()
    assert rdm.min() == 0
    upper = np.triu_indices(48, 1)
    distances = correlation_distances(held_out)
    np.testing.assert_allclose(distances[upper], (1 - np.corrcoef(held_out))[upper], rtol=1e-9)
    assert 0.8 < scipy.stats.spearmanr(rdm[upper], distances[upper]).statistic < 0.92


def test_images_are_written_in_the_format_of_their_suffix(tmp_path: Path) -> None:
    names = ["a.png", "b.jpg", "c.JPEG"]
    write_images(tmp_path / "new" / "folder", names, draw_latents(3, seed=0), image_size=32)
    for name, kind in zip(names, ("PNG", "JPEG", "JPEG"), strict=True):
        with Image.open(tmp_path / "new" / "folder" / name) as image:
            assert (image.format, image.size) == (kind, (32, 32))


def test_the_tokenizer_fits_the_model() -> None:
    directory = standin_backbone_directory()
    for tokenizer in (CLIPTokenizer.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)):
        config = AutoConfig.from_pretrained(directory).text_config
        assert len(tokenizer) == config.vocab_size
        assert tokenizer.eos_token_id == config.eos_token_id != 2
        assert tokenizer.bos_token_id == config.bos_token_id
        encoded = tokenizer(list(PROMPTS))["input_ids"]
        assert max(len(tokens) for tokens in encoded) <= 16
        assert len({tuple(tokens) for tokens in encoded}) == 66
        assert {tokens[0] for tokens in encoded} == {config.bos_token_id}
        assert {tokens[-1] for tokens in encoded} == {config.eos_token_id}


def test_the_tokenizer_knows_every_text() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(standin_backbone_directory())
    for text in ("food-related; 3 zucchini!", "żółć 寿司 🦓", "q"):
        tokens = tokenizer(text)["input_ids"][1:-1]
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens).replace(" ", "") == text.replace(" ", "")


def test_the_shipped_weights_are_those_the_readme_describes() -> None:
    directory = standin_backbone_directory()
    weights = (directory / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in (directory / "README.md").read_text()
    assert len(weights) <= 6_000_000

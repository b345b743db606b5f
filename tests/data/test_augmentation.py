import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_hba_behavior.data.augmentation import Augmentation, AugmentedImages, _draws, augment, augmented_batches
from clip_hba_behavior.data.images import Preprocessing, decoded_digest, to_pixels
from clip_hba_behavior.data.jitter import change_brightness, change_contrast, change_saturation
from clip_hba_behavior.data.things import DataError
from clip_hba_behavior.reproducibility.state.errors import StoppedError

SMALL = Preprocessing(image_size=32)
ALL = Augmentation(random_resized_crop=True, horizontal_flip=True, color_jitter=True)
BATCHES = [[3, 0, 4], [1, 2], [5], [0, 1, 2]]


def drawn(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.Generator(np.random.Philox(seed)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{index}.png" for index in range(6)]
    for index, path in enumerate(found):
        drawn(index).save(path)
    return found


def batches_as_bytes(paths: Sequence[Path], num_workers: int, epoch: int = 1) -> list[bytes]:
    batches = augmented_batches(paths, BATCHES, SMALL, ALL, seed=1, epoch=epoch, num_workers=num_workers)
    return [batch.numpy().tobytes() for batch in batches]


def global_states() -> tuple[bytes, bytes, str]:
    numpy_state = np.random.get_state(legacy=False)
    return (
        torch.get_rng_state().numpy().tobytes(),
        repr(numpy_state).encode() + numpy_state["state"]["key"].tobytes(),
        repr(random.getstate()),
    )


def test_without_any_augmentation_the_image_stays_as_it_is() -> None:
    assert augment(drawn(), Augmentation(), 1, 1, 0).tobytes() == drawn().tobytes()


def test_an_image_depends_on_seed_epoch_and_index_and_on_nothing_else() -> None:
    first = augment(drawn(), ALL, seed=1, epoch=2, image_index=3)
    np.random.seed(9)
    torch.manual_seed(9)
    random.seed(9)
    again = augment(drawn(), ALL, seed=1, epoch=2, image_index=3)
    assert (again.size, again.tobytes()) == (first.size, first.tobytes())


def test_every_seed_epoch_and_index_draws_other_numbers() -> None:
    jitter = Augmentation(color_jitter=True)
    values = (0, 1, 2, 3, 255, 256, 2**32, 2**63, 2**64 - 1)
    tuples = [(a, b, c) for a in values for b in values for c in values]
    image = drawn(width=8, height=8)
    assert len({augment(image, jitter, *one).tobytes() for one in tuples}) > len(tuples) * 0.99
    assert len({tuple(_draws(*one)) for one in tuples}) == len(tuples)


def test_the_draws_of_one_image_are_these_forever() -> None:
    # Recorded: a change would make the runs that people have another run.
    assert _draws(1, 1, 0)[:3] == [0.9463039665786516, 0.009042822494103042, 0.09543622644500294]


def test_half_of_the_images_are_mirrored_exactly() -> None:
    flip = Augmentation(horizontal_flip=True)
    mirrored = drawn().transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    results = [augment(drawn(), flip, 1, 1, index).tobytes() for index in range(400)]
    assert set(results) == {mirrored, drawn().tobytes()}
    assert 160 < results.count(mirrored) < 240


def test_switching_one_part_on_leaves_the_draws_of_the_others_alone() -> None:
    crop, both = (
        Augmentation(random_resized_crop=True),
        Augmentation(random_resized_crop=True, horizontal_flip=True),
    )
    for index in range(20):
        cropped, found = augment(drawn(), crop, 1, 1, index), augment(drawn(), both, 1, 1, index)
        mirrored = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert found.tobytes() in (cropped.tobytes(), mirrored.tobytes())


@pytest.mark.parametrize("size", [(400, 300), (100, 900), (1, 1), (2, 500)])
def test_a_crop_keeps_its_area_and_shape_within_the_limits(size: tuple[int, int]) -> None:
    crop = Augmentation(random_resized_crop=True)
    image = drawn(0, *size)
    found = {augment(image, crop, 1, 1, index).size for index in range(100)}
    assert all(0 < width <= size[0] and 0 < height <= size[1] for width, height in found)
    if size == (400, 300):
        assert len(found) > 90
        for width, height in found:
            assert 0.49 < width * height / 120_000 <= 1
            assert 0.74 < width / height < 1.34


def test_jitter_changes_colours_and_not_the_size() -> None:
    jittered = augment(drawn(), Augmentation(color_jitter=True), 1, 1, 0)
    assert jittered.size == drawn().size
    assert jittered.tobytes() != drawn().tobytes()
    still = Augmentation(color_jitter=True, brightness=0, contrast=0, saturation=0)
    assert augment(drawn(), still, 1, 1, 0).tobytes() == drawn().tobytes()


def test_portable_arithmetic_changes_colours_by_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (drawn(), Augmentation(color_jitter=True), 1, 1, 0)
    values = np.asarray(drawn())
    for change, draw in zip(
        (change_brightness, change_contrast, change_saturation), _draws(1, 1, 0)[1:], strict=False
    ):
        values = change(values, 0.8 + (1.2 - 0.8) * draw)
    monkeypatch.setattr(Image, "blend", None)
    assert augment(*arguments, "portable").tobytes() == values.tobytes()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_in_portable_arithmetic_are_resized_and_changed_by_it(paths: list[Path], num_workers: int) -> None:
    portable = Preprocessing(image_size=32, arithmetic="portable")
    batches = augmented_batches(paths, [[3, 0], [1]], portable, ALL, 1, 1, num_workers)
    expected = [
        [to_pixels(augment(drawn(i), ALL, 1, 1, i, "portable"), portable) for i in ids] for ids in ([3, 0], [1])
    ]
    assert [batch.tolist() for batch in batches] == [torch.stack(each).tolist() for each in expected]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.9, 0.5)),
        ("crop_ratio", (0.0, 1.0)),
        ("flip_probability", 1.5),
        ("brightness", -0.1),
        ("saturation", 1.1),
    ],
)
def test_parameters_that_cannot_be_meant_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: .*; expected "):
        Augmentation(**{field: value})


def test_one_request_gives_the_pixels_of_the_augmented_image(paths: list[Path]) -> None:
    found = AugmentedImages(paths, SMALL, ALL, seed=5)[(7, 2)]
    expected = to_pixels(augment(drawn(2), ALL, 5, 7, 2), SMALL)
    assert found.numpy().tobytes() == expected.numpy().tobytes()


def test_batches_come_in_order_with_the_same_bytes_for_any_number_of_workers(paths: list[Path]) -> None:
    images = AugmentedImages(paths, SMALL, ALL, seed=1)
    expected = [torch.stack([images[(1, index)] for index in batch]).numpy().tobytes() for batch in BATCHES]
    for num_workers in (0, 1, 2):
        assert batches_as_bytes(paths, num_workers) == expected
    assert batches_as_bytes(paths, 0, epoch=2) != expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_number_is_drawn_from_a_global_generator(paths: list[Path], num_workers: int) -> None:
    before = global_states()
    batches = augmented_batches(paths, BATCHES, SMALL, ALL, 1, 1, num_workers)
    next(batches)
    assert global_states() == before
    list(batches)
    assert global_states() == before


def test_a_batch_can_be_written_to_and_has_its_shape_and_type(paths: list[Path]) -> None:
    batch = next(augmented_batches(paths, BATCHES, SMALL, ALL, 1, 1, 1))
    assert batch.shape == (3, 3, 32, 32)
    assert batch.dtype == torch.float32
    batch.zero_()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_closing_early_ends_the_workers(paths: list[Path], num_workers: int) -> None:
    batches = augmented_batches(paths, BATCHES * 20, SMALL, ALL, 1, 1, num_workers)
    next(batches)
    assert len(multiprocessing.active_children()) == num_workers
    batches.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_is_decoded_otherwise_stops_with_its_name(paths: list[Path], num_workers: int) -> None:
    decoded = [decoded_digest(drawn(index)) for index in range(6)]
    same = list(augmented_batches(paths, BATCHES, SMALL, ALL, 1, 1, num_workers, decoded))
    assert [each.numpy().tobytes() for each in same] == batches_as_bytes(paths, 0)
    drawn(7).save(paths[5])
    batches = augmented_batches(paths, BATCHES, SMALL, ALL, 1, 1, num_workers, decoded)
    with pytest.raises(DataError, match=r"5\.png is decoded to other pixels") as caught:
        list(batches)
    assert f"found:    {decoded_digest(drawn(7))}" in str(caught.value)
    assert f"expected: {decoded[5]}" in str(caught.value)
    assert "cache_dir" in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_stops_with_its_own_message(paths: list[Path], num_workers: int) -> None:
    paths[5].write_bytes(b"")
    batches = augmented_batches(paths, BATCHES, SMALL, ALL, 1, 1, num_workers)
    assert next(batches).shape == (3, 3, 32, 32)
    with pytest.raises(DataError) as caught:
        list(batches)
    assert str(caught.value).startswith(f"{paths[5]}: the image cannot be read: ")
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("size", [32, 224])  # 224: more than a pipe holds, so it is killed while it sends
def test_a_worker_that_is_killed_stops_with_a_message(paths: list[Path], size: int) -> None:
    batches = augmented_batches(paths, [[0, 1, 2]] * 40, Preprocessing(size), ALL, 1, 1, 2)
    next(batches)
    time.sleep(0.5)
    multiprocessing.active_children()[0].kill()
    with pytest.raises(StoppedError, match="a process that reads images was ended by the system"):
        list(batches)
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("batch", [[], [6], [-1]])
def test_a_batch_of_images_that_are_not_there_is_refused_at_once(paths: list[Path], batch: list[int]) -> None:
    with pytest.raises(ValueError, match=r"batch 2 is \[.*\]; expected positions from 0 to 5"):
        augmented_batches(paths, [[0], batch], SMALL, ALL, 1, 1, 0)


SIGNALLED = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from clip_hba_behavior.data.augmentation import Augmentation, augmented_batches
from clip_hba_behavior.data.images import Preprocessing

if __name__ == "__main__":
    paths = [Path(name) for name in sys.argv[1:]]
    arguments = (Preprocessing(32), Augmentation(color_jitter=True), 1, 1)
    batches = augmented_batches(paths, [[0, 1], [2, 3]] * 5, *arguments, 2)
    next(batches)
    workers = {worker.pid for worker in multiprocessing.active_children()}
    servers = {int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) for pid in workers}
    assert (len(workers), len(servers)) == (2, 1)
    assert os.getpid() not in servers
    for pid in workers | servers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    time.sleep(0.1)
    assert len(list(batches)) == 9
    assert len(list(augmented_batches(paths, [[0], [1]], *arguments, 1))) == 2
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    print("all batches came")
"""


@pytest.mark.system
def test_the_runs_signals_end_neither_a_worker_nor_the_fork_server(paths: list[Path], tmp_path: Path) -> None:
    """In a process of its own, whose fork server no other test shares."""
    script = tmp_path / "script.py"
    script.write_text(SIGNALLED)
    command = [sys.executable, str(script), *map(str, paths)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "all batches came\n"


LEAVES_EARLY = """
import multiprocessing, os, signal, sys
from pathlib import Path
from clip_hba_behavior.data.augmentation import Augmentation, augmented_batches
from clip_hba_behavior.data.images import Preprocessing

if __name__ == "__main__":
    how, *names = sys.argv[1:]
    paths = [Path(name) for name in names]
    augmentation = Augmentation(color_jitter=True)
    batches = augmented_batches(paths, [[0, 1, 2] * 5] * 50, Preprocessing(), augmentation, 1, 1, 2)
    for batch in batches:
        break
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    if how == "error":
        raise SystemExit("stopped")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.system
@pytest.mark.parametrize(("how", "expected"), [("error", "stopped\n"), ("kill", None)])
def test_a_process_that_leaves_early_leaves_no_worker_and_no_traceback(
    tmp_path: Path, paths: list[Path], how: str, expected: str | None
) -> None:
    script = tmp_path / "script.py"
    script.write_text(LEAVES_EARLY)
    # Files, not pipes: a worker that stayed would hold a pipe open, and this test would wait for it.
    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        command = [sys.executable, str(script), how, *map(str, paths)]
        subprocess.run(command, stdout=out, stderr=err, timeout=60, check=False)
    workers = [int(pid) for pid in (tmp_path / "out").read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, workers))
    if expected is not None:
        assert (tmp_path / "err").read_text() == expected

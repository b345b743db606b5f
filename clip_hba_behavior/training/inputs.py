"""Everything that a model reads in training: frozen features, targets, prompts, the human RDM."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clip_hba_behavior.config import DATA_KEYS, Config
from clip_hba_behavior.data import things
from clip_hba_behavior.data.augmentation import Augmentation, augmented_batches
from clip_hba_behavior.data.image_files import locate_images
from clip_hba_behavior.data.images import Preprocessing
from clip_hba_behavior.data.plain_images import read_chunks
from clip_hba_behavior.model.backbone import load_backbone, resolve_backbone
from clip_hba_behavior.model.clip import Clip, TowerName
from clip_hba_behavior.model.clip_hba import FrozenPrefix
from clip_hba_behavior.model.feature_cache import Bounds, FeatureCache
from clip_hba_behavior.model.hub import pretrained_files
from clip_hba_behavior.model.operations import (
    Bfloat16Operations,
    NativeOperations,
    Operations,
    PortableOperations,
)
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.environment import (
    USUAL_VARIABLES,
    device_model,
    library_versions,
    variables,
)
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.training.features import Features, free_memory
from clip_hba_behavior.training.fit import layer_problems, split_problems, tokens_of

Progress = Callable[[str, int, int], None]

# The prefix was transformers' up to this version, and gives the same bits: caches that were filled then serve on.
_PREFIX_VERSION = {"transformers": "5.23.0"}
# Rows of one digest in a portable cache, whatever is computed together.
_STORED_TOGETHER = 32


def operations_of(config: Config, is_suffix: bool = False) -> Operations:
    """Return what computes the model's layers under a configuration.

    Args:
        config: its `arithmetic`, and for native arithmetic its attention kernel and precision.
        is_suffix: whether it is for the part that trains, whose frozen weights are used in every step; frozen
            features are never computed in bfloat16, so that those of a run in float32 serve.
    """
    if config.is_portable():
        return PortableOperations(keeps_weights=is_suffix)
    if is_suffix and config.precision == "bfloat16":
        return Bfloat16Operations(config.sdpa_backend)
    return NativeOperations(config.sdpa_backend)


class LazyBackbone:
    """The pretrained CLIP, loaded when it is needed and dropped when it is not.

    Once the features are cached only the blocks with DoRA layers are used, and what follows them; the rest, most
    of CLIP, can go.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self._config = config
        self._device = device
        self._layers: dict[TowerName, int] = {
            "vision": config.vision_layers,
            "text": config.transformer_layers,
        }
        self._model: Clip | None = None
        self._upper: Clip | None = None
        self._digest: str | None = None

    def get(self) -> Clip:
        """Return the backbone on its device, loading it if it is not there.

        Raises:
            BadInputError: it cannot be loaded, or is another than it was when its digest was taken.
        """
        if self._model is None:
            model = load_backbone(self._config.backbone, self._config.trust_backbone_file)
            if self._digest is not None and (found := model.digest()) != self._digest:
                raise BadInputError(
                    f"the weights of the backbone {self._config.backbone} changed since they were first read\n"
                    f"  found:    {found}\n  expected: {self._digest}\n  restore them, and resume the run"
                )
            self._model = model.to(self._device)
        return self._model

    def digest(self) -> str:
        """Return the digest of the weights, which those that are loaded again must have."""
        if self._digest is None:
            self._digest = self.get().digest()
        return self._digest

    def upper(self) -> Clip:
        """Return what a model trains on, the blocks with DoRA layers and what follows; it is not dropped."""
        if self._upper is None:
            self._upper = self.get().upper(self._layers)
        return self._upper

    def drop(self) -> None:
        """Let go of the blocks below."""
        self._model = None

    def prefix(self, tower: TowerName) -> FrozenPrefix:
        """Return the frozen part of the `vision` or the `text` tower."""
        return FrozenPrefix(self.get(), tower, self._layers[tower], operations_of(self._config))


@dataclass(frozen=True)
class Inputs:
    """What a run reads, on its device where it is small.

    Attributes:
        image_cache: frozen features of the annotated images, then of the inference images.
        features: the same where the model computes.
        image_paths: in the same order.
        image_digests: SHA-256 of each file, in the same order.
        targets: `[num_images, 66] float32` of the annotated images.
        target_digests: SHA-256 of each annotated image's targets as they stand in the table, in float64.
        inference_targets: `[48, 66] float64` of the held-out images; nothing is trained on them.
        prompt_features: `[66, 2, tokens, width] float32`.
        end_positions: `[66] int64`, each prompt's end token.
        human_rdm: `[48, 48] float64`.
        digests: of weights, images, targets, prompts and RDM, for the record.
        device: where the model computes.
        files: all that were read, and the directories where they were found.
        waiting: seconds that the computation of features waited for images.
    """

    image_cache: FeatureCache
    features: Features
    image_paths: tuple[Path, ...]
    image_digests: tuple[str, ...]
    targets: torch.Tensor
    target_digests: tuple[str, ...]
    inference_targets: NDArray[np.float64]
    prompt_features: torch.Tensor
    end_positions: torch.Tensor
    human_rdm: NDArray[np.float64]
    digests: dict[str, str]
    device: torch.device
    backbone: LazyBackbone
    preprocessing: Preprocessing
    files: tuple[Path, ...]
    waiting: float

    def num_images(self) -> int:
        """Return the number of annotated images."""
        return len(self.targets)

    def image_features(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the frozen features of some images, `[len(rows), 2, tokens, width]`, on the device."""
        return self.features.take(rows)

    def inference_rows(self) -> torch.Tensor:
        """Return the rows of the held-out images."""
        return torch.arange(self.num_images(), len(self.image_paths))

    def augmented_features(
        self, batches: Sequence[torch.Tensor], config: Config, epoch: int
    ) -> Iterator[torch.Tensor]:
        """Yield the features of each batch of augmented images, straight from the frozen prefix.

        Args:
            batches: rows of the images; some may be empty.
            config: what the images undergo.
            epoch: counted from 1.
        """
        augmentation = Augmentation(
            random_resized_crop="random_resized_crop" in config.augmentation,
            horizontal_flip="horizontal_flip" in config.augmentation,
            color_jitter="color_jitter" in config.augmentation,
        )
        drawn = augmented_batches(
            self.image_paths[: self.num_images()],
            [rows.tolist() for rows in batches if len(rows)],
            self.preprocessing,
            augmentation,
            seed=config.random_seed,
            epoch=epoch,
            num_workers=config.num_workers,
            decoded=self.image_cache.sources[: self.num_images()],
        )
        for rows in batches:
            yield self.features_of(next(drawn), config.chunk_size) if len(rows) else self.image_features(rows)

    def features_of(self, pixels: torch.Tensor, chunk_size: int) -> torch.Tensor:
        """Compute the frozen features of normalised pixels, `[batch, 2, tokens, width]`, on the device."""
        if not len(pixels):
            return self.image_features(torch.arange(0))
        return compute_in_chunks(self.backbone.prefix("vision"), pixels, chunk_size, self.device)


def compute_in_chunks(
    prefix: FrozenPrefix, pixels: torch.Tensor, chunk_size: int, device: torch.device
) -> torch.Tensor:
    """Run images through the frozen prefix, `chunk_size` at a time.

    In native arithmetic the last chunk is padded: the bits depend on how many are computed together.
    """
    parts = []
    for chunk in pixels.split(chunk_size):
        if prefix.operations.name != "native":
            class_token = torch.zeros(len(chunk), dtype=torch.int64, device=device)
            parts.append(prefix(chunk.to(device), class_token))
            continue
        padded = torch.zeros(chunk_size, *chunk.shape[1:])
        padded[: len(chunk)] = chunk
        class_token = torch.zeros(chunk_size, dtype=torch.int64, device=device)
        parts.append(prefix(padded.to(device), class_token)[: len(chunk)])
    return torch.cat(parts)


def _files_read(config: Config, images: Sequence[Path], image_cache: FeatureCache) -> Iterator[Path]:
    """Yield the files that inputs are read from, and the directories in which another would be found instead."""
    yield from (Path(str(getattr(config, key))) for key in DATA_KEYS)
    yield from images
    yield from {path.parent for path in images}
    for name in (resolve_backbone(config.backbone), config.tokenizer):
        if name is not None:
            yield from pretrained_files(name)
    yield from image_cache.files()


def load_inputs(config: Config, device: torch.device, progress: Progress) -> Inputs:
    """Read and check the data, and fill or open the caches of frozen features.

    Args:
        config: resolved: every path given, `cache_dir` and `num_threads` set.
        device: where the model computes.
        progress: called with what is done, how much of it, and how much in all.

    Raises:
        BadInputError: something is missing, unreadable or of the wrong form.
    """
    annotations = things.read_annotations(Path(str(config.csv_file)))
    inference = things.read_annotations(Path(str(config.inference_csv_file)))
    prompts = things.read_prompts(Path(str(config.prompts_file)))
    human_rdm = things.read_human_rdm(Path(str(config.RDM48_triplet_dir)))
    if len(inference.image_names) != len(human_rdm):
        raise things.DataError(
            f"{inference.path} does not fit the human RDM\n  found:    {len(inference.image_names)} images\n"
            f"  expected: {len(human_rdm)}, one for each row of {config.RDM48_triplet_dir}"
        )
    names = [*annotations.image_names, *inference.image_names]
    paths = locate_images(Path(str(config.img_dir)), names, config.image_suffix)
    backbone = LazyBackbone(config, device)
    model_config = backbone.get().config
    vision, text = model_config.vision_config, model_config.text_config
    for problem in layer_problems(config, model_config) + split_problems(config, len(annotations.image_names)):
        raise BadInputError(problem)
    token_ids, end_positions = tokens_of(prompts, config, model_config)
    image_digests = things.image_digests(paths, lambda done, total: progress("reading images", done, total))

    digests = {
        "weights": backbone.digest(),
        "images": digest(list(image_digests)),
        "targets": things.targets_digest(annotations),
        "inference_targets": things.targets_digest(inference),
        "prompts": digest([list(prompts), token_ids]),
        "human_rdm": digest(torch.from_numpy(human_rdm)),
    }
    native: dict[str, Any] = {
        "versions": {name: library_versions()[name] for name in ("torch", "numpy")} | _PREFIX_VERSION,
        "device_model": device_model(device),
        **({"variables": others} if (others := variables()) != USUAL_VARIABLES else {}),
        "num_threads": config.num_threads,
        "deterministic": config.deterministic,
        "tf32": config.precision == "tf32",
        "sdpa_backend": config.sdpa_backend,
        "chunk_size": config.chunk_size,
    }
    portable: dict[str, Any] = {"arithmetic": config.arithmetic}
    numerics = {"weights": digests["weights"]} | (portable if config.is_portable() else native)
    chunk_size = _STORED_TOGETHER if config.is_portable() else config.chunk_size
    preprocessing = Preprocessing(
        image_size=vision.image_size, rule=config.preprocessing, arithmetic=config.arithmetic_kind()
    )

    waiting = 0.0  # for images, in seconds

    def image_rows(chunks: Sequence[Bounds]) -> Generator[tuple[torch.Tensor, list[str]], None, None]:
        nonlocal waiting
        with closing(read_chunks(paths, chunks, preprocessing, config.num_workers)) as images:
            for _ in chunks:
                began = time.perf_counter()
                pixels, decoded = next(images)
                waiting += time.perf_counter() - began
                prefix = backbone.prefix("vision")
                yield compute_in_chunks(prefix, torch.from_numpy(pixels), config.chunk_size, device), decoded

    def prompt_rows(_: Sequence[Bounds]) -> Generator[tuple[torch.Tensor, list[str]], None, None]:
        yield backbone.prefix("text")(token_ids.to(device), end_positions.to(device)), []

    cache_dir = Path(str(config.cache_dir))
    num_tokens = (vision.image_size // vision.patch_size) ** 2 + 1 if config.vision_layers > 1 else 1
    image_cache = FeatureCache(
        cache_dir,
        numerics
        | {
            "images": list(image_digests),
            "preprocessing": preprocessing.digest_fields(paths),
            "pillow": library_versions()["pillow"],
            "vision_layers": config.vision_layers,
        },
        num_rows=len(paths),
        row_shape=(2, num_tokens, vision.hidden_size),
        chunk_size=chunk_size,
        compute=image_rows,
        progress=lambda done, total: progress("computing features of images", done, total),
        has_sources=config.is_portable(),
    )
    num_tokens = token_ids.shape[1] if config.transformer_layers > 1 else 1
    prompt_cache = FeatureCache(
        cache_dir,
        numerics | {"prompts": digests["prompts"], "transformer_layers": config.transformer_layers},
        num_rows=len(prompts),
        row_shape=(2, num_tokens, text.hidden_size),
        chunk_size=len(prompts),
        compute=prompt_rows,
    )
    if config.is_portable():
        digests["pixels"] = digest(image_cache.sources)
    return Inputs(
        image_cache=image_cache,
        features=Features(image_cache, device, free_memory(device)),
        image_paths=tuple(paths),
        image_digests=tuple(image_digests),
        targets=torch.from_numpy(annotations.targets).float().to(device),
        target_digests=tuple(digest(torch.from_numpy(row)) for row in annotations.targets),
        inference_targets=inference.targets,
        prompt_features=prompt_cache.take(torch.arange(len(prompts))).to(device),
        end_positions=end_positions.to(device),
        human_rdm=human_rdm,
        digests=digests,
        device=device,
        backbone=backbone,
        preprocessing=preprocessing,
        files=tuple(_files_read(config, paths, image_cache)),
        waiting=waiting,
    )

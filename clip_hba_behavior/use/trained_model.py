"""A trained model with all that it takes to go from image files to predictions."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clip_hba_behavior.config import Config
from clip_hba_behavior.data.images import Preprocessing, load_pixels
from clip_hba_behavior.model.clip import Clip
from clip_hba_behavior.model.clip_hba import CLIPHBA, FrozenPrefix
from clip_hba_behavior.training.inputs import compute_in_chunks, operations_of

Progress = Callable[[int, int], None]


class TrainedModel(CLIPHBA):
    """CLIP-HBA as `load_model` gives it, from image files to predictions.

    Called like `CLIPHBA`, it maps frozen features; `predict` takes image files, `embed` their pixels. In portable
    arithmetic an image's numbers do not depend on what else is in the call. Its `state_dict` holds the trainable
    parameters alone.

    Attributes:
        prompts: the 66 dimensions' names.
        preprocessing: from an image to its pixels.
        config: resolved, with the synthetic data set's files where no others are named.
        backbone: the frozen CLIP, on the model's device.
        token_ids: `[66, tokens] int64`, of the prompts, padded with the end token.
    """

    prompts: tuple[str, ...]
    preprocessing: Preprocessing
    config: Config
    backbone: Clip
    token_ids: torch.Tensor

    def complete(
        self, config: Config, backbone: Clip, prompts: Sequence[str], token_ids: torch.Tensor
    ) -> "TrainedModel":
        """Take in the frozen part; `load_model` does so.

        Args:
            config: resolved.
            backbone: on its device.
            prompts: one a dimension.
            token_ids: `[66, tokens] int64`, of the prompts.
        """
        self.prompts = tuple(prompts)
        self.config, self.backbone, self.token_ids = config, backbone, token_ids
        self.preprocessing = Preprocessing(
            image_size=backbone.config.vision_config.image_size,
            rule=config.preprocessing,
            arithmetic=config.arithmetic_kind(),
        )
        operations = operations_of(config)
        self._prefix = FrozenPrefix(backbone, "vision", config.vision_layers, operations)
        self._prompt_prefix = FrozenPrefix(backbone, "text", config.transformer_layers, operations)
        self._prompt_features: torch.Tensor | None = None
        self._chunk_size, self._batch_size = config.chunk_size, config.eval_batch_size
        return self

    @torch.no_grad()
    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Predict from pixels.

        Args:
            pixels: `[batch, 3, image_size, image_size] float32`, normalised, as `preprocessing` makes them.

        Returns:
            `[batch, 66] float32`, on the CPU: each image's place in the embedding that the targets are of.

        Raises:
            ValueError: the pixels have another shape or dtype.
        """
        size = self.preprocessing.image_size
        if pixels.dim() != 4 or tuple(pixels.shape[1:]) != (3, size, size) or pixels.dtype != torch.float32:
            raise ValueError(
                f"embed cannot take these pixels\n  found:    {list(pixels.shape)} {pixels.dtype}\n"
                f"  expected: [batch, 3, {size}, {size}] {torch.float32}"
            )
        features = compute_in_chunks(self._prefix, pixels.cpu(), self._chunk_size, self.end_positions.device)
        was_training = self.training
        self.eval()
        prompts = self.encode_prompts(self._features_of_prompts())
        parts = [
            self.similarities(self.encode_images(batch), prompts).cpu()
            for batch in features.split(self._batch_size)
        ]
        self.train(was_training)
        return torch.cat(parts)

    @torch.no_grad()
    def embed_prompts(self) -> torch.Tensor:
        """Return the embeddings of the 66 prompts, `[66, embedding] float32` of length one, on the CPU.

        A prediction is the product of an image's embedding with these, times `logit_scale`.
        """
        was_training = self.training
        self.eval()
        embeddings = self.encode_prompts(self._features_of_prompts()).cpu()
        self.train(was_training)
        return embeddings

    def _features_of_prompts(self) -> torch.Tensor:
        if self._prompt_features is None:
            token_ids = self.token_ids.to(self.end_positions.device)
            self._prompt_features = self._prompt_prefix(token_ids, self.end_positions)
        return self._prompt_features

    def predict(
        self, paths: Sequence[str | Path], progress: Progress = lambda done, total: None
    ) -> NDArray[np.float32]:
        """Predict from image files.

        Args:
            paths: JPEG, PNG, BMP, WebP, TIFF or GIF files.
            progress: called with the number of images done and in all.

        Returns:
            `[len(paths), 66] float32`, columns in the order of `prompts`.

        Raises:
            DataError: an image cannot be read.
        """
        found = [np.empty((0, len(self.prompts)), dtype=np.float32)]
        for batch in _batches([Path(path) for path in paths], self._batch_size):
            found.append(self.embed(load_pixels(batch, self.preprocessing)).numpy())
            progress(sum(map(len, found)), len(paths))
        return np.concatenate(found)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]

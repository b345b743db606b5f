"""The earlier pipeline's way of training, as the baseline that the benchmarks measure against.

Every step reads its images, runs the whole image tower on them, and encodes the 66 prompts one at a
time over all 77 positions. Model, data, optimizer and loss are those of the project.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPModel

from clip_hba_behavior.data.images import load_pixels
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.rsa import rank_correlation as rsa
from clip_hba_behavior.training.inputs import Inputs

CONTEXT = 77


class FullForward(nn.Module):
    """transformers' CLIP with DoRA layers in the place of the adapted `out_proj`."""

    def __init__(self, backbone: CLIPModel, model: CLIPHBA, token_ids: torch.Tensor) -> None:
        """Put copies of the model's DoRA layers into the backbone."""
        super().__init__()
        self.backbone = backbone
        for name, layer in model.dora_layers().items():
            tower = backbone.vision_model if ".visual." in name else backbone.text_model
            block = int(name.split("resblocks.")[1].split(".")[0])
            tower.encoder.layers[block].self_attn.out_proj = layer
        end = backbone.config.text_config.eos_token_id
        padding = torch.full((len(token_ids), CONTEXT - token_ids.shape[1]), end)
        self.token_ids = torch.cat([token_ids.cpu(), padding], dim=1).to(token_ids.device)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Predict `[batch, 66]` from `[batch, 3, size, size]`."""
        images = functional.normalize(self.backbone.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        prompts = torch.cat(
            [self.backbone.get_text_features(input_ids=row[None]).pooler_output for row in self.token_ids]
        )
        predictions: torch.Tensor = (
            self.backbone.logit_scale.exp() * images @ functional.normalize(prompts, dim=-1).T
        )
        return predictions


class BaselineEpoch:
    """One epoch of the earlier pipeline: train, test loss, RSA."""

    def __init__(self, model: FullForward, inputs: Inputs, batch_size: int) -> None:
        """Make the optimizer over the DoRA parameters."""
        self.model = model
        self.inputs = inputs
        self.batch_size = batch_size
        trainable = [value for value in model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=3e-4, weight_decay=0.01, fused=True)

    def step(self, rows: torch.Tensor) -> float:
        """Train on one batch."""
        loss = functional.mse_loss(
            self.model(self._pixels(rows)), self.inputs.targets[rows.to(self.inputs.device)]
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def run(self, train: torch.Tensor, test: torch.Tensor) -> tuple[float, float]:
        """Train on every batch, then evaluate; returns the test loss and RSA's rho."""
        for rows in train.split(self.batch_size):
            self.step(rows)
        with torch.no_grad():
            losses = []
            for rows, predictions in self._predict(test):
                targets = self.inputs.targets[rows.to(self.inputs.device)]
                losses.append(functional.mse_loss(predictions, targets).item() * len(rows))
            held_out = torch.cat([each for _, each in self._predict(self.inputs.inference_rows())])
        rdm = rsa.correlation_distances(held_out.cpu().numpy())
        return sum(losses) / len(test), rsa.rank_correlation(rdm, self.inputs.human_rdm)[0]

    def _predict(self, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in rows.split(self.batch_size):
            yield batch, self.model(self._pixels(batch))

    def _pixels(self, rows: torch.Tensor) -> torch.Tensor:
        paths = [self.inputs.image_paths[row] for row in rows.tolist()]
        return load_pixels(paths, self.inputs.preprocessing).to(self.inputs.device)

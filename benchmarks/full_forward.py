"""The earlier pipeline's way of training, as the baseline that the benchmarks measure against.

Every step reads its images, runs the whole image tower on them, and encodes the 66 prompts one at a
time over all 77 positions. Model, data, optimizer and loss are those of the project.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from clip_hba_behavior.data.images import load_pixels
from clip_hba_behavior.model.block import attention_context, mlp
from clip_hba_behavior.model.clip import Clip, TowerName
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.model.operations import NativeOperations
from clip_hba_behavior.rsa import rank_correlation as rsa
from clip_hba_behavior.training.inputs import Inputs

CONTEXT = 77


class FullForward(nn.Module):
    """Both towers of CLIP over all blocks and tokens, with DoRA layers instead of the adapted `out_proj`."""

    def __init__(self, backbone: Clip, model: CLIPHBA, token_ids: torch.Tensor) -> None:
        """Take over the model's DoRA layers; prompts are padded to the context's length."""
        super().__init__()
        self.backbone = backbone
        self.dora: dict[tuple[TowerName, int], nn.Module] = {}
        for number, (name, layer) in enumerate(model.dora_layers().items()):
            index = int(name.split("resblocks.")[1].split(".")[0])
            self.dora["vision" if ".visual." in name else "text", index] = layer
            self.add_module(f"dora{number}", layer)
        self.operations = NativeOperations("flash" if token_ids.device.type == "cpu" else "efficient")
        self.ends = model.end_positions
        end = token_ids.gather(1, self.ends[:, None])
        padding = end.expand(-1, CONTEXT - token_ids.shape[1])
        self.token_ids = torch.cat([token_ids, padding], dim=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Predict `[batch, 66]` from `[batch, 3, size, size]`."""
        images = self._encode("vision", pixels, torch.zeros_like(self.ends[:1]))
        prompts = [
            self._encode("text", row[None], end[None]) for row, end in zip(self.token_ids, self.ends, strict=True)
        ]
        return self.backbone.weights["logit_scale"].exp() * images @ torch.cat(prompts).T

    def _encode(self, tower: TowerName, inputs: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        operations = self.operations
        hidden = self.backbone.embed(tower, inputs, operations)
        for index in range(self.backbone.tower(tower).num_hidden_layers):
            block = self.backbone.block(tower, index)
            context = attention_context(block, hidden, tower == "text", operations)
            dora = self.dora.get((tower, index))
            hidden = hidden + (operations.frozen(context, block.out)[0] if dora is None else dora(context))
            hidden = hidden + mlp(block, hidden, operations)
        read = operations.layer_norm(hidden[:, position[0]], *self.backbone.final_norm(tower))
        return operations.unit_rows(operations.frozen(read, self.backbone.projection(tower))[0])


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

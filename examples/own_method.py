"""A training method in one file: predict by how many quarter turns an image was rotated (Gidaris et al., 2018).

mrp pretrain demo 'objective={name: ./examples/own_method.py, hidden: 64}'
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

import mrp
from mrp.config import Node
from mrp.models.masking import below
from mrp.models.vit import Backbone, embed, encode, pool


class Config(Node):
    """The options of the method: what may stand in the section `objective:`."""

    name: Literal["rotation"] = "rotation"
    hidden: int = Field(128, gt=0)  # units of the head


class Objective(mrp.Objective):
    """Four-way classification of the rotation, which needs no labels."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.head = nn.Sequential(nn.Linear(backbone.embed_dim, config.hidden), nn.GELU(), nn.Linear(config.hidden, 4))

    def forward(self, batch: mrp.Batch) -> mrp.Output:
        """Returns the cross-entropy of the number of quarter turns."""
        turns = below(4, batch.keys, 0x707A)  # drawn from the sample's key; the number sets it apart from other draws
        tokens = embed(self.backbone, rotated(batch.images, turns))
        features = pool(self.backbone, encode(self.backbone, tokens, keys=batch.keys).tokens)
        logits = self.head(features).float()
        per_sample = functional.cross_entropy(logits, turns, reduction="none")
        loss = per_sample.mean()
        return mrp.Output(
            loss=loss,
            metrics={"loss": loss.detach(), "rotations_right": (logits.argmax(1) == turns).float().mean()},
            per_sample={"loss": per_sample.detach()},
            features=features.detach(),
        )


def rotated(images: Tensor, turns: Tensor) -> Tensor:
    """Returns each square image after its turns; all four are computed, since shapes must not depend on values."""
    every = torch.stack([torch.rot90(images, number, (2, 3)) for number in range(4)])  # 4 B C H W
    return every[turns, torch.arange(len(images), device=images.device)]

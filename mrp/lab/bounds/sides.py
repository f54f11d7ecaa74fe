"""The two sides of a masked method that the theory speaks of: an encoder that sees what is visible, and a decoder.

The theory is about methods whose loss is a squared error, whatever the target is: pixels, or a teacher's features.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from mrp.models.masking import keyed_noise, visible_places
from mrp.objectives import crossmae, data2vec2, mae, maskfeat

Squared = mae.Objective | crossmae.Objective | maskfeat.Objective | data2vec2.Objective  # by a squared error
Maps = list[Tensor]  # what a decoder reads: the encoder's tokens (B P+V D), of CrossMAE those after every block


def encode(objective: Squared, images: Tensor, mask: Tensor) -> tuple[Tensor, Maps]:
    """Returns the encoder's tokens, of the visible patches alone but for MaskFeat, and what the decoder reads."""
    if isinstance(objective, crossmae.Objective):
        return objective.encode_maps(images, mask)
    if isinstance(objective, maskfeat.Objective):
        latent = objective.encode_replaced(images, mask, objective.mask_token, None)
    else:
        latent = objective.encode_visible(images, mask, objective.num_visible, None)[0]
    return latent, [latent]


def decode(objective: Squared, maps: Maps, mask: Tensor, keys: Tensor) -> Tensor:
    """Returns the prediction of every patch (B N D); the noise that data2vec 2 decodes follows from the keys."""
    if isinstance(objective, crossmae.Objective):
        return cast(Tensor, objective.decoder(maps, torch.arange(objective.num_patches).expand_as(mask)))
    if isinstance(objective, maskfeat.Objective):
        return cast(Tensor, objective.head(maps[0][:, objective.backbone.num_prefix_tokens :]))
    places = visible_places(mask, objective.num_visible)
    if isinstance(objective, mae.Objective):
        return cast(Tensor, objective.decoder(maps[0], places))
    noise = objective.config.noise * keyed_noise(objective.noise, keys, objective.num_patches)
    return cast(Tensor, objective.decoder(maps[0], places, noise))

"""Which features of a model are read: of some last blocks of its encoder, pooled in some ways, and the method's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.evaluate.gathering import evaluating
from mrp.methodkit import Objective
from mrp.models.vit import Backbone, embed, encode

LAST = 4  # blocks that are read unless others are asked for, and that one pooling puts side by side
FEATURES = "features"  # in place of a pooling: what the method itself defines as the features of an image
TOKENS = "tokens"  # the pooling that keeps the patch tokens as they are, all of an image in one row


class Own(NamedTuple):
    """Features that a method defines itself."""

    method: str  # its name
    code: str  # where they are defined, which tells two versions of a file outside mrp apart
    width: int

    @property
    def block(self) -> str:
        """Returns the name of their columns."""
        return block_name(self.method, FEATURES)


@dataclass(frozen=True)
class Readout:
    """Blocks of columns, one for each of some layers (counted from 1) under each of some poolings.

    Every layer goes through the backbone's own final norm, so that the last one's features are what the backbone gives.
    A method that defines features of its own has one more block. Readouts are made from a model, which all processes do
    together, or from a backbone alone.
    """

    layers: tuple[int, ...]
    poolings: tuple[str, ...]
    width: int  # of one token
    num_patches: int
    own_features: Own | None = None

    @classmethod
    def last(cls, model: nn.Module, layers: int | None = None) -> Readout:
        """Reads the last few blocks (by default four, or all of fewer) under every pooling, and the method's own."""
        backbone = backbone_of(model)
        depth = len(backbone.blocks)
        count = layers or min(LAST, depth)
        if count > depth:
            raise ConfigError(f"layers: {count} were asked for, but the backbone has {depth}; give at most {depth}")
        poolings = ("class", "mean") if backbone.has_class_token else ("mean",)
        return cls(tuple(range(depth - count + 1, depth + 1)), poolings, *_sizes(backbone), _own_features(model))

    @classmethod
    def own(cls, model: nn.Module) -> Readout:
        """Reads what the method defines as the features of an image; by default they are the backbone's."""
        own = _own_features(model)
        return cls((), (), *_sizes(backbone_of(model)), own) if own else cls.of(model, None, None)

    @classmethod
    def of(cls, model: nn.Module, layer: int | None, pooling: str | None) -> Readout:
        """Reads one layer of the backbone (by default the last) under one pooling (by default the backbone's own)."""
        backbone = backbone_of(model)
        depth, layer = len(backbone.blocks), layer or len(backbone.blocks)
        if layer > depth:
            raise ConfigError(f"--layer: {layer} was asked for, but the backbone has {depth}; give at most {depth}")
        if pooling == "class" and not backbone.has_class_token:
            raise ConfigError("--pooling: the backbone has no class token; take mean")
        pooling = pooling or ("class" if backbone.global_pool == "token" else "mean")
        return cls((layer,), (pooling,), *_sizes(backbone))

    @classmethod
    def tokens(cls, model: nn.Module) -> Readout:
        """Reads the patch tokens of the last block."""
        backbone = backbone_of(model)
        return cls((len(backbone.blocks),), (TOKENS,), *_sizes(backbone))

    @property
    def blocks(self) -> tuple[str, ...]:
        """Returns the names of the blocks of columns."""
        return tuple(self.widths)

    @property
    def widths(self) -> dict[str, int]:
        """Returns how many columns each block has."""
        width = self.width * (self.num_patches if self.poolings == (TOKENS,) else 1)
        widths = {block_name(layer, pooling): width for layer in self.layers for pooling in self.poolings}
        return widths | ({self.own_features.block: self.own_features.width} if self.own_features else {})

    def __call__(self, objective: Objective, batch: Batch) -> Tensor:
        """Returns all blocks of columns side by side, from normalised images."""
        columns = self._of_layers(objective.encoder, batch.images) if self.layers else []
        if self.own_features:
            columns.append(objective.features(batch).float())
        return torch.cat(columns, dim=1)

    def _of_layers(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        depth = len(backbone.blocks)
        encoded = encode(backbone, embed(backbone, images), layers="none" if self.layers == (depth,) else "output")
        columns = []
        for layer in self.layers:
            tokens = encoded.tokens if layer == depth else backbone.norm(encoded.layers[layer - 1])
            patches = tokens[:, backbone.num_prefix_tokens :]
            for pooling in self.poolings:
                if pooling == TOKENS:
                    columns.append(patches.flatten(1))
                else:
                    pooled = tokens[:, 0] if pooling == "class" else patches.mean(1)
                    columns.append(backbone.fc_norm(pooled).float())
        return columns


def _sizes(backbone: Backbone) -> tuple[int, int]:
    return backbone.embed_dim, cast(int, backbone.patch_embed.num_patches)


def block_name(layer: int | str, pooling: str) -> str:
    """Returns what a block of columns is called."""
    return f"{layer}.{pooling}"


def backbone_of(model: nn.Module) -> Backbone:
    """Returns the backbone of a step that is judged; a backbone alone, as it is."""
    return model if isinstance(model, Backbone) else objective_of(model).encoder


def objective_of(model: nn.Module) -> Objective:
    """Returns the method of a step, which may be wrapped for several processes."""
    step: Any = getattr(model, "module", model)
    return cast(Objective, step.objective)


def features_of(model: nn.Module, batch: Batch, which: Any = True) -> Tensor:
    """Returns what a step gives in place of its loss: the method's own features, or what is read out of it."""
    output: Output = model(batch, features=which)
    assert output.features is not None
    return output.features


def _own_features(model: nn.Module) -> Own | None:
    """Returns what a method defines as the features of an image; None where they are the backbone's."""
    if isinstance(model, Backbone) or not objective_of(model).has_own_features:
        return None
    objective, backbone = objective_of(model), backbone_of(model)
    key = torch.zeros(1, dtype=torch.int64, device=next(model.parameters()).device)
    shape = cast(int, backbone.patch_embed.proj.in_channels), *cast(tuple[int, int], backbone.patch_embed.img_size)
    with evaluating(model):
        features = features_of(model, Batch(key.new_zeros((1, *shape), dtype=torch.uint8), key))
    if features.ndim != 2 or len(features) != 1:
        raise ConfigError(
            f"objective.name: the features of {objective.name} for one image are of shape "
            f"{tuple(features.shape)}; return one vector per image (B x D)"
        )
    return Own(objective.name, type(objective).__module__, features.shape[1])

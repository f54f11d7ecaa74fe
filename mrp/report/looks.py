"""What can be seen of a model's view of images: attention, patch features as colours, class-activation maps.

Each function takes a loaded model and raw images as `Model.features` does, and returns plain arrays with one number or
one colour per patch. Blocks are counted from 1; by default it is the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mrp.config import ConfigError
from mrp.model import Model, class_names
from mrp.models import attention as attentions
from mrp.models.vit import Backbone, embed, encode, grid, pool
from mrp.objectives import classify

Array = NDArray[np.float32]
Score = Callable[[Tensor], Tensor]  # from the encoder's tokens (B P+N D) to numbers whose sum is explained

CHUNK = 32  # images that are taken through the model at once
ROUNDING = 1e-5  # a spread below this share of the features' size means nothing
CLIPPED = 0.01  # the share of patches at either end of a component whose colours are clipped
HEAT = "inferno"  # in order of brightness, so that it needs no colours; its middle is far from grey


def attention(model: Model, images: Tensor, layer: int | None = None) -> Array:
    """Returns the share of its attention that each head gives to each patch (B heads rows columns).

    The class token looks; in a model without one, the mean of the patches' queries does.
    """
    block = _block(model, layer)
    parts = (attentions.to_patches(model.backbone, part, block) for part in _prepared(model, images))
    return _on_grid(model, torch.cat(list(parts)))


@torch.no_grad()
def patch_features(model: Model, images: Tensor, layer: int | None = None) -> Tensor:
    """Returns the features of every patch after a block and the encoder's last norm (B N D)."""
    vit, block = model.backbone, _block(model, layer)
    parts = (encode(vit, embed(vit, part), layers="output").layers[block] for part in _prepared(model, images))
    return torch.cat([vit.norm(part)[:, vit.num_prefix_tokens :] for part in parts])


def colours(model: Model, images: Tensor, layer: int | None = None) -> Array:
    """Returns the first three principal components of the patch features as red, green and blue (B rows columns 3).

    The components are those of all given images together, so one colour means the same in all of them. Each runs from 0
    to 1, where the outermost patches on both sides are clipped.
    """
    features = patch_features(model, images, layer)
    components = principal(features.flatten(0, 1)[None], 3)[0].T  # 3 BN
    ends = torch.quantile(components, torch.tensor([CLIPPED, 1 - CLIPPED], dtype=torch.float64), dim=1)
    low, high = (end[:, None] for end in ends)
    scaled = ((components - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)).clamp(0, 1)
    return _on_grid(model, scaled.view(3, *features.shape[:2]).transpose(0, 1)).transpose(0, 2, 3, 1)


def principal(rows: Tensor, count: int) -> Tensor:
    """Returns the rows' coordinates along their first principal components (B N count), for each item of a batch.

    A component has no sign of its own. It gets the one by which the sum of cubed coordinates is positive: of its two
    sides, the one with fewer rows that lie farther out. A component that is no more than rounding is zero.
    """
    rows = rows.double()
    centred = rows - rows.mean(1, keepdim=True)
    if rows.shape[1] > rows.shape[2]:
        coordinates = centred @ torch.linalg.eigh(centred.mT @ centred).eigenvectors[..., -count:].flip(-1)
    else:  # the same from the smaller matrix
        squares, directions = torch.linalg.eigh(centred @ centred.mT)
        coordinates = (directions * squares.clamp_min(0).sqrt()[:, None])[..., -count:].flip(-1)
    seen = coordinates.square().mean(1, keepdim=True) > (ROUNDING**2) * rows.square().sum(2).mean(1)[:, None, None]
    signs = torch.where(coordinates.pow(3).sum(1, keepdim=True) < 0, -1.0, 1.0)
    found: Tensor = coordinates * signs * seen
    return found


def eigen_cam(model: Model, images: Tensor, layer: int | None = None) -> Array:
    """Returns what stands out in each image by itself (B rows columns, at least 0; Muhammad & Yeasin, 2020).

    It is the first principal component of the image's patch features, cut at its mean; it asks for no class. See
    `principal` for its sign.
    """
    return _on_grid(model, principal(patch_features(model, images, layer), 1)[..., 0].relu())


class Explained(NamedTuple):
    """Class-activation maps, and what each of them explains."""

    maps: Array  # B rows columns, at least 0
    what: tuple[str, ...]  # one phrase per image


def gradient_cam(
    model: Model,
    images: Tensor,
    classes: Tensor | None = None,
    reference: Tensor | None = None,
    layer: int | None = None,
) -> Explained:
    """Returns what each patch adds to a score: gradient times activation where patches enter a block.

    With a head the score is that of the given classes, or of each image's likeliest. Without one, it is the cosine
    similarity to a reference feature (D, or B D); or, where none is given, the squared distance from the feature of an
    image that is empty (of the mean colour alone). The norm of a feature would not do: behind a LayerNorm it hardly
    changes.
    """
    vit, block = model.backbone, _block(model, layer)
    parts = list(_prepared(model, images))
    if classes is None and reference is None and _has_head(model):
        classes = torch.cat([_logits(_tokens(vit, part), model).argmax(1) for part in parts])
    if classes is not None and not _has_head(model):
        raise ConfigError(f"{model.folder}: {model.run.name} tells no classes apart, so no map can be asked of one")
    if classes is not None:
        names, aims = class_names(model), classes
        what = [names[number] if names else f"class {number}" for number in classes.tolist()]
    elif reference is not None:
        what, aims = ["similarity to the reference"] * len(images), reference.expand(len(images), -1)
    else:
        what = ["difference from an empty image"] * len(images)
        aims = pool(vit, _tokens(vit, torch.zeros_like(parts[0][:1]))).expand(len(images), -1)

    def score(aim: Tensor, tokens: Tensor) -> Tensor:
        if classes is not None:
            return _logits(tokens, model).gather(1, aim[:, None])
        feature = pool(vit, tokens)
        return (feature - aim).square() / 2 if reference is None else functional.cosine_similarity(feature, aim)

    pairs = zip(parts, aims.to(parts[0].device).split(CHUNK), strict=True)
    maps = torch.cat([contributions(vit, part, partial(score, aim), block) for part, aim in pairs])
    return Explained(_on_grid(model, maps.relu()), tuple(what))


def contributions(vit: Backbone, prepared: Tensor, score: Score, block: int = -1) -> Tensor:
    """Returns what each patch of normalised images adds to a score of the encoder's tokens (B N).

    That is gradient times activation. Both are taken before a block, the last by default, because patch tokens after
    that do not reach a class token.
    """
    entering: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        entering.append(inputs[0].detach().requires_grad_())
        return (entering[0], *inputs[1:])

    hook = cast(Any, vit.blocks)[block].register_forward_pre_hook(keep)
    try:
        with torch.enable_grad():
            total = score(encode(vit, embed(vit, prepared)).tokens).sum()
            (gradient,) = torch.autograd.grad(total, entering)
    finally:
        hook.remove()
    return (gradient * entering[0].detach()).sum(-1)[:, vit.num_prefix_tokens :]


def overlay(pixels: Tensor, maps: Array, share: float = 0.6) -> Array:
    """Returns images (B C H W, in [0, 1]) in grey under their maps (B H W 3): from black, nothing, to yellow, the most.

    Each map is scaled to its own largest value, and each patch is one colour: a map tells nothing finer.
    """
    import matplotlib

    largest = maps.max(axis=(1, 2), keepdims=True)
    shares = torch.from_numpy(maps / np.maximum(largest, np.finfo(np.float32).tiny))
    heat = matplotlib.colormaps[HEAT](functional.interpolate(shares[:, None], tuple(pixels.shape[2:]))[:, 0].numpy())
    grey = pixels.float().cpu().mean(1)[..., None].numpy()
    mixed: Array = ((1 - share) * grey + share * heat[..., :3]).astype(np.float32)
    return mixed


def _block(model: Model, layer: int | None) -> int:
    """Returns the number of a block from 0."""
    depth = len(model.backbone.blocks)
    if layer is not None and not 1 <= layer <= depth:
        raise ConfigError(f"--layer: {layer} was given, and {model.folder} has the layers 1 to {depth}")
    return (layer or depth) - 1


def _prepared(model: Model, images: Tensor) -> Iterator[Tensor]:
    """Yields the images as the encoder takes them, some at a time."""
    for part in images.split(CHUNK):
        yield model.batch(part).images


def _on_grid(model: Model, values: Tensor) -> Array:
    """Returns values per patch (... N) with rows and columns."""
    array: Array = values.detach().float().cpu().unflatten(-1, grid(model.backbone)).numpy()
    return array


def _has_head(model: Model) -> bool:
    return isinstance(model.objective, classify.Objective) and model.missing_part is None


def _logits(tokens: Tensor, model: Model) -> Tensor:
    """Returns a score per class; of a frozen backbone too, through which the objective itself lets no gradient."""
    objective = cast(classify.Objective, model.objective)
    scores: Tensor = objective.head(objective.standardise(pool(model.backbone, tokens))).float()
    return scores


@torch.no_grad()
def _tokens(vit: Backbone, prepared: Tensor) -> Tensor:
    return encode(vit, embed(vit, prepared)).tokens

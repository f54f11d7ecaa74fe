"""The inequalities of U-MAE's theory on a real run, checkpoint by checkpoint (Zhang, Wang and Wang, 2022).

MAE's loss is a mean over hidden patches, so one hidden patch, with its place, is the target x2, and the visible view x1
is what a mask leaves. Two views that share a target are two independent masks of one image that both hide that patch: a
patch of a real image tells its image, so this is how p(x1|x2) is drawn exactly. With u = h(x1) and v = x2:

    L_MAE = 1/2 E|u - u+|^2 + E|mean of u given x2 - v|^2      (any outputs), hence L_MAE >= 1/2 E|u - u+|^2
    L_MAE >= 1 + L_align,  L_align = -E u.u+                   (u and v of unit length), without any decoder's error
    L_MAE >= 1/2 + 1/2 L_align - eps                           (the same; Theorem 3.4 with its constant)
    L_MAE >= Var(x2 | place)                                   if the encoder is constant (Theorem 3.6)

eps is the error of some pseudo-inverse g(f_g(x2)) of the decoder. Any will do; ours is the best latents that gradient
descent finds, so that the bound holds as evaluated, and the true eps may be smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mrp import api
from mrp.checkpoint import checkpoints as checkpoint
from mrp.config import ConfigError
from mrp.data.order import keys
from mrp.evaluate import geometry
from mrp.lab.mean import Mean
from mrp.methodkit import patch_statistics, patchify, uniformity_feature
from mrp.models.masking import visible_places
from mrp.objectives import mae
from mrp.step import Step

_CHUNK = 128
_FLAT = 1e-3  # a target of a smaller root mean square has no direction
_IMAGES_OF_EPS = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint."""

    step: int
    loss: Mean  # as the run counts it, on held-out images
    half_disagreement: Mean  # 1/2 E|u - u+|^2 in the same units
    loss_constant: Mean  # with the encoder's output replaced by its mean
    variance: float  # of all hidden patches about one mean, as the run's metric has it
    variance_given_place: float  # about the mean of their place: what a constant encoder cannot beat
    loss_directions: Mean  # E|u - v|^2 of unit vectors
    alignment: Mean  # L_align
    decoder_error: Mean  # eps
    uniformity: float  # of the encoder's feature under a mask
    feature_alignment: float  # E|f - f+|^2 of unit vectors
    gaps: dict[str, Mean]  # left side minus right side


GAPS = {
    "disagreement": "L_MAE - 1/2 E|u - u+|^2",
    "direct": "L_MAE - (1 + L_align)",
    "theorem_3_4": "L_MAE - (1/2 + 1/2 L_align - eps)",
    "theorem_3_6": "L_MAE(constant f) - Var(x2 | place)",
}


@dataclass(frozen=True, slots=True)
class Result:
    """The whole experiment."""

    run: str
    images: int
    descent: int
    uniformity_weight: float
    rows: list[Row]

    def as_data(self) -> dict[str, Any]:
        """Plain values, with a verdict for each inequality."""
        verdicts = [{name: gap.verdict for name, gap in row.gaps.items()} for row in self.rows]
        return {**asdict(self), "inequalities": GAPS, "verdicts": verdicts}


def run(folder: Path, images: int, descent: int, say: Any = print) -> Result:
    """Every checkpoint of a run, and the model before its first step."""
    config = api.read(folder)
    options = config.objective
    if not isinstance(options, mae.Config):
        raise ConfigError(f"{folder}: the theorems are about MAE and U-MAE, and this run is of {config.name}")
    pixels = api.held_out(config, images)
    if len(pixels) < 2:
        raise ConfigError(f"--images: {len(pixels)} cannot vary; give at least 2")
    rows = []
    for step, module in _models(folder):
        rows.append(_row(step, module, pixels, descent))
        last = rows[-1]
        verdicts = ", ".join(f"{name} {gap.verdict}" for name, gap in last.gaps.items())
        say(f"step {step}: loss {last.loss.value:.4f}, alignment {last.alignment.value:.3f}; {verdicts}")
    return Result(str(folder), len(pixels), descent, options.uniformity.weight, rows)


def _models(folder: Path) -> Iterator[tuple[int, Step]]:
    yield 0, api.untrained(folder).module
    for found in checkpoint.whole(folder):
        yield found.step, api.load(folder, "student", found.step).module


@dataclass(frozen=True, slots=True)
class _Views:
    """Some images, as the objective takes them, under two independent masks."""

    images: Tensor  # B C H W
    target: Tensor  # B N D
    masks: tuple[Tensor, Tensor]  # B N each


@torch.no_grad()
def _row(step: int, module: Step, pixels: Tensor, descent: int) -> Row:
    objective = cast(mae.Objective, module.objective)
    parts = [_views(objective, module, pixels, start) for start in range(0, len(pixels), _CHUNK)]
    constant = _constant(objective, parts)
    columns: dict[str, list[Tensor]] = {}
    features: list[tuple[Tensor, Tensor]] = []
    for part in parts:
        values, pair = _measure(objective, part, constant)
        features.append(pair)
        for name, column in values.items():
            columns.setdefault(name, []).append(column)
    found = {name: torch.cat(column) for name, column in columns.items()}
    first, second = (torch.cat(side) for side in zip(*features, strict=True))
    target = torch.cat([part.target for part in parts])
    given_place = target.double().var(0).mean()
    error = _decoder_error(objective, _views(objective, module, pixels[:_IMAGES_OF_EPS], 0), descent)
    eps = Mean.of(error)
    direct = found["loss_directions"] - 1 - found["alignment"]
    theorem = Mean.of(found["loss_directions"] - 0.5 - 0.5 * found["alignment"])
    return Row(
        step=step,
        loss=Mean.of(found["loss"]),
        half_disagreement=Mean.of(found["half_disagreement"]),
        loss_constant=Mean.of(found["loss_constant"]),
        variance=float((target.double() - target.double().mean((0, 1))).square().mean()),
        variance_given_place=float(given_place),
        loss_directions=Mean.of(found["loss_directions"]),
        alignment=Mean.of(found["alignment"]),
        decoder_error=eps,
        uniformity=geometry.gram_uniformity(first),
        feature_alignment=geometry.alignment(first, second),
        gaps={
            "disagreement": Mean.of(found["shared_loss"] - found["half_disagreement"]),
            "direct": Mean.of(direct),
            "theorem_3_4": Mean(theorem.value + eps.value, theorem.error + eps.error),
            "theorem_3_6": Mean.of(found["loss_constant"] - given_place),
        },
    )


def _views(objective: mae.Objective, module: Step, pixels: Tensor, start: int) -> _Views:
    images = module.prepare(pixels[start : start + _CHUNK])
    numbers = torch.arange(start, start + len(images)).numpy()
    masks = [objective.first_mask(torch.from_numpy(keys(0, draw, numbers))) for draw in (1, 2)]
    target = patchify(images, objective.patch)
    if objective.config.target == "pixels_norm":
        mean, deviation = patch_statistics(target)
        target = (target - mean) / deviation
    return _Views(images, target, (masks[0], masks[1]))


def _constant(objective: mae.Objective, parts: list[_Views]) -> Tensor:
    """The encoder's mean output: a token for each prefix, and one for all visible patches (1 P+1 D)."""
    prefix = objective.backbone.num_prefix_tokens
    means = []
    for part in parts:
        latent = objective.predict(part.images, part.masks[0])[0]
        means.append(torch.cat([latent[:, :prefix], latent[:, prefix:].mean(1, keepdim=True)], dim=1))
    return torch.cat(means).mean(0, keepdim=True)


def _measure(
    objective: mae.Objective, views: _Views, constant: Tensor
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """What is averaged over images, a number each, and the encoder's features under both masks."""
    latents, outputs = zip(*(objective.predict(views.images, mask) for mask in views.masks), strict=True)
    first, second = outputs
    errors = [(output - views.target).square().mean(-1) for output in outputs]  # B N each
    shared = (views.masks[0] & views.masks[1]).float()
    directed = shared * (views.target.square().mean(-1) > _FLAT**2)
    unit = [F.normalize(rows, dim=-1) for rows in (first, second, views.target)]
    agreement = (unit[0] * unit[1]).sum(-1)
    fit = ((unit[0] + unit[1]) * unit[2]).sum(-1)
    prefix, count = objective.backbone.num_prefix_tokens, objective.num_visible
    collapsed = torch.cat([constant[:, :prefix], constant[:, prefix:].expand(-1, count, -1)], dim=1)
    places = visible_places(views.masks[0], count)
    painted = objective.decoder(collapsed.expand(len(places), -1, -1), places)
    values = {
        "loss": _average(errors[0], views.masks[0].float()),
        "shared_loss": _average((errors[0] + errors[1]) / 2, shared),
        "half_disagreement": _average((first - second).square().mean(-1) / 2, shared),
        "loss_constant": _average((painted - views.target).square().mean(-1), views.masks[0].float()),
        "loss_directions": _average(2 - fit, directed),
        "alignment": _average(-agreement, directed),
    }
    config = objective.config.uniformity
    pair = [uniformity_feature(config, objective.backbone, latent) for latent in latents]
    return values, (pair[0], pair[1])


def _average(values: Tensor, weights: Tensor) -> Tensor:
    """Over the patches that count (B N), an image at a time; images without any count as the mean of the others."""
    totals, counts = (values * weights).sum(1), weights.sum(1)
    mean = totals.sum() / counts.sum().clamp_min(1)
    return torch.where(counts > 0, totals / counts.clamp_min(1), mean)


def _decoder_error(objective: mae.Objective, views: _Views, descent: int) -> Tensor:
    """eps: how well the decoder can be made to paint the targets, by descent on its input, an image at a time."""
    places = visible_places(views.masks[1], objective.num_visible)
    hidden = views.masks[1].float() * (views.target.square().mean(-1) > _FLAT**2)
    goal = F.normalize(views.target, dim=-1)
    best = torch.full((len(goal),), math.inf)
    with torch.enable_grad():
        start = objective.predict(views.images, views.masks[1])[0].detach()
        latent = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([latent], lr=0.03)
        for _ in range(descent + 1):
            painted = F.normalize(objective.decoder(latent, places), dim=-1)
            error = _average((painted - goal).square().sum(-1), hidden)
            best = torch.minimum(best, error.detach())
            (latent.grad,) = torch.autograd.grad(error.sum(), [latent])
            optimizer.step()
    return best

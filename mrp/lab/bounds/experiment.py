"""The inequalities of U-MAE's theory on a real run, checkpoint by checkpoint (Zhang, Wang and Wang, 2022).

MAE's loss is a mean over hidden patches, so the target x2 is one hidden patch with its place, and the view x1 is the
visible rest. Two views share a target if they are two independent masks of one image that both hide the patch: a patch
of a photograph belongs to only one image, so this draws from p(x1|x2) exactly. The same holds for every method with a
squared error; the target of data2vec 2 is what its teacher makes of the patch. With u = h(x1) and v = x2:

    L_MAE = 1/2 E|u - u+|^2 + E|mean of u given x2 - v|^2      for any outputs, hence L_MAE >= 1/2 E|u - u+|^2
    L_MAE >= 2 - 2 sqrt(-L_align),  L_align = -E u.u+          for u and v of unit length, without any decoder's error
    L_MAE >= 1 + L_align                                       for the same; weaker by (1 - sqrt(-L_align))^2
    L_MAE >= 1/2 + 1/2 L_align - eps                           for the same; Theorem 3.4 with its constant
    L_MAE >= Var(x2 | place)                                   if the encoder is constant (Theorem 3.6)

eps is the error of a pseudo-inverse g(f_g(x2)) of the decoder. The theorem holds for every pseudo-inverse. Ours is the
best input of the decoder that gradient descent finds, so the true eps may be smaller.
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
from mrp.checkpoint import checkpoints
from mrp.config import ConfigError
from mrp.data.order import keys
from mrp.evaluate import geometry
from mrp.lab.bounds.sides import Maps, Squared, decode, encode
from mrp.lab.estimate import Estimate
from mrp.methodkit import uniformity_feature
from mrp.objectives import crossmae, data2vec2, mae, maskfeat
from mrp.schedules import main_value
from mrp.step import Step

CHUNK = 128  # images at once
FLAT = 1e-3  # a target with a smaller root mean square has no direction
DECODER_IMAGES = 64  # on which the decoder's error is sought
PENALTIES = {"gram": "U-MAE's uniformity", "sigreg": "LeJEPA's SIGReg"}  # on features, beside the loss of the theorems
GAPS = {
    "disagreement": "L_MAE - 1/2 E|u - u+|^2",
    "sharper": "L_MAE - (2 - 2 sqrt(-L_align))",
    "direct": "L_MAE - (1 + L_align)",
    "theorem_3_4": "L_MAE - (1/2 + 1/2 L_align - eps)",
    "theorem_3_6": "L_MAE(constant f) - Var(x2 | place)",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint."""

    step: int
    means: dict[str, Estimate]  # over images
    numbers: dict[str, float]  # of all images together
    gaps: dict[str, Estimate]  # left side minus right side, by the names of GAPS

    @property
    def verdicts(self) -> dict[str, str]:
        """Whether each inequality holds."""
        return {name: gap.verdict for name, gap in self.gaps.items()}


@dataclass(frozen=True, slots=True)
class Result:
    """The whole experiment."""

    run: str
    images: int
    descent: int
    uniformity_weight: float
    uniformity_kind: str  # what the weight is of, by the names of PENALTIES
    rows: list[Row]

    @property
    def method(self) -> str:
        """What the run was trained by, in words."""
        weight = self.uniformity_weight
        return f"{self.run}, with {PENALTIES[self.uniformity_kind]} of weight {weight:g}" if weight else self.run

    def as_data(self) -> dict[str, Any]:
        """Returns plain values, with a verdict on each inequality."""
        data = asdict(self)
        rows = [{"step": row["step"], **row["means"], **row["numbers"], "gaps": row["gaps"]} for row in data["rows"]]
        return {**data, "rows": rows, "inequalities": GAPS, "verdicts": [row.verdicts for row in self.rows]}


def run(folder: Path, images: int, descent: int) -> Result:
    """Measures every checkpoint of a run, and the model before its first step."""
    config = api.read(folder)
    options = config.objective
    if not isinstance(options, mae.Config | crossmae.Config | maskfeat.Config | data2vec2.Config):
        raise ConfigError(
            f"{folder}: the theorems are about squared errors, as of mae, crossmae, maskfeat and data2vec2, and this "
            f"run is of {config.name}"
        )
    pixels = api.held_out(config, images)
    if len(pixels) < 2:
        raise ConfigError(f"--images: {len(pixels)} cannot vary; give at least 2")
    rows = []
    for step, module in _models(folder):
        row = _measure(step, module, pixels, descent)
        rows.append(row)
        verdicts = ", ".join(f"{name} {verdict}" for name, verdict in row.verdicts.items())
        print(f"step {step}: loss {row.means['loss']}, correlation {row.means['correlation']}; {verdicts}")
    penalty = options.uniformity
    return Result(str(folder), len(pixels), descent, main_value(penalty.weight), penalty.kind, rows)


def _models(folder: Path) -> Iterator[tuple[int, Step]]:
    yield 0, api.untrained(folder).module
    for checkpoint in checkpoints.listed(folder):
        yield checkpoint.step, api.load(folder, "student", checkpoint.step).module


@dataclass(frozen=True, slots=True)
class Views:
    """Images as the objective takes them, under two independent masks each."""

    images: Tensor  # B C H W
    target: Tensor  # B N D
    masks: tuple[Tensor, Tensor]  # B N each
    keys: tuple[Tensor, Tensor]  # B each

    @classmethod
    def draw(cls, module: Step, pixels: Tensor, start: int = 0) -> Views:
        """Returns at most CHUNK images from number `start` on; the masks follow from the images' numbers."""
        objective = cast(Squared, module.objective)
        images = module.prepare(pixels[start : start + CHUNK])
        numbers = torch.arange(start, start + len(images)).numpy()
        first, second = (torch.from_numpy(keys(0, draw, numbers)) for draw in (1, 2))
        masks = (objective.first_mask(first), objective.first_mask(second))
        return cls(images, objective.target(images), masks, (first, second))

    @property
    def has_direction(self) -> Tensor:
        """Whether each target (B N) is large enough to be scaled to unit length."""
        return self.target.square().mean(-1) > FLAT**2


@torch.no_grad()
def _measure(step: int, module: Step, pixels: Tensor, descent: int) -> Row:
    objective = cast(Squared, module.objective)
    parts = [Views.draw(module, pixels, start) for start in range(0, len(pixels), CHUNK)]
    constant = _constant_maps(objective, parts)
    measured = [_per_image(objective, views, constant) for views in parts]
    columns = {name: torch.cat([part[name] for part in measured]) for name in measured[0]}
    first, second, shared_loss = (columns.pop(name) for name in ("first_feature", "second_feature", "shared_loss"))
    correlation = centred_correlation(
        columns.pop("first_output"), columns.pop("second_output"), weights=columns.pop("shared")
    )
    targets = torch.cat([views.target for views in parts]).double()
    given_place = targets.var(0).mean()
    eps = Estimate.over_images(decoder_error(objective, Views.draw(module, pixels[:DECODER_IMAGES]), descent))
    means = {name: Estimate.over_images(column) for name, column in columns.items()}
    means |= {"decoder_error": eps, "correlation": correlation}
    theorem = Estimate.over_images(columns["loss_directions"] - 0.5 - 0.5 * columns["alignment"])
    numbers = {
        "variance": float((targets - targets.mean((0, 1))).square().mean()),  # the run's metric `target_variance`
        "variance_given_place": float(given_place),  # which a constant encoder cannot beat
        "uniformity": geometry.gram_uniformity(first),
        "feature_alignment": geometry.alignment(first, second),  # E|f - f+|^2 of unit vectors
        # the share of the loss that a bound explains
        "explained_disagreement": means["half_disagreement"].value / float(shared_loss.mean()),
        "explained_directions": _sharper(means["alignment"].value) / means["loss_directions"].value,
    }
    gaps = {
        "disagreement": Estimate.over_images(shared_loss - columns["half_disagreement"]),
        "sharper": _sharper_gap(columns["loss_directions"], columns["alignment"]),
        "direct": Estimate.over_images(columns["loss_directions"] - 1 - columns["alignment"]),
        "theorem_3_4": Estimate(theorem.value + eps.value, theorem.error + eps.error),
        "theorem_3_6": Estimate.over_images(columns["loss_constant"] - given_place),
    }
    return Row(step, means, numbers, gaps)


def _sharper(alignment: float) -> float:
    return 2 - 2 * math.sqrt(max(-alignment, 0.0))


def _sharper_gap(loss: Tensor, alignment: Tensor) -> Estimate:
    """Returns the gap of means; its interval takes the root as a line, from one value per image."""
    root = math.sqrt(max(-float(alignment.mean()), 1e-12))
    return Estimate.over_images(loss - _sharper(-(root**2)) - (alignment - alignment.mean()) / root)


def centred_correlation(first: Tensor, second: Tensor, weights: Tensor) -> Estimate:
    """Returns how outputs under two masks (B N D) vary together over images, about the mean output of each place.

    An untrained decoder paints the same whatever it sees: its outputs agree, but this correlation is near zero,
    and zero where only rounding varies. `weights` (B N) is 1 where both masks hide the patch.
    """
    counts = weights.sum(0).clamp_min(1)[:, None]
    weight = weights[..., None]
    one, two = (outputs - (weight * outputs).sum(0) / counts for outputs in (first, second))
    shared, of_one, of_two = (
        (weight * product).sum((1, 2)).double() for product in (one * two, one.square(), two.square())
    )
    rounding = 1e-10 * float((weight * first).double().square().sum((1, 2)).mean())
    if min(of_one.mean(), of_two.mean()) <= rounding:
        return Estimate(0.0, 0.0)
    scale = (of_one.mean() * of_two.mean()).sqrt()
    correlation = shared.mean() / scale
    sizes = of_one / of_one.mean() + of_two / of_two.mean()
    return Estimate.over_images(correlation + shared / scale - correlation * sizes / 2)


def _constant_maps(objective: Squared, parts: list[Views]) -> Maps:
    """Returns the mean of what the decoder reads: one token per prefix, one for every patch (1 P+V D each)."""
    prefix = objective.backbone.num_prefix_tokens
    means = []
    for views in parts:
        maps = encode(objective, views.images, views.masks[0])[1]
        means.append([torch.cat([one[:, :prefix], one[:, prefix:].mean(1, keepdim=True)], dim=1) for one in maps])
    constants = [torch.cat(each).mean(0, keepdim=True) for each in zip(*means, strict=True)]
    count = maps[0].shape[1] - prefix
    return [torch.cat([one[:, :prefix], one[:, prefix:].expand(-1, count, -1)], dim=1) for one in constants]


def _per_image(objective: Squared, views: Views, constant: Maps) -> dict[str, Tensor]:
    """Returns what is averaged over images, one value each (B), and the encoder's features under both masks (B D)."""
    encoded = [encode(objective, views.images, mask) for mask in views.masks]
    first, second = (
        decode(objective, maps, mask, keys)
        for (_, maps), mask, keys in zip(encoded, views.masks, views.keys, strict=True)
    )
    hidden = views.masks[0].float()
    shared = (views.masks[0] & views.masks[1]).float()
    directed = shared * views.has_direction
    errors = [(output - views.target).square().mean(-1) for output in (first, second)]  # B N each
    unit_first, unit_second, unit_target = (F.normalize(rows, dim=-1) for rows in (first, second, views.target))
    agreement = (unit_first * unit_second).sum(-1)
    fit = ((unit_first + unit_second) * unit_target).sum(-1)
    repeated = [one.expand(len(hidden), -1, -1) for one in constant]
    painted = decode(objective, repeated, views.masks[0], views.keys[0])
    features = [uniformity_feature(objective.config.uniformity, objective.backbone, latent) for latent, _ in encoded]
    return {
        "loss": _average(errors[0], hidden),
        "shared_loss": _average((errors[0] + errors[1]) / 2, shared),
        "half_disagreement": _average((first - second).square().mean(-1) / 2, shared),  # 1/2 E|u - u+|^2
        "loss_constant": _average((painted - views.target).square().mean(-1), hidden),  # of a constant encoder
        "loss_directions": _average(2 - fit, directed),  # E|u - v|^2 of unit vectors
        "alignment": _average(-agreement, directed),  # L_align
        "shared": shared,
        "first_output": first,
        "second_output": second,
        "first_feature": features[0],
        "second_feature": features[1],
    }


def _average(values: Tensor, weights: Tensor) -> Tensor:
    """Returns each image's mean over the patches with weight 1 (B N); an image without any gets the mean of all."""
    totals, counts = (values * weights).sum(1), weights.sum(1)
    mean = totals.sum() / counts.sum().clamp_min(1)
    return torch.where(counts > 0, totals / counts.clamp_min(1), mean)


def decoder_error(objective: Squared, views: Views, descent: int) -> Tensor:
    """Returns eps per image: the smallest error of the decoder that gradient descent on its input finds."""
    mask = views.masks[1]
    hidden = mask.float() * views.has_direction
    goal = F.normalize(views.target, dim=-1)
    best = torch.full((len(goal),), math.inf)
    with torch.enable_grad():
        maps = [one.detach().clone().requires_grad_() for one in encode(objective, views.images, mask)[1]]
        optimizer = torch.optim.Adam(maps, lr=0.03)
        for _ in range(descent + 1):
            painted = F.normalize(decode(objective, maps, mask, views.keys[1]), dim=-1)
            error = _average((painted - goal).square().sum(-1), hidden)
            best = torch.minimum(best, error.detach())
            for one, gradient in zip(maps, torch.autograd.grad(error.sum(), maps), strict=True):
                one.grad = gradient
            optimizer.step()
    return best

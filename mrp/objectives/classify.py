"""Classification: supervised training from scratch, fine-tuning, and the linear probe on frozen features."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrp.batch import Batch, Output
from mrp.config import ConfigError, Node
from mrp.models.vit import VisionTransformer, embed, encode, norm_eps, pool
from mrp.objectives import _helpers, _processes


class Config(Node):
    """Options of classification."""

    name: Literal["classify"] = "classify"
    classes: int = Field(gt=1)
    pool: Literal["cls", "mean"] = "mean"  # mean: the last norm comes after it (MAE's fine-tuning), unless frozen
    head_std: float = Field(2e-5, gt=0)
    loss: Literal["cross_entropy", "binary"] = "cross_entropy"  # binary: each class is a question of its own
    smoothing: float = Field(0.0, ge=0, lt=1)
    frozen: bool = False  # train a linear head alone, on standardised features (MAE's probe)
    frozen_blocks: int | None = Field(None, ge=0)  # so many of the first stay as they are, and what is before them

    @property
    def couples(self) -> bool:
        """Whether a sample's loss depends on the others in its micro-step."""
        return self.frozen


class Objective(_helpers.Objective):
    """Cross-entropy, with labels as numbers or, where images are mixed, as shares."""

    undecayed = frozenset({"cls_token", "reg_token", "pos_embed"})  # as in MAE's, BEiT's and DeiT's recipes

    def __init__(self, config: Config, backbone: VisionTransformer) -> None:
        super().__init__(backbone)
        self.config = config
        if config.pool == "cls" and not backbone.has_class_token:
            raise ConfigError("objective.pool: cls needs backbone.class_token; take mean")
        backbone.global_pool = "token" if config.pool == "cls" else "avg"
        if config.pool == "mean" and not config.frozen:
            backbone.norm = nn.Identity()
            backbone.fc_norm = nn.LayerNorm(backbone.embed_dim, eps=norm_eps(backbone))
        self.still = self._freeze()
        self.standardise = Standardise(backbone.embed_dim) if config.frozen else nn.Identity()
        self.head = nn.Linear(backbone.embed_dim, config.classes)
        nn.init.trunc_normal_(self.head.weight, std=config.head_std)
        nn.init.zeros_(self.head.bias)

    def _freeze(self) -> tuple[str, ...]:
        """Fix what is not to be trained; the parts of the backbone that stay as in evaluation."""
        backbone, count = self.backbone, self.config.frozen_blocks
        if self.config.frozen:
            if count is not None:
                raise ConfigError("objective.frozen_blocks: frozen fixes all of them; leave one of the two out")
            backbone.requires_grad_(False)
            return ("backbone",)
        if count is None:
            return ()
        if count > len(backbone.blocks):
            raise ConfigError(f"objective.frozen_blocks: {count} of {len(backbone.blocks)} blocks; give that or fewer")
        parts = ("patch_embed", "norm_pre", "rel_pos_bias", *(f"blocks.{layer}" for layer in range(count)))
        still = [part for part in parts if part != "rel_pos_bias" or hasattr(backbone, part)]
        for part in still:
            backbone.get_submodule(part).requires_grad_(False)
        for name, parameter in backbone.named_parameters(recurse=False):
            assert name in self.undecayed, name
            parameter.requires_grad_(False)
        return tuple(f"backbone.{part}" for part in still)

    def train(self, mode: bool = True) -> Objective:
        """What is frozen stays as in evaluation."""
        super().train(mode)
        for part in self.still:
            self.get_submodule(part).eval()
        return self

    def forward(self, batch: Batch) -> Output:
        """The cross-entropy, and whether the label is the first or among the first five answers."""
        if batch.labels is None:
            raise ConfigError("objective: classify needs labels, and the data has none; take other data")
        features, logits = self.predict(batch.images, batch.keys)
        per_sample = self.error(logits, batch.labels)
        label = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
        answers = logits.topk(min(5, self.config.classes)).indices  # B 5
        found = answers == label[:, None]
        correct, among_five = found[:, 0].float(), found.any(1).float()
        loss = per_sample.mean()
        return Output(
            loss=loss,
            metrics={"loss": loss.detach(), "accuracy": correct.mean()},
            per_sample={
                "loss": per_sample.detach(),
                "correct": correct,
                "correct5": among_five,
                "answer": answers[:, 0],
            },
            features=features.detach(),
        )

    def error(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Each sample's loss; labels are smoothed in training alone."""
        smoothing = self.config.smoothing if self.training else 0.0
        if self.config.loss == "cross_entropy":
            return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        shares = functional.one_hot(labels, self.config.classes).float() if labels.ndim == 1 else labels
        shares = shares * (1 - smoothing) + smoothing / self.config.classes
        return functional.binary_cross_entropy_with_logits(logits, shares, reduction="none").mean(1)

    def predict(self, images: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The features of whole images, and a score for each class."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            features = pool(self.backbone, encode(self.backbone, embed(self.backbone, images), keys=keys).tokens)
        return features, self.head(self.standardise(features)).float()  # B D, B classes

    def after_step(self, step: int, moved: Tensor) -> None:
        """Running statistics follow."""
        if isinstance(self.standardise, Standardise):
            self.standardise.follow(moved)


class Standardise(nn.Module):
    """BatchNorm over all processes, without weights and with no gradient: what the probe puts before its head.

    In training it notes the statistics of each micro-step; the running ones move when the optimizer does, towards the
    mean of those noted since.
    """

    mean: Tensor
    variance: Tensor
    noted: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-6) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("noted", torch.zeros(3, width), persistent=False)  # means, variances, how many

    def forward(self, features: Tensor) -> Tensor:
        """Zero mean and unit variance, of the batch in training, of all that was seen in evaluation."""
        features = features.detach().float()
        mean, variance = self.mean, self.variance
        if self.training:
            mean = _processes.mean_over_processes(features.mean(0))
            variance = _processes.mean_over_processes((features - mean).square().mean(0))
            count = _processes.number() * len(features)
            unbiased = variance * (count / max(1, count - 1))
            self.noted += torch.stack([mean, unbiased, torch.ones_like(mean)])
        return (features - mean) * (variance + self.eps).rsqrt()

    @torch.no_grad()
    def follow(self, moved: Tensor) -> None:
        """Move the running statistics, unless the optimizer was held back."""
        known = moved & (self.noted[2] > 0)
        means, variances = self.noted[:2] / self.noted[2].clamp(min=1)
        self.mean.copy_(torch.where(known, torch.lerp(self.mean, means, self.momentum), self.mean))
        self.variance.copy_(torch.where(known, torch.lerp(self.variance, variances, self.momentum), self.variance))
        self.noted.zero_()

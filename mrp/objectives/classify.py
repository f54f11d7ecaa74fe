"""Classification: supervised training from scratch, fine-tuning, and the linear probe on frozen features."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.config import ConfigError, Node
from mrp.models.vit import Backbone, embed, encode, norm_eps, pool


class Config(Node):
    """Options of classification."""

    small: ClassVar[dict[str, Any]] = {"classes": 4}
    name: Literal["classify"] = "classify"
    classes: int = Field(gt=0)  # how many classes the data have, or how many tags
    # What the head reads: the class token, or the mean of the patch tokens, which is normalised after pooling (MAE's
    # fine-tuning) unless frozen.
    pool: Literal["cls", "mean"] = "mean"
    head_std: float = Field(2e-5, gt=0)  # standard deviation of the head's initial weights
    # binary: one yes-or-no question per class; tags: the same for data whose images may have several tags, or none.
    loss: Literal["cross_entropy", "binary", "tags"] = "cross_entropy"
    # The share of each label that is spread over all classes; with tags, over the two answers yes and no.
    smoothing: float = Field(0.0, ge=0, lt=1)
    frozen: bool = False  # train a linear head alone, on standardised features (MAE's probe)
    # How many first blocks are not trained, together with all that stands before them; null: all is trained.
    frozen_blocks: int | None = Field(None, ge=0)

    @property
    def couples_samples(self) -> bool:
        """Whether the loss of a sample depends on the other samples of its micro-step, as in the probe's BatchNorm."""
        return self.frozen

    @property
    def learns_tags(self) -> bool:
        """Whether it learns from data that have tags in place of classes (see `mrp.data.source.Source`)."""
        return self.loss == "tags"

    @model_validator(mode="after")
    def _check_classes(self) -> Config:
        if self.classes == 1 and not self.learns_tags:
            raise ValueError("classes: 1 leaves nothing to tell apart; give 2 or more (or one, for loss: tags)")
        return self


class Objective(kit.Objective):
    """Cross-entropy of a linear head; labels are numbers or, where images are mixed, shares of classes.

    With tags, labels say of each whether an image has it (1, 0, or NaN where nobody knows; shares where it is mixed).
    """

    undecayed = frozenset({"cls_token", "reg_token", "pos_embed"})  # as in MAE's, BEiT's and DeiT's recipes

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.config = config
        if config.pool == "cls" and not backbone.has_class_token:
            raise ConfigError("objective.pool: cls needs backbone.class_token; take mean")
        backbone.global_pool = "token" if config.pool == "cls" else "avg"
        if config.pool == "mean" and not config.frozen:
            backbone.norm = nn.Identity()
            backbone.fc_norm = nn.LayerNorm(backbone.embed_dim, eps=norm_eps(backbone))
        self._freeze()
        self.standardise = kit.Standardise(backbone.embed_dim) if config.frozen else nn.Identity()
        self.head = nn.Linear(backbone.embed_dim, config.classes)
        nn.init.normal_(self.head.weight, std=config.head_std)
        nn.init.zeros_(self.head.bias)

    def _freeze(self) -> None:
        """Freezes the backbone, or its first blocks and what stands before them."""
        backbone, count = self.backbone, self.config.frozen_blocks
        if self.config.frozen:
            if count is not None:
                raise ConfigError("objective.frozen_blocks: frozen fixes all of them; leave one of the two out")
            kit.freeze(backbone)
        elif count is not None:
            if count > len(backbone.blocks):
                raise ConfigError(
                    f"objective.frozen_blocks: {count} of {len(backbone.blocks)} blocks; give that or fewer"
                )
            shared = (getattr(backbone, name, None) for name in ("rel_pos_bias", "rope"))
            positions = [part for part in shared if part is not None]
            for part in (backbone.patch_embed, backbone.norm_pre, *positions, *backbone.blocks[:count]):
                kit.freeze(part)
            for name, parameter in backbone.named_parameters(recurse=False):
                assert name in self.undecayed, name
                parameter.requires_grad_(False)

    def forward(self, batch: Batch) -> Output:
        """Returns the cross-entropy, and whether the label is the first or among the first five answers.

        Of tags, of which an image may have several, it returns how many are known of each image in place of these.
        """
        if batch.labels is None:
            raise ConfigError("objective: classify needs labels, and the data has none; take other data")
        features, logits = self.predict(batch.images, batch.keys)
        per_sample = self.error(logits, batch.labels)
        found = {"loss": per_sample.detach()} | self._answers(logits.detach(), batch.labels)
        loss = per_sample.mean()
        return Output(
            loss=loss,
            metrics={"loss": loss.detach()} | ({"accuracy": found["correct"].mean()} if "correct" in found else {}),
            per_sample=found,
            features=features.detach(),
            scores=logits.detach(),
        )

    def _answers(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.config.learns_tags:
            known = ~labels.isnan() if labels.ndim > 1 else torch.ones_like(logits, dtype=torch.bool)
            return {"known": known.sum(1).float()}
        label = labels if labels.ndim == 1 else labels.argmax(1)
        answers = logits.topk(min(5, self.config.classes)).indices  # B 5
        hits = answers == label[:, None]
        return {"correct": hits[:, 0].float(), "correct5": hits.any(1).float(), "answer": answers[:, 0]}

    def error(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of each sample; labels are smoothed in training only."""
        smoothing = self.config.smoothing if self.training else 0.0
        if self.config.loss == "cross_entropy":
            return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        shares = functional.one_hot(labels, self.config.classes).float() if labels.ndim == 1 else labels
        if self.config.learns_tags:
            return _of_tags(logits, shares, smoothing)
        shares = shares * (1 - smoothing) + smoothing / self.config.classes
        return functional.binary_cross_entropy_with_logits(logits, shares, reduction="none").mean(1)

    def predict(self, images: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the features of whole images, and a score for each class."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            features = pool(self.backbone, encode(self.backbone, embed(self.backbone, images), keys=keys).tokens)
        return features, self.head(self.standardise(features)).float()  # B D, B classes

    def after_step(self, step: int, updated: Tensor) -> None:
        """Moves the probe's running statistics."""
        if isinstance(self.standardise, kit.Standardise):
            self.standardise.follow(updated)


def _of_tags(logits: Tensor, has: Tensor, smoothing: float) -> Tensor:
    """Returns the mean over those tags of which it is known whether an image has them; 0 where none is known."""
    known = ~has.isnan()
    answers = torch.where(known, has, 0.0) * (1 - smoothing) + smoothing / 2
    losses = functional.binary_cross_entropy_with_logits(logits, answers, reduction="none")
    return torch.where(known, losses, 0.0).sum(1) / known.sum(1).clamp_min(1)

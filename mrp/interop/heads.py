"""The head of a classifier as one linear layer, including what training puts before it."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from mrp.methodkit import Objective, Standardise
from mrp.objectives import classify


def tensors_of(head: nn.Linear | None) -> dict[str, Tensor]:
    """Returns a head's tensors under the names that they have in an objective; none where there is no head."""
    return {} if head is None else {f"head.{name}": tensor for name, tensor in head.state_dict().items()}


def tells_tags(objective: Objective) -> bool:
    """Returns whether a head tells tags, of which an image may have several."""
    return bool(getattr(getattr(objective, "config", None), "learns_tags", False))


def linear_head(objective: Objective, missing: Collection[str] = ()) -> nn.Linear | None:
    """Returns the layer that turns features into scores; None where there is no head, or where it was never trained.

    A probe's standardisation is folded into its head: W (f - m) s + b = (W s) f + (b - W s m).
    """
    if not isinstance(objective, classify.Objective) or "head.weight" in missing:
        return None
    head, standardise = objective.head, objective.standardise
    if not isinstance(standardise, Standardise):
        return head
    scale = (standardise.variance.double() + standardise.eps).rsqrt()
    folded = nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        weight = head.weight.double() * scale
        folded.weight.copy_(weight)
        folded.bias.copy_(head.bias.double() - weight @ standardise.mean.double())
    return folded

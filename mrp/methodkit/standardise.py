"""Features with zero mean and unit variance, as the linear probe needs them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrp.methodkit.processes import mean_over_processes, num_processes


class Standardise(nn.Module):
    """BatchNorm over all processes, without weights: what the linear probe puts before its head.

    In training it lets no gradient through, and uses and notes the statistics of each micro-step. Its running
    statistics change only when the optimizer steps, towards the mean of what was noted since, so that a skipped step
    leaves no trace.
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
        self.register_buffer("noted", torch.zeros(3, width), persistent=False)  # sums of means and variances, a count

    def forward(self, features: Tensor) -> Tensor:
        """Standardises by the statistics of the batch in training, by the running ones in evaluation."""
        features = (features.detach() if self.training else features).float()
        mean, variance = self.mean, self.variance
        if self.training:
            mean = mean_over_processes(features.mean(0))
            variance = mean_over_processes((features - mean).square().mean(0))
            count = num_processes() * len(features)
            unbiased = variance * (count / max(1, count - 1))
            self.noted += torch.stack([mean, unbiased, torch.ones_like(mean)])
        return (features - mean) * (variance + self.eps).rsqrt()

    @torch.no_grad()
    def follow(self, updated: Tensor) -> None:
        """Moves the running statistics, unless the optimizer skipped its step."""
        moves = updated & (self.noted[2] > 0)
        means, variances = self.noted[:2] / self.noted[2].clamp(min=1)
        self.mean.copy_(torch.where(moves, torch.lerp(self.mean, means, self.momentum), self.mean))
        self.variance.copy_(torch.where(moves, torch.lerp(self.variance, variances, self.momentum), self.variance))
        self.noted.zero_()

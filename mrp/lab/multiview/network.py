"""The two-layer convolutional network of Pan, Zhou and Yan, and the ways to train it, for all seeds at once.

Gradients are written out: an automatic one would take three times as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mrp.lab.multiview.constants import Settings
from mrp.lab.multiview.data import Samples

Watch = Callable[[int, Tensor], None]  # the step and the kernels
CHUNK = 100  # samples of a seed that are evaluated at once


class Classifier(NamedTuple):
    """Kernels and a linear head."""

    kernels: Tensor  # seeds K d
    head: Tensor  # seeds k K


def first_kernels(settings: Settings, generator: torch.Generator) -> Tensor:
    """Gaussian, as the theory wants them."""
    return settings.sigma_0 * torch.randn(settings.seeds, settings.kernels, settings.d, generator=generator)


def class_head(settings: Settings) -> Tensor:
    """Each class owns m kernels and adds them up: what supervised training from scratch starts from."""
    head = torch.eye(settings.k).repeat_interleave(settings.m, dim=1)
    return head.repeat(settings.seeds, 1, 1)


def zero_head(settings: Settings) -> Tensor:
    """What fine-tuning starts from."""
    return torch.zeros(settings.seeds, settings.k, settings.kernels)


def activation(values: Tensor, q: int, t: float) -> tuple[Tensor, Tensor]:
    """The smoothed ReLU, a power q up to t and linear above, and its slope."""
    low = values.clamp(0, t)
    share = low / t
    slope = share.clone()
    for _ in range(q - 2):  # several times as fast as a power
        slope *= share
    return low * slope / q + (values - t).clamp_min_(0), slope


def encode(settings: Settings, kernels: Tensor, patches: Tensor) -> Tensor:
    """What each kernel makes of each sample: the sum over its patches; seeds N K."""
    parts = [_pooled(settings, activation(_seen(kernels, part), settings.q, settings.t)[0])
             for part in patches.split(CHUNK, dim=1)]  # fmt: skip
    return torch.cat(parts, dim=1)


def accuracy(settings: Settings, classifier: Classifier, samples: Samples) -> Tensor:
    """The share of samples that are classified rightly, a seed."""
    scores = encode(settings, classifier.kernels, samples.patches) @ classifier.head.mT
    return (scores.argmax(dim=-1) == samples.labels).double().mean(dim=-1)


def pretrain_teacher(
    settings: Settings, kernels: Tensor, patches: Tensor, generator: torch.Generator, watch: Watch
) -> Tensor:
    """data2vec's setting: from visible patches predict what the teacher, tau times the student, makes of all.

    One decoder layer multiplies by 1 / (1 - theta), so that a kernel's prediction is right on average over masks.
    """
    kernels, clock, scale = kernels.clone(), _Clock(dim=-1), 1 / (1 - settings.theta)
    for step in range(settings.steps):
        watch(step, kernels)
        batch = _batch(settings, patches, generator)
        seen = _seen(kernels, batch)
        visible = scale * _visible(settings, batch, generator)
        target = _pooled(settings, activation(settings.tau * seen, settings.q, settings.t)[0])
        values, slopes = activation(seen, settings.q, settings.t)
        error = _pooled(settings, visible * values) - target
        gradient = _back(error, visible * slopes, batch)
        kernels -= settings.lr * _decay(step, settings.steps) * clock(gradient)
    watch(settings.steps, kernels)
    return kernels


def pretrain_patches(
    settings: Settings, kernels: Tensor, patches: Tensor, generator: torch.Generator, watch: Watch
) -> Tensor:
    """MAE's setting: one more decoder layer recovers all patches from what the kernels make of the visible ones."""
    kernels, scale = kernels.clone(), 1 / (1 - settings.theta)
    decoder = torch.zeros(settings.seeds, settings.P * settings.d, settings.kernels)
    clock, decoder_clock = _Clock(dim=-1), _Clock(dim=1)
    for step in range(settings.steps):
        watch(step, kernels)
        batch = _batch(settings, patches, generator)
        visible = scale * _visible(settings, batch, generator)
        values, slopes = activation(_seen(kernels, batch), settings.q, settings.t)
        codes = _pooled(settings, visible * values)
        error = codes @ decoder.mT - batch.flatten(2)
        gradient = _back(error @ decoder, visible * slopes, batch)
        decay = _decay(step, settings.steps)
        decoder -= settings.lr_decoder * decay * decoder_clock(error.mT @ codes)
        kernels -= settings.lr * decay * clock(gradient)
    watch(settings.steps, kernels)
    return kernels


def classify(
    settings: Settings,
    start: Classifier,
    samples: Samples,
    schedule: tuple[int, float],
    generator: torch.Generator,
    watch: Watch,
) -> Classifier:
    """Cross-entropy by gradient descent on kernels and head: fine-tuning, or supervised training from scratch."""
    steps, lr = schedule
    kernels, head = start.kernels.clone(), start.head.clone()
    for step in range(steps):
        watch(step, kernels)
        chosen = torch.randint(samples.labels.shape[1], (settings.batch,), generator=generator)
        batch, labels = samples.patches[:, chosen], samples.labels[:, chosen]
        values, slopes = activation(_seen(kernels, batch), settings.q, settings.t)
        codes = _pooled(settings, values)
        error = (codes @ head.mT).softmax(dim=-1) - torch.nn.functional.one_hot(labels, settings.k)
        gradient = _back(error @ head, slopes, batch)
        head -= lr * error.mT @ codes / settings.batch
        kernels -= lr * gradient / settings.batch
    watch(steps, kernels)
    return Classifier(kernels, head)


class _Clock:
    """Divides a kernel's gradient by its running size, so that small kernels need not wait for thousands of steps.

    In the teacher's setting the loss is a sum over kernels, and each still follows the path of its own gradient flow.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.size: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        square = gradient.square().sum(dim=self.dim, keepdim=True)
        self.size = square if self.size is None else torch.lerp(self.size, square, 0.1)
        return gradient / self.size.sqrt().clamp_min(1e-30)


def _decay(step: int, steps: int) -> float:
    """Half a cosine, to nothing: steps of a set length would never settle."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def _batch(settings: Settings, patches: Tensor, generator: torch.Generator) -> Tensor:
    return patches[:, torch.randint(patches.shape[1], (settings.batch,), generator=generator)]


def _visible(settings: Settings, batch: Tensor, generator: torch.Generator) -> Tensor:
    """One where a patch is seen and zero where it is hidden; a hidden patch is zero, and so is a kernel's answer."""
    seeds, num, places, _ = batch.shape
    return torch.rand(seeds, num * places, 1, generator=generator).ge(settings.theta).float()


def _seen(kernels: Tensor, patches: Tensor) -> Tensor:
    values: Tensor = patches.flatten(1, 2) @ kernels.mT  # seeds (N P) K
    return values


def _pooled(settings: Settings, values: Tensor) -> Tensor:
    return values.view(len(values), -1, settings.P, values.shape[-1]).sum(dim=2)


def _back(error: Tensor, slopes: Tensor, patches: Tensor) -> Tensor:
    """The gradient of kernels, from that of their sums over patches."""
    flat = slopes.unflatten(1, patches.shape[1:3]) * error[:, :, None]
    gradient: Tensor = flat.flatten(1, 2).mT @ patches.flatten(1, 2)
    return gradient

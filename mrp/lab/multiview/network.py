"""The two-layer convolutional network of Pan, Zhou and Yan, and the ways to train it, for all seeds at once.

Gradients are written out, because automatic differentiation would take three times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mrp.lab.multiview.constants import Constants
from mrp.lab.multiview.data import Samples
from mrp.lab.multiview.descent import Descent

Watch = Callable[[int, Tensor], None]  # is called with the step and the kernels
CHUNK = 100  # samples per seed that are evaluated at once


def unwatched(step: int, kernels: Tensor) -> None:
    """Looks at nothing."""


class Classifier(NamedTuple):
    """Kernels and a linear head."""

    kernels: Tensor  # seeds K d
    head: Tensor  # seeds k K


def first_kernels(constants: Constants, generator: torch.Generator) -> Tensor:
    """Returns Gaussian kernels, as the theory assumes."""
    return constants.sigma_0 * torch.randn(constants.seeds, constants.kernels, constants.d, generator=generator)


def class_head(constants: Constants) -> Tensor:
    """Returns the head that supervised training starts from: each class adds up m kernels of its own."""
    head = torch.eye(constants.k).repeat_interleave(constants.m, dim=1)
    return head.repeat(constants.seeds, 1, 1)


def zero_head(constants: Constants) -> Tensor:
    """Returns the head that fine-tuning starts from."""
    return torch.zeros(constants.seeds, constants.k, constants.kernels)


def activation(values: Tensor, q: int, t: float) -> tuple[Tensor, Tensor]:
    """Returns the smoothed ReLU, which is a power q up to t and linear above, and its slope."""
    low = values.clamp(0, t)
    share = low / t
    slope = share.clone()
    for _ in range(q - 2):  # several times as fast as torch.pow
        slope *= share
    return low * slope / q + (values - t).clamp_min_(0), slope


def correct(constants: Constants, classifier: Classifier, samples: Samples) -> Tensor:
    """Returns whether each seed's network classifies each sample correctly (seeds N)."""
    values = (
        activation(_products(classifier.kernels, part), constants.q, constants.t)[0]
        for part in samples.patches.split(CHUNK, dim=1)
    )
    codes = torch.cat([_pooled(constants, part) for part in values], dim=1)
    return (codes @ classifier.head.mT).argmax(dim=-1) == samples.labels


def pretrain(
    constants: Constants,
    method: str,
    kernels: Tensor,
    patches: Tensor,
    generator: torch.Generator,
    watch: Watch,
    optimizer: str = "kernel",
) -> Tensor:
    """Pretrains the kernels by mask reconstruction, and returns them.

    "teacher" is the setting of data2vec: from the visible patches predict what the teacher, whose kernels are the
    student's times tau, computes from all patches. "patches" is the setting of MAE: a second decoder layer recovers all
    patches. The first decoder layer of both divides by 1 - theta, so that a prediction is right on average over masks.
    """
    kernels, scale = kernels.clone(), 1 / (1 - constants.theta)
    decoder = torch.zeros(constants.seeds, constants.P * constants.d, constants.kernels)
    plain = optimizer == "sgd"
    lr, lr_decoder = (constants.lr_plain,) * 2 if plain else (constants.lr, constants.lr_decoder)
    kernel_step = Descent(optimizer, lr, constants.steps, dim=-1)
    decoder_step = Descent(optimizer, lr_decoder, constants.steps, dim=1)
    count = constants.batch if plain else 1  # the other steps do not depend on the gradient's size
    for step in range(constants.steps):
        watch(step, kernels)
        batch = patches[:, torch.randint(patches.shape[1], (constants.batch,), generator=generator)]
        visible = scale * _visible(constants, batch, generator)
        products = _products(kernels, batch)
        values, slopes = activation(products, constants.q, constants.t)
        codes = _pooled(constants, visible * values)
        if method == "teacher":
            target = activation(constants.tau * products, constants.q, constants.t)[0]
            error = codes - _pooled(constants, target)
        else:
            residual = codes @ decoder.mT - batch.flatten(2)
            error = residual @ decoder
            decoder -= decoder_step(residual.mT @ codes / count)
        kernels -= kernel_step(_kernel_gradient(error, visible * slopes, batch) / count)
    watch(constants.steps, kernels)
    return kernels


def classify(
    constants: Constants,
    start: Classifier,
    samples: Samples,
    schedule: tuple[int, float],
    generator: torch.Generator,
    watch: Watch = unwatched,
    optimizer: str = "sgd",
) -> Classifier:
    """Trains kernels and head on the cross-entropy: fine-tuning, or training from scratch."""
    steps, lr = schedule
    kernels, head = start.kernels.clone(), start.head.clone()
    kernel_step, head_step = Descent(optimizer, lr, steps, dim=-1), Descent(optimizer, lr, steps, dim=1)
    for step in range(steps):
        watch(step, kernels)
        chosen = torch.randint(samples.labels.shape[1], (constants.batch,), generator=generator)
        batch, labels = samples.patches[:, chosen], samples.labels[:, chosen]
        values, slopes = activation(_products(kernels, batch), constants.q, constants.t)
        codes = _pooled(constants, values)
        error = (codes @ head.mT).softmax(dim=-1) - torch.nn.functional.one_hot(labels, constants.k)
        gradient = _kernel_gradient(error @ head, slopes, batch)
        head -= head_step(error.mT @ codes / constants.batch)
        kernels -= kernel_step(gradient / constants.batch)
    watch(steps, kernels)
    return Classifier(kernels, head)


def _visible(constants: Constants, batch: Tensor, generator: torch.Generator) -> Tensor:
    """Returns 1 where a patch is visible and 0 where it is hidden: a hidden patch is zero, and so is its activation."""
    seeds, num, patches, _ = batch.shape
    return torch.rand(seeds, num * patches, 1, generator=generator).ge(constants.theta).float()


def _products(kernels: Tensor, patches: Tensor) -> Tensor:
    """Returns the inner product of every patch with every kernel."""
    products: Tensor = patches.flatten(1, 2) @ kernels.mT  # seeds (N P) K
    return products


def _pooled(constants: Constants, values: Tensor) -> Tensor:
    """Returns the sum over the patches of each sample."""
    return values.view(len(values), -1, constants.P, values.shape[-1]).sum(dim=2)


def _kernel_gradient(error: Tensor, slopes: Tensor, patches: Tensor) -> Tensor:
    """Returns the gradient with respect to the kernels, from that with respect to their sums over patches."""
    flat = slopes.unflatten(1, patches.shape[1:3]) * error[:, :, None]
    gradient: Tensor = flat.flatten(1, 2).mT @ patches.flatten(1, 2)
    return gradient

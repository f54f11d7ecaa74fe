"""The constants of the data model, the network and its training, which the command line of `mrp lab multiview` sets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import Field, model_validator

from mrp.config import COMMAND_LINE, ConfigError, Node, Tree, build, parse

Range = tuple[float, float]


class Constants(Node):
    """Every constant, named by the paper's letter where it has one; the paper says only how they grow with k."""

    k: int = Field(10, ge=2)  # classes; the features are the first 2k of the d axes
    d: int = Field(48, ge=4)  # numbers in a patch
    P: int = Field(16, ge=2)  # patches in a sample
    spread: int = Field(2, ge=1)  # patches that a feature is spread over
    uneven: float = Field(0.5, ge=0, lt=1)  # the shares of these patches vary by factors from 1 - uneven to 1 + uneven
    s: float = Field(2.0, ge=0)  # each feature of another class is present with probability s / k
    mu: float = Field(0.02, ge=0, le=1)  # single-view samples among all
    strength: Range = (1.0, 1.4)  # of the features of a sample's class, summed over their patches
    strength_off: Range = (0.2, 0.4)  # of other classes' features in a multi-view sample
    Gamma: float = Field(0.35, ge=0)  # of other classes' features in a single-view sample: Gamma / 2 to Gamma
    rho: float = Field(0.03, ge=0)  # of the feature that a single-view sample lacks: rho to 2 rho
    gamma: float = Field(0.03, ge=0)  # every patch holds every feature with 0 to gamma
    sigma: float = Field(0.05, ge=0)  # standard deviation of the Gaussian noise in every coordinate
    samples: int = Field(1000, ge=1)  # of the training set
    tests: int = Field(1000, ge=1)  # of each of the two test sets

    m: int = Field(16, ge=1)  # kernels per class: the network has k m
    q: int = Field(5, ge=2)  # power of the smoothed ReLU; the theorems assume 3 or more
    t: float = Field(1.0, gt=0)  # where the smoothed ReLU turns linear
    sigma_0: float = Field(0.15, gt=0)  # standard deviation of the first kernels

    theta: float = Field(0.6, ge=0, lt=1)  # mask ratio: a patch is hidden with this probability
    tau: float = Field(1.3, gt=0)  # the teacher's kernels are the student's times tau
    steps: int = Field(90, ge=1)  # of pretraining
    lr: float = Field(0.02, gt=0)  # how far a kernel moves in the first steps of pretraining
    lr_decoder: float = Field(0.005, gt=0)  # the same for the decoder that recovers patches
    lr_plain: float = Field(4.0, gt=0)  # of plain gradient descent in pretraining, for kernels and decoder
    batch: int = Field(50, ge=1)

    steps_tuned: int = Field(60, ge=1)  # of fine-tuning
    lr_tuned: float = Field(1.0, gt=0)
    steps_scratch: int = Field(400, ge=1)  # of supervised training
    lr_scratch: float = Field(4.0, gt=0)

    cosine: float = Field(0.5, gt=0, le=1)  # a kernel that holds a feature is at least this close to it
    seeds: int = Field(5, ge=2)
    seed: int = Field(0, ge=0, lt=2**31)

    @property
    def features(self) -> int:
        """The number of features."""
        return 2 * self.k

    @property
    def slots(self) -> int:
        """The number of features that a sample has room for."""
        return self.P // self.spread

    @property
    def kernels(self) -> int:
        """The number of kernels."""
        return self.k * self.m

    def varied(self, **values: float) -> Constants:
        """Returns the constants with other values, which are checked in the same way."""
        return _build(self.model_dump() | values)

    @model_validator(mode="after")
    def _fits(self) -> Constants:
        if self.d < self.features:
            raise ValueError(f"d = {self.d} holds no {self.features} orthonormal features; give d of 2 k or more")
        if self.slots < 2:
            raise ValueError(f"P = {self.P} patches hold no two features of {self.spread}; give a larger P")
        return self


def read(words: Iterable[str]) -> Constants:
    """Returns the defaults, changed by words of the form name=value."""
    values: dict[str, Any] = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator:
            raise ConfigError(f"{COMMAND_LINE}: '{word}' is not of the form name=value, for example mu=0.3")
        values[name] = parse(text, f"{COMMAND_LINE}, {name}")
    return _build(values)


def _build(values: dict[str, Any]) -> Constants:
    return build(Constants, Tree(values, dict.fromkeys(values, COMMAND_LINE) | {"": COMMAND_LINE}))

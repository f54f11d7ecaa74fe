"""Depth by a linear map from frozen patch tokens, solved in closed form: two errors, and the share of right pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from mrp.config import ConfigError
from mrp.evaluate import pairs as files
from mrp.evaluate.config import Depths, Section
from mrp.evaluate.contract import Result
from mrp.evaluate.dense import PER_PATCH, Dense, Learned, Tokens, bootstrap, chunks, enlarged
from mrp.evaluate.measures import Number, told
from mrp.evaluate.pairs import Pair, read_depth, sampled
from mrp.evaluate.table import Table

# Of the squared weights, per patch, in units of a column's variance.
PENALTIES = 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0
_DELTA = 1.25  # the ratio of the answer to the truth, either way, below which a pixel is right


class Config(Section):
    """Options of depth estimation."""

    train: Depths
    test: Depths
    # What one metre is in a PNG (NYUv2: 1000, KITTI: 256); .npy files hold metres.
    scale: float = Field(1000, gt=0)
    # The depths in metres that count; other pixels do not (KITTI: 0.001 to 80).
    range: tuple[float, float] = (0.001, 10.0)
    # The most images of each split; null: as many as have 8 GiB of patch tokens.
    images: int | None = Field(None, ge=2)

    @field_validator("range")
    @classmethod
    def _check_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(f"{list(value)} was given; allowed: two numbers of metres, 0 <= low < high")
        return value

    def content(self) -> str:
        """Returns a hash of all images and depth maps."""
        return files.content([self.train, self.test], files.DEPTHS)


class Evaluator(Dense[Tensor]):
    """Chooses the penalty on held-out training images, solves on all of them, and measures test images."""

    values = "rmse", "abs_rel", "delta1"
    endings, settings, higher_is_better = files.DEPTHS, PENALTIES, False

    def targets(self, pairs: Sequence[Pair], shape: tuple[int, int]) -> NDArray[np.float64]:
        """Returns the mean depth of each patch."""
        depths = np.stack([_of_patches(sampled(self._read(pair), shape, PER_PATCH)) for pair in pairs])
        if np.isnan(depths).all():
            low, high = self.config.range
            raise ConfigError(
                f"depth.train: no pixel lies within {low:g} to {high:g} metres; look at depth.scale and depth.range"
            )
        return depths

    def fit(self, tokens: Tokens, targets: Any, rows: NDArray[np.int64], settings: Sequence[float]) -> Sequence[Tensor]:
        """Solves for the patches' mean depths by least squares with every penalty; the last weight is the bias."""
        width = len(tokens.mean)
        gram = torch.zeros(width + 1, width + 1, dtype=torch.float64, device=tokens.device)
        product = gram.new_zeros(width + 1)
        for part in chunks(rows):
            truth = torch.from_numpy(targets[part]).to(tokens.device).flatten()
            known = ~truth.isnan()
            inputs = torch.nn.functional.pad(tokens.rows(part).flatten(0, 1)[known].double(), (0, 1), value=1.0)
            gram += inputs.T @ inputs
            product += inputs.T @ truth[known]
        count = float(gram[-1, -1])
        solved = []
        for penalty in settings:
            system = gram.clone()
            system.diagonal()[:-1].add_(penalty * max(1.0, count))
            solved.append(torch.linalg.solve(system, product))
        return solved

    def reached(self, tokens: Tokens, pairs: Sequence[Pair], rows: NDArray[np.int64], head: Tensor) -> float:
        """Returns the mean error of the images."""
        return float(np.nanmean(self._measured(tokens, pairs, rows, head)[:, 0]))

    def count(self, learned: Learned[Tensor], table: Table, pairs: Sequence[Pair]) -> Result:
        """Measures each test image, and takes means over the images, as the field does."""
        tokens = learned.tokens._replace(table=table)
        measured = self._measured(tokens, pairs, np.arange(len(table)), learned.head)
        measured = measured[~np.isnan(measured).any(1)]
        if not len(measured):
            raise ConfigError("depth.test: no pixel lies within depth.range; look at it and at depth.scale")
        error, relative, right = (
            (float(column.mean()), *bootstrap(column, lambda sums: sums[:, 0] / len(measured)))
            for column in np.hsplit(measured, 3)
        )
        numbers = {"rmse": Number(*error, share=False, better="lower")}
        numbers |= {"abs_rel": Number(*relative, share=False, better="lower"), "delta1": Number(*right)}
        values, details = told(numbers)
        details |= {"penalty": learned.setting, **learned.details(), "num_test": len(table)}
        return Result(values, details | {"without": len(table) - len(measured)})

    def _read(self, pair: Pair) -> NDArray[np.float32]:
        return read_depth(pair, self.config.scale, self.config.range)

    def _measured(
        self, tokens: Tokens, pairs: Sequence[Pair], rows: NDArray[np.int64], weight: Tensor
    ) -> NDArray[np.float64]:
        """Returns both errors and the share of right pixels of each image; NaN where no pixel of it counts."""
        measured = []
        for part in chunks(rows):
            answers = (tokens.rows(part).double() @ weight[:-1] + weight[-1]).unflatten(1, tokens.grid)
            for row, answer in zip(part, answers, strict=True):
                truth = torch.from_numpy(self._read(pairs[row])).to(self.device).double()
                counts = ~truth.isnan()
                size = truth.shape[0], truth.shape[1]
                found = enlarged(answer[None], size)[0][counts].clamp(
                    max(self.config.range[0], 1e-3), self.config.range[1]
                )
                truth = truth[counts]
                ratio = torch.maximum(found / truth, truth / found)
                difference = found - truth
                error, relative = difference.square().mean().sqrt(), (difference.abs() / truth).mean()
                measured.append([float(error), float(relative), float((ratio < _DELTA).double().mean())])
        return np.array(measured)


def _of_patches(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the mean of the known depths in each patch; NaN where none is known."""
    known = ~np.isnan(points)
    total, count = np.where(known, points, 0).sum(1, dtype=np.float64), known.sum(1)
    return np.where(count > 0, total / np.maximum(1, count), np.nan)

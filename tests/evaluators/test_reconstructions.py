"""Reconstructions in training: a number that agrees with the model's own, and a picture in the folder and trackers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mrp
from mrp.build import open_source
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.loader import EvalLoader
from mrp.data.subset import fixed_sample
from mrp.evaluators import reconstructions
from mrp.evaluators.reconstructions import _page, _paint
from mrp.monitor.metrics import read_lines

SMALL = [
    "length=2 steps", "optim.warmup=1 steps", "backbone.depth=1", "backbone.width=24", "backbone.heads=2",
    "diagnose.every=null", "machine.workers=0",
]  # fmt: skip
EVERY = "evaluate={reconstructions: {every: 1 steps, images: 3}}"


def test_the_picture_and_its_error(tmp_path: Path) -> None:
    run = mrp.pretrain("demo", *SMALL, "objective.decoder.depth=1", EVERY, "track.name=tensorboard", folder=tmp_path)
    files = sorted(path.name for path in (run / "pictures").iterdir())
    assert files == ["reconstructions-images-00000001.png", "reconstructions-images-00000002.png"]
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("reconstructions/images")] == [1, 2]
    model = mrp.load(run)
    sample = fixed_sample(open_source(model.run, "test"), 3)
    (batch,) = EvalLoader(
        sample, View(model.run.data, train=False), batch=3, rank=0, world=1, workers=0, pin_memory=False
    )
    with torch.no_grad():
        painted = model.module(batch, features=_paint).features
    prepare = model.module.prepare
    whole = prepare.undo(prepare(batch.images))
    height, width = whole.shape[2:]
    pixels = prepare.undo(painted[:, : whole[0].numel()].reshape(whole.shape))
    patches = model.backbone.patch_embed.grid_size
    hidden = torch.nn.functional.interpolate(
        painted[:, whole[0].numel() :].reshape(3, 1, *patches), size=(height, width)
    ).bool()
    error = float(((pixels - whole) ** 2)[hidden.expand_as(whole)].mean())
    assert read_lines(run / "metrics.jsonl")[-1]["reconstructions/error"] == pytest.approx(error, rel=1e-4)
    with Image.open(run / "pictures" / files[-1]) as picture:
        drawn = np.asarray(picture)
    times = 12  # an image of 8 x 8 pixels is magnified to 96 x 96
    assert drawn.shape == (3 * (8 * times + 2) - 2, 4 * (8 * times + 2) - 2, 3)
    drawn = np.concatenate([drawn[:, start : start + 96 : times] for start in (0, 98)], axis=1)
    assert (drawn[96:98] == 255).all()
    drawn = drawn[:96:times]
    first = (whole[0, 0] * 255).round().byte().numpy()
    assert (drawn[:height, :width] == first[..., None]).all()
    seen = drawn[:, width:, 0]
    assert (seen == np.where(hidden[0, 0].numpy(), 128, first)).all()


def test_a_method_without_pixels_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reconstructions: this method predicts no pixels"):
        mrp.pretrain("data2vec_tiny_digits", "machine.workers=0", EVERY, folder=tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists() or not read_lines(tmp_path / "metrics.jsonl")


def test_other_than_three_channels_give_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstructions, "_LEAST", 1)
    page = _page([torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1), torch.full((1, 2, 1, 1), 0.5)])
    assert page.tolist() == [[[0] * 3, [255] * 3, [255] * 3, [128] * 3]]

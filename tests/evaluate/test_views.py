"""What evaluators see of images, and that features of one view are never taken for those of another."""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mrp.build import build_step
from mrp.data.augment import View
from mrp.data.config import Config, Crop
from mrp.data.open import open_source
from mrp.evaluate.contract import never
from mrp.evaluate.readout import Readout
from mrp.evaluate.tables import Tables
from mrp.evaluate.views import Changed, Cropped, Mirrored, Occluded, Whole
from mrp.run import load
from tests.evaluators.settings import setting

DATA = Config.model_validate({"train": "digits", "size": [8, 12], "mean": [0.1, 0.5, 1.0], "std": 0.5})


def picture(height: int = 8, width: int = 12, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(0, 99, (3, height, width), generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize(("dtype", "full"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_a_share_of_the_patches_is_painted_in_the_mean_colour(dtype: torch.dtype, full: int) -> None:
    image, hidden = picture(dtype=dtype), list[Tensor]()
    colour = torch.tensor([0.1, 0.5, 1.0]).mul(full).round().int()
    for share in (0.0, 0.25, 0.5, 1.0):
        seen = Occluded(DATA, share, (2, 4))(image, key=5)
        assert seen.dtype == dtype
        painted = (seen.int() == colour[:, None, None]).all(0)
        assert torch.equal(seen.int()[:, ~painted], image.int()[:, ~painted])
        patches = painted.view(4, 2, 3, 4).transpose(1, 2).reshape(12, 8)
        assert torch.equal(patches.all(1), patches.any(1))
        hidden.append(patches.all(1))
    assert [int(patches.sum()) for patches in hidden] == [0, 3, 6, 12]
    assert not (hidden[1] & ~hidden[2]).any()
    assert not torch.equal(Occluded(DATA, 0.5, (2, 4))(image, 5), Occluded(DATA, 0.5, (2, 4))(image, 6))


def test_floating_point_pixels_stay_what_they_are_around_the_painted_ones() -> None:
    """They were cut off to whole numbers: of images from 0 to 1 nothing was left."""
    image = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    seen = Occluded(DATA, 0.5, (2, 4))(image, key=5)
    painted = (seen == torch.tensor([0.1, 0.5, 1.0])[:, None, None]).all(0)
    assert int(painted.sum()) == 48
    assert torch.equal(seen[:, ~painted], image[:, ~painted])


def test_the_whole_image_is_seen_where_the_usual_view_cuts() -> None:
    image = torch.zeros(3, 16, 64, dtype=torch.uint8)
    image[:, :, :8] = 200
    assert int(View(DATA, train=False)(image, 0).max()) == 0
    assert int(Whole(DATA)(image, 0)[:, :, 0].min()) > 150


def test_a_mirror_and_a_crop() -> None:
    image = picture()
    assert torch.equal(Mirrored(DATA)(image, 0).flip(2), image)
    crop = Crop(scale=(0.3, 0.6), flip=False)
    seen = Cropped(DATA, crop)
    assert seen(image, 3).shape == (3, 8, 12)
    assert torch.equal(seen(image, 3), View(DATA.model_copy(update={"augment": crop}), train=True)(image, 3))
    assert not torch.equal(seen(image, 3), seen(image, 4))


def test_views_reach_worker_processes_and_have_names_of_their_own() -> None:
    views: list[Changed] = [
        Whole(DATA), Mirrored(DATA), Cropped(DATA, Crop()), Cropped(DATA, Crop(flip=False)),
        Occluded(DATA, 0.5, (2, 2)), Occluded(DATA, 0.25, (2, 2)), Occluded(DATA, 0.5, (2, 4)),
    ]  # fmt: skip
    assert len({view.name for view in views}) == len(views)
    for view in views:
        assert torch.equal(pickle.loads(pickle.dumps(view))(picture(), 1), view(picture(), 1))


def test_features_of_views_are_kept_apart() -> None:
    run = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2"])
    step, source = build_step(run).eval(), open_source("digits", "test")
    at, readout = setting(run.data, source, source), Readout.own(step)
    usual, mirrored, again = (
        at.features(source, step, readout, never, most=8, view=view)
        for view in (None, Mirrored(run.data), Mirrored(run.data))
    )
    assert usual is not None
    assert mirrored is not None
    assert not (usual.columns["1.class"] == mirrored.columns["1.class"]).all()
    assert again is mirrored


def test_features_of_larger_cuts_are_kept_apart() -> None:
    """Whether evaluation sees the whole shorter side is an option of the recipe, at the same size of the images."""
    run = load("demo", ["backbone.width=16", "backbone.depth=1", "backbone.heads=2", "data.size=10"])
    step, source = build_step(run).eval(), open_source("digits", "test")
    readout, tables = Readout.own(step), []
    with tempfile.TemporaryDirectory() as folder:
        for whole_from in (None, 10):
            data = run.data.model_copy(update={"augment": Crop(whole_from=whole_from)})
            at = replace(setting(data, source, source), tables=Tables(Path(folder)))
            with at.tables.of("the same weights"):
                tables.append(at.features(source, step, readout, never, most=8))
    usual, whole = (table.rows(readout.blocks, slice(None)) for table in tables if table is not None)
    assert not torch.equal(usual, whole)

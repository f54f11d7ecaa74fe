"""The numbers without labels: which images and crops they are computed from, in one process and inside training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrp.batch import Batch
from mrp.config import ConfigError
from mrp.data.augment import View
from mrp.data.config import Crop
from mrp.data.open import open_source
from mrp.data.order import keys
from mrp.data.subset import evenly_spaced
from mrp.evaluate import geometry
from mrp.evaluate.contract import never
from mrp.evaluate.readout import Readout
from mrp.evaluators.geometry import Config, Evaluator
from mrp.run import load
from mrp.step import Step
from tests.evaluators.settings import setting


def test_the_numbers_are_those_of_evenly_spaced_images_and_their_crops(step: Step) -> None:
    data, test = load("demo").data, open_source("digits", "test")
    at = setting(data, test, test)
    config = Config.model_validate({"images": 9, "views": 3, "scale": [0.3, 0.8]})
    result = Evaluator(config, at).measure(step, 0, never)
    assert (result.details["images"], result.details["views"]) == (9, 3)
    assert set(result.values) == set(Evaluator.value_names(()))

    places = np.arange(9) * 360 // 9
    pictures = [torch.from_numpy(np.array(test.read(int(place))[0])).permute(2, 0, 1) for place in places]
    crop = View(data.model_copy(update={"augment": Crop(scale=(0.3, 0.8), flip=False)}), train=True)
    crops = [crop(pictures[row % 9], int(keys(0, 0, np.array([row]))[0])) for row in range(27)]
    readout = Readout.own(step)
    with torch.no_grad():
        whole, cropped = (
            readout(step.objective, Batch(step.prepare(torch.stack(x)), torch.arange(len(x))))
            for x in (pictures, crops)
        )
    views = cropped.view(3, 9, -1).transpose(0, 1)
    assert result.values["lidar"] == pytest.approx(geometry.lidar(views), rel=2e-2)  # tables are in half precision
    assert result.values["alignment"] == pytest.approx(geometry.alignment(views[:, 0], views[:, 1]), rel=2e-2)
    assert result.values["effective_rank"] == pytest.approx(geometry.effective_rank(whole), rel=2e-2)
    assert result.values["rank_me"] == pytest.approx(geometry.rank_me(whole), rel=2e-2)
    assert result.values["log_uniformity"] == pytest.approx(geometry.uniformity(whole), rel=2e-2)


def test_without_test_data_the_training_images_are_measured_and_few_images_suffice(step: Step) -> None:
    train = open_source("digits", "test")
    at = setting(load("demo").data, train, None)
    assert Evaluator(Config(images=5000, views=2), at).measure(step, 0, never).details["images"] == 360


def test_one_image_is_refused() -> None:
    one = evenly_spaced(open_source("digits", "test"), 1)
    with pytest.raises(ConfigError, match="geometry: needs two images or more, and there are 1"):
        Evaluator(Config(), setting(load("demo").data, one, None))


def test_groups_of_images_give_numbers_that_two_models_are_compared_by(step: Step) -> None:
    test = open_source("digits", "test")
    at = setting(load("demo").data, test, test)
    plain = Evaluator(Config(images=60, views=2), at).measure(step, 0, never)
    grouped = Evaluator(Config(images=60, views=2, groups=6), at).measure(step, 0, never)
    assert grouped.values == plain.values
    measures = grouped.details["measures"]
    assert all("draws" not in one for one in plain.details["measures"].values())
    with_draws = {name for name, one in measures.items() if "draws" in one}
    assert with_draws == {"rank_me", "effective_rank", "alignment", "log_uniformity"}
    assert len(measures["alignment"]["draws"]) == 6
    assert np.mean(measures["alignment"]["draws"]) == pytest.approx(plain.values["alignment"])

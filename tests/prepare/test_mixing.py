"""Erasing and mixing: what is drawn, from what, and that the images' neighbours and labels go together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrp.batch import Batch
from mrp.build import build_step, measure_cost
from mrp.config import ConfigError, Tree, build
from mrp.plan import plan_run
from mrp.prepare.config import Mixing
from mrp.prepare.mixing import DropChannels, Erase, Mix, beta_quantiles, swapped
from mrp.run import Run
from mrp.step import Prepare

GIB = 2**30


def make_run(**more: Any) -> Run:
    values = {
        "objective": {"name": "classify", "classes": 10, "head_std": 0.1},
        "backbone": {"width": 32, "depth": 1, "heads": 4, "patch": 4},
        "data": {"train": "digits", "size": 16, "channels": 1},
        "batch": 8, "length": "10 steps", "optim": {"lr": 1e-3}, "precision": "fp32",
    }  # fmt: skip
    return build(Run, Tree(values | more, {}))


def batch(count: int = 8, step: int = 0, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, size, size, generator=generator)
    places = torch.arange(count)
    return Batch(images, places * 13, places % 10, step=torch.tensor(step), places=places)


def part(whole: Batch, rows: slice) -> Batch:
    """A micro-batch as another division of the batch gives it."""
    assert whole.labels is not None
    assert whole.places is not None
    return replace(
        whole, images=whole.images[rows], keys=whole.keys[rows], labels=whole.labels[rows], places=whole.places[rows]
    )


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 2.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    shares = beta_quantiles(alpha)
    drawn = np.random.default_rng(0).beta(alpha, alpha, 400_000)
    assert shares.mean() == pytest.approx(0.5, abs=1e-3)
    assert shares.var() == pytest.approx(drawn.var(), rel=0.01)
    for chance in (0.05, 0.25, 0.6, 0.9):
        assert np.quantile(shares, chance) == pytest.approx(np.quantile(drawn, chance), abs=0.005)


def test_neighbours_change_places() -> None:
    assert swapped(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]


def test_a_mixture_has_a_tag_in_shares_where_it_is_known_of_both_images() -> None:
    mix = Mix(Mixing(cutmix=1.0, together=2, chance=0.5), 3, (16, 16), seed=3)
    given = batch(8, 0)
    given.labels = torch.tensor([[1.0, torch.nan, 0.0], [0.0, 1.0, torch.nan]] * 4)
    shares = mix.draw(given)[1]
    mixed = shares > 0
    assert 0 < int(mixed.sum()) < 8
    found = mix(given).labels
    assert torch.equal(found[~mixed].nan_to_num(9), given.labels[~mixed].nan_to_num(9))
    assert torch.allclose(found[mixed, 0], given.labels[mixed, 0].lerp(1 - given.labels[mixed, 0], shares[mixed]))
    assert found[mixed, 1:].isnan().all()


@pytest.mark.parametrize("config", [Mixing(mixup=0.8), Mixing(cutmix=1.0), Mixing(mixup=0.8, cutmix=1.0)])
def test_pixels_and_labels_are_mixed_in_the_same_shares(config: Mixing) -> None:
    mix = Mix(config, 10, (16, 16), seed=3)
    shares, kinds = [], []
    for step in range(200):
        given = batch(4, step)
        found = mix(given)
        (mask,), (share,) = mix.draw(given)
        partner = given.images[[1, 0, 3, 2]]
        assert torch.allclose(found.images, given.images * (1 - mask) + partner * mask, atol=1e-6)
        assert torch.allclose(found.labels.sum(1), torch.ones(4))
        assert torch.allclose(found.labels[0, :2], torch.stack([1 - share, share]), atol=1e-6)
        assert float(share) == pytest.approx(float(mask.mean()), abs=1e-6)
        shares.append(float(share))
        kinds.append(len(mask.unique()) == 1 and 0 < float(share) < 1)
    expected = {(True, False): 1.0, (False, True): 0.0, (True, True): 0.5}[config.mixup > 0, config.cutmix > 0]
    assert np.mean(kinds) == pytest.approx(expected, abs=0.12)
    assert len(set(shares)) > 40  # of 16 x 16 pixels there are not many boxes
    # A cut box loses what reaches over the edge, so less than half is the partner's.
    assert 0.25 < np.mean(shares) < 0.55


def test_a_box_is_a_rectangle_of_its_share() -> None:
    mix = Mix(Mixing(cutmix=1.0), 10, (16, 24), seed=0)
    for step in range(100):
        (mask,), (share,) = mix.draw(Batch(torch.zeros(2, 1, 16, 24), torch.zeros(2), step=torch.tensor(step)))
        rows, columns = mask.amax(1), mask.amax(0)
        assert torch.equal(mask, rows[:, None] * columns)
        assert (rows.diff().abs().sum() <= 2) & (columns.diff().abs().sum() <= 2)
        assert float(share) == pytest.approx(float(rows.sum() * columns.sum()) / (16 * 24))


@pytest.mark.parametrize("together", [None, 4])
def test_the_mixture_follows_step_seed_and_place_alone(together: int | None) -> None:
    config = Mixing(mixup=1.0, cutmix=1.0, together=together)
    mix, other = Mix(config, 10, (16, 16), seed=3), Mix(config, 10, (16, 16), seed=4)
    whole = mix(batch(8, 5))
    for size in (2, 4, 8):
        for first in range(0, 8, size):
            rows = slice(first, first + size)
            found = mix(part(batch(8, 5), rows))
            assert torch.equal(found.images, whole.images[rows])
            assert torch.equal(found.labels, whole.labels[rows])
    assert not torch.equal(mix(batch(8, 6)).labels, whole.labels)
    assert not torch.equal(other(batch(8, 5)).labels, whole.labels)


def test_as_many_images_share_a_draw_as_the_recipe_says() -> None:
    whole = batch(64)
    _, one = Mix(Mixing(mixup=0.8), 10, (16, 16), seed=3).draw(whole)
    _, shares = Mix(Mixing(mixup=0.8, together=8), 10, (16, 16), seed=3).draw(whole)
    assert len(one) == 1
    assert all(len(group.unique()) == 1 for group in shares.view(8, 8))
    assert len(shares.unique()) == 8


def test_a_share_of_the_draws_is_not_used() -> None:
    mix, always = (Mix(Mixing(cutmix=1.0, together=2, chance=chance), 10, (16, 16), seed=1) for chance in (0.7, 1.0))
    given = batch(4000)
    shares, used = mix.draw(given)[1], always.draw(given)[1]
    kept = shares == used
    assert torch.equal(shares[~kept], torch.zeros(int((~kept).sum())))
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=0.03)
    labels = mix(given).labels
    assert labels is not None
    assert torch.equal(labels[~kept], torch.eye(10)[given.labels[~kept]])  # type: ignore[index]


def rectangles(found: Tensor, given: Tensor) -> Tensor:
    return (found != given).any(1)


def test_a_share_of_the_images_loses_a_rectangle() -> None:
    erase = Erase(0.25, 3, (32, 48))
    images, keys = torch.zeros(4000, 3, 32, 48), torch.arange(4000)
    found = erase(images, keys)
    hit = rectangles(found, images)
    touched = hit.any((1, 2))
    assert float(touched.float().mean()) == pytest.approx(0.25, abs=0.03)
    rows, columns = hit[touched].any(2).sum(1), hit[touched].any(1).sum(1)
    area = hit[touched].sum((1, 2))
    assert torch.equal(area, rows * columns)
    assert area.min() >= 0.02 * 32 * 48
    assert area.max() <= 32 * 48 / 3
    aspect = rows / columns
    assert ((aspect >= 0.3 - 1e-6) & (aspect <= 1 / 0.3 + 1e-6)).all()
    noise = found[found != 0]
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)


def test_the_rectangle_follows_the_sample() -> None:
    erase, given = Erase(1.0, 1, (16, 16)), batch(8)
    found = erase(given.images, given.keys)
    assert torch.equal(found[3:5], erase(given.images[3:5], given.keys[3:5]))
    assert rectangles(found, given.images).any((1, 2)).all()
    assert torch.equal(Erase(0.0, 1, (16, 16))(given.images, given.keys), given.images)


def test_only_training_changes_images() -> None:
    step = build_step(make_run(mix={"mixup": 0.8, "cutmix": 1.0, "erase": 0.5}))
    plain = build_step(make_run())
    plain.load_state_dict(step.state_dict())
    given = batch()
    assert not torch.equal(step(given).loss, plain(given).loss)
    assert torch.equal(step(given, features=True).features, plain(given, features=True).features)
    assert torch.equal(step.eval()(given).loss, plain.eval()(given).loss)


def test_it_is_one_graph_over_three_steps() -> None:
    step = build_step(make_run(mix={"mixup": 0.8, "cutmix": 1.0, "erase": 0.5}))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    for number in range(3):
        assert torch.allclose(compiled(batch(step=number)).loss, step(batch(step=number)).loss, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_the_cost_is_counted_and_nothing_is_saved() -> None:
    run = make_run(mix={"mixup": 0.8, "cutmix": 1.0, "erase": 0.5})
    assert measure_cost(run).forward_flops == measure_cost(make_run()).forward_flops
    assert build_step(run).state_dict().keys() == build_step(make_run()).state_dict().keys()


def test_what_cannot_be_mixed_is_said() -> None:
    run = make_run(mix={"mixup": 0.8}, machine={"micro_batch": 1})
    with pytest.raises(ConfigError, match="mix: images are mixed two by two, but a process takes 1 at once"):
        plan_run(run, 1, 1, GIB)
    assert plan_run(make_run(mix={"mixup": 0.8}), 1, 4, GIB).micro_batch == 2
    objective = {"name": "mae", "decoder": {"width": 32, "depth": 1, "heads": 4}}
    with pytest.raises(ConfigError, match="mix: mae has no classes whose labels could be mixed"):
        build_step(make_run(objective=objective, mix={"cutmix": 1.0}))
    build_step(make_run(objective=objective, mix={"erase": 0.5}))


def five(count: int = 64) -> Batch:
    return Batch(torch.ones(count, 5, 4, 4), torch.arange(count) * 7919)


def test_channels_are_left_out_by_key_and_one_stays() -> None:
    share = 0.4
    left = DropChannels(share)(five(4096))
    assert left.any(1).all()
    assert left.float().mean() == pytest.approx(1 - share + share**5 / 5, abs=0.01)  # the one that stays
    assert torch.equal(DropChannels(share)(five(64)), left[:64])
    turned = five(64)
    assert torch.equal(DropChannels(share)(replace(turned, keys=turned.keys.flip(0))), left[:64].flip(0))


def test_of_the_channels_that_an_image_has_one_stays() -> None:
    here = torch.arange(5) < torch.arange(64)[:, None] % 5 + 1
    left = DropChannels(0.9)(replace(five(), present=here))
    assert left.any(1).all()
    assert not (left & ~here).any()
    assert (left.sum(1) < here.sum(1)).any()


def test_channels_are_left_out_in_training_alone_and_are_the_mean() -> None:
    run = make_run(
        objective={"name": "mae", "decoder": {"width": 16, "depth": 1, "heads": 2}},
        data={"train": "digits", "size": 16, "channels": 5, "mean": 0.3, "std": 0.2}, mix={"drop_channels": 0.5},
    )  # fmt: skip
    prepare = build_step(run).prepare
    whole = replace(five(8), images=torch.randn(8, 5, 16, 16))
    changed = prepare.change(whole)
    assert changed.present is not None
    assert torch.equal(changed.images != 0, changed.present[..., None, None].expand_as(changed.images))
    assert prepare.fill(whole) is whole


def test_what_is_erased_or_mixed_leaves_a_missing_channel_the_mean() -> None:
    mix = Mixing(mixup=0.8, erase=1.0)
    prepare = Prepare((0.5,) * 5, (0.5,) * 5, Erase(1.0, 5, (16, 16)), Mix(mix, 10, (16, 16), seed=0))
    here = torch.tensor([[True, False, True, True, False], [False, False, True, True, True]]).repeat(4, 1)
    whole = Batch(
        torch.randn(8, 5, 16, 16), torch.arange(8) * 13, torch.arange(8), places=torch.arange(8), present=here
    )
    changed = prepare.change(whole)
    either = here | swapped(here)
    assert torch.equal(changed.present, either)  # type: ignore[arg-type]
    assert torch.equal((changed.images != 0).flatten(2).any(2), either)

"""The uniformity penalty: what it measures, what it acts on, and what it costs when it is off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mrp.batch import Batch
from mrp.build import build_step
from mrp.config import ConfigError
from mrp.data.order import share
from mrp.methodkit import gram_penalty, sigreg_statistic
from mrp.methodkit.uniformity import random_directions
from mrp.plan import plan_job, plan_run
from mrp.run import Run
from tests.objectives.test_every_objective import DECODER, make_batch, make_run

GIB = 2**30


def naive(features: Tensor) -> Tensor:
    """The mean squared entry of the Gram matrix of unit vectors."""
    directions = features / features.norm(dim=1, keepdim=True)
    return torch.stack([(a @ b) ** 2 for a in directions for b in directions]).mean()


def umae(uniformity: Any = 0.1, **more: Any) -> Run:
    objective = {"name": "mae", "decoder": DECODER, "uniformity": uniformity} | more.pop("objective", {})
    return make_run("mae", objective=objective, **more)


def test_it_is_the_mean_squared_entry_of_the_gram_matrix() -> None:
    ours = torch.randn(10, 7, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    value, expected = gram_penalty(ours[None]), naive(theirs)
    assert torch.allclose(value, expected)
    value.backward()
    expected.backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)


def test_its_ends_are_one_and_one_over_the_dimensions() -> None:
    assert torch.allclose(gram_penalty(torch.ones(1, 6, 4)), torch.tensor(1.0))
    assert torch.allclose(gram_penalty(torch.eye(4).repeat(3, 1)[None]), torch.tensor(0.25))


def test_two_masks_of_an_image_are_no_negatives() -> None:
    draws = torch.randn(2, 10, 7)
    assert torch.allclose(gram_penalty(draws), (naive(draws[0]) + naive(draws[1])) / 2)


@pytest.mark.parametrize("name", ["mae", "simmim", "data2vec"])
def test_the_loss_is_the_reconstruction_and_so_much_of_it(name: str) -> None:
    options = {"mae": {"decoder": DECODER}, "simmim": {"mask_unit": 8}, "data2vec": {"smallest_block": 4, "layers": 1}}
    plain, regularised = (
        build_step(make_run(name, objective={"name": name, "uniformity": weight} | options[name]))
        for weight in (0, 0.3)
    )
    before, after = plain(make_batch(make_run(name))), regularised(make_batch(make_run(name)))
    assert "uniformity" not in before.metrics
    assert torch.equal(before.loss, after.metrics["reconstruction"])
    assert after.features is not None
    assert torch.allclose(after.metrics["uniformity"], naive(after.features))  # the class token of the masked view
    assert torch.allclose(after.loss, before.loss + 0.3 * after.metrics["uniformity"])


def test_the_feature_and_the_released_double_norm_are_options() -> None:
    values = {}
    for feature in ("cls", "mean"):
        for renormalise in (False, True):
            run = umae({"weight": 0.1, "feature": feature, "renormalise": renormalise})
            step = build_step(run)
            with torch.no_grad():  # a norm that is not the identity the second time
                step.objective.backbone.norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
            values[feature, renormalise] = float(step(make_batch(run)).metrics["uniformity"])
    assert len(set(values.values())) == 4


def test_over_micro_batches_it_is_the_mean_of_the_penalties_of_each() -> None:
    run = umae()
    step = build_step(run)
    batch = make_batch(run)
    whole = step(batch)
    pieces = []
    for number in range(4):
        rows = slice(2 * number, 2 * number + 2)
        pieces.append(step(Batch(batch.images[rows], batch.keys[rows], step=batch.step)))
    assert torch.allclose(torch.cat([piece.per_sample["loss"] for piece in pieces]), whole.per_sample["loss"])
    assert whole.features is not None
    expected = [naive(whole.features[2 * number : 2 * number + 2]) for number in range(4)]
    assert torch.allclose(torch.stack([piece.metrics["uniformity"] for piece in pieces]), torch.stack(expected))
    assert not torch.allclose(torch.stack(expected).mean(), whole.metrics["uniformity"], rtol=1e-2)


def test_a_weight_alone_is_enough() -> None:
    assert umae(0.01).objective == umae({"weight": 0.01}).objective
    assert umae(0.01).couples_samples
    assert not umae(0).couples_samples
    for wrong, message in ((-1, "greater than or equal to 0"), (True, "a section"), ({"feature": "cls"}, "required")):
        with pytest.raises(ConfigError, match=rf"objective.uniformity.*{message}"):
            umae(wrong)
    with pytest.raises(ConfigError, match=r"feature: cls needs backbone.class_token; take mean"):
        build_step(umae(backbone={"class_token": False}))


def test_what_acts_on_each_other_is_part_of_the_run(tmp_path: Path) -> None:
    def planned(run: Run) -> Run:
        return plan_job(run, tmp_path, 2, GIB).run

    run = umae(batch=64)
    assert plan_run(run, 10, 2, GIB).coupled_batch == 64
    assert planned(run).identity("data")["coupled_batch"] == 64
    asked = umae(batch=64, coupled_batch=16)
    assert [plan_run(asked, 10, processes, GIB).micro_batch for processes in (1, 2, 4)] == [16, 8, 4]
    assert plan_run(asked, 10, 2, GIB).accumulation == 4
    assert planned(asked).identity("data") == asked.identity("data") != planned(run).identity("data")
    plain = umae(0, batch=64, coupled_batch=16)
    assert plan_run(plain, 10, 2, GIB).micro_batch == 32
    assert planned(plain).coupled_batch is None


def test_the_same_images_meet_on_any_number_of_processes() -> None:
    def meetings(processes: int) -> list[set[int]]:
        plan = plan_run(umae(batch=64, coupled_batch=16), 10, processes, GIB)
        assert plan.coupled_batch == 16
        ranks = [
            share(64, plan.coupled_batch, rank, processes).reshape(plan.accumulation, plan.micro_batch)
            for rank in range(processes)
        ]
        return [{int(place) for rank in ranks for place in rank[step]} for step in range(plan.accumulation)]

    assert meetings(1) == meetings(2) == meetings(8)
    assert [len(meeting) for meeting in meetings(2)] == [16] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coupled_batch": 24}, "coupled_batch: 24 must divide the batch of 64 and be a multiple of the 2 processes"),
        ({"coupled_batch": 1}, "coupled_batch: 1 must divide"),
        ({"coupled_batch": 16, "machine": {"micro_batch": 16}}, "machine.micro_batch: 16 on each of 2 processes"),
    ],
)
def test_coupled_batches_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_run(umae(batch=64, **options), 10, 2, GIB)


def test_a_resume_with_another_coupled_batch_is_refused(tmp_path: Any) -> None:
    from mrp.cli import main

    words = ["pretrain", "demo", "batch=32", "length=2 steps", "optim.warmup=0 steps", "backbone.depth=1"]
    words += ["objective.uniformity=0.01", "objective.decoder.depth=1", "--folder", str(tmp_path / "run")]
    main([*words, "machine.micro_batch=16"])
    with pytest.raises(SystemExit):
        main([*words, "machine.micro_batch=8"])
    main([*words, "coupled_batch=16"])


def test_lower_precision_around_it_changes_nothing() -> None:
    features = torch.randn(2, 16, 8)
    with torch.autocast("cpu", torch.bfloat16):
        around = gram_penalty(features)
    assert torch.equal(around, gram_penalty(features))


def test_sigreg_is_the_integral_of_the_distance_between_characteristic_functions() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 12, 5, generator=generator).double()
    directions = random_directions(torch.tensor(3), 4, 5)
    points = torch.linspace(-3, 3, 33, dtype=torch.float64)
    statistic = sigreg_statistic(features.float(), directions)
    for mask in range(2):
        for number in range(4):
            along = features[mask] @ directions[:, number].double()
            found = (1j * points[:, None] * along).exp().mean(1)
            wanted = (-(points**2) / 2).exp()
            expected = 12 * torch.trapezoid((found - wanted).abs() ** 2 * wanted, points)
            assert statistic[mask, number].item() == pytest.approx(expected.item(), rel=1e-5)


def test_sigreg_tells_normal_features_from_collapsed_shifted_and_long_ones() -> None:
    directions = random_directions(torch.tensor(0), 64, 8)
    normal = torch.randn(1, 512, 8, generator=torch.Generator().manual_seed(0))
    collapsed = normal[:, :1].expand_as(normal)
    found, *others = (
        float(sigreg_statistic(features, directions).mean())
        for features in (normal, collapsed, normal + 0.5, 2 * normal)
    )
    assert 0.5 < found < 2
    assert min(others) > 10


def test_sigregs_directions_are_unit_vectors_and_others_at_each_step() -> None:
    first, second = (random_directions(torch.tensor(step), 2000, 6) for step in (0, 1))
    assert torch.allclose(first.norm(dim=0), torch.ones(2000))
    assert torch.equal(first, random_directions(torch.tensor(0), 2000, 6))
    assert not torch.allclose(first, second)
    assert torch.allclose(first @ first.T / 2000, torch.eye(6) / 6, atol=0.02)


def test_sigreg_is_chosen_beside_its_weight() -> None:
    run = umae({"weight": 0.02, "kind": "sigreg"})
    assert run.objective.uniformity.slices == 256  # type: ignore[union-attr]
    assert run.couples_samples
    plain, output = build_step(umae(0))(make_batch(run)), build_step(run)(make_batch(run))
    assert torch.allclose(output.loss, plain.loss + 0.02 * output.metrics["uniformity"])
    assert output.features is not None
    directions = random_directions(torch.tensor(0), 256, output.features.shape[1])
    assert torch.allclose(output.metrics["uniformity"], sigreg_statistic(output.features[None], directions).mean())

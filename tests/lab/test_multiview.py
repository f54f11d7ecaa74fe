"""The multi-view lab: its data, its gradients, its measures, and that a claim comes out at toy size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from mrp import cli
from mrp.config import ConfigError
from mrp.data.open import open_source
from mrp.lab.multiview import compare as multiview
from mrp.lab.multiview import diversity, grid, network, plots, render
from mrp.lab.multiview.constants import Constants, read
from mrp.lab.multiview.data import Samples, draw
from mrp.lab.multiview.descent import OPTIMIZERS, Descent
from mrp.lab.multiview.measure import held, summary

SMALL = ("k=3", "d=12", "P=9", "m=2", "samples=40", "tests=40", "seeds=2", "batch=16", "steps=1")
CLEAN = ("sigma=0", "gamma=0")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def width(picture: Path) -> int:
    with Image.open(picture) as image:
        return image.width


def drawn(constants: Constants, single_view: float) -> tuple[Samples, Tensor, Tensor]:
    """Samples, the strength of every feature in each, and in how many patches it is."""
    samples = draw(constants, 300, 2, single_view, generator())
    features = samples.patches[..., : constants.features]
    return samples, features.sum(dim=2), (features > 0).sum(dim=2)


@pytest.mark.parametrize("single_view", [0.0, 1.0])
def test_samples_hold_what_the_model_says(single_view: float) -> None:
    constants = read([*CLEAN, "s=2", "P=20"])
    samples, strengths, patches = drawn(constants, single_view)
    own = torch.stack([2 * samples.labels, 2 * samples.labels + 1], dim=-1)
    of_label = strengths.gather(-1, own)
    others = strengths.scatter(-1, own, 0.0)
    low, high = of_label.amin(dim=-1), of_label.amax(dim=-1)
    assert high.min() >= 1
    assert high.max() <= 1.4 + 1e-5
    if single_view:
        assert low.max() <= 2 * constants.rho + 1e-6
        assert others.max() <= constants.Gamma + 1e-6
        assert 0.4 < of_label.argmax(dim=-1).double().mean() < 0.6  # which of the two is missing is chance
    else:
        assert low.min() >= 1
        assert others[others > 0].min() >= 0.2
        assert others.max() <= 0.4 + 1e-6
    assert set(patches.unique().tolist()) <= {0, constants.spread}
    assert (samples.patches > 0).sum(dim=-1).max() == 1, "a patch holds one feature"
    expected = constants.s / constants.k * (constants.features - 2)
    assert (others > 0).double().sum(dim=-1).mean() == pytest.approx(expected, rel=0.1)


def test_the_mixture_has_its_fraction_of_single_views() -> None:
    constants = read([*CLEAN, "mu=0.3"])
    samples = draw(constants, 2000, 2, constants.mu, generator())
    strengths = samples.patches[..., : constants.features].sum(dim=2)
    assert ((strengths > 0.9).sum(dim=-1) == 1).double().mean() == pytest.approx(0.3, abs=0.03)


def test_noise_has_its_size() -> None:
    constants = read(["sigma=0.2", "gamma=0.1", "s=0"])
    patches = draw(constants, 500, 2, 0.0, generator()).patches
    assert patches[..., constants.features :].std() == pytest.approx(0.2, rel=0.02)
    empty = patches[..., : constants.features].median()
    assert empty == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("q", [2, 3, 5])
def test_the_activation_is_the_papers(q: int) -> None:
    values = torch.linspace(-1, 3, 81, dtype=torch.float64, requires_grad=True)
    result, slope = network.activation(values.detach(), q, 0.7)
    low = values.clamp(0, 0.7) ** q / (q * 0.7 ** (q - 1))
    expected = low.where(values <= 0.7, values - (1 - 1 / q) * 0.7)
    torch.testing.assert_close(result, expected.detach())
    (gradient,) = torch.autograd.grad(expected.sum(), values)
    torch.testing.assert_close(slope, gradient)


def scene() -> tuple[Constants, Tensor, Samples]:
    constants = read([*SMALL, "sigma_0=0.8"])
    samples = draw(constants, constants.samples, constants.seeds, 0.5, generator(1))
    return constants, network.first_kernels(constants, generator(2)), samples


def direction(before: Tensor, after: Tensor) -> Tensor:
    return torch.nn.functional.normalize(before - after, dim=-1)


def seen_by_hand(constants: Constants, kernels: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """What the first step takes: the batch, and its hidden patches set to zero."""
    rng = generator(3)
    batch = samples.patches[:, torch.randint(constants.samples, (constants.batch,), generator=rng)]
    visible = torch.rand(constants.seeds, constants.batch * constants.P, 1, generator=rng) >= constants.theta
    return batch, batch * visible.view(*batch.shape[:3], 1)


def hidden(constants: Constants, kernels: Tensor, patches: Tensor) -> Tensor:
    values = torch.einsum("snpd,skd->snpk", patches, kernels)
    low = values.clamp(0, constants.t) ** constants.q / (constants.q * constants.t ** (constants.q - 1))
    return (low + (values - constants.t).clamp_min(0)).sum(dim=2)


def test_the_gradient_of_the_teachers_setting() -> None:
    constants, kernels, samples = scene()
    batch, masked = seen_by_hand(constants, kernels, samples)
    weights = kernels.clone().requires_grad_()
    target = hidden(constants, constants.tau * kernels, batch)
    loss = (target - hidden(constants, weights, masked) / (1 - constants.theta)).square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, weights)
    after = network.pretrain(constants, "teacher", kernels, samples.patches, generator(3), network.unwatched)
    torch.testing.assert_close(direction(kernels, after), torch.nn.functional.normalize(gradient, dim=-1))
    torch.testing.assert_close((kernels - after).norm(dim=-1), torch.full(kernels.shape[:2], constants.lr))


def test_the_gradient_of_the_decoder_that_recovers_patches() -> None:
    """Its first value is zero, so the first step moves it alone, and the second moves the kernels."""
    constants, kernels, samples = scene()
    after = network.pretrain(constants, "patches", kernels, samples.patches, generator(3), network.unwatched)
    torch.testing.assert_close(after, kernels)
    two = constants.model_copy(update={"steps": 2})
    rng = generator(3)
    batches = []
    for _ in range(2):
        batch = samples.patches[:, torch.randint(constants.samples, (constants.batch,), generator=rng)]
        visible = torch.rand(constants.seeds, constants.batch * constants.P, 1, generator=rng) >= constants.theta
        batches.append((batch, batch * visible.view(*batch.shape[:3], 1)))
    codes = [hidden(constants, kernels, masked) / (1 - constants.theta) for _, masked in batches]
    pull = -(batches[0][0].flatten(2).mT @ codes[0])
    decoder = -constants.lr_decoder * pull / pull.norm(dim=1, keepdim=True)
    weights = kernels.clone().requires_grad_()
    made = hidden(constants, weights, batches[1][1]) / (1 - constants.theta) @ decoder.mT
    (gradient,) = torch.autograd.grad((made - batches[1][0].flatten(2)).square().sum() / 2, weights)
    after = network.pretrain(two, "patches", kernels, samples.patches, generator(3), network.unwatched)
    torch.testing.assert_close(direction(kernels, after), torch.nn.functional.normalize(gradient, dim=-1))


def test_the_gradient_of_classification() -> None:
    constants, kernels, samples = scene()
    head = network.class_head(constants)
    chosen = torch.randint(constants.samples, (constants.batch,), generator=generator(3))
    weights, last = kernels.clone().requires_grad_(), head.clone().requires_grad_()
    scores = hidden(constants, weights, samples.patches[:, chosen]) @ last.mT
    loss = (
        torch.nn.functional.cross_entropy(scores.flatten(0, 1), samples.labels[:, chosen].flatten()) * constants.seeds
    )
    expected = torch.autograd.grad(loss, (weights, last))
    start = network.Classifier(kernels, head)
    after = network.classify(constants, start, samples, (1, 1.0), generator(3), network.unwatched)
    torch.testing.assert_close(kernels - after.kernels, expected[0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(head - after.head, expected[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("offset", "sign"), [(-0.08, 1), (0.08, -1)])
def test_below_the_largest_ratio_a_small_kernel_grows(offset: float, sign: int) -> None:
    constants = read([*CLEAN, "k=2", "d=4", "m=1", "s=0", "seeds=2", "steps=1", "samples=4000", "batch=20000"])
    ratio = multiview.largest_ratio(constants)
    constants = constants.varied(theta=ratio + offset)
    patches = draw(constants, constants.samples, constants.seeds, 0.0, generator(4)).patches
    kernels = 0.1 * torch.eye(constants.d)[: constants.kernels].expand(constants.seeds, -1, -1).contiguous()
    after = network.pretrain(constants, "teacher", kernels, patches, generator(5), network.unwatched)
    assert bool(((after - kernels).diagonal(dim1=1, dim2=2).sum(dim=-1) * sign > 0).all())


def test_without_spread_or_gain_nothing_grows() -> None:
    assert multiview.largest_ratio(read(["tau=1"])) == 0
    even = read(["uneven=0", "spread=2", "tau=1.3", "q=5"])
    gain = 2 * (1.3**5 - 1)
    assert multiview.largest_ratio(even) == pytest.approx(gain / (1 + gain), rel=1e-6)


def test_what_a_kernel_holds() -> None:
    constants = read(["k=2", "d=6", "P=4", "m=2", "seeds=2", "t=1"])
    kernels = torch.tensor([
        [2.0, 0, 0, 0, 0, 0],  # holds the first
        [2.0, 1.9, 0, 0, 0, 0],  # holds two
        [0, 0, 0.5, 0, 0, 0],  # points right, but is too small
        [0, 0, 0, 1.5, 9, 0],  # is large enough, but mostly noise
    ])  # fmt: skip
    features = held(constants, torch.stack([kernels, -kernels]))
    assert features.captured.tolist() == [0.5, 0.0]
    assert features.kernels_with(0).tolist() == [0.5, 1.0]
    assert features.kernels_with(1).tolist() == [0.25, 0.0]
    measures = summary(constants, torch.stack([kernels, -kernels]))
    assert measures["kernels with two or more"].value == 0.125
    assert measures["kernels per feature"].value == 0.375
    assert held(constants, kernels[None], cosine=0.1).captured.tolist() == [0.75]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["mu"], "not of the form name=value"),
        (["mu=2"], "mu: 2 was given; allowed: less than or equal to 1"),
        (["Mu=0.2"], "did you mean 'mu'?"),
        (["d=10"], "holds no 20 orthonormal features"),
        (["P=3"], "hold no two features"),
    ],
)
def test_wrong_constants_are_one_line(words: list[str], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(words)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_hold_the_same_samples(tmp_path: Path) -> None:
    constants = read([*CLEAN, "k=3", "d=27", "P=9", "samples=20", "tests=10"])
    assert render.render(constants, tmp_path) == {"train": 20, "test_multi": 10, "test_single": 10}
    basis = render.patterns(3)
    torch.testing.assert_close(basis @ basis.T, torch.eye(27), atol=1e-5, rtol=0)
    source = open_source(str(tmp_path / "test_multi"), "train")
    assert source.classes == ("class_00", "class_01", "class_02")
    for path in (tmp_path / "test_multi").rglob("*.png"):
        pixels = torch.tensor(list(Image.open(path).tobytes())).view(3, 3, 3, 3, 3) / 255 - 0.5
        patches = pixels.permute(0, 2, 1, 3, 4).reshape(9, 27) / render.SCALE
        strengths = (patches @ basis.T)[:, :6].sum(dim=0)
        label = int(path.parent.name[-2:])
        assert set(strengths.topk(2).indices.tolist()) == {2 * label, 2 * label + 1}
        assert strengths[[2 * label, 2 * label + 1]].min() > 0.9


@pytest.mark.parametrize(("words", "part"), [(["d=50"], "no square of pixels"), (["P=17"], "are no square")])
def test_images_need_squares(words: list[str], part: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=part):
        render.render(read(words), tmp_path)


def test_the_claim_comes_out_at_toy_size_and_twice_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first", "second"):
        cli.main(["lab", "multiview", "--toy", "--out", str(tmp_path / name)])
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("first", "second")]
    assert results[0] == results[1]
    for method in ("teacher", "patches"):
        assert results[0]["methods"][method]["kernels"]["captured"]["mean"] == 1
        assert results[0]["methods"][method]["accuracy"]["single-view"]["mean"] > 0.95
    assert results[0]["methods"]["scratch"]["kernels"]["captured"]["mean"] < 0.6
    for name in ("correlations.png", "capture.png"):
        assert width(tmp_path / "first" / name) > 500
    text = capsys.readouterr().out
    assert "SL from scratch" in text
    assert "predicted" in text


def test_a_sweep_and_a_map_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiview.SWEEPS, "mu", (0.0, 0.5))
    monkeypatch.setitem(multiview.MAP, "theta", (0.5, 0.95))
    monkeypatch.setitem(multiview.MAP, "m", (1.0, 6.0))
    words = ["lab", "multiview", "--toy", "--out", str(tmp_path), "steps_scratch=5"]
    cli.main([*words, "--sweep", "mu"])
    cli.main([*words, "--map"])
    values = json.loads((tmp_path / "sweep_mu.json").read_text())["values"]
    assert [row["value"] for row in values] == [0.0, 0.5]
    cells = {(cell["theta"], cell["m"]): cell for cell in json.loads((tmp_path / "map.json").read_text())["cells"]}
    captured = {ratio_and_m: cell["kernels"]["captured"]["mean"] for ratio_and_m, cell in cells.items()}
    assert captured[0.5, 6.0] > 0.9
    assert captured[0.5, 1.0] < captured[0.5, 6.0], "a feature without a kernel near it finds none"
    assert captured[0.95, 6.0] < 0.5, "where almost all is hidden, kernels shrink"
    assert all(width(tmp_path / name) > 500 for name in ("sweep_mu.png", "map.png"))


@pytest.mark.parametrize(
    ("shares", "moved", "length"),
    [
        ([0.5, 0.5, 0.52], [1, 1, 1], 10),
        ([0.5, 0.6, 0.62], [1, 1, 1], 30),
        ([0.5, 0.6, 0.7], [1, 1, 1], None),
        ([0, 0, 0], [0.1, 0.2, 0.3], None),  # still at the start
        ([0, 0, 0], [0.1, 0.6, 0.7], 30),
        ([0.5, 0.2, 0.5], [1, 1, 1], None),
    ],
)
def test_a_cell_has_settled_when_nothing_more_is_captured_and_kernels_have_moved(
    shares: list[float], moved: list[float], length: int | None
) -> None:
    rows = [
        {"steps": steps, "moved": far, "kernels": {"captured": {"mean": share}}}
        for steps, far, share in zip((10, 30, 90), moved, shares, strict=True)
    ]
    assert grid.settled(rows) == length
    assert grid.settled([*rows[:1], {"steps": 30, "diverged": True}]) is None


def test_a_closed_world_shows_nothing_of_the_classes_that_are_left_out() -> None:
    constants = read([*CLEAN, "s=5"])
    for open_world in (True, False):
        samples = draw(constants, 200, 2, 0.0, generator(), classes=4, open_world=open_world)
        assert samples.labels.unique().tolist() == [0, 1, 2, 3]
        assert bool((samples.patches[..., 8 : constants.features] > 0).any()) == open_world
    everything = draw(constants, 200, 2, 0.0, generator())
    assert torch.equal(everything.patches, draw(constants, 200, 2, 0.0, generator(), classes=10).patches)


def test_what_was_pretrained_on_is_captured_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "SHARES", (0.0, 0.5, 1.0))
    monkeypatch.setattr(diversity, "TUNED", (5, 60))
    monkeypatch.setattr(plots, "TUNED", (5, 60))
    cli.main(["lab", "multiview", "--toy", "--diversity", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "diversity.json").read_text())["rows"]
    found = {(row["method"], row["world"], row["classes"], row["tuned"]): row for row in rows}
    assert len(found) == len(rows) == 2 * 2 * (1 + 2 + 1), "none, half of the classes in both worlds, and all"
    for method in ("teacher", "patches"):
        for world in ("open", "closed"):
            captured = found[method, world, 2, 60]["captured"]
            assert captured["seen"]["value"] > 0.8
            assert captured["unseen"]["value"] < 0.2
        assert list(found[method, "open", 4, 60]["single_view"]) == ["seen"]
        assert list(found[method, "open", 0, 60]["single_view"]) == ["unseen"]
    assert width(tmp_path / "diversity.png") > 500


def test_tuning_goes_on_where_the_shorter_one_ended() -> None:
    constants = read([*SMALL, "seeds=2"])
    samples = draw(constants, 40, 2, 0.5, generator())
    start = network.Classifier(network.first_kernels(constants, generator(2)), network.zero_head(constants))
    whole = network.classify(constants, start, samples, (7, 1.0), generator(3))
    rng = generator(3)
    parts = network.classify(constants, start, samples, (3, 1.0), rng)
    parts = network.classify(constants, parts, samples, (4, 1.0), rng)
    assert torch.equal(whole.kernels, parts.kernels)
    assert torch.equal(whole.head, parts.head)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_is_what_it_is_called(optimizer: str) -> None:
    gradients = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=generator())  # steps, seeds K d
    descent = Descent(optimizer, 0.1, 100, dim=-1)
    first = descent(gradients[0])
    if optimizer == "sgd":
        torch.testing.assert_close(first, 0.1 * gradients[0])
    elif optimizer == "adam":
        weights = torch.zeros(2, 4, 5, dtype=torch.float64, requires_grad=True)
        adam = torch.optim.Adam([weights], lr=0.1 / 5**0.5, eps=1e-12)
        weights.grad = gradients[0]
        adam.step()
        torch.testing.assert_close(first, -weights.detach())
    else:
        norms = first.norm(dim=-1)
        assert norms.square().mean(dim=1).sqrt().tolist() == pytest.approx([0.1, 0.1])
        alike = torch.allclose(norms, torch.full_like(norms, 0.1))
        assert alike == (optimizer == "kernel")
    last = [descent(gradients[1]) for _ in range(99)][-1]
    assert (float(last.norm()) < 0.01 * float(first.norm())) == (optimizer != "sgd"), "steps shrink to zero"


def test_the_grid_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "LENGTHS", (2, 6))
    monkeypatch.setattr(grid, "PLAIN_LENGTHS", (2, 6))
    words = ["lab", "multiview", "--grid", "--out", str(tmp_path), *SMALL, "lr_plain=1e9", "steps_tuned=2"]
    cli.main(words)
    cells = json.loads((tmp_path / "grid.json").read_text())["cells"]
    assert set(cells) == set(grid.OBJECTIVES)
    assert all(set(row) == set(OPTIMIZERS) for row in cells.values())
    assert grid.diverged(cells["patches"]["sgd"]["rows"])
    assert [row["steps"] for row in cells["teacher"]["adam"]["rows"]] == [2, 6]
    assert width(tmp_path / "grid.png") > 500
    monkeypatch.setattr(grid, "train_by", None)
    cli.main(words)
    assert json.loads((tmp_path / "grid.json").read_text())["cells"] == cells


def test_an_unknown_sweep_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["lab", "multiview", "--toy", "--out", str(tmp_path), "--sweep", "thta"])
    assert caught.value.code == 2
    assert "did you mean 'theta'?" in capsys.readouterr().err

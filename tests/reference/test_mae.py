"""Our MAE against the official implementation's numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mrp.batch import Batch
from mrp.interop import official
from mrp.models import vit
from mrp.models.decoder import TransformerConfig
from mrp.objectives import mae

CASES = Path(__file__).parent / "cases"


def build(case: dict[str, Any]) -> mae.Objective:
    arch, decoder = case["arch"], case["decoder"]
    backbone = vit.Config(
        width=arch["embed_dim"], depth=arch["depth"], heads=arch["num_heads"], patch=arch["patch_size"]
    )
    config = mae.Config(
        mask_ratio=case["mask_ratio"],
        target="pixels_norm" if case["norm_pix_loss"] else "pixels",
        decoder=TransformerConfig(width=decoder["embed_dim"], depth=decoder["depth"], heads=decoder["num_heads"]),
    )
    torch.manual_seed(0)
    return mae.Objective(config, vit.build(backbone, (arch["img_size"], arch["img_size"]), 3))


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(params=["mae_normpix", "mae_rawpix"])
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Tensor], mae.Objective]:
    folder = CASES / request.param
    sizes = json.loads((folder / "case.json").read_text())
    objective = build(sizes)
    objective.load_state_dict(official.load(folder / "checkpoint.pth").weights)
    return sizes, load_file(folder / "tensors.safetensors"), objective


def test_loss_prediction_latent_and_gradients_agree(
    case: tuple[dict[str, Any], dict[str, Tensor], mae.Objective],
) -> None:
    _, theirs, objective = case
    kept = theirs["noise"].argsort(1)[:, : objective.num_visible]
    mask = torch.ones_like(theirs["noise"], dtype=torch.bool).scatter(1, kept, False)
    assert torch.equal(mask.float(), theirs["mask"])

    output = objective(Batch(theirs["images"], torch.arange(len(mask))), mask)
    output.loss.backward()
    latent, prediction = objective.predict(theirs["images"], mask)
    # The official encoder keeps the visible patches in the order of the noise, ours in the order of the image.
    order = kept.argsort(1)[..., None].expand(-1, -1, latent.shape[-1])
    their_latent = torch.cat([theirs["latent"][:, :1], theirs["latent"][:, 1:].gather(1, order)], dim=1)

    assert distance(output.loss.detach(), theirs["loss"][0]) < 1e-5
    assert distance(prediction.detach(), theirs["pred"]) < 1e-4
    assert distance(latent.detach(), their_latent) < 1e-4
    ours = dict(objective.named_parameters())
    gradients = {name.removeprefix("grad/"): value for name, value in theirs.items() if name.startswith("grad/")}
    assert len(gradients) == 8
    for name, gradient in gradients.items():
        (renamed,) = official.rename("mae", {name: gradient})
        found = ours[renamed].grad
        assert found is not None
        assert distance(found, gradient) < 1e-4, name


def test_fixed_positions_agree(case: tuple[dict[str, Any], dict[str, Tensor], mae.Objective]) -> None:
    sizes, theirs, _ = case
    fresh = build(sizes).backbone.pos_embed
    assert not fresh.requires_grad
    assert distance(fresh, theirs["sincos_pos_embed"]) < 1e-6


def test_initial_weights_have_the_official_statistics(
    case: tuple[dict[str, Any], dict[str, Tensor], mae.Objective],
) -> None:
    sizes, _, _ = case
    ours = build(sizes).state_dict()
    for name, (mean, std) in sizes["init_mean_std"].items():
        (renamed,) = official.rename("mae", {name: torch.empty(0)})
        tensor = ours[renamed]
        if std == 0:
            assert tensor.std(unbiased=False) == 0, name
            assert tensor.mean() == mean, name
            continue
        # Two draws of n values differ by a few standard errors: of the mean std/sqrt(n), of the spread std/sqrt(2n).
        error = std / tensor.numel() ** 0.5
        assert abs(float(tensor.mean()) - mean) < 6 * error, name
        assert abs(float(tensor.std()) - std) < 6 * error, name


def test_a_checkpoint_that_would_run_code_is_refused_by_name(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"model": {"cls_token": torch.zeros(1)}, "extra": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"refused: it asks to load 'posix.mkdir"):
        official.load(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()

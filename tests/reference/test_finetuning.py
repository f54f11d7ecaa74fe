"""Fine-tuning against what the official scripts are made of: timm's parts, and their loop written down once more."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import Mixup
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, AugmentOp
from timm.data.mixup import cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torchvision.transforms.v2 import CenterCrop, Compose, InterpolationMode, Resize

import mrp.train
from mrp.batch import Batch
from mrp.build import build_optimizer, build_step, open_source
from mrp.cli import main
from mrp.data import colour
from mrp.data.augment import Images, View
from mrp.data.loader import Loader
from mrp.interop import init
from mrp.optim.groups import groups, set_lr
from mrp.plan import plan_order
from mrp.prepare.config import Mixing
from mrp.prepare.mixing import Erase, Mix
from mrp.run import Run, load
from mrp.schedules import Length

SIZE = 224
DRAWS = 4000


def quantiles(values: Any) -> NDArray[np.float64]:
    return np.quantile(np.asarray(values, dtype=float), [0.05, 0.25, 0.5, 0.75, 0.95])


# --- the loop ---------------------------------------------------------------------------------------------------------

SMALL = ["backbone.width=16", "backbone.depth=3", "backbone.heads=2", "objective.decoder.width=16"]
WORDS = [
    "backbone=null", "backbone.positions=learned", "batch=128", "length=2 epochs", "optim.warmup=4 steps",
    "optim.layer_decay=0.65", "optim.lr=4e-2", "optim.per=256", "optim.weight_decay=0.05", "optim.min_lr=1e-4",
    "data.augment=resize", "objective.smoothing=0.1", "precision=fp32", "track.every=1", "machine.workers=0",
    "validation.every=null", "checkpoint.best=null", "checkpoint.every=2 epochs",
]  # fmt: skip
STEPS = 20


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    main(["pretrain", "demo", *SMALL, "length=4 steps", "optim.warmup=1 step", "batch=64", "--folder", str(folder)])
    return folder


def words_of(pretrained: Path) -> list[str]:
    return [*WORDS, f"init={pretrained}"]


@pytest.mark.parametrize("micro_batch", [128, 32])
def test_learning_rates_and_losses_are_those_of_the_official_loop(
    micro_batch: int, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[list[float]] = []

    def noting(optimizer: torch.optim.Optimizer, lr_of: Any) -> None:
        set_lr(optimizer, lr_of)
        rates.append(sorted({float(group["lr"]) for group in optimizer.param_groups}))

    monkeypatch.setattr(mrp.train, "set_lr", noting)
    words = words_of(pretrained)
    more = [f"machine.micro_batch={micro_batch}", "--folder", str(tmp_path / "run")]
    main(["finetune", "finetune_tiny_digits", *words, *more])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines][:STEPS]

    expected_rates, expected_losses = official_loop(load("finetune_tiny_digits", words))
    assert [len(step) for step in expected_rates] == [1] + [5] * (STEPS - 1)  # the first step's are all 0
    for ours, theirs in zip(rates, expected_rates, strict=False):
        assert ours == pytest.approx(theirs, rel=1e-9)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert losses[-1] < 0.95 * losses[0]


def official_loop(run: Run) -> tuple[list[list[float]], list[float]]:
    """MAE's fine-tuning in plain PyTorch with timm's model, from the same weights and on the same images."""
    step = build_step(run)
    assert run.init is not None
    init.start(run.init, run.name, step)
    weights = {name.removeprefix("objective."): tensor for name, tensor in step.state_dict().items()}
    model = VisionTransformer(
        img_size=8, patch_size=step.objective.backbone.patch_embed.patch_size, in_chans=1, num_classes=10, embed_dim=16,
        depth=3, num_heads=2, global_pool="avg", fc_norm=True,
    )  # fmt: skip
    missing = model.load_state_dict({k.removeprefix("backbone."): w for k, w in weights.items() if "prepare" not in k})
    assert not missing.missing_keys
    decay, peak, floor = 0.65, 4e-2 * 128 / 256, 1e-4
    named: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = 0 if name in {"cls_token", "pos_embed"} or name.startswith("patch_embed.") else 4
        plain = parameter.ndim == 1 or name in {"cls_token", "pos_embed"}
        named.setdefault((layer, plain), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": members, "scale": decay ** (4 - layer), "weight_decay": 0.0 if plain else 0.05}
            for (layer, plain), members in named.items()
        ],
        lr=peak,
        betas=(0.9, 0.999),
    )
    mean, std = run.data.mean[0], run.data.std[0]
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    rates, losses = [], []
    source = open_source(run, "train")
    per_epoch = len(source) // 128
    warmup, epochs = 4 / per_epoch, 2
    for number, batch in enumerate(batches(run)):
        epoch = number / per_epoch
        along = (epoch - warmup) / (epochs - warmup)
        lr = peak * epoch / warmup if epoch < warmup else floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * along))
        for group in optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        rates.append(sorted({group["lr"] for group in optimizer.param_groups}))
        loss = criterion(model((batch.images / 255 - mean) / std), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return rates, losses


def batches(run: Run) -> Iterator[Batch]:
    source = open_source(run, "train")
    loader = Loader(
        source, plan_order(run, source), View(run.data, train=True), group=128, micro_batch=128, rank=0, world=1,
        workers=0, pin_memory=False,
    )  # fmt: skip
    for (batch,) in loader.steps(0, STEPS):
        yield batch


# --- parameter groups and learning rates ------------------------------------------------------------------------------


def test_groups_are_those_of_timm() -> None:
    step = build_step(
        load("finetune_mae_vit_base_in1k", ["backbone={name: null, width: 32, depth: 12, heads: 2, patch: 16}"])
    )
    ours = {
        parameter: (group["lr_scale"], group["weight_decay"])
        for group in groups(step, 0.05, 0.65)
        for parameter in group["params"]
    }
    backbone: Any = step.objective.backbone
    backbone.head = step.objective.head  # as in timm, where the head is a part of the model
    found: list[dict[str, Any]] = param_groups_layer_decay(
        backbone, weight_decay=0.05, layer_decay=0.65, no_weight_decay_list=("pos_embed", "cls_token")
    )
    theirs = {p: (group["lr_scale"], group["weight_decay"]) for group in found for p in group["params"]}
    # timm numbers the last norm apart from the head; the official scripts give both the full rate.
    names = {parameter: name for name, parameter in backbone.named_parameters()}
    differing = {names[p] for p in ours if p in names and ours[p] != pytest.approx(theirs[p])}
    assert differing == set()


def test_simmims_floor_and_warm_up_are_the_same_for_every_layer() -> None:
    run = load("finetune_simmim_vit_base_in1k")
    total, warmup, batch = 1000, 200, run.batch
    length = Length(total, total / 100, batch)  # 100 epochs, as the recipe has
    scales = [0.65**layer for layer in (13, 5, 0)]
    peak, bound = 1.25e-3 * batch / 512, 2.5e-7 * batch / 512
    parameters = [nn.Parameter(torch.zeros(1)) for _ in scales]
    theirs = torch.optim.SGD([{"params": [p], "lr": peak * s} for p, s in zip(parameters, scales, strict=True)])
    schedule = CosineLRScheduler(
        theirs, t_initial=total, lr_min=bound, warmup_lr_init=bound, warmup_t=warmup, t_in_epochs=False
    )
    ours = torch.optim.SGD([{"params": [p], "lr_scale": s} for p, s in zip(parameters, scales, strict=True)], lr=1.0)
    for number in range(0, total, 7):
        schedule.step_update(number)
        set_lr(ours, partial(run.optim.lr_at, number, length, 0, ()))
        for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert mine["lr"] == pytest.approx(other["lr"], rel=1e-9), number


def test_data2vec_2s_embedding_learns_at_full_rate() -> None:
    words = ["backbone={name: null, width: 32, depth: 2, heads: 2, patch: 16, norm: post}"]
    run = load("finetune_data2vec2_vit_base_in1k", words)
    step = build_step(run)
    scale = {p: group["lr_scale"] for group in build_optimizer(run.optim, step).param_groups for p in group["params"]}
    backbone: Any = step.objective.backbone
    assert scale[backbone.patch_embed.proj.weight] == scale[backbone.norm_pre.weight] == 1
    assert scale[backbone.cls_token] == scale[step.objective.head.weight] == 1
    assert scale[backbone.blocks[0].mlp.fc1.weight] == pytest.approx(0.65**2)


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "size", "resized"),
    [
        ("finetune_mae_vit_base_in1k", 192, 219),
        ("finetune_mae_vit_base_in1k", 224, 256),
        ("finetune_mae_vit_base_in1k", 256, 256),
        ("finetune_mae_vit_base_in1k", 384, 384),
        ("finetune_umae_vit_base_in1k", 384, 384),
        ("finetune_data2vec2_vit_base_in1k", 256, 256),
        ("finetune_data2vec_vit_base_in1k", 256, 292),
        ("finetune_data2vec_vit_base_in1k", 384, 384),
        ("finetune_simmim_vit_base_in1k", 384, 438),
    ],
)
def test_evaluation_keeps_as_much_of_the_image_as_the_official_script(recipe: str, size: int, resized: int) -> None:
    rows, columns = np.mgrid[:300, :440] / 9
    waves = np.stack([np.sin(rows) + np.cos(columns * (1 + channel)) for channel in range(3)])
    image = torch.from_numpy((waves * 60 + 128).astype(np.uint8))
    view = View(load(recipe, [f"data.size={size}"]).data, train=False)
    bicubic = InterpolationMode.BICUBIC
    wanted = Compose([Resize(resized, bicubic, antialias=True), CenterCrop(size)])(image)
    torch.testing.assert_close(view(image, 5), wanted, rtol=0, atol=0)


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)).resize((56, 56))


@pytest.mark.parametrize("number", range(len(_RAND_INCREASING_TRANSFORMS)))
@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)], ids=["imagenet", "half"])
def test_operations_of_randaugment_are_timms(
    number: int, mean: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = Images((56, 56), 3, mean).fill
    hparams = {
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": Image.Resampling.BICUBIC,
    }
    for magnitude in (0.0, 3.3, 8.4, 9.0, 9.7):
        operation = AugmentOp(_RAND_INCREASING_TRANSFORMS[number], prob=1.0, magnitude=magnitude, hparams=hparams)
        for sign, drawn in ((1, 0.1), (-1, 0.9)):
            monkeypatch.setattr(random, "random", lambda drawn=drawn: drawn)
            ours = colour._OPERATIONS[number](PICTURE, magnitude / 10, sign, fill)
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(operation(PICTURE)))
    assert len(colour._OPERATIONS) == len(_RAND_INCREASING_TRANSFORMS)


def test_erased_rectangles_are_spread_as_timms() -> None:
    random.seed(0)
    ours = shapes(Erase(1.0, 1, (SIZE, SIZE))(torch.zeros(DRAWS // 4, 1, SIZE, SIZE), torch.arange(DRAWS // 4) * 7919))
    erase = RandomErasing(probability=1.0, mode="pixel", device="cpu")
    theirs = shapes(torch.stack([erase(torch.zeros(1, SIZE, SIZE)) for _ in range(DRAWS // 4)]))
    assert quantiles(ours.prod(1)) == pytest.approx(quantiles(theirs.prod(1)), abs=0.02)
    ours_aspect, theirs_aspect = (np.log(found[:, 0] / found[:, 1]) for found in (ours, theirs))
    assert quantiles(ours_aspect) == pytest.approx(quantiles(theirs_aspect), abs=0.12)


def shapes(images: Tensor) -> NDArray[np.float64]:
    """Height and width of what was erased, in shares of the image."""
    hit = images[:, 0] != 0
    return torch.stack([hit.any(2).sum(1), hit.any(1).sum(1)], 1).numpy() / SIZE


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_shares_are_mixed_as_timms(mixup: float, cutmix: float) -> None:
    np.random.seed(0)  # noqa: NPY002 -- timm draws from it
    mixing = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, prob=0.9)
    theirs = []
    for _ in range(DRAWS):
        share, cuts = mixing._params_per_batch()
        theirs.append(1 - (cutmix_bbox_and_lam((3, SIZE, SIZE), share)[1] if cuts else share))
    config = Mixing(mixup=mixup, cutmix=cutmix, together=2, chance=0.9)
    mix = Mix(config, 10, (SIZE, SIZE), seed=0)
    places = torch.arange(0, 2 * DRAWS, 2)
    ours = torch.cat(
        [mix.draw(Batch(torch.zeros(1, 1, SIZE, SIZE), some, places=some))[1] for some in places.split(200)]
    )
    assert quantiles(ours) == pytest.approx(quantiles(theirs), abs=0.025)
    assert float((ours == 0).float().mean()) == pytest.approx(np.mean(np.asarray(theirs) == 0), abs=0.02)


def test_mixed_and_smoothed_labels_give_timms_loss() -> None:
    objective = build_step(
        load("finetune_mae_vit_base_in1k", ["backbone={name: null, width: 32, depth: 1, heads: 2, patch: 16}"])
    )
    torch.manual_seed(0)
    labels, scores = torch.arange(8) * 11, torch.randn(8, 1000)
    _, targets = Mixup(mixup_alpha=1.0, label_smoothing=0.1, num_classes=1000)(torch.zeros(8, 1, 2, 2), labels)
    share = 1 - float((targets[0, 0] - 1e-4) / 0.9)  # of the partner, which timm takes from the other end of the batch
    one_hot = torch.eye(1000)[labels]
    found = objective.objective.error(scores, one_hot.lerp(one_hot.flip(0), share))  # type: ignore[attr-defined]
    wanted = -(targets * scores.log_softmax(1)).sum(1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)

"""Compare our numbers with those of official implementations: `python tools/parity.py CASE...`.

A case is a folder with `case.json`, `tensors.safetensors` and, where there is a model, `checkpoint.pth`. Its inputs and
its checkpoint go in, everything else is recomputed and then compared: losses to 1e-5, tensors and gradients to 1e-4,
relative to the largest entry. What a case is about follows from what it holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.build import build_optimizer
from mrp.config import ConfigError
from mrp.interop import official, untrusted
from mrp.methodkit import (
    NO_UNIFORMITY,
    TeacherConfig,
    UniformityConfig,
    gram_penalty,
    sigreg_statistic,
    uniformity_feature,
)
from mrp.models import vit
from mrp.models.decoder import ConvolutionConfig, CrossConfig, LatentConfig, PredictorConfig, TransformerConfig
from mrp.models.masking import gather_tokens, visible_places
from mrp.objectives import capi, classify, crossmae, data2vec, data2vec2, ijepa, mae, maskfeat, simmim
from mrp.optim.groups import groups
from mrp.optimizers import lars
from mrp.schedules import half_cosine

Tensors = dict[str, Tensor]
# Of the methods that a case names; older cases name none.
COVERED = {None, "CAPI", "CrossMAE", "I-JEPA", "MaskFeat (HOG targets)", "SIGReg / LeJEPA loss"}
LOSS, TENSOR, ERRORS = 1e-5, 1e-4, 6.0  # tolerances; the last is in standard errors of two random draws


class Row(NamedTuple):
    """One comparison."""

    name: str
    deviation: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether it is within tolerance; NaN is not."""
        return self.deviation <= self.tolerance


class Inputs(NamedTuple):
    """All that a case may use to compute its results."""

    sizes: dict[str, Any]
    tensors: Tensors
    weights: Tensors

    @property
    def batch(self) -> Batch:
        """The images; nothing is drawn from their keys."""
        images = self.tensors["images"]
        return Batch(images, torch.arange(len(images)))

    @property
    def mask(self) -> Tensor:
        """What is hidden, which is equally much in every row: ours are always so."""
        mask = self.tensors["mask"].bool().flatten(1)
        if len(mask.sum(1).unique()) > 1:
            raise ConfigError("mask hides more in some rows than in others, which is not covered")
        return mask

    def backbone(self, **options: Any) -> vit.Backbone:
        """The backbone that the checkpoint's weights fit."""
        arch, names = self.sizes["arch"], self.weights.keys()
        if arch.get("norm_eps", 1e-6) != 1e-6:
            raise ConfigError(f"norm_eps {arch['norm_eps']} is not covered: the backbone's norms have 1e-6")
        if not any("pos_embed" in name for name in names):
            options["positions"] = "none"
        if "backbone.blocks.0.ls1.gamma" in names:
            options["layer_scale"] = self.sizes.get("layer_scale", 0.1)
        for kind, place in (("shared", ""), ("per_block", "blocks.0.")):
            if f"backbone.{place}rel_pos_bias.relative_position_bias_table" in names:
                options["relative_bias"] = kind
        config = vit.Config(
            width=arch["embed_dim"], depth=arch["depth"], heads=arch["num_heads"], patch=arch["patch_size"],
            mlp_ratio=arch["mlp_ratio"], **options,
        )  # fmt: skip
        size = arch["img_size"]
        channels = self.weights["backbone.patch_embed.proj.weight"].shape[1]
        return vit.build(config, (size, size) if isinstance(size, int) else tuple(size), channels)


class Recipe(NamedTuple):
    """How a kind of case is recomputed."""

    compute: Callable[[Inputs], Tensors]
    inputs: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()  # what else case.json holds that is a result
    unordered: tuple[str, ...] = ()  # results whose tokens may come in any order within an image


def recipe(sizes: Mapping[str, Any]) -> Recipe:
    """What to do with a case, by what it says of itself."""
    if "lambda_uniformity" in sizes:
        return Recipe(compute_umae, ("images", "noise", "free_features"))
    if "target_blocks_per_image" in sizes:
        blocks = range(sizes["target_blocks_per_image"])
        targets = [f"target_{kind}/{block}" for block in blocks for kind in ("indices", "mask")]
        corners = [f"sampler/{name}_top_left" for name in ("context", "target")]
        return Recipe(compute_ijepa, ("images", "context_indices/0", "context_mask/0", *targets, *corners))
    if "kept_mask_ratio" in sizes:
        return Recipe(compute_crossmae, ("images", "noise", "visible_mask", "predict_mask", "hidden_mask"))
    if "norm_pix_loss" in sizes:
        return Recipe(compute_mae, ("images", "noise"), ("init_mean_std",))
    if "mask_unit_patches" in sizes:
        return Recipe(compute_simmim, ("images", "mask"))
    if "smooth_l1_beta" in sizes:
        return Recipe(compute_data2vec, ("images", "mask"))
    if "class_loss_weight" in sizes:
        return Recipe(compute_data2vec2, ("images", "mask"), unordered=("encoded",))
    if "num_classes" in sizes:
        return Recipe(compute_classify, ("images",), ("lr_scale_and_weight_decay",))
    if "num_clusters" in sizes:
        # Its encoder turns queries and keys by place, which ours does not: its tokens are inputs here.
        others = ("grad/student.backbone.", "ema/", "student_encoded")
        given = [name for name in sizes["tensor_shapes"] if name.startswith(others)]
        masks = ("images", "hidden_mask", "predict_mask")
        return Recipe(compute_capi, (*masks, "teacher_patch_tokens", "student_decoded", *given))
    if "hog" in sizes:
        return Recipe(compute_maskfeat, ("images", "mask"))
    if "slices" in sizes:
        return Recipe(compute_sigreg, ("features", "directions_raw"))
    if "at_epoch" in sizes:
        return Recipe(compute_schedule, sizes=("expected",))
    if "trust_coefficient" in sizes:
        gradients = (f"g{name}{step}" for step in range(sizes["steps"]) for name in "wb")
        return Recipe(compute_lars, ("w0", "b0", *gradients))
    raise ConfigError("is no case that is known here")


def compute_mae(case: Inputs) -> Tensors:
    """MAE: loss, mask, latent tokens, prediction, gradients, positions and initial weights."""
    objective, mask = _mae(case)
    results = _trained(objective, lambda: objective(case.batch, mask))
    latent, prediction = objective.predict(case.tensors["images"], mask)
    # The official encoder keeps the visible patches in the order of the noise, ours in the order of the image.
    order = case.tensors["noise"].argsort(1)[:, : objective.num_visible].argsort(1).argsort(1)
    prefix = objective.backbone.num_prefix_tokens
    patches = latent[:, prefix:].gather(1, order[..., None].expand(-1, -1, latent.shape[-1]))
    torch.manual_seed(0)
    fresh = _mae(case, load=False)[0]
    results |= {"mask": mask.float(), "pred": prediction, "latent": torch.cat([latent[:, :prefix], patches], 1)}
    assert fresh.backbone.pos_embed is not None
    results["sincos_pos_embed"] = fresh.backbone.pos_embed
    return results | {f"init_mean_std/{name}": tensor for name, tensor in fresh.state_dict().items()}


def compute_umae(case: Inputs) -> Tensors:
    """U-MAE: both terms and their sum, the feature, gradients; and the penalty of free features."""
    weight = case.sizes["lambda_uniformity"]
    config = UniformityConfig(weight=weight, renormalise=True)
    objective, mask = _mae(case, config)
    results = _trained(objective, lambda: objective(case.batch, mask))
    latent = objective.predict(case.tensors["images"], mask)[0]
    free = case.tensors["free_features"].requires_grad_()
    penalty = gram_penalty(free[None])
    penalty.backward()
    assert free.grad is not None
    return results | {
        "total": results["loss"],
        "mae_loss": results["metrics/reconstruction"],
        "uniformity": results["metrics/uniformity"],
        "feature": uniformity_feature(config, objective.backbone, latent),
        "free_uniformity": penalty,
        "free_gradient": free.grad,
    }


def _mae(case: Inputs, uniformity: UniformityConfig = NO_UNIFORMITY, load: bool = True) -> tuple[mae.Objective, Tensor]:
    decoder = case.sizes["decoder"]
    config = mae.Config(
        mask_ratio=case.sizes["mask_ratio"],
        target="pixels_norm" if case.sizes["norm_pix_loss"] else "pixels",
        decoder=TransformerConfig(width=decoder["embed_dim"], depth=decoder["depth"], heads=decoder["num_heads"]),
        uniformity=uniformity,
    )
    objective = mae.Objective(config, case.backbone())
    if load:
        objective.load_state_dict(case.weights)
    noise = case.tensors["noise"]
    kept = noise.argsort(1)[:, : objective.num_visible]
    return objective, torch.ones_like(noise, dtype=torch.bool).scatter(1, kept, False)


def compute_crossmae(case: Inputs) -> Tensors:
    """CrossMAE: loss, feature maps, what each decoder block reads, prediction, targets, gradients."""
    sizes, decoder = case.sizes, case.sizes["decoder"]
    config = crossmae.Config(
        mask_ratio=sizes["mask_ratio"],
        predicted=sizes["kept_mask_ratio"],
        target="pixels_norm" if sizes["norm_pix_loss"] else "pixels",
        decoder=CrossConfig(
            width=decoder["embed_dim"], depth=decoder["depth"], heads=decoder["num_heads"],
            self_attention=decoder["self_attention"], input_map=sizes["encoder_input_is_a_feature_map"],
        ),
    )  # fmt: skip
    objective = crossmae.Objective(config, case.backbone())
    objective.load_state_dict(case.weights)
    mask, predicted = ~case.tensors["visible_mask"], case.tensors["predict_mask"]
    results = _trained(objective, lambda: objective(case.batch, mask, predicted))
    places = visible_places(~predicted, objective.num_predicted)
    _, maps = objective.encode_maps(case.tensors["images"], mask)
    blocks: Any = objective.decoder.blocks
    for number, memory in enumerate(objective.decoder.memories(maps)):
        results[f"decoder_memory/{number}"] = blocks[number].memory_norm(memory)
    results["prediction"] = objective.predict(case.tensors["images"], mask, places)[1]
    results["targets"] = gather_tokens(objective.target(case.tensors["images"]), places)
    return results | {f"features/{number}": tokens for number, tokens in enumerate(maps)}


def compute_ijepa(case: Inputs) -> Tensors:
    """I-JEPA: loss, context, targets, predictions, gradients of both networks, one step of the teacher."""
    sizes, tensors, predictor = case.sizes, case.tensors, case.sizes["predictor"]
    mask = ~tensors["context_mask/0"]
    blocks = torch.stack([tensors[f"target_mask/{block}"] for block in range(sizes["target_blocks_per_image"])], 1)
    config = ijepa.Config(
        mask_ratio=1 - (int((~mask[0]).sum()) + 0.5) / mask.shape[1],
        targets=blocks.shape[1],
        beta=sizes["smooth_l1_beta"],
        predictor=PredictorConfig(width=predictor["embed_dim"], depth=predictor["depth"], heads=predictor["num_heads"]),
        teacher=TeacherConfig(decay=sizes["ema_decay"]),
    )
    objective = ijepa.Objective(config, case.backbone(class_token=False))
    objective.load_state_dict(case.weights)
    objective.target_size = int(blocks[0, 0].sum())
    results = _trained(objective, lambda: objective(case.batch, mask, blocks))
    images, places = tensors["images"], objective.target_places(blocks)
    target = objective.target(images)
    results["context_tokens"], predictions = objective.predict(images, mask, places)
    # Theirs has the first block of all images, then the second of all.
    results["predictions"] = predictions.transpose(0, 1).flatten(0, 1)
    expected = gather_tokens(target, places.flatten(1)).view_as(predictions)
    results["targets"] = expected.transpose(0, 1).flatten(0, 1)
    results["target_encoder_output"], results["target_tokens_normalised"] = objective.teacher(images)[0], target
    backbone = objective.backbone
    results["encoder_full_output"] = vit.encode(backbone, vit.embed(backbone, images)).tokens
    objective.after_step(0, torch.tensor(True))
    return results | {f"ema/backbone.{name}": w for name, w in objective.teacher.backbone.state_dict().items()}


def compute_simmim(case: Inputs) -> Tensors:
    """SimMIM: loss, encoded patches, reconstructed image, gradients."""
    unit = case.sizes["mask_unit_patches"] * case.sizes["arch"]["patch_size"]
    backbone = case.backbone(positions="learned", qkv_bias="query_value")
    objective = simmim.Objective(simmim.Config(mask_ratio=case.sizes["mask_ratio"], mask_unit=unit), backbone)
    objective.load_state_dict(case.weights)
    mask = case.mask
    results = _trained(objective, lambda: objective(case.batch, mask))
    latent, prediction = objective.predict(case.tensors["images"], mask)
    patches = latent[:, backbone.num_prefix_tokens :]
    encoded = patches.mT.unflatten(2, vit.grid(backbone))
    return results | {"encoded": encoded, "reconstruction": objective.unpatchify(prediction)}


def compute_data2vec(case: Inputs) -> Tensors:
    """data2vec: loss, targets, prediction, gradients, one step of the teacher."""
    mask = case.mask
    backbone = case.backbone(positions="learned", qkv_bias="query_value")
    config = data2vec.Config(
        mask_ratio=float(mask.float().mean()),
        smallest_block=1,
        layers=case.sizes["top_layers"],
        beta=case.sizes["smooth_l1_beta"],
        teacher=TeacherConfig(decay=case.sizes["ema_decay"]),
    )
    objective = data2vec.Objective(config, backbone)
    objective.load_state_dict(case.weights)
    results = _trained(objective, lambda: objective(case.batch, mask))
    results["targets"] = objective.target(case.tensors["images"])
    results["prediction"] = objective.predict(case.tensors["images"], mask)[1].flatten(0, 1)
    objective.after_step(0, torch.tensor(True))
    return results | {f"ema/backbone.{name}": w for name, w in objective.teacher.backbone.state_dict().items()}


def compute_data2vec2(case: Inputs) -> Tensors:
    """data2vec 2: both terms and their sum, targets, encoded tokens, prediction, gradients."""
    sizes, mask = case.sizes, case.mask
    if sizes["hidden_token_noise_std"]:
        raise ConfigError("hidden_token_noise_std is not 0: that noise cannot be drawn again")
    num_visible = int((~mask[0]).sum())
    decoder = sizes["decoder"]
    config = data2vec2.Config(
        mask_ratio=1 - (num_visible + 0.5) / mask.shape[1],
        masks=sizes["masks_per_image"],
        layers=sizes["top_layers"],
        class_weight=sizes["class_loss_weight"] * len(mask),  # theirs sums over rows, ours is a multiple of the mean
        noise=0,
        decoder=ConvolutionConfig(
            width=decoder["width"], depth=decoder["layers"], kernel=decoder["kernel"], groups=decoder["groups"]
        ),
    )
    objective = data2vec2.Objective(config, case.backbone(norm="post"))
    objective.load_state_dict(case.weights)
    results = _trained(objective, lambda: objective(case.batch, mask))
    encoded, prediction = objective.predict(case.tensors["images"], mask, torch.arange(len(mask)))
    return results | {
        "regression_loss": results["metrics/reconstruction"],
        "class_loss": results["metrics/class"],
        "targets": objective.target(case.tensors["images"]),
        "encoded": encoded,
        "prediction": prediction,
    }


def compute_classify(case: Inputs) -> Tensors:
    """A fine-tuned ViT: features and scores, and how each of its parameters learns."""
    pool = "mean" if "backbone.fc_norm.weight" in case.weights else "cls"
    config = classify.Config.model_validate({"classes": case.sizes["num_classes"], "pool": pool})
    objective = classify.Objective(config, case.backbone(positions="learned"))
    objective.load_state_dict(case.weights)
    features, logits = objective.eval().predict(case.tensors["images"])
    names = {parameter: name for name, parameter in objective.named_parameters()}
    scales = {
        f"lr_scale_and_weight_decay/{names[parameter]}": torch.tensor([group["lr_scale"], group["weight_decay"]])
        for group in groups(objective, case.sizes["weight_decay"], case.sizes["layer_decay"])
        for parameter in group["params"]
    }
    return {"features": features, "logits": logits} | scales


def compute_maskfeat(case: Inputs) -> Tensors:
    """MaskFeat: gradients' histograms, encoded tokens, prediction, losses, gradients.

    The case hides more in some images than in others, and its loss is a mean over all hidden patches of the batch.
    """
    hog, images, mask = case.sizes["hog"], case.tensors["images"], case.tensors["mask"]
    windows = {"": None, "_gaussian_window": hog["gaussian_window_of_the_second_target"]}
    backbone = case.backbone(positions="learned")
    results = Tensors()
    for name, window in windows.items():
        config = maskfeat.Config(bins=hog["bins"], cell=hog["cell_pixels"], window=window, smallest_block=1)
        objective = maskfeat.Objective(config, backbone)
        objective.load_state_dict(case.weights)
        latent, prediction = objective.predict(images, mask)
        target = objective.target(images)
        loss = ((prediction - target).square().mean(-1) * mask).sum() / mask.sum()
        results |= {f"loss{name}": loss, f"targets{name}": target, "encoded": latent, "prediction": prediction}
        if window is None:
            loss.backward()
            results |= {f"grad/{key}": w.grad for key, w in objective.named_parameters() if w.grad is not None}
    return results | {"hog_cells": maskfeat.oriented_gradients(images, hog["bins"], hog["cell_pixels"])}


def compute_capi(case: Inputs) -> Tensors:
    """CAPI from its encoders' tokens on: assignments, targets, scores, both losses, gradients of both heads."""
    sizes, teacher, decoded = case.sizes, case.tensors["teacher_patch_tokens"], case.tensors["student_decoded"]
    backbone = vit.build(vit.Config(width=teacher.shape[2], depth=1, heads=4, patch=4), (32, 32), 3)
    config = capi.Config(
        clusters=sizes["num_clusters"], iterations=sizes["sinkhorn_iterations"], predicted=0.25,
        student_temperature=sizes["student_temp"], target_temperature=sizes["target_temp"],
        clustering_temperature=sizes["clustering_pred_temp"],
        predictor=LatentConfig(width=decoded.shape[1], depth=1, heads=4),
    )  # fmt: skip
    objective = capi.Objective(config, backbone)
    names = {
        "head.directions": "student.head.last_layer.weight_v",
        "head.lengths": "student.head.last_layer.weight_g",
        "clustering.weight": "teacher.head.layer.weight",
        "clustering.bias": "teacher.head.layer.bias",
    }
    objective.load_state_dict(
        {
            ours: case.weights[theirs].squeeze(1) if "lengths" in ours else case.weights[theirs]
            for ours, theirs in names.items()
        },
        strict=False,
    )
    assigned, clustering = objective.cluster(teacher)
    places = visible_places(~case.tensors["predict_mask"], sizes["counts"]["predicted"])
    target, scores = gather_tokens(assigned, places).flatten(0, 1), objective.head(decoded)
    loss = capi.cross_entropy(target, scores, config.student_temperature).mean()
    (loss + clustering.mean()).backward()
    gradients = {f"grad/{theirs}": objective.get_parameter(ours).grad for ours, theirs in names.items()}
    return {name: gradient for name, gradient in gradients.items() if gradient is not None} | {
        "assignments": assigned,
        "targets": target,
        "student_logits": scores,
        "capi_loss": loss,
        "clustering_loss": clustering.mean(),
    }


def compute_sigreg(case: Inputs) -> Tensors:
    """SIGReg: the statistic per view and direction, its mean, LeJEPA's whole loss, gradients."""
    features = case.tensors["features"].requires_grad_()
    directions = nn.functional.normalize(case.tensors["directions_raw"], dim=0)
    statistic, weight = sigreg_statistic(features, directions), case.sizes["lamb"]
    penalty, spread = statistic.mean(), (features - features.mean(0)).square().mean()
    losses = {"sigreg_loss": penalty, "lejepa_loss": weight * penalty + (1 - weight) * spread}
    gradients = {f"grad/{name}": torch.autograd.grad(w, features, retain_graph=True)[0] for name, w in losses.items()}
    return losses | gradients | {
        "directions": directions,
        "statistic": statistic,
        "invariance_loss": spread,
        "sigreg_loss_t3_17points": penalty,
        "sigreg_loss_first_view_only": sigreg_statistic(features[:1], directions).mean(),
    }  # fmt: skip


def compute_lars(case: Inputs) -> Tensors:
    """The weights after every step of LARS."""
    sizes, module = case.sizes, nn.Linear(case.tensors["w0"].shape[1], case.tensors["w0"].shape[0])
    module.load_state_dict({"weight": case.tensors["w0"], "bias": case.tensors["b0"]})
    config = lars.Config(
        lr=sizes["lr"], weight_decay=sizes["weight_decay"], momentum=sizes["momentum"], trust=sizes["trust_coefficient"]
    )
    optimizer, weights = build_optimizer(config, module), Tensors()
    for step in range(sizes["steps"]):
        module.weight.grad, module.bias.grad = (case.tensors[f"g{name}{step}"] for name in "wb")
        optimizer.step()
        weights |= {f"w{step + 1}": module.weight.detach().clone(), f"b{step + 1}": module.bias.detach().clone()}
    return weights


def compute_schedule(case: Inputs) -> Tensors:
    """The learning rate at fractional epochs."""
    sizes = case.sizes
    rates = [
        half_cosine(epoch, sizes["epochs"], sizes["warmup_epochs"], sizes["lr"], sizes["min_lr"])
        for epoch in sizes["at_epoch"]
    ]
    return {"expected": torch.tensor(rates, dtype=torch.float64)}


def _trained(objective: nn.Module, forward: Callable[[], Output]) -> Tensors:
    """The loss, the metrics and every gradient."""
    output = forward()
    output.loss.backward()
    gradients = {f"grad/{name}": w.grad for name, w in objective.named_parameters() if w.grad is not None}
    return {"loss": output.loss, **gradients} | {f"metrics/{name}": value for name, value in output.metrics.items()}


def compare(folder: Path) -> list[Row]:
    """Recompute a case, then read what is expected and compare."""
    sizes = json.loads((folder / "case.json").read_text())
    todo = recipe(sizes)
    expected: Tensors = {}
    if (folder / "tensors.safetensors").is_file():
        expected = load_file(folder / "tensors.safetensors")
    method, weights = "", Tensors()
    if todo.compute is compute_capi:
        model = untrusted.read(folder / "checkpoint.pth")["model"]  # the averaged student is in it twice
        heads = {name: tensor for name, tensor in model.items() if ".head." in name}
        weights = untrusted.state_dict(heads, folder / "checkpoint.pth")
    elif (folder / "checkpoint.pth").is_file():
        checkpoint = official.load(folder / "checkpoint.pth")
        method, weights = checkpoint.method, checkpoint.tensors
    inputs = {name: expected.pop(name) for name in todo.inputs}
    results = {name: sizes.pop(name) for name in todo.sizes if name in sizes}
    computed = {name: tensor.detach() for name, tensor in todo.compute(Inputs(sizes, inputs, weights)).items()}

    if todo.compute is compute_schedule:
        expected = {"expected": torch.tensor(results.pop("expected"), dtype=torch.float64)}
    for name, values in results.get("lr_scale_and_weight_decay", {}).items():
        expected[f"lr_scale_and_weight_decay/{name}"] = torch.tensor(values)
    for name in todo.unordered:
        computed[name] = _in_their_order(computed[name], expected[name])
    rows = list(_rows(computed, _ours(expected, method, sizes)))
    for name, (mean, std) in results.get("init_mean_std", {}).items():
        (ours,) = official.rename(method, {name: torch.empty(0)})
        rows.append(Row(f"init/{name}", _errors(computed[f"init_mean_std/{ours}"], mean, std), ERRORS))
    return rows


def _ours(expected: Tensors, method: str, sizes: Mapping[str, Any]) -> Tensors:
    """What is expected, with the parameters in its names called as ours are."""
    renamed: Tensors = {}
    for name, tensor in expected.items():
        kind, separator, parameter = name.partition("/")
        if separator and method and not parameter.isdecimal():
            blocks = sizes.get("first_blocks_kept_in_the_image_encoder")
            ours = official.rename(method, {parameter: tensor}, blocks)
            renamed |= {f"{kind}/{new}": value for new, value in ours.items()}
        else:
            renamed[name] = tensor
    return renamed


def _in_their_order(ours: Tensor, theirs: Tensor) -> Tensor:
    """Returns our tokens of each image in the order that brings them closest to theirs (B tokens width)."""
    order = torch.cdist(theirs.double(), ours.double()).argmin(-1)
    is_permutation = bool((order.sort(1).values == torch.arange(order.shape[1])).all())
    return ours.gather(1, order[..., None].expand_as(ours)) if is_permutation else ours


def _rows(computed: Tensors, expected: Tensors) -> Iterator[Row]:
    for name, theirs in expected.items():
        ours = computed.get(name)
        tolerance = LOSS if theirs.numel() == 1 else TENSOR
        if ours is None or ours.numel() != theirs.numel():
            yield Row(name, float("inf"), tolerance)
            continue
        difference = (ours.reshape(theirs.shape).double() - theirs.double()).abs().max()
        yield Row(name, float(difference / theirs.double().abs().max()), tolerance)


def _errors(tensor: Tensor, mean: float, std: float) -> float:
    """How far a fresh draw is from these statistics, in standard errors; a constant must be met exactly."""
    if std == 0:
        return 0.0 if bool((tensor == mean).all()) else float("inf")
    error: float = std / tensor.numel() ** 0.5
    return max(abs(float(tensor.mean()) - mean), abs(float(tensor.std()) - std)) / error


def main(arguments: list[str] | None = None) -> int:
    """Print every deviation; 1 if one is beyond tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="+", type=Path, help="a folder with case.json; other paths are skipped")
    wrong = compared = uncovered = 0
    for folder in parser.parse_args(arguments).case:
        if not (folder / "case.json").is_file():
            print(f"{folder}: skipped, since it holds no case.json")
            continue
        method = json.loads((folder / "case.json").read_text(encoding="utf-8")).get("method")
        if method not in COVERED:
            print(f"{folder.name}: not covered, since {method} does not come with mrp")
            uncovered += 1
            continue
        try:
            rows = compare(folder)
        except ConfigError as error:
            print(f"{folder.name}: {error}")
            wrong += 1
            continue
        print(folder.name)
        for row in rows:
            print(f"  {row.name:<58} {row.deviation:9.2e}  {'agrees' if row.agrees else f'EXCEEDS {row.tolerance:g}'}")
        wrong += sum(not row.agrees for row in rows)
        compared += len(rows)
    verdict = "all within tolerance" if not wrong else f"{wrong} beyond tolerance"
    print(f"{compared} compared: {verdict}" + (f"; {uncovered} cases not covered" if uncovered else ""))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

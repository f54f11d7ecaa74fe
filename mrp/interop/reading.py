"""One function that reads weights from every source: a run, a checkpoint, a file, a folder, or a name on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.nn import functional

from mrp.config import ConfigError, Tree, build, nearest
from mrp.files import sha256_of
from mrp.interop import eva, hub, huggingface, official, runs, shape, timm, untrusted
from mrp.interop.config import WeightsName
from mrp.interop.weights import BACKBONE, ForeignWeights, ModelWeights, choose, merged
from mrp.models import vit
from mrp.models.named import look_up

_SECTIONS = ("objective", "backbone", "data")


def read(
    source: str | Path,
    weights: WeightsName | None = None,
    step: int | None = None,
    values: Mapping[str, Mapping[str, Any]] | None = None,
    method: str | None = None,
) -> ModelWeights:
    """Returns the weights of a run or checkpoint, an official or timm file, a transformers or timm folder, `hf:NAME`.

    `values` are sections (`backbone`, `objective`, `data`) with what the weights do not tell, such as the number of
    heads; `method` is the objective that weights of an encoder alone are put into. By default the `weights` are those
    that a run's method has judged, and of a file the student's. Nothing in the files is executed.
    """
    path = hub.fetch(str(source)) if str(source).startswith(hub.PREFIX) else Path(source)
    if runs.is_ours(path):
        if values or method:
            raise ConfigError(f"{path}: a run says itself what its weights are; leave the other values out")
        return runs.read(path, weights, step)
    if step is not None:
        raise ConfigError(f"{path}: is no run, so it has no step {step}; leave it out")
    given = _checked_sections(values or {})
    try:
        return _complete(
            _foreign(path, given["backbone"].get("name")), str(source), weights or "student", given, method
        ).fitted()
    except ConfigError as error:
        raise ConfigError(
            str(error) if str(error).startswith((str(path), str(source))) else f"{path}: {error}"
        ) from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())  # a stranger's tensors and settings may have any shape and type
        raise ConfigError(f"{path}: holds no Vision Transformer that is known here: {reason}") from None


def _checked_sections(values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    for key, value in values.items():
        if key not in _SECTIONS or not isinstance(value, Mapping):
            raise ConfigError(
                f"'{key}' is not read from other people's weights{nearest(key, _SECTIONS)}; allowed: "
                f"{', '.join(f'{name}.KEY=VALUE' for name in _SECTIONS)}"
            )
    return {key: dict(values.get(key, {})) for key in _SECTIONS}


def _foreign(path: Path, name: str | None) -> ForeignWeights:
    """Returns what a file holds, or a folder of timm or transformers, which its config.json tells apart."""
    if path.is_file():
        is_eva = None if name is None else look_up(name).eva
        found = official.load(path, is_eva)
        if is_eva and not eva.placed(found.tensors):
            return found._replace(
                data=eva.usual(str(name), found.tensors[f"{BACKBONE}patch_embed.proj.weight"].shape[1])
            )
        return found
    if not path.exists():
        raise ConfigError(f"{path}: there is no such file or folder; from a hub it is hf:OWNER/NAME")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{path}: is neither a run of mrp nor a folder of timm or transformers (it has no readable config.json)"
        ) from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: config.json: is not a mapping")
    if "architecture" in config:
        return timm.load(path, config)
    if "model_type" in config:
        return huggingface.load(path, config)
    raise ConfigError(f"{path}: config.json: names neither a model_type (transformers) nor an architecture (timm)")


def _complete(
    foreign: ForeignWeights, source: str, weights: WeightsName, given: dict[str, dict[str, Any]], method: str | None
) -> ModelWeights:
    """Returns weights with everything about their model that their names and shapes tell."""
    tensors, stored_as = untrusted.as_float32(choose(foreign.tensors, weights, {}, source))
    size = given["data"].get("size", foreign.data.get("size"))
    fits = shape.of_backbone(tensors, merged(foreign.backbone, given["backbone"]), size)
    if fits.position_padding:
        positions = tensors[f"{BACKBONE}pos_embed"]
        tensors[f"{BACKBONE}pos_embed"] = functional.pad(positions, (0, 0, fits.position_padding, 0))
    method = method or foreign.method
    options = given["objective"]
    if method == foreign.method:
        options = merged(foreign.objective, options)
    else:
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(BACKBONE)}
    objective = merged(shape.of_objective(method, tensors, options), options)
    return ModelWeights(
        source=source,
        digest=sha256_of(foreign.file),
        method=method,
        objective=objective,
        backbone=build(vit.Config, Tree(fits.backbone, {"": f"{source}: backbone"})),
        size=fits.size,
        channels=fits.channels,
        tensors=tensors,
        mean=tuple(foreign.data.get("mean", ())),
        std=tuple(foreign.data.get("std", ())),
        augment=foreign.data.get("augment"),
        stored_as=stored_as,
        classes=foreign.classes,
        imported=True,
    )

"""One function that reads the weights of whatever is given: a run, a checkpoint, a file, a folder, a hub's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrp.config import ConfigError, nearest
from mrp.interop import hub, huggingface, official, runs, shape, timm
from mrp.interop.config import WeightsName
from mrp.interop.found import Found, Held, choose, digest, merged
from mrp.models import vit

_KEYS = ("objective", "backbone", "data")


def read(
    source: str | Path,
    weights: WeightsName = "student",
    step: int | None = None,
    values: Mapping[str, Mapping[str, Any]] | None = None,
    method: str | None = None,
) -> Found:
    """The weights of a run or checkpoint folder, an official or timm file, a transformers or timm folder, `hf:name`.

    `values` are sections (`backbone`, `objective`, `data`) with what the weights do not tell, such as the number of
    heads; `method` is the objective that weights of an encoder alone are put into. Nothing in the files is executed.
    """
    path = Path(source)
    if hub.is_name(str(source)):
        path = hub.fetch(str(source))
    if runs.is_ours(path):
        if values or method:
            raise ConfigError(f"{path}: a run says itself what its weights are; leave the other values out")
        return runs.read(path, weights, step)
    if step is not None:
        raise ConfigError(f"{path}: is no run, so it has no step {step}; leave it out")
    given = _sections(values or {})
    try:
        return _foreign(path, weights, given, method).checked()
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def _sections(values: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    for key, value in values.items():
        if key not in _KEYS or not isinstance(value, Mapping):
            raise ConfigError(
                f"'{key}' is not read from other people's weights{nearest(key, _KEYS)}; allowed: "
                f"{', '.join(f'{name}.KEY=VALUE' for name in _KEYS)}"
            )
    return {key: dict(values.get(key, {})) for key in _KEYS}


def _foreign(path: Path, weights: WeightsName, given: dict[str, dict[str, Any]], method: str | None) -> Found:
    if path.is_dir():
        held, file = _folder(path)
    elif path.exists():
        found = official.load(path)
        held = Held(found.method, found.weights, dict(found.backbone), dict(found.objective), {})
        file = path
    else:
        raise ConfigError(f"{path}: there is no such file or folder; from a hub it is hf:OWNER/NAME")
    chosen = choose(held.tensors, weights, {}, str(path))
    options = merged(held.backbone, given["backbone"])
    encoder = {name.removeprefix("backbone."): w for name, w in chosen.items() if name.startswith("backbone.")}
    size = given["data"].get("size", held.data.get("size"))
    told = shape.of_backbone(encoder, options, tuple(size) if isinstance(size, list) else size)
    chosen |= {f"backbone.{name}": tensor for name, tensor in told.encoder.items()}
    name = method or held.method
    if method and method != held.method:
        chosen = {name: tensor for name, tensor in chosen.items() if name.startswith("backbone.")}
    said = merged(held.objective if name == held.method else {}, given["objective"])
    of_method = shape.of_objective(name, chosen, 1 + _last_block(chosen), said)
    try:
        backbone = vit.Config.model_validate(told.backbone)
    except ValueError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    return Found(
        str(path), digest(file), name, merged(of_method, said), backbone, told.size,
        told.channels, chosen, tuple(held.data.get("mean", ())), tuple(held.data.get("std", ())),
    )  # fmt: skip


def _last_block(tensors: Mapping[str, Any]) -> int:
    return max(int(name.split(".")[2]) for name in tensors if name.startswith("backbone.blocks."))


def _folder(path: Path) -> tuple[Held, Path]:
    """A folder of timm or of transformers, by what its config.json says."""
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

"""Where a run's first weights come from: those of another run, or anything else whose weights can be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mrp.checkpoint.layout import place_like
from mrp.config import ConfigError, Tree, parse
from mrp.folder import CONFIG
from mrp.interop import runs
from mrp.interop.config import Config
from mrp.interop.found import Found
from mrp.interop.reading import read
from mrp.models import vit

_BACKBONE, _TEACHER = "backbone.", "teacher.backbone."
_LAST_NORMS = ("backbone.norm.", "backbone.fc_norm.")  # which of the two there is follows from what the tokens are for
_TRAINING = ("drop_path", "attention_dropout")  # of a backbone: how it is trained, not what it is
_SHAPE = ("name", "width", "depth", "heads", "patch", "mlp_ratio")
_CONVERSIONS = {("positions", "sincos", "learned"), ("relative_bias", "shared", "per_block")}


def completed(tree: Tree, folder: Path | None = None) -> Tree:
    """A configuration with what its `init:` decides: the content of the weights, and the backbone that they fit.

    A run that `folder` holds already has noted both, so it does not need its origin again.
    """
    section, stated = tree.values.get("init"), tree.values.get("backbone") or {}
    if section is None or not isinstance(stated, Mapping):
        return tree
    try:
        config = Config.model_validate(section)
    except ValidationError:
        return tree  # whoever checks the whole tree says what is wrong
    if config.content is not None and stated:
        return tree
    noted = _noted(folder, config) if folder else None
    if noted is not None:
        backbone, content = vit.Config.model_validate(noted["backbone"]), noted["init"]["content"]
    else:
        try:
            found = _read(config, stated)
        except ConfigError as error:
            raise ConfigError(f"{tree.origins.get('init', 'the configuration')}: init: {error}") from None
        _check_data(found, tree.values.get("data"))
        backbone, content = found.backbone, config.content or found.digest
    values = tree.values | {
        "init": config.model_copy(update={"content": content}).model_dump(mode="json"),
        "backbone": agreed(stated, backbone, config.source),
    }
    return Tree(values, tree.origins)


def _noted(folder: Path, config: Config) -> dict[str, Any] | None:
    """The configuration of the run in a folder, if it started from the same place."""
    if not (folder / CONFIG).is_file():
        return None
    values = parse((folder / CONFIG).read_text(encoding="utf-8"), str(folder / CONFIG))
    try:
        before = Config.model_validate(values["init"])
    except (KeyError, TypeError, ValidationError):
        return None
    same = before.model_copy(update={"content": config.content}) == config
    return values if same and config.content in {None, before.content} else None


def _read(config: Config, stated: Mapping[str, Any]) -> Found:
    if runs.is_ours(Path(config.source)):
        return read(config.source, config.weights)
    heads = stated.get("heads")
    if heads is None and isinstance(stated.get("name"), str):
        heads = _facts(vit.Config(name=stated["name"]))["heads"]
    return read(config.source, config.weights, values={"backbone": {"heads": heads}} if heads else None)


def _check_data(found: Found, data: Any) -> None:
    channels = data.get("channels", 3) if isinstance(data, Mapping) else 3
    if channels != found.channels:
        raise ConfigError(
            f"data.channels: {channels}, but {found.source} was trained on images of {found.channels}; "
            f"set data.channels={found.channels}, or start from other weights"
        )


def agreed(stated: Mapping[str, Any], own: vit.Config, place: str) -> dict[str, Any]:
    """The backbone of the weights; what is stated beside how it is trained has to be the same."""
    values = own.model_dump(mode="json") | {key: vit.Config.model_fields[key].default for key in _TRAINING}
    facts = _facts(own)
    for key, value in stated.items():
        if value is None or key not in vit.Config.model_fields:
            values |= {} if value is None else {key: value}  # an unknown key: whoever checks the tree knows the others
        elif key in _SHAPE:
            other = _facts(vit.Config(name=value)) if key == "name" else {key: _plain(key, value)}
            wrong = next((fact for fact in other if other[fact] != facts[fact]), None)
            if wrong is not None:
                raise _mismatch(key, value, f"{wrong} {facts[wrong]}", place)
        elif key in _TRAINING or key == "init" or (key, values[key], value) in _CONVERSIONS:
            values[key] = value
        elif vit.Config.model_validate(values | {key: value}) != vit.Config.model_validate(values):
            raise _mismatch(key, value, str(values[key]), place)
    return values


def _mismatch(key: str, value: Any, own: str, place: str) -> ConfigError:
    return ConfigError(
        f"backbone.{key}: {value} is stated, but the weights of {place} have {own}; leave backbone.{key} out (on the "
        "command line, backbone=null leaves out all of it), or start from other weights"
    )


def _plain(key: str, value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value, value) if key == "patch" else value


def _facts(config: vit.Config) -> dict[str, Any]:
    """What a backbone's size is, by whichever name."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        patch = config.patch or 1
        size = (224, 224) if config.name else (patch, patch) if isinstance(patch, int) else patch
        built = vit.build(config, size, 3)
    block: Any = built.blocks[0]
    return {
        "width": built.embed_dim, "depth": len(built.blocks), "heads": block.attn.num_heads,
        "patch": tuple(built.patch_embed.patch_size), "mlp_ratio": block.mlp.fc1.out_features / built.embed_dim,
    }  # fmt: skip


def start(config: Config, method: str, step: nn.Module) -> str:
    """Give a freshly built step the weights that it starts from; what was taken, and what was not, in one line."""
    objective: nn.Module = step.get_submodule("objective")
    own: dict[str, Tensor] = objective.state_dict()
    backbone: Any = objective.backbone
    found = _read(config, {"heads": backbone.blocks[0].attn.num_heads})
    if found.digest != config.content:
        raise ConfigError(
            f"init.from: {config.source} holds other weights than when this run was first started; bring those back, "
            "or start another run with --folder FOLDER"
        )
    given = _fitted(found, backbone, config.resample)
    taken = _backbone(given, own, config.source)
    if found.method == method:
        taken |= _parts(given, own, {name for name, tensor in objective.named_parameters() if tensor.requires_grad})
    for name in own:  # a teacher that was not given starts where its student does
        if name.startswith(_TEACHER) and name not in taken:
            taken[name] = taken[_BACKBONE + name.removeprefix(_TEACHER)]
    placed = {name: place_like(own[name], tensor) for name, tensor in taken.items()}  # the step may be sharded already
    objective.load_state_dict({**own, **placed})
    fresh, unused = _tops(own.keys() - taken.keys()), _tops(given.keys() - taken.keys())
    return (
        f"starts with the {config.weights} weights of {config.source} ({found.method}, step {found.step}): "
        f"{', '.join(_tops(taken))}; new: {', '.join(fresh) or 'nothing'}; not taken: {', '.join(unused) or 'nothing'}"
    )


def _fitted(found: Found, backbone: Any, resample: bool) -> dict[str, Tensor]:
    """The weights that were found, with positions for this backbone's grid of patches."""
    patch = backbone.patch_embed.patch_size
    before, after = (found.size[0] // patch[0], found.size[1] // patch[1]), vit.grid(backbone)
    if before != after and not resample:
        raise ConfigError(
            f"data.size: its grid of patches is {after[0]}x{after[1]}, that of the weights is {before[0]}x{before[1]}; "
            "set init.resample=true to fit their positions to it, or another size"
        )
    given = dict(found.tensors)
    for prefix in (_BACKBONE, _TEACHER):
        held = {name.removeprefix(prefix): given.pop(name) for name in list(given) if name.startswith(prefix)}
        if "pos_embed" not in held and backbone.pos_embed is not None:  # a teacher's that it shares with its student
            given |= {f"{prefix}{name}": tensor for name, tensor in held.items()}
        elif held:
            given |= {f"{prefix}{name}": tensor for name, tensor in vit.resampled(backbone, held, before).items()}
    return given


def _backbone(given: Mapping[str, Tensor], own: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """All of the backbone; only the last norm may differ."""
    wanted, held = ({name for name in names if name.startswith(_BACKBONE)} for names in (own, given))
    for names, what in ((wanted - held, "has no"), (held - wanted, "has a")):
        odd = sorted(name for name in names if not name.startswith(_LAST_NORMS))
        if odd:
            raise ConfigError(f"init.from: {place} {what} '{odd[0]}', unlike this backbone ({len(odd)} such tensors)")
    for name in sorted(wanted & held):
        if given[name].shape != own[name].shape:
            raise ConfigError(
                f"init.from: '{name}' of {place} is of shape {tuple(given[name].shape)}, and this backbone's of "
                f"{tuple(own[name].shape)}"
            )
    return {name: given[name] for name in wanted & held}


def _parts(given: Mapping[str, Tensor], own: Mapping[str, Tensor], trained: set[str]) -> dict[str, Tensor]:
    """Of the same method's other parts (a decoder, a head) those that fit as a whole; what is fixed need not."""
    taken: dict[str, Tensor] = {}
    for part in _tops(name for name in own if not name.startswith(_BACKBONE)):
        names = [name for name in own if name.split(".")[0] == part]
        fitting = {name: given[name] for name in names if name in given and given[name].shape == own[name].shape}
        teacher = part == _TEACHER.split(".")[0]  # of which nothing is trained by gradients, and all is needed
        if all(name in fitting or not (teacher or name in trained) for name in names):
            taken |= fitting
    return taken


def _tops(names: Iterable[str]) -> list[str]:
    """The parts that tensors belong to; a backbone's last norms are told apart."""
    return sorted({".".join(name.split(".")[: 2 if name.startswith(_LAST_NORMS) else 1]) for name in names})

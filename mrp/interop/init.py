"""The weights that a run starts with: what they decide of its configuration, and how they get into the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from mrp.config import ConfigError, Tree, compose
from mrp.folder import CONFIG
from mrp.interop import eva, runs
from mrp.interop.config import Config
from mrp.interop.reading import read
from mrp.interop.traits import Traits
from mrp.interop.weights import BACKBONE, TEACHER, ModelWeights, part
from mrp.models import vit
from mrp.models.named import look_up
from mrp.tensors import laid_out_like

_LAST_NORMS = ("backbone.norm.", "backbone.fc_norm.")  # a backbone has one of the two: its method decides which
_OF_TRAINING = ("drop_path", "attention_dropout")  # options of a backbone that do not say what it computes
_WHAT_A_HEAD_READS = ("pool", "frozen")  # options of a method
_SHAPE = ("name", "width", "depth", "heads", "patch", "mlp_ratio")
_CONVERSIONS = {("positions", "sincos", "learned"), ("relative_bias", "shared", "per_block")}


def completed(tree: Tree, folder: Path | None = None) -> Tree:
    """Returns a configuration with what its `init:` decides: which weights, their content, and their backbone.

    Where `folder` holds this run already, they are taken from there, so that the source of the weights may be gone.
    """
    section, stated = tree.values.get("init"), tree.values.get("backbone") or {}
    if section is None or not isinstance(stated, Mapping):
        return tree
    try:
        config = Config.model_validate(section)
    except ValidationError:
        return tree  # the check of the whole tree says what is wrong
    if config.content is not None and config.weights is not None and stated:
        return tree
    recorded = _recorded(folder, config) if folder else None
    if recorded is not None:
        backbone, before = vit.Config.model_validate(recorded["backbone"]), Config.model_validate(recorded["init"])
        decided = {"content": before.content, "weights": before.weights}
    else:
        try:
            weights = _read(config, stated)
        except ConfigError as error:
            raise ConfigError(f"{tree.origins.get('init', 'the configuration')}: init: {error}") from None
        _check_channels(weights, tree.values.get("data"), config.channels)
        backbone, decided = weights.backbone, {"content": config.content or weights.digest, "weights": weights.weights}
    values = tree.values | {
        "init": config.model_copy(update=decided).model_dump(mode="json"),
        "backbone": _agreed(stated, backbone, config.source),
    }
    return Tree(values, tree.origins)


def _recorded(folder: Path, config: Config) -> dict[str, Any] | None:
    """Returns the configuration of the run in a folder, if it started from the same weights."""
    if not (folder / CONFIG).is_file():
        return None
    values = compose(folder / CONFIG).values
    try:
        before = Config.model_validate(values["init"])
    except (KeyError, ValidationError):
        return None
    same = before.model_copy(update={"content": config.content, "weights": config.weights}) == config
    agreed = config.content in {None, before.content} and config.weights in {None, before.weights}
    return values if same and agreed else None


def _read(config: Config, stated: Mapping[str, Any]) -> ModelWeights:
    if runs.is_ours(Path(config.source)) or not Path(config.source).is_file():  # a folder says itself what it holds
        return read(config.source, config.weights)
    heads, name = stated.get("heads"), stated.get("name")
    if isinstance(name, str) and look_up(name).eva:  # whose weights do not tell what they are
        return read(config.source, config.weights, values={"backbone": {"name": name}})
    if heads is None and isinstance(name, str):
        heads = _sizes(vit.Config(name=name))["heads"]
    return read(config.source, config.weights, values={"backbone": {"heads": heads}} if heads else None)


def _check_channels(weights: ModelWeights, data: Any, rule: str) -> None:
    channels = data.get("channels", 3) if isinstance(data, Mapping) else 3
    channels = len(channels) if isinstance(channels, list | tuple) else channels
    if channels != weights.channels and rule == "same":
        raise ConfigError(
            f"data.channels: {channels}, but {weights.source} was trained on images of {weights.channels}; "
            f"set data.channels={weights.channels}, or init.channels=spread to spread their colours over these channels"
        )


def _agreed(stated: Mapping[str, Any], backbone: vit.Config, source: str) -> dict[str, Any]:
    """Returns the backbone of the weights; what a recipe states of it has to agree, or to be a known conversion."""
    values = backbone.model_dump(mode="json") | {key: vit.Config.model_fields[key].default for key in _OF_TRAINING}
    sizes = _sizes(backbone)
    for key, value in stated.items():
        if value is None:
            continue
        if key in _SHAPE:
            other = _sizes(vit.Config(name=value)) if key == "name" else {key: _plain(key, value)}
            differing = next((name for name in other if other[name] != sizes[name]), None)
            if differing is not None:
                raise _disagreement(key, value, f"{differing} {sizes[differing]}", source)
        elif key not in values or key in (*_OF_TRAINING, "init") or (key, values[key], value) in _CONVERSIONS:
            values[key] = value  # an unknown key: the check of the whole tree knows which there are
        elif key == "layer_scale" and values[key] is not None:
            values[key] = value  # where it began; the weights say where it is
        elif vit.Config.model_validate(values | {key: value}) != vit.Config.model_validate(values):
            raise _disagreement(key, value, str(values[key]), source)
    return values


def _disagreement(key: str, value: Any, theirs: str, source: str) -> ConfigError:
    return ConfigError(
        f"backbone.{key}: {value} is stated, but the weights of {source} have {theirs}; leave backbone.{key} out (on "
        "the command line, backbone=null leaves out all of it), or start from other weights"
    )


def _plain(key: str, value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value, value) if key == "patch" else value


def _sizes(config: vit.Config) -> dict[str, Any]:
    """Returns the sizes of a backbone, whether its configuration gives them or a name of timm's."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        patch = config.patch or 1
        size = (224, 224) if config.name else (patch, patch) if isinstance(patch, int) else patch
        traits = Traits.of(vit.build(config, size, 3))
    sizes = {key: getattr(traits, key) for key in ("width", "depth", "heads", "patch")}
    model = config.name if traits.eva else "a Vision Transformer that its sizes tell"
    return sizes | {"mlp_ratio": traits.mlp_width / traits.width, "model": model}


def start(config: Config, method: str, step: nn.Module, classes: tuple[str, ...] = ()) -> str:
    """Gives a new step the weights that its run starts from; returns one line on what was taken and what was not.

    `classes` are those of the run's data, or their tags, where these have some.
    """
    objective: nn.Module = step.get_submodule("objective")
    state: dict[str, Tensor] = objective.state_dict()
    backbone: Any = objective.backbone
    stated = {"name": backbone.name} if isinstance(backbone, vit.Eva) else {"heads": vit.num_heads(backbone)}
    weights = _read(config, stated)
    if weights.digest != config.content:
        raise ConfigError(
            f"init.from: {config.source} holds other weights than when this run was first started; bring those back, "
            "or start another run with --folder FOLDER"
        )
    given = _resampled(weights, backbone, config.resample)
    if config.channels == "spread":
        given = _spread(given, backbone.patch_embed.proj.in_channels)
    taken = _of_backbone(given, state, config.source)
    unlike = _unlike(weights, objective, classes) if weights.method == method else ""
    if weights.method == method and not unlike:
        taken |= _other_parts(given, state, {n for n, p in objective.named_parameters() if p.requires_grad})
    for name in state:  # a teacher that was not given starts where its student does
        if name.startswith(TEACHER) and name not in taken:
            of_student = BACKBONE + name.removeprefix(TEACHER)
            taken[name] = taken.get(of_student, state[of_student])
    placed = {name: laid_out_like(state[name], tensor) for name, tensor in taken.items()}  # the step may be sharded
    objective.load_state_dict({**state, **placed})
    new, unused = _part_names(state.keys() - taken.keys()), _part_names(given.keys() - taken.keys())
    return (
        f"starts with the {config.weights} weights of {config.source} ({weights.method}, step {weights.step}): "
        f"{', '.join(_part_names(taken))}; new: {', '.join(new) or 'nothing'}; "
        f"not taken: {', '.join(unused) or 'nothing'}{unlike}{_other_units(weights, step.get_submodule('prepare'))}"
    )


def _unlike(weights: ModelWeights, objective: nn.Module, classes: tuple[str, ...]) -> str:
    """Returns words if the head of the weights was trained on other features or other classes, else none."""
    config: Any = getattr(objective, "config", None)
    if not hasattr(config, "classes"):
        return ""
    for key in _WHAT_A_HEAD_READS:
        field = type(config).model_fields.get(key)
        if field is not None and (theirs := weights.objective.get(key, field.default)) != getattr(config, key):
            return f"; the head was trained with objective.{key}: {str(theirs).lower()}"
    losses = weights.objective.get("loss", "cross_entropy"), getattr(config, "loss", None)
    if losses == ("cross_entropy", "tags") and weights.imported:
        return (
            "; whether the head tells tags is unknown (if it does, say so: mrp import SOURCE --out FOLDER "
            "objective.loss=tags, and start from that folder)"
        )
    if "tags" in losses and "cross_entropy" in losses:
        return f"; the head was trained with objective.loss: {losses[0]}"
    unnamed = tuple(map(str, range(len(classes))))
    # Other people may call the same classes otherwise (`tench`, `n01440764`); tags are known by name alone.
    otherwise = weights.imported and "tags" not in losses and not set(classes) & set(weights.classes)
    if (
        len(weights.classes) == len(classes)
        and unnamed not in (classes, weights.classes)
        and classes != weights.classes
        and not otherwise
    ):
        other = next(name for name, now in zip(weights.classes, classes, strict=True) if name != now)
        what = "tags" if "tags" in losses else "classes"
        return (
            f"; the head tells other {what} apart, such as '{other}' at number {weights.classes.index(other)} (if "
            "they are the same, call them alike in the data)"
        )
    return ""


def _other_units(weights: ModelWeights, prepare: nn.Module) -> str:
    """Returns words if the weights were trained on pixels that were normalised by other numbers, else none."""
    now = torch.stack([prepare.get_buffer(name).flatten().cpu() for name in ("mean", "std")])
    before = torch.tensor([weights.mean, weights.std])
    if before.shape != now.shape or torch.allclose(before, now, rtol=0.05, atol=0.02):
        return ""
    new, old = (f"mean {_shown(mean)} and std {_shown(std)}" for mean, std in (now, before))
    return f"; pixels are normalised by {new}, those of the weights were by {old}"


def _shown(numbers: Tensor) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers.tolist())


def _resampled(weights: ModelWeights, backbone: Any, resample: bool) -> dict[str, Tensor]:
    """Returns the weights with positions for this backbone's grid of patches."""
    patch = backbone.patch_embed.patch_size
    before, after = (weights.size[0] // patch[0], weights.size[1] // patch[1]), vit.grid(backbone)
    if before != after and not resample and eva.placed(weights.tensors):
        raise ConfigError(
            f"data.size: its grid of patches is {after[0]}x{after[1]}, that of the weights is {before[0]}x{before[1]}; "
            "set init.resample=true to fit their positions to it, or another size"
        )
    given = dict(weights.tensors)
    for prefix in (BACKBONE, TEACHER):
        if encoder := part(given, prefix):
            resampled = vit.resampled(backbone, encoder, before)
            given = {name: tensor for name, tensor in given.items() if not name.startswith(prefix)}
            given |= {prefix + name: tensor for name, tensor in resampled.items()}
    return given


def _spread(given: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """Returns weights whose patch embedding takes images of so many channels.

    Each channel gets the sum over the old ones divided by the number of new ones, so that a grey picture, the same in
    every channel, is embedded as before, whatever the number.
    """
    spread = dict(given)
    for name in (f"{prefix}patch_embed.proj.weight" for prefix in (BACKBONE, TEACHER)):
        if name in given and given[name].shape[1] != channels:
            spread[name] = given[name].sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
    return spread


def _of_backbone(given: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Returns all weights of the backbone; only the last norm may be missing or left over."""
    wanted, held = ({name for name in names if name.startswith(BACKBONE)} for names in (state, given))
    for names, what in ((wanted - held, "has no"), (held - wanted, "has a")):
        unexpected = sorted(name for name in names if not name.startswith(_LAST_NORMS))
        if unexpected:
            raise ConfigError(
                f"init.from: {source} {what} '{unexpected[0]}', unlike this backbone ({len(unexpected)} such tensors)"
            )
    for name in sorted(wanted & held):
        if given[name].shape != state[name].shape:
            raise ConfigError(
                f"init.from: '{name}' of {source} is of shape {tuple(given[name].shape)}, and this backbone's of "
                f"{tuple(state[name].shape)}"
            )
    return {name: given[name] for name in wanted & held}


def _other_parts(given: Mapping[str, Tensor], state: Mapping[str, Tensor], trained: set[str]) -> dict[str, Tensor]:
    """Returns the parts of the same method beside the backbone (decoder, head, teacher) that fit as a whole.

    What is never trained, such as a table of positions, need not fit; of a teacher everything has to.
    """
    taken: dict[str, Tensor] = {}
    for name in _part_names(name for name in state if not name.startswith(BACKBONE)):
        tensors = [tensor for tensor in state if tensor.split(".")[0] == name]
        fitting = {key: given[key] for key in tensors if key in given and given[key].shape == state[key].shape}
        if all(key in fitting or (name != "teacher" and key not in trained) for key in tensors):
            taken |= fitting
    return taken


def _part_names(names: Iterable[str]) -> list[str]:
    """Returns the parts that tensors belong to; a backbone's last norms are named apart from it."""
    return sorted({".".join(name.split(".")[: 2 if name.startswith(_LAST_NORMS) else 1]) for name in names})

"""The names of weights in two formats: each pair is written once and read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mrp.config import ConfigError

Pairs = Sequence[tuple[str, str]]
_PLACEHOLDERS = {"#": r"(\d{1,6})", "*": r"(.+)"}
_PROJECTIONS = ("query", "key", "value")


class NameTable:
    """Pairs of patterns: another project's name and mrp's. `#` stands for a number, `*` for any text.

    The first pair that fits counts, in either direction.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._to_ours = [(_compiled(theirs), ours) for theirs, ours in pairs]
        self._to_theirs = [(_compiled(ours), theirs) for theirs, ours in pairs]

    def ours(self, name: str) -> str | None:
        """Returns mrp's name for one of theirs; None where no pair fits."""
        return _translated(name, self._to_ours)

    def theirs(self, name: str) -> str | None:
        """Returns their name for one of mrp's; None where no pair fits."""
        return _translated(name, self._to_theirs)

    def export(self, weights: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
        """Returns weights under their names; a part that they have no name for is an error."""
        renamed: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            if (theirs := self.theirs(name)) is None:
                raise ConfigError(f"this model has a '{name}', which {side} has no name for, so it cannot be exported")
            renamed[theirs] = tensor
        return renamed


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(_PLACEHOLDERS.get(part, re.escape(part)) for part in re.split(r"([#*])", pattern)))


def _translated(name: str, rules: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rules:
        if match := pattern.fullmatch(name):
            parts = re.split(r"[#*]", target)  # one part more than there are placeholders
            return "".join(text + value for text, value in zip(parts, (*match.groups(), ""), strict=True))
    return None


def join_projections(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights in which `attn.query`, `attn.key` and `attn.value` have become timm's `attn.qkv`.

    A bias of the keys adds the same to all scores of a query, so that it changes nothing: where there is none, it is 0.
    """
    joined: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"(.*attn)\.(query|key|value)\.(weight|bias)", name):
            apart.setdefault(f"{match[1]}.qkv.{match[3]}", {})[match[2]] = tensor
        else:
            joined[name] = tensor
    for name, tensors in apart.items():
        if name.endswith(".bias") and "query" in tensors:
            tensors.setdefault("key", torch.zeros_like(tensors["query"]))
        if missing := [projection for projection in _PROJECTIONS if projection not in tensors]:
            raise ConfigError(f"'{name}': its {', '.join(missing)} is missing; the file is not whole")
        joined[name] = torch.cat([tensors[projection] for projection in _PROJECTIONS])
    return joined


def split_projections(weights: Mapping[str, Tensor], kinds: Sequence[str], key_bias: bool) -> dict[str, Tensor]:
    """Returns the reverse of `join_projections` for these kinds of tensors (`weight`, `bias`)."""
    split: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        stem, _, kind = name.rpartition(".")
        if not stem.endswith("attn.qkv") or kind not in kinds:
            split[name] = tensor
            continue
        for projection, third in zip(_PROJECTIONS, tensor.chunk(3), strict=True):
            if kind == "weight" or projection != "key" or key_bias:
                split[f"{stem.removesuffix('qkv')}{projection}.{kind}"] = third
    return split

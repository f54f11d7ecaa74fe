"""Writes `docs/backbones.md`: what each Vision Transformer of timm's is here, found out by building it.

.venv/bin/python tools/backbones.py
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import timm
import torch

from mrp.batch import Batch
from mrp.build import build_step
from mrp.check.tiny import tiny_run
from mrp.config import ConfigError
from mrp.models.named import Named, all_names, look_up
from mrp.objectives import OBJECTIVES
from mrp.progress import over

PAGE = Path(__file__).resolve().parent.parent / "docs" / "backbones.md"
_HEAD = """# Backbones

What `backbone.name=NAME` builds, for each of the {all} Vision Transformers of timm's modules `vision_transformer` and
`eva` (timm {version}; made by `make docs`). {built} of them can be trained. Every name was looked up. Of each kind of
blocks and rotary positions, the smallest name was taken through every method, forwards and backwards, without memory
for its weights. Names that have all of this in common share a row. The sizes are timm's; `patch`, `mlp_ratio`,
`layer_scale` and other [options](configuration.md) change them.

**Tokens that are dropped.** MAE, CrossMAE, I-JEPA and data2vec 2 take patches out of the sequence. SimMIM, MaskFeat and
data2vec put a mask token in the place of the hidden ones. All of these names do both: their attention takes any number
of patches, and rotary positions are those of the places of the patches that are left.

**Methods.** `classify` with `pool: cls`, and a uniformity of the class token, need a class token. data2vec 2 needs
blocks that say what their feed-forward part adds. What a row *lacks* are options of `backbone:` that such blocks do not
have.

| names | before the patches | positions | pooled | blocks | drops tokens | methods | lacks |
|---|---|---|---|---|---|---|---|
"""
_REFUSED = """
## Not built

| names | why |
|---|---|
"""
_OTHERS = """
## Other modules of timm's

| module | why not | instead |
|---|---|---|
"""
_RELATIVE = "`relative_bias`, `qkv_bias: query_value` and `layer_scale`"
_MODULES = {
    "`beit`": ("a BEiT is built by its sizes", f"{_RELATIVE}; its weights are read"),
    "`deit`": ("the same models, some with a second class token for distillation", "a `vit_*`, with `layer_scale`"),
    "`vision_transformer_relpos`": ("a relative bias of another form", "`relative_bias`"),
    "`vision_transformer_hybrid`": ("a convolutional network before the tokens would see hidden patches", "a `vit_*`"),
    "`vision_transformer_sam`, `swin_transformer` and others with windows": (
        "a window needs all of its patches, so that none can be dropped", "a `vit_*`"
    ),
    "`naflexvit`": ("images of many sizes in one batch", "a `vit_*`; `init=` takes weights to another size"),
}  # fmt: skip


class Row(NamedTuple):
    """What the names of a row have in common."""

    prefix: str
    positions: str
    pool: str
    block: str
    rotary: str
    lacks: str


def row(named: Named) -> Row:
    """Returns what is told of a name."""
    registers = f"{named.registers} register{'s' * (named.registers > 1)}" if named.registers else ""
    rotary = {"none": "", "fixed": "rotary", "learned": "rotary with learned frequencies"}[named.rotary]
    absolute = ("learned" if named.positions == "learned" else "") if named.eva else "`sincos`, or as you say"
    return Row(
        prefix=" and ".join(part for part in ("class token" * named.class_token, registers) if part) or "nothing",
        positions=" and ".join(part for part in (absolute, rotary) if part),
        pool="class token" if named.pool == "token" else "mean",
        block=named.block,
        rotary=named.rotary,
        lacks=", ".join(f"`{key}`" for key in named.lacks) or "nothing",
    )


def sorted_out(names: Iterable[str]) -> tuple[dict[Row, list[str]], dict[str, list[str]]]:
    """Returns the names that build something, by what that is, and the others by the reason."""
    built: dict[Row, list[str]] = {}
    refused: dict[str, list[str]] = {}
    for name in names:
        try:
            built.setdefault(row(look_up(name)), []).append(name)
        except ConfigError as error:
            reason = str(error).removeprefix(f"{name} ").partition(";")[0]
            refused.setdefault(reason, []).append(name)
    return built, refused


def trained_by(name: str, method: str) -> bool:
    """Returns whether a method takes the backbone; if so, every weight gets a gradient."""
    size = 224
    known = {"classes": 2, "pool": "mean", "layers": 1}  # what a method needs to fit the smallest backbone
    fields = OBJECTIVES.find(method).Config.model_fields
    options = {"name": method} | {key: value for key, value in known.items() if key in fields}
    backbone = {"name": name, "patch": 16, "width": None, "depth": None, "heads": None}
    try:
        with torch.device("meta"):
            step = build_step(tiny_run(options, {"size": size}, backbone))
    except ConfigError as error:
        if "feed-forward" not in str(error):  # not the reason that the page gives
            raise
        return False
    with torch.device("meta"):
        step.objective(Batch(torch.empty(2, 3, size, size), torch.arange(2), labels=torch.arange(2))).loss.backward()
    silent = [key for key, weight in step.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not silent, (name, method, silent)
    return True


def page() -> str:
    """Returns the page."""
    built, refused = sorted_out(all_names())
    kinds: dict[tuple[str, str], list[str]] = {}
    for shared, names in built.items():
        kinds.setdefault((shared.block, shared.rotary), []).extend(names)
    without: dict[tuple[str, str], list[str]] = {}
    for kind, names in over(kinds.items(), "kinds of backbones"):
        smallest = min(names, key=lambda name: look_up(name).width)
        without[kind] = [method for method in OBJECTIVES.names() if not trained_by(smallest, method)]
    lines = [_HEAD.format(version=timm.__version__, built=sum(map(len, built.values())), all=len(all_names()))]
    for shared, names in built.items():
        methods = ", ".join(f"`{method}`" for method in without[shared.block, shared.rotary])
        cells = (_listed(names), shared.prefix, shared.positions, shared.pool, f"`{shared.block}`", "yes",
                 f"all but {methods}" if methods else "all", shared.lacks)  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |\n")
    lines.append(_REFUSED)
    lines += [f"| {_listed(names)} | {reason} |\n" for reason, names in refused.items()]
    lines.append(_OTHERS)
    lines += [f"| {module} | {' | '.join(texts)} |\n" for module, texts in _MODULES.items()]
    return "".join(lines)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written to {PAGE}")

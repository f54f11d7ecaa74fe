"""`mrp recipes`."""

from __future__ import annotations

import argparse
import json

from mrp.verbs import _words

HELP = "list the recipes that come with mrp, by what they are for"
EXAMPLE = "mrp recipes"
_TRY, _PRETRAIN, _FINETUNE, _PROBE, _SCRATCH = (
    "try it on digits, a few minutes on a CPU: mrp pretrain NAME (finetune_ and linear_: mrp finetune NAME init=RUN)",
    "pretrain: mrp pretrain NAME data.train=PATH",
    "fine-tune pretrained weights: mrp finetune NAME init=RUN",
    "probe pretrained weights as MAE's authors do: mrp probe RUN --protocol paper, or mrp finetune NAME init=RUN",
    "train from scratch with labels, to compare with: mrp pretrain NAME data.train=PATH",
)


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the form for scripts."""
    _words.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Prints the name of each recipe and the first line of its head comment."""
    from mrp.run import recipes

    groups: dict[str, dict[str, str]] = {purpose: {} for purpose in (_TRY, _PRETRAIN, _FINETUNE, _PROBE, _SCRATCH)}
    for path in sorted(recipes().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        groups[_purpose(path.stem)][path.stem] = first.lstrip("# ")
    if options.json:
        print(json.dumps({purpose.partition(":")[0]: named for purpose, named in groups.items()}, indent=1))
        return
    for number, (purpose, named) in enumerate(groups.items()):
        print("\n" * bool(number) + "\n".join([purpose, *(f"  {name:<32} {text}" for name, text in named.items())]))


def _purpose(name: str) -> str:
    if name == "demo" or name.endswith("_digits"):
        return _TRY
    return {"finetune": _FINETUNE, "linear": _PROBE, "supervised": _SCRATCH}.get(name.partition("_")[0], _PRETRAIN)

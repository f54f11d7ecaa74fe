"""`mrp import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mrp import imports
from mrp.verbs import _words

HELP = (
    "bring weights in: official checkpoints, timm's and transformers' ViTs; probe, finetune and export take the result"
)
EXAMPLE = "mrp import mae_pretrain_vit_base.pth --out runs/mae-official"


def words(parser: argparse.ArgumentParser) -> None:
    """Adds the source, the folder, and what the weights do not tell."""
    parser.add_argument("source", metavar="SOURCE", help="a .pth or .safetensors file, a folder, or hf:OWNER/NAME")
    parser.add_argument("--out", metavar="FOLDER", help="the folder to make (default: runs/SOURCE)")
    parser.add_argument("--method", help="the method that takes the weights of an encoder alone (default: mae)")
    parser.add_argument(
        "--weights",
        choices=("student", "teacher"),
        default="student",
        help="which weights, of a file that holds both (default: student)",
    )
    _words.add_key_values(
        parser, "what the weights do not tell: backbone.heads=3, backbone.name=NAME, data.size=64, data.train=PATH"
    )


def run(options: argparse.Namespace) -> None:
    """Reads the weights, writes the folder, and says what was found."""
    with imports.undisturbed():
        from mrp.exchange.importing import import_weights

    out = Path(options.out or Path("runs") / _default_name(options.source))
    weights = import_weights(options.source, out, options.method, options.overrides, options.weights)
    vit = weights.backbone
    shape = vit.name or f"{vit.width} wide, {vit.depth} deep, {vit.heads} heads"
    height, width = weights.size
    print(f"{weights.method}: {len(weights.tensors)} tensors of {options.source}; {shape}, images of {height}x{width}")
    if weights.stored_as:
        print(f"stored as {' and '.join(weights.stored_as)}, converted to float32")
    if weights.missing:
        parts = {".".join(name.split(".")[: 2 if name.startswith("backbone.") else 1]) for name in weights.missing}
        print(f"not among them, and untrained: {', '.join(sorted(parts))}")
    print(f"written to {out}")


def _default_name(source: str) -> str:
    last = source.removeprefix("hf:").partition("@")[0].rstrip("/").rpartition("/")[2]
    return last.removesuffix(".pth").removesuffix(".safetensors")

"""`mrp import`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = (
    "bring weights in: official checkpoints, timm's and transformers' ViTs; probe, finetune and export take the result"
)
EXAMPLE = "mrp import mae_pretrain_vit_base.pth --out runs/mae-official"


def words(parser: argparse.ArgumentParser) -> None:
    """A source, a folder, what the weights do not tell."""
    parser.add_argument("source", metavar="SOURCE", help="a .pth or .safetensors file, a folder, or hf:OWNER/NAME")
    parser.add_argument("--out", metavar="FOLDER", help="the folder to make (default: runs/SOURCE)")
    parser.add_argument("--method", help="the objective that weights of an encoder alone are put into (default: mae)")
    parser.add_argument(
        "--weights", choices=("student", "teacher"), default="student", help="of a file with both (default: student)"
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value",
        help="what the weights do not tell: backbone.heads=3, backbone.name=NAME, data.size=64, data.train=PLACE",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Read the weights, write the folder, and say what was found."""
    from mrp.exchange import export as exchange

    out = Path(options.out or Path("runs") / _name(options.source))
    found = exchange.bring(options.source, out, options.method, options.overrides, options.weights)
    vit = found.backbone
    size = vit.name or f"{vit.width} wide, {vit.depth} deep, {vit.heads} heads"
    print(f"{found.method}: {len(found.tensors)} tensors of {options.source}; {size}, images of {_size(found.size)}")
    if found.missing:
        parts = sorted(
            {".".join(name.split(".")[: 2 if name.startswith("backbone.") else 1]) for name in found.missing}
        )
        print(f"not among them, and untrained: {', '.join(parts)}")
    print(f"written to {out}")


def _name(source: str) -> str:
    last = source.removeprefix("hf:").partition("@")[0].rstrip("/").rpartition("/")[2]
    return last.removesuffix(".pth").removesuffix(".safetensors")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"

"""What a run asks of network, storage, processors and disk, computed from its recipe: the tables of docs/scale.md.

    python tools/scale.py                                              # the four MAE recipes on ImageNet-1K, 8 x 8 GPUs
    python tools/scale.py simmim_vit_base_in1k --nodes 32 --tflops 200 --image-kb 60 --decode 1272

Nothing is measured here. What is assumed stands in the options: replace it by what you have measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from mrp.build import measure_cost
from mrp.run import Run, load

RECIPES = [f"mae_vit_{size}_in1k" for size in ("small", "base", "large", "huge")]
NETWORKS = (10, 100, 400)  # Gb/s of a node
BYTES = 4  # a weight, a gradient and each of AdamW's two moments are kept in float32


@dataclass(frozen=True, slots=True)
class Assumed:
    """The machine and the data."""

    nodes: int
    gpus: int
    tflops: float  # that a GPU sustains
    image_kb: float
    decode: float  # images per second and core
    disk: float  # GB/s to the folder of the runs


@dataclass(frozen=True, slots=True)
class Demand:
    """What follows for one recipe."""

    run: Run
    assumed: Assumed
    parameters: int
    trainable: int
    flops: int  # per image

    @property
    def compute(self) -> float:
        """Seconds of a step if nothing but arithmetic took time."""
        return self.run.batch * self.flops / (self.assumed.nodes * self.assumed.gpus * self.assumed.tflops * 1e12)

    @property
    def traffic(self) -> float:
        """Bytes that each node sends, and receives, in a step: a ring among the nodes; inside them the GPUs' own links.

        Accumulation adds nothing, since the gradient is exchanged once per step.
        """
        return 2 * (self.assumed.nodes - 1) / self.assumed.nodes * BYTES * self.trainable

    def transfer(self, gigabits: float) -> float:
        """Seconds for this traffic."""
        return self.traffic * 8 / (gigabits * 1e9)

    @property
    def images(self) -> float:
        """Images per second that one GPU takes."""
        return self.assumed.tflops * 1e12 / self.flops

    @property
    def checkpoint(self) -> float:
        """Bytes of weights and both moments."""
        return BYTES * (self.parameters + 2 * self.trainable)


def demand(recipe: str, assumed: Assumed) -> Demand:
    """Count a recipe's parameters and arithmetic."""
    run = load(recipe)
    cost = measure_cost(run)
    return Demand(run, assumed, cost.parameters, cost.trainable, cost.training_flops)


def table(head: str, rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    names = head.split(" | ")
    return "\n".join("| " + " | ".join(row) + " |" for row in [names, ["---"] * len(names), *rows]) + "\n"


def network(demands: dict[str, Demand], assumed: Assumed) -> str:
    """Returns what a step needs of processors and of the links between nodes."""
    rates = " | ".join(f"{gigabits} Gb/s" for gigabits in NETWORKS)
    rows = [
        [
            recipe, f"{need.run.batch}", f"{need.trainable / 1e6:.1f} M",
            f"{need.flops / 1e9:.1f}", f"{need.compute * 1e3:.0f} ms", f"{need.traffic / 1e9:.2f} GB",
            *(f"{need.transfer(gigabits) * 1e3:.0f} ms" for gigabits in NETWORKS),
        ]
        for recipe, need in demands.items()
    ]  # fmt: skip
    title = f"Network: {assumed.nodes} nodes of {assumed.gpus} GPUs at {assumed.tflops:g} TFLOP/s"
    return f"{title}\n\n" + table(
        f"recipe | batch | trained | GFLOP per image | compute per step | a node sends | {rates}", rows
    )


def storage(demands: dict[str, Demand], assumed: Assumed) -> str:
    """Returns what the data need of the storage and of the processors that decode."""
    rows = [
        [
            recipe, f"{need.images:.0f}", f"{need.images * assumed.image_kb / 1e3:.0f}",
            f"{need.images * assumed.image_kb * assumed.nodes * assumed.gpus / 1e6:.1f}",
            f"{need.images / assumed.decode:.1f}",
        ]
        for recipe, need in demands.items()
    ]  # fmt: skip
    title = f"Storage and processors: files of {assumed.image_kb:g} kB, {assumed.decode:g} images per second and core"
    return f"{title}\n\n" + table("recipe | images/s per GPU | MB/s per GPU | GB/s in all | cores per GPU", rows)


def saver(demands: dict[str, Demand], assumed: Assumed) -> str:
    """Returns how large a checkpoint is, and how long it takes to write."""
    rows = [
        [
            recipe, f"{BYTES * need.parameters / 1e9:.2f} GB", f"{need.checkpoint / 1e9:.2f} GB",
            f"{need.checkpoint / 1e9 / assumed.disk:.1f} s",
        ]
        for recipe, need in demands.items()
    ]  # fmt: skip
    return f"Saver: {assumed.disk:g} GB/s\n\n" + table("recipe | weights | with AdamW's moments | to write", rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--gpus", type=int, default=8, help="of a node (default: 8)")
    parser.add_argument("--tflops", type=float, default=300, help="that a GPU sustains (default: 300)")
    parser.add_argument("--image-kb", type=float, default=115, help="of an image's file (default: 115, ImageNet-1K)")
    parser.add_argument("--decode", type=float, default=624, help="images per second and core (default: 624)")
    parser.add_argument("--disk", type=float, default=1, help="GB/s to the folder of the runs (default: 1)")
    options = vars(parser.parse_args())
    recipes = options.pop("recipes")
    assumed = Assumed(**options)
    demands = {recipe: demand(recipe, assumed) for recipe in recipes}
    for part in (network, storage, saver):
        print(part(demands, assumed))


if __name__ == "__main__":
    main()

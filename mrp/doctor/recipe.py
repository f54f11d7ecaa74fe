"""What follows from a recipe, and whether it can be meant: `mrp config` prints the numbers, the doctor judges them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mrp.build import build_optimizer
from mrp.data import turbojpeg
from mrp.data.balance import balance_warning
from mrp.doctor.case import Case
from mrp.doctor.finding import Finding, error, ok, said, warning
from mrp.optim.config import Section
from mrp.optim.groups import state_names
from mrp.plan import remarks
from mrp.schedules import extremes, main_value

_GIB = 2**30
_CHANGED = 1.5  # times the recipe's learning rate per image, from which a change of it is hardly meant
_FEW_COUPLED = 8  # of so few images even evenly spread features have a large mean squared cosine: 1 / images


class _Usual(NamedTuple):
    """Between what the recipes that come with mrp lie: half the highest peak, four times the lowest rate."""

    lowest: float  # per 256 images
    highest: float  # after warm-up


_ADAMW = _Usual(1.25e-5, 1e-2)
_USUAL = {"adamw": _ADAMW, "muon": _ADAMW, "lars": _Usual(2.5e-2, 12.8)}


def size(case: Case) -> Iterator[Finding]:
    """Counts parameters and arithmetic."""
    cost = case.cost
    yield ok("parameters", f"{cost.parameters / 1e6:.2f} M, of which {cost.trainable / 1e6:.2f} M are trained")
    yield ok("FLOPs per image", f"{cost.bound}{cost.training_flops / 1e9:.3g} G (forward and backward)")


def learning_rate(case: Case) -> Iterator[Finding]:
    """Compares the learning rate with the recipe's own rule, and with what the optimizer is usually given."""
    about, run = "peak learning rate", case.run
    peak, rate = case.plan.peak_lr, 256 * case.plan.peak_lr / run.batch
    found = f"{peak:.4g}"
    usual = _USUAL.get(run.optim.name)
    before = _rate_as_written(case)
    if before is not None and not 1 / _CHANGED < rate / before < _CHANGED:
        per = f"optim.per={round(256 * main_value(run.optim.lr) / before)}"
        yield warning(
            about,
            f"{found}, which is {rate:.3g} per 256 images of a batch, where the recipe has {before:.3g}: batch or "
            "optim.per was changed and optim.lr was not",
            f"with {per} the learning rate follows the batch; or give the optim.lr that is meant",
        )
    elif usual and peak > usual.highest:
        yield warning(
            about,
            f"{found} with a batch of {run.batch}, far above what {run.optim.name} is usually given ({usual.highest:g} "
            "at most)",
            "if optim.lr is the rate that the whole batch is trained with, set optim.per=null; else lower it"
            if run.optim.per else "lower optim.lr",
        )  # fmt: skip
    elif usual and rate < usual.lowest:
        yield warning(
            about,
            f"{found}, which is {rate:.3g} per 256 images of a batch, far below what {run.optim.name} is usually given "
            f"({usual.lowest:g} at least)",
            "raise optim.lr" if run.optim.per else "if optim.lr is given per 256 images, set optim.per=256; else raise "
            "it",
        )  # fmt: skip
    else:
        yield ok(about, found)


def _rate_as_written(case: Case) -> float | None:
    """Returns the recipe's own learning rate per 256 images, unless the command line gives another learning rate."""
    try:
        written = case.written["optim"]
        section = Section.model_validate({"name": "", **{key: written[key] for key in ("lr", "per") if key in written}})
        batch = int(case.written["batch"])
    except (KeyError, TypeError, ValueError):  # it has none of its own, or something that only the command line mends
        return None
    same = main_value(section.lr) == main_value(case.run.optim.lr)
    return 256 * section.peak_lr(batch) / batch if same else None


def length(case: Case) -> Iterator[Finding]:
    """Counts steps, and looks at the share of the warm-up."""
    plan, cost = case.plan, case.cost
    if "source" in case.faults:
        yield ok("steps", f"unknown, since {case.faults['source']}")
        return
    left_out = f" ({case.order.dropped} images left out)" if case.order.dropped else ""
    yield ok("steps per epoch", f"{plan.steps_per_epoch:g}{left_out}")
    found = f"{plan.steps:,}, of which {plan.warmup:,} warm up; a checkpoint every {plan.checkpoint_every:,}"
    if plan.warmup > plan.steps / 2:
        remedy = "shorten optim.warmup, or lengthen the run"
        yield warning("steps", f"{found}: the learning rate rises for more than half of the run", remedy)
    else:
        yield ok("steps", found)
    yield ok("FLOPs of the run", f"{cost.bound}{cost.training_flops * plan.steps * case.run.batch:.3g}")


def division(case: Case) -> Iterator[Finding]:
    """Says how a batch is divided, and what in that is hardly meant."""
    plan = case.plan
    yield ok("processes", f"{plan.processes} ({case.machine.device.type})")
    yield ok("micro-batch", f"{plan.micro_batch} images per process, accumulated {plan.accumulation} times")
    yield ok("JPEGs are decoded", turbojpeg.described())
    yield ok("workers", f"{case.workers} per process, on the cores of this machine")
    lines = remarks(case.run, plan, case.cores)
    if "source" not in case.faults and (unfair := balance_warning(case.source, case.order)):
        lines += [unfair]
    for line in lines:
        yield said("warning", "batches", line)


def coupled_batch(case: Case) -> Iterator[Finding]:
    """Looks at the images whose losses depend on each other."""
    about, plan = "coupled batch", case.plan
    if plan.coupled_batch is None:
        return
    uniformity = getattr(case.run.objective, "uniformity", None)
    _, weight = extremes(getattr(uniformity, "weight", 0.0))
    pushes = weight > 0
    if pushes and plan.coupled_batch // case.run.data.views < 2:
        yield error(
            about,
            "1 image: the uniformity penalty compares images with each other, and of one alone it says nothing of "
            "the features, so that nothing keeps them from collapsing",
            "raise coupled_batch, or machine.micro_batch",
        )
    elif pushes and plan.coupled_batch // case.run.data.views < _FEW_COUPLED:
        yield warning(
            about,
            f"{plan.coupled_batch} images: the uniformity penalty of so few is mostly noise",
            f"raise coupled_batch to {_FEW_COUPLED} or more (it divides the batch of {case.run.batch})",
        )
    else:
        yield ok(
            about,
            f"{plan.coupled_batch}: the loss of an image depends on the others of its micro-step, so that another "
            "micro-batch gives another loss; the run keeps this number on any number of processes",
        )
    if weight > 1 and getattr(uniformity, "kind", "gram") == "gram":
        yield warning(
            "uniformity",
            f"its weight is {weight:g}: the penalty, which is 1 for collapsed features, outweighs the reconstruction",
            "the recipes have 0.01 (objective.uniformity)",
        )


def memory(case: Case) -> Iterator[Finding]:
    """Compares the estimate of a process's memory with what it may use."""
    needed, there = case.cost.memory(case.plan.micro_batch), case.machine.memory
    found = f"about {needed / _GIB:.2g} GiB (estimate; data workers not counted)"
    if needed <= there:
        yield ok("memory per process", found)
    else:
        yield error(
            "memory per process",
            f"{found}, where {there / _GIB:.3g} GiB are left to it",
            "take "
            + (
                "a smaller machine.micro_batch"
                if case.plan.coupled_batch is None
                else "more processes, coupled_batch=N"
            )
            + ", machine.checkpointing=true, machine.shard=full or a smaller model",
        )


def checkpoints(case: Case) -> Iterator[Finding]:
    """Says how large checkpoints are; whether there is space for them is the environment's."""
    each, most = checkpoint_bytes(case), most_checkpoints(case)
    yield ok("checkpoints", f"{each / _GIB:.2g} GiB each, at most {most} at a time")


def checkpoint_bytes(case: Case) -> int:
    """Returns the size of a checkpoint: weights, the optimizer's state, and the moving average where there is one."""
    held = state_names(build_optimizer(case.run.optim, case.step))
    unsaid = ("first", "second")  # moments, of an optimizer that does not say what its state is
    trained = [parameter for parameter in case.step.parameters() if parameter.requires_grad]
    moments = sum(p.numel() * len([name for name in held.get(p, unsaid) if name != "step"]) for p in trained)
    return 4 * (case.cost.parameters * (2 if case.run.average else 1) + moments)


def most_checkpoints(case: Case) -> int:
    """Returns how many checkpoints are on the disk at a time, with the one that is being written."""
    run, plan = case.run, case.plan
    milestones = plan.steps // plan.milestone_every if plan.milestone_every and "source" not in case.faults else 0
    written = -(-plan.steps // plan.checkpoint_every) if "source" not in case.faults else run.checkpoint.keep + 1
    return min(run.checkpoint.keep + 1, written + 1) + milestones + bool(run.checkpoint.best)


def patches(case: Case) -> Iterator[Finding]:
    """Looks at the number of patches, and at the share of them that is hidden."""
    backbone = case.step.objective.backbone
    total, (height, width) = backbone.patch_embed.num_patches, backbone.patch_embed.patch_size
    found = f"{total} of {height} x {width} pixels in an image of {' x '.join(map(str, case.run.data.shape))}"
    if total < 4:
        yield warning("patches", found, "take a smaller patch (backbone.patch), or larger images (data.size)")
    else:
        yield ok("patches", found)
    ratio = getattr(case.run.objective, "mask_ratio", None)
    if ratio is None:
        return
    low, high = extremes(ratio)
    share = f"{low:.0%}" if low == high else f"{low:.0%} to {high:.0%}"
    if low >= 0.25 and high <= 0.95:
        yield ok("masks", f"{share} of the patches are hidden")
    else:
        yield warning(
            "masks",
            f"{share} of the patches are hidden, where published methods hide 50 % to 90 %",
            "set objective.mask_ratio",
        )


CHECKS = (size, learning_rate, length, division, coupled_batch, memory, checkpoints, patches)

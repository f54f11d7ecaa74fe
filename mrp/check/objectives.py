"""What every training method must do, tried on a tiny backbone and eight images of noise."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import nn

from mrp.batch import Batch, Output
from mrp.build import build_optimizer, build_step, measure_cost
from mrp.check.outcome import Failed, Skipped
from mrp.check.processes import agree, one_step, steps_in_two
from mrp.check.tiny import COUNT, changed, gradients, tiny_batch
from mrp.checkpoint import checkpoints
from mrp.checkpoint.saver import save_now
from mrp.models import vit
from mrp.optim.groups import set_lr
from mrp.optimizers import adamw
from mrp.run import Run
from mrp.step import Step

_OVERFIT = 150  # steps
_KEYS = "draw all randomness from batch.keys alone (mrp.models.masking.fold)"


def train(
    step: Step, optimizer: torch.optim.Optimizer, run: Run, steps: range, always: Batch | None = None
) -> Iterator[float]:
    """Makes some steps of training, each on other images or `always` on the same, and yields their losses."""
    for number in steps:
        torch.manual_seed(number)
        loss = step(always or tiny_batch(run, first=COUNT * number, step=number)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step.after_step(number, torch.tensor(True))
        yield float(loss.detach())


def every_parameter_learns(run: Run) -> None:
    """The loss is finite, and every trained parameter gets a gradient."""
    step = build_step(run)
    output: Output = step(tiny_batch(run))
    if output.loss.shape != () or not bool(output.loss.isfinite()):
        raise Failed(f"the loss is {output.loss.detach()}", "return one finite number as Output.loss")
    output.loss.backward()
    trained = {name for name, parameter in step.named_parameters() if parameter.requires_grad}
    found = gradients(step)
    silent = sorted(trained - found.keys()) + [name for name, gradient in found.items() if not gradient.any()]
    if silent:
        raise Failed(
            f"no gradient reaches {', '.join(silent[:3])}", "use it in forward, or freeze it with methodkit.freeze"
        )
    broken = [name for name, gradient in found.items() if not gradient.isfinite().all()]
    if broken:
        raise Failed(f"the gradient of {broken[0]} is not finite", "look for a division by zero or a root at zero")


def outputs_are_detached(run: Run) -> None:
    """Metrics and numbers per sample are detached, and of the right shape."""
    output: Output = build_step(run)(tiny_batch(run))
    for name, value in output.metrics.items():
        if value.requires_grad or value.shape != ():
            raise Failed(f"metrics['{name}'] carries a gradient or is no scalar", "detach it, and take its mean")
    for name, value in output.per_sample.items():
        if value.requires_grad or value.shape != (COUNT,):
            raise Failed(f"per_sample['{name}'] is not one detached number per image", "detach it; shape it (B,)")
    if output.features is not None and (output.features.requires_grad or len(output.features) != COUNT):
        raise Failed("Output.features are not one detached vector per image", "detach them; shape them (B, D)")


def a_sample_meets_its_own_randomness(run: Run) -> None:
    """Losses follow the sample and not its place in the batch."""
    step, batch = build_step(run), tiny_batch(run)
    assert batch.labels is not None
    turned = Batch(batch.images.flip(0), batch.keys.flip(0), batch.labels.flip(0), step=batch.step)
    ours, theirs = step(batch), step(turned)
    pairs = [("loss", ours.loss, theirs.loss)]
    pairs += [(name, value, theirs.per_sample[name].flip(0)) for name, value in ours.per_sample.items()]
    for name, value, other in pairs:
        if not torch.allclose(value, other, rtol=1e-4, atol=1e-5):
            raise Failed(f"with the images in another order the {name} of a sample is another", _KEYS)


def the_backbone_is_timms(run: Run) -> None:
    """The backbone is exported under timm's names."""
    usual = vit.Config(name="vit_tiny_patch16_224", patch=4)  # and none of the options of the run's own
    objective = build_step(changed(run, backbone=usual.model_dump(mode="json"))).objective
    mean = isinstance(objective.encoder.fc_norm, nn.LayerNorm)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=run.data.shape, patch_size=4, in_chans=run.data.num_channels,
        global_pool="avg" if mean else "token",
    )  # fmt: skip
    ours = objective.encoder.state_dict()
    odd = sorted(ours.keys() ^ theirs.state_dict().keys())
    if odd:
        raise Failed(
            f"the backbone's weights are not those of timm's ViT: {', '.join(odd[:3])}",
            "put parts of your own into the objective, and not into the backbone",
        )
    theirs.load_state_dict(ours, strict=True)


def it_overfits(run: Run) -> None:
    """Eight images are learned by heart: the loss falls to a half."""
    step = build_step(run)
    optimizer = build_optimizer(adamw.Config(lr=3e-3, weight_decay=0.0), step)
    set_lr(optimizer, lambda scale: 3e-3 * scale)
    losses = list[float]()
    for loss in train(step, optimizer, run, range(_OVERFIT), tiny_batch(run)):
        losses.append(loss)
        if loss < 0.5 * losses[0]:
            return
    raise Failed(
        f"in {_OVERFIT} steps the loss went from {losses[0]:.3g} to {losses[-1]:.3g}",
        "look at the target, and at what the loss depends on",
    )


def it_is_one_graph(run: Run) -> None:
    """One compiled graph serves all steps."""
    if not torch._dynamo.eval_frame.is_dynamo_supported():
        raise Skipped("torch.compile does not run on this Python")
    step = build_step(run)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    for number in range(3):
        batch = tiny_batch(run, first=10 * number, step=number)
        try:
            output = compiled(batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise Failed(f"it cannot be compiled: {reason}", "read no value on the host (.item(), if tensor)") from None
        output.loss.backward()
        if not torch.allclose(output.loss, step(batch).loss, rtol=1e-4):
            raise Failed("the compiled step gives another loss", _KEYS)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    if graphs != 1:
        raise Failed(f"three steps took {graphs} graphs", "let no shape depend on values or on the step")


def micro_batches_add_up(run: Run) -> None:
    """Four micro-batches give the gradient of one batch."""
    if run.couples_samples:
        raise Skipped("its samples act on each other within a micro-step, as couples_samples says")
    step, batch = build_step(run), tiny_batch(run)
    assert batch.labels is not None
    step(batch).loss.backward()
    whole = {key: gradient.clone() for key, gradient in gradients(step).items()}
    step.zero_grad()
    for part in range(4):
        rows = slice(2 * part, 2 * part + 2)
        piece = Batch(batch.images[rows], batch.keys[rows], batch.labels[rows], step=batch.step)
        (step(piece).loss / 4).backward()
    for key, gradient in gradients(step).items():
        if not torch.allclose(gradient, whole[key], rtol=1e-4, atol=1e-6):
            raise Failed(
                f"the gradient of {key} is another in micro-batches",
                "take means over the images of the batch; if they act on each other, let Config.couples_samples say so",
            )


def features_need_no_mask(run: Run) -> None:
    """The features are one vector per whole image, whatever the keys."""
    step, batch = build_step(run).eval(), tiny_batch(run)
    other = Batch(batch.images, batch.keys + 1, batch.labels, step=batch.step)
    with torch.no_grad():
        first, second = step(batch, features=True).features, step(other, features=True).features
    assert first is not None
    if first.ndim != 2 or len(first) != COUNT:
        raise Failed(f"the features of {COUNT} images are of shape {tuple(first.shape)}", "return B x D")
    if not torch.equal(first, second):
        raise Failed("with other keys the features are others", "compute them from the whole image, without a mask")


def a_resumed_run_is_the_same(run: Run) -> None:
    """A run that was killed and resumed ends bit-equal."""
    run = changed(run, backbone={"drop_path": 0.2, "attention_dropout": 0.1})
    straight, before, after = (build_step(run) for _ in range(3))
    optimizers = [build_optimizer(run.optim, step) for step in (straight, before, after)]
    for step, optimizer, steps in ((straight, optimizers[0], range(5)), (before, optimizers[1], range(3))):
        list(train(step, optimizer, run, steps))
    with tempfile.TemporaryDirectory() as folder:
        save_now(Path(folder), 3, before, optimizers[1], {}, keep=1)
        found = checkpoints.newest(Path(folder))
        assert found is not None
        with torch.no_grad():
            for parameter in after.parameters():
                parameter.fill_(torch.nan)
        checkpoints.restore(found, after, optimizers[2])
    list(train(after, optimizers[2], run, range(3, 5)))
    ours, theirs = after.state_dict(), straight.state_dict()
    odd = [key for key in theirs if key not in ours or not torch.equal(ours[key], theirs[key])]
    if odd:
        raise Failed(
            f"after a resume {odd[0]} is another",
            "keep what changes in a buffer; count no steps yourself",
        )


def nothing_moves_while_held_back(run: Run) -> None:
    """Nothing moves in a step that the optimizer skipped."""
    step = build_step(run)
    list(train(step, build_optimizer(run.optim, step), run, range(1)))
    before = {key: tensor.clone() for key, tensor in step.state_dict().items()}
    step(tiny_batch(run)).loss.backward()
    step.after_step(1, torch.tensor(False))
    moved = [key for key, tensor in step.state_dict().items() if not torch.equal(tensor, before[key])]
    if moved:
        raise Failed(f"{moved[0]} moved", "in after_step, change nothing where `updated` is False (multiply by it)")


def stochastic_depth_reaches_it(run: Run) -> None:
    """Stochastic depth of the backbone reaches the method."""
    if getattr(run.objective, "frozen", False):
        raise Skipped("its backbone is frozen")
    step = build_step(changed(run, backbone={"drop_path": 0.5}))
    batch = tiny_batch(run)
    training, again, evaluating = step(batch), step(batch), step.eval()(batch)
    if not torch.equal(training.loss, again.loss):
        raise Failed("the same batch has another loss the second time", _KEYS)
    if torch.equal(training.loss, evaluating.loss):
        raise Failed("backbone.drop_path does nothing", "pass keys=batch.keys to encode")


def its_cost_is_counted(run: Run) -> None:
    """Its parameters, FLOPs and memory can be counted on shapes alone."""
    cost = measure_cost(run)
    if not (cost.forward_flops > 0 and 0 < cost.trainable <= cost.parameters):
        raise Failed(f"it counts {cost.forward_flops} FLOPs and {cost.trainable} trained parameters", "train something")


def two_processes_are_one(run: Run) -> None:
    """Two processes give the loss, the gradient and the state of one."""
    with tempfile.TemporaryDirectory() as folder:
        (theirs,) = steps_in_two([run], Path(folder))
    agree(one_step(run, tiny_batch(run)), theirs)


CHECKS = (
    every_parameter_learns, outputs_are_detached, a_sample_meets_its_own_randomness, the_backbone_is_timms,
    it_overfits, it_is_one_graph, micro_batches_add_up, features_need_no_mask, a_resumed_run_is_the_same,
    nothing_moves_while_held_back, stochastic_depth_reaches_it, its_cost_is_counted,
)  # fmt: skip

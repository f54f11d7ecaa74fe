"""What every optimizer must do, tried on a tiny MAE."""

from __future__ import annotations

import torch

from mrp.build import build_optimizer, build_step
from mrp.check import objectives
from mrp.check.outcome import Failed
from mrp.check.tiny import tiny_batch
from mrp.optim.groups import set_lr
from mrp.run import Run

METHOD = {"name": "mae", "decoder": {"width": 32, "depth": 1, "heads": 4}}
_STEPS = 60


def it_obeys_the_guard(run: Run) -> None:
    """While `found_inf` is set nothing changes."""
    step = build_step(run)
    optimizer = build_optimizer(run.optim, step)  # refuses a file outside mrp that does not
    before = {name: tensor.clone() for name, tensor in step.state_dict().items()}
    step(tiny_batch(run)).loss.backward()
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    moved = [name for name, tensor in step.state_dict().items() if not torch.equal(tensor, before[name])]
    if moved:
        raise Failed(f"{moved[0]} moved although found_inf was set", "see mrp/optimizers/lars.py for how to obey it")


def the_loss_falls(run: Run) -> None:
    """Every parameter moves, and the loss of one batch falls."""
    step = build_step(run)
    optimizer = build_optimizer(run.optim, step)
    before = {name: parameter.detach().clone() for name, parameter in step.named_parameters()}
    set_lr(optimizer, lambda scale: run.optim.peak_lr(run.batch) * scale)
    losses = list(objectives.train(step, optimizer, run, range(_STEPS), tiny_batch(run)))
    still = [name for name, p in step.named_parameters() if p.requires_grad and torch.equal(p, before[name])]
    if still:
        raise Failed(f"{still[0]} never moves", "go through every group of param_groups")
    if not losses[-1] < losses[0]:
        raise Failed(
            f"in {_STEPS} steps the loss went from {losses[0]:.3g} to {losses[-1]:.3g}",
            "look at the sign of the update; give a learning rate that suits it with lr=NUMBER",
        )


def it_lists_its_state(run: Run) -> None:
    """`state_names` lists its state per parameter, by which a checkpoint of another optimizer is known."""
    step = build_step(run)
    optimizer = build_optimizer(run.optim, step)
    step(tiny_batch(run)).loss.backward()
    optimizer.step()
    names = getattr(optimizer, "state_names", None)
    held = {name for state in optimizer.state.values() for name in state}
    if names is None or held != set(names):
        raise Failed(f"its state is {sorted(held)}, and state_names is {names}", f"let it be {tuple(sorted(held))}")


CHECKS = (it_obeys_the_guard, the_loss_falls, it_lists_its_state, objectives.a_resumed_run_is_the_same)

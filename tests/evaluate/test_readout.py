"""Features of several layers: those of the backbone itself among them, and from a compiled step the same."""

from __future__ import annotations

import pytest
import torch

from mrp.batch import Batch
from mrp.build import build_step
from mrp.config import ConfigError
from mrp.evaluate.readout import Readout, backbone_of
from mrp.run import load

RUN = load("demo", ["backbone.depth=3", "backbone.width=24", "backbone.heads=2", "objective.decoder.depth=1"])
STEP = build_step(RUN).eval()
BACKBONE = backbone_of(STEP)
BATCH = Batch(torch.arange(4 * 64, dtype=torch.uint8).view(4, 1, 8, 8), torch.arange(4))


def read(readout: Readout, step: torch.nn.Module = STEP) -> torch.Tensor:
    with torch.no_grad():
        features: torch.Tensor = step(BATCH, features=readout).features
    return features


def test_the_last_layer_is_what_the_backbone_gives() -> None:
    with torch.no_grad():
        own = STEP(BATCH, features=True).features
    assert own is not None
    assert torch.equal(read(Readout.own(BACKBONE)), own)
    every = Readout.last(BACKBONE)
    assert every.blocks == ("1.class", "1.mean", "2.class", "2.mean", "3.class", "3.mean")
    assert torch.equal(read(every)[:, 4 * 24 : 5 * 24], own)
    assert torch.equal(read(Readout.of(BACKBONE, 2, "mean")), read(every)[:, 3 * 24 : 4 * 24])
    tokens = read(Readout.tokens(BACKBONE)).unflatten(1, (-1, 24))
    assert tokens.shape == (4, 16, 24)
    torch.testing.assert_close(tokens.mean(1), read(every)[:, 5 * 24 :])


@pytest.mark.parametrize("readout", [Readout.own(BACKBONE), Readout.last(BACKBONE, 2), Readout.tokens(BACKBONE)])
def test_a_compiled_step_reads_the_same_in_one_graph(readout: Readout) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(STEP, backend="eager", fullgraph=True, dynamic=False)
    assert torch.equal(read(readout, compiled), read(readout))


def test_layers_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match="layers: 4 were asked for, but the backbone has 3; give at most 3"):
        Readout.last(BACKBONE, 4)
    with pytest.raises(ConfigError, match="--layer: 5 was asked for, but the backbone has 3"):
        Readout.of(BACKBONE, 5, None)

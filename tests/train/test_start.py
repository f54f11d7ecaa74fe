"""How the processes of a run are wrapped."""

from __future__ import annotations

from mrp.run import load
from mrp.train.start import start


def test_buffers_are_not_sent_at_every_step() -> None:
    handler = start(load("demo")).ddp_handler
    assert handler is not None
    assert handler.to_kwargs() == {"gradient_as_bucket_view": True, "broadcast_buffers": False}

"""The section `guard:`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mrp.config import Node


class Guard(Node):
    """`guard:`, what a run does after a step whose loss or gradient is not finite.

    It is no part of a run's identity: the results do not depend on it until such a step occurs, and that is when users
    want to change it and go on. What it did is written into the checkpoints.
    """

    # stop: the run ends with the weights before the step. skip: the step's update is left out. rollback: the weights
    # of the last checkpoint are taken and all steps from there up to this one are left out, with their data.
    policy: Literal["stop", "skip", "rollback"] = "stop"
    limit: int = Field(3, ge=1)  # how many times the policy acts in a run; at the next incident the run stops after all

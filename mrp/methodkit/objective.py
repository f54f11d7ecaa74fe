"""The base class of every training method."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal, NamedTuple, Self, cast

from torch import Tensor, nn

from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.methodkit.scheduled import Scheduled
from mrp.models.vit import Backbone, embed, encode, pool
from mrp.schedules import Length


class Reconstruction(NamedTuple):
    """What a method that predicts pixels makes of a batch of images."""

    mask: Tensor  # B N, bool: True where a patch was hidden
    images: Tensor  # B C H W: the prediction of every patch, in the normalised units of `batch.images`
    # Of a method that predicts patches less their mean, over their deviation, the prediction in these units: `images`
    # borrows both from the true image.
    bare: Tensor | None = None


class Objective(nn.Module):
    """A training method: a backbone, whatever is trained together with it, and a loss.

    A method overrides `forward`. `batch.images` are normalised float32 images. All randomness is derived from
    `batch.keys`, one number per sample, so that a sample meets the same randomness on any number of processes. The
    export of a run writes the `encoder`.
    """

    name = "method"  # the run's name of the method, from when it is built
    judged: Literal["student", "teacher"] = "student"  # whose encoder is probed and exported where a user names none
    paints = False  # True for a method that predicts pixels and overrides `reconstruct`
    undecayed: frozenset[str] = frozenset()  # last parts of the names of weights that are spared from weight decay

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @property
    def encoder(self) -> Backbone:
        """The backbone that is judged: the trained one, or the backbone of `self.teacher`."""
        if self.judged == "student":
            return self.backbone
        return cast(Backbone, self.get_submodule("teacher.backbone"))

    @property
    def has_own_features(self) -> bool:
        """Whether the method itself defines the features of an image; probes then read these."""
        return type(self).features is not Objective.features

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Returns the loss of one micro-batch, and what is measured beside it."""

    def features(self, batch: Batch) -> Tensor:
        """Returns one vector per image, computed from the whole image: what probes and diagnostics look at."""
        return pool(self.encoder, encode(self.encoder, embed(self.encoder, batch.images)).tokens)  # B D

    def reconstruct(self, batch: Batch) -> Reconstruction:
        """Returns the images as the method predicts them, if it predicts pixels."""
        raise ConfigError("this objective predicts no pixels, so there is nothing to draw")

    def before_step(self, step: int, length: Length) -> None:
        """Called before each step of the optimizer, counted from zero; here scheduled numbers are set."""
        for scheduled in self.scheduled():
            scheduled.set(step, length)

    def scheduled(self) -> list[Scheduled]:
        """Returns the numbers that change over the run."""
        return [module for module in self.modules() if isinstance(module, Scheduled) and module.changes]

    def after_step(self, step: int, updated: Tensor) -> None:
        """Called after each optimizer step; the weights of a teacher are updated here.

        `updated` is a boolean on the device. It is False when the optimizer skipped the step because a loss or a
        gradient was not finite; then this method must change nothing either.
        """

    def train(self, mode: bool = True) -> Self:
        """Switches between training and evaluation; parts that are frozen as a whole stay in evaluation."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self


def freeze(module: nn.Module) -> None:
    """Takes a part out of training: it gets no gradients and is in evaluation mode, so it drops nothing at random."""
    module.requires_grad_(False).eval()

"""CAPI: predict to which online cluster a teacher's features of hidden patches belong (Darcet et al., 2025)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mrp import methodkit as kit
from mrp.batch import Batch, Output
from mrp.config import ConfigError
from mrp.models.decoder import LatentConfig, LatentPredictor
from mrp.models.masking import gather_tokens, rolled_block_mask, some_hidden, visible_places
from mrp.models.vit import Backbone, grid, norm_eps
from mrp.schedules import Schedule

SHAPES = 1024  # as finely are the shapes of blocks drawn


class Config(kit.MaskedConfig):
    """Options of CAPI; samples act on each other, since clusters are balanced over all of them."""

    small: ClassVar[dict[str, Any]] = {
        "clusters": 8,
        "mask_ratio": 0.5,
        "predicted": 0.25,
        "predictor": {"width": 32, "depth": 1, "heads": 4},
    }
    name: Literal["capi"] = "capi"
    mask_ratio: float = Field(0.65, gt=0, lt=1)  # the share of the patches that is hidden: all but one block
    # The share of all patches that is predicted; these patches are among the hidden ones.
    predicted: float = Field(0.0325, gt=0, lt=1)
    # The shorter side of the seen block over its longer one, at the least.
    narrowest_block: float = Field(0.5, gt=0, le=1)
    masks: int = Field(1, gt=0)  # masks per image and step; all share the teacher's one pass
    clusters: int = Field(16384, gt=1)  # how many clusters the features of patches are assigned to
    student_temperature: float = Field(0.12, gt=0)  # the temperature of the predicted clusters
    target_temperature: float = Field(0.06, gt=0)  # the temperature of the assignments
    # The temperature of the clusters that the clustering itself predicts.
    clustering_temperature: float = Field(0.12, gt=0)
    iterations: int = Field(3, gt=0)  # iterations of Sinkhorn and Knopp
    predictor: LatentConfig = LatentConfig()
    teacher: kit.TeacherConfig = kit.TeacherConfig(decay=Schedule(kind="cosine", value=0.999, end=1.0))
    uniformity: kit.UniformityConfig = kit.NO_UNIFORMITY

    @property
    def couples_samples(self) -> bool:
        """Always: what a patch is assigned to depends on the same patch of the other images."""
        return True


class Objective(kit.Masked):
    """Self-distillation: the student predicts the clusters to which the teacher's features of hidden patches belong."""

    judged = "teacher"
    shapes: Tensor

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(backbone, config.masks, config.uniformity)
        self.config = config
        num_patches: int = backbone.patch_embed.num_patches
        self.num_visible = kit.count_visible(num_patches, config.mask_ratio)
        self.num_predicted = int(num_patches * config.predicted)
        if not 0 < self.num_predicted <= num_patches - self.num_visible:
            raise ConfigError(
                f"objective.predicted: {config.predicted} of {num_patches} patches is {self.num_predicted}; at least "
                f"one is predicted, and no more than the {num_patches - self.num_visible} that are hidden"
            )
        shapes = _shapes(grid(backbone), self.num_visible, config.narrowest_block)
        self.register_buffer("shapes", torch.tensor(shapes), persistent=False)
        self.predictor = LatentPredictor(config.predictor, backbone.embed_dim, grid(backbone), norm_eps(backbone))
        self.head = ClusterHead(config.predictor.width, config.clusters)
        self.clustering = nn.Linear(backbone.embed_dim, config.clusters)
        nn.init.normal_(self.clustering.weight)
        nn.init.zeros_(self.clustering.bias)
        self.teacher = kit.Teacher(config.teacher, backbone)

    def forward(self, batch: Batch, mask: Tensor | None = None, predicted: Tensor | None = None) -> Output:
        """Returns the cross-entropy of predicted clusters and that of the clustering; masks replace what is drawn."""
        mask = self.mask(batch.keys) if mask is None else mask  # BM N
        keys = self.view_keys(batch.keys)
        predicted = some_hidden(mask, keys, self.num_predicted) if predicted is None else predicted  # BM N
        places = visible_places(~predicted, self.num_predicted)  # BM K
        (tokens,) = self.teacher(batch.images)  # B N D
        assigned, clustering = self.cluster(tokens)  # B N C, B
        latent, _ = self.encode_visible(batch.images, mask, self.num_visible, keys)
        scores = self.head(self.predictor(latent, places))  # BM K C
        target = gather_tokens(assigned, places)
        per_view = cross_entropy(target, scores, self.config.student_temperature).mean(1)  # BM
        usual = kit.mean_over_processes(target.mean((0, 1)))
        output = self.build_output(
            per_view + clustering.repeat_interleave(self.num_masks),
            latent,
            -torch.xlogy(usual, usual).sum(),
            batch.step,
        )
        output.metrics |= {"reconstruction": per_view.mean().detach(), "clustering": clustering.mean().detach()}
        return output

    def draw_mask(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Hides all patches but a block, which may reach around the border."""
        return rolled_block_mask(keys, grid(self.backbone), self.shapes, self.num_visible, draws)

    def cluster(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what each of the teacher's patches is assigned to, and each image's loss of the clustering."""
        config = self.config
        with torch.autocast(tokens.device.type, enabled=False):
            scores = self.clustering(functional.normalize(tokens.float(), dim=-1, eps=1e-7))  # B N C
            assigned = balanced(scores.detach() / config.target_temperature, config.iterations)
            return assigned, cross_entropy(assigned, scores, config.clustering_temperature).mean(1)

    def after_step(self, step: int, updated: Tensor) -> None:
        """Moves the teacher towards the student."""
        self.teacher.follow(self.backbone, step, updated)


class ClusterHead(nn.Module):
    """Scores of clusters: cosines of a token with their directions, times a learned length each."""

    def __init__(self, width: int, clusters: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.empty(clusters, width))
        self.lengths = nn.Parameter(torch.ones(clusters))
        nn.init.normal_(self.directions, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the scores, in float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            directions = self.directions / (self.directions.norm(dim=1, keepdim=True) + 1e-8)
            scores: Tensor = functional.normalize(tokens.float(), dim=-1) @ directions.T * self.lengths
        return scores


def cross_entropy(target: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Returns the cross-entropy of each token's clusters, in float32."""
    return -(target * (scores.float() / temperature).log_softmax(-1)).sum(-1)


@torch.no_grad()
def balanced(scores: Tensor, iterations: int) -> Tensor:
    """Returns assignments that use all clusters alike, for each patch's place by itself over the images (Sinkhorn).

    The images are those of all processes.
    """
    largest = kit.over_processes(scores.amax(0), "max")
    shares = (scores - largest + 50).exp()  # B N C; as large as float32 bears, so that small ones are not lost
    for _ in range(iterations):
        shares = shares / (kit.over_processes(shares.sum(0), "sum") + 1e-8)
        shares = shares / (shares.sum(-1, keepdim=True) + 1e-8)
    return shares


def _shapes(grid_size: tuple[int, int], area: int, narrowest: float) -> list[tuple[int, int]]:
    """Returns blocks that hold so many patches as often as they are drawn: the logarithm of their aspect is uniform."""
    rows, columns = grid_size
    low = max(math.log(narrowest), math.log(area / columns**2))  # of height over width: the wider ones do not fit
    high = min(-math.log(narrowest), math.log(rows**2 / area))
    if low > high:  # none of these aspects fits
        low = high = math.log(rows / columns)
    roots = [math.exp((low + (high - low) * (number + 0.5) / SHAPES) / 2) for number in range(SHAPES)]
    sides = [(math.ceil(area**0.5 * root), math.ceil(area**0.5 / root)) for root in roots]
    return [(min(height, rows), min(width, columns)) for height, width in sides]

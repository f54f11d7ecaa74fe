"""The features that a trained run computes of images, and the patches that it predicts; run it whole or cell by cell.

python examples/features.py RUN
"""

# %% A run's folder, one of its checkpoints, or anything that `mrp import` reads
import sys

import torch

import mrp

model = mrp.load(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")  # weights="teacher", step=1000
print(f"{model.run.name}, step {model.step}, weights of the {model.weights}")

# %% Images as uint8, or as floats in [0, 1]; normalisation is the model's own
channels, (height, width) = model.run.data.channels, model.run.data.shape
images = torch.rand(8, channels, height, width, generator=torch.Generator().manual_seed(0))

# %% One vector per image
features = model.features(images)
print(f"features of {len(images)} images: {tuple(features.shape)}")

# %% Which images are alike
directions = torch.nn.functional.normalize(features, dim=1)
print("nearest neighbours:", (directions @ directions.T).fill_diagonal_(-1).argmax(1).tolist())

# %% The encoder is timm's VisionTransformer, with all that timm has for it
print(f"{sum(parameter.numel() for parameter in model.backbone.parameters()):,} parameters")

# %% What was hidden (True), and every patch as the model predicts it, if its method predicts pixels
if model.objective.paints and not model.missing:
    mask, painted = model.reconstruct(images)
    print(f"hidden: {mask.float().mean():.0%} of {mask.shape[1]} patches; painted: {tuple(painted.shape)}")

"""MAE in a plain PyTorch loop: a backbone and a method of mrp, and none of its training loop.

python examples/plain_loop.py [STEPS]
"""

import sys

import timm
import torch
from sklearn.datasets import load_digits

from mrp import Batch
from mrp.models import vit
from mrp.models.decoder import TransformerConfig
from mrp.objectives import mae

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 400

# Images as a method takes them: float32, normalised. These are 1797 grey digits of 8 x 8 pixels.
pixels = torch.from_numpy(load_digits().images).float()[:, None] / 16
images = (pixels - pixels.mean()) / pixels.std()

torch.manual_seed(0)
backbone = vit.build(vit.Config(width=96, depth=4, heads=4, patch=2), image_size=(8, 8), channels=1)
config = mae.Config(target="pixels", decoder=TransformerConfig(width=64, depth=2, heads=4))
objective = mae.Objective(config, backbone).train()
optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-3)

for step in range(STEPS):
    rows = torch.randint(len(images), (128,))
    # All of a sample's randomness comes from its key: other numbers in every step give other masks in every step.
    batch = Batch(images[rows], keys=step * len(images) + rows)
    output = objective(batch)
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    objective.after_step(step, updated=torch.tensor(True))  # teachers move here; MAE has none
    if step % 50 == 0 or step == STEPS - 1:
        constant = float(output.metrics["target_variance"])  # the loss of the best constant prediction
        print(f"step {step:4}: loss {output.loss.item():.3f}, a constant would cost {constant:.3f}")

features = objective.eval().features(Batch(images, keys=torch.arange(len(images)))).detach()
print(f"features of {len(images)} images: {tuple(features.shape)}")

# What remains of pretraining is a timm model under timm's own names.
theirs = timm.create_model(
    "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=96, depth=4, num_heads=4, num_classes=0
)
print(theirs.load_state_dict(backbone.state_dict()))

"""A folder that timm loads with its own call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mrp.interop import timm
from mrp.interop.folders import CONFIG, WEIGHTS, Preprocessing, save_json, save_tensors


def write(
    folder: Path, vit: VisionTransformer, head: nn.Linear | None, images: Preprocessing, classes: Sequence[str] = ()
) -> str:
    """Write config.json and model.safetensors in timm's hub format; how to load them."""
    model, architecture, options = timm.exported(vit, head)
    arguments = {key: value for key, value in options.items() if value is not None}
    cropped = images.crop is not None
    save_tensors(folder / WEIGHTS, model.state_dict())
    save_json(
        folder / CONFIG,
        {
            "architecture": architecture,
            "num_classes": model.num_classes,
            "num_features": model.num_features,
            "global_pool": model.global_pool,
            "model_args": arguments,
            **({"label_names": list(classes)} if head is not None and len(classes) == head.out_features else {}),
            "pretrained_cfg": {
                "tag": "mrp",
                "custom_load": False,
                "input_size": [images.channels, *images.size],
                "fixed_input_size": True,
                "interpolation": "bicubic",
                "crop_pct": images.crop if cropped else 1.0,
                "crop_mode": "center" if cropped else "squash",
                "mean": list(images.mean),
                "std": list(images.std),
                "num_classes": model.num_classes,
                "pool_size": None,
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        },
    )
    listed = "".join(f",\n    {key}={value!r}" for key, value in arguments.items())
    return (
        "import timm\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or, uploaded: "hf-hub:OWNER/NAME"\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n\n"
        "# The same from the file of weights alone:\n"
        f'model = timm.create_model(\n    "{architecture}",\n    checkpoint_path="FOLDER/{WEIGHTS}"{listed},\n)'
    )

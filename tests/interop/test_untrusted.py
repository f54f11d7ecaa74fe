"""Files of weights in whatever state they come: converted, recognised, bounded in memory, or refused in one line."""

from __future__ import annotations

import argparse
import codecs
import pathlib
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mrp
from mrp import cli
from mrp.config import ConfigError
from mrp.interop import official, reading
from tests.interop.conftest import Make, images

Weights = dict[str, Tensor]
BEIT = {"positions": "none", "relative_bias": "shared", "layer_scale": 0.1, "qkv_bias": "query_value"}
HEADS = {"backbone": {"heads": 4}, "objective": {"decoder": {"heads": 2}}}


@pytest.fixture
def weights(make: Make) -> Weights:
    """A small MAE under official names."""
    folder = make("mae", {"positions": "learned"})
    cli.main(["export", str(folder), "--to", "official", "--out", str(folder.with_name("official"))])
    saved: Weights = torch.load(folder.with_name("official") / "checkpoint.pth", weights_only=True)["model"]
    return saved


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_number_formats_become_float32(
    kind: str, weights: Weights, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = {name: tensor.to(getattr(torch, kind)) for name, tensor in weights.items()}
    path, out = saved(tmp_path / "half.pth", {"model": stored}), tmp_path / "imported"
    cli.main(["import", str(path), "--out", str(out), "backbone.heads=4", "objective.decoder.heads=2"])
    assert f"stored as {kind}, converted to float32" in capsys.readouterr().out
    state = mrp.load(out).objective.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert torch.equal(state["backbone.pos_embed"], stored["pos_embed"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor * torch.nan, "'backbone.norm.weight' holds NaN or infinite values"),
        (lambda tensor: tensor.to_sparse(), "'norm.weight' is sparse or quantized"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "'norm.weight' is sparse or quantized"),
        (lambda tensor: tensor.to(torch.int8), "'backbone.norm.weight' is stored as int8"),
        (lambda tensor: tensor[:1].expand(1_000_000_000), "its weights would take 4,000,[0-9,]* bytes, more than the"),
        (lambda tensor: "text", "'norm.weight' is no tensor"),
    ],
    ids=["nan", "sparse", "quantized", "integers", "expanded", "text"],
)
@pytest.mark.filterwarnings("ignore")  # torch's, on quantized tensors
def test_weights_that_are_none_are_named(change: Any, message: str, weights: Weights, tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.pth", {"model": weights | {"norm.weight": change(weights["norm.weight"])}})
    with pytest.raises(ConfigError, match=message) as error:
        reading.read(path, values=HEADS)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_harmless_settings_are_let_through(weights: Weights, tmp_path: Path) -> None:
    history = defaultdict(list, {"loss": [1.0]})
    settings = {
        "best": np.float64(0.5), "count": np.int32(3), "array": np.ones(3), "path": pathlib.PosixPath("/data"),
        "history": history, "args": argparse.Namespace(lr=np.float32(1.0)), "kind": dict,
    }  # fmt: skip
    path = saved(tmp_path / "settings.pth", {"model": weights} | settings)
    assert reading.read(path, values=HEADS).method == "mae"


def test_what_could_run_is_refused_with_a_remedy(weights: Weights, tmp_path: Path) -> None:
    path = saved(tmp_path / "code.pth", {"model": weights, "scheduler": torch.nn.Linear(1, 1)})
    with pytest.raises(ConfigError, match=r"asks to load 'torch.nn.modules.linear.Linear'.* save its weights alone"):
        reading.read(path, values=HEADS)


@pytest.mark.parametrize("name", ["model.pth", "model.bin", "model"])
def test_a_safetensors_file_of_another_name_is_recognised(name: str, weights: Weights, tmp_path: Path) -> None:
    save_file(weights, tmp_path / name)
    assert reading.read(tmp_path / name, values=HEADS).method == "mae"


def test_a_checkpoint_of_deepspeed_is_read_and_data2vecs_has_its_own_statistics(make: Make, tmp_path: Path) -> None:
    folder = make("classify", BEIT, pool="mean")
    cli.main(["export", str(folder), "--to", "timm", "--out", str(tmp_path / "beit")])
    model = load_file(tmp_path / "beit" / "model.safetensors")  # timm's Beit has the names of data2vec's code
    content = {"module": model, "optimizer": None, "ds_config": {"steps": 1}, "ds_version": "0.5", "global_steps": 9}
    loaded = mrp.load(saved(tmp_path / "mp_rank_00_model_states.pth", content))
    assert loaded.run.data.mean == loaded.run.data.std == (0.5,) * 3
    with torch.no_grad():
        ours, theirs = (each.objective.predict(images())[1] for each in (mrp.load(folder), loaded))  # type: ignore[operator]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(weights: Weights, tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain.pth", {"model": weights, "padding": torch.zeros(4_000_000)})
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert packed.stat().st_size < 1_000_000
    with pytest.raises(ConfigError, match=r"packed.pth: refused: its [0-9,]* bytes unpack to 16,[0-9,]*"):
        official.load(packed)


class Recoded:
    """Bytes that double in size each time they are read through this."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __reduce__(self) -> tuple[Any, ...]:
        inner = Recoded(self.times - 1) if self.times else b"a" * 1000
        return codecs.encode, (inner, "HEX")


@pytest.mark.parametrize("archive", [True, False])
def test_bytes_that_would_be_recoded_are_refused(archive: bool, weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "recoded.pth"
    content = {"model": weights, "extra": Recoded(12), "bytes": b"plain"}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(ConfigError, match="asks to recode bytes"):
        reading.read(path, values=HEADS)


@pytest.mark.parametrize("archive", [True, False])
def test_bytes_and_files_of_old_versions_are_read(archive: bool, weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model": weights, "bytes": b"plain"}, path, _use_new_zipfile_serialization=archive)
    assert reading.read(path, values=HEADS).method == "mae"


@pytest.mark.parametrize("number", [2, 9999, 99999999])
def test_a_block_after_a_gap_is_named_and_builds_nothing(number: int, weights: Weights, tmp_path: Path) -> None:
    weights = {name.replace("blocks.1.", f"blocks.{number}."): tensor for name, tensor in weights.items()}
    path = saved(tmp_path / "deep.pth", weights)
    with pytest.raises(ConfigError, match=rf"deep.pth: '(backbone\.)?blocks\.{number}\."):
        reading.read(path, values=HEADS)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (0, 0, 0, 0), (1, 1, 1, 1, 1)])
def test_tensors_of_any_shape_are_one_line(shape: tuple[int, ...], weights: Weights, tmp_path: Path) -> None:
    for name in (name for name in weights if "blocks.1." not in name):  # which is read as the block before it
        path = saved(tmp_path / "shape.pth", weights | {name: torch.zeros(shape)})
        with pytest.raises(ConfigError) as error:
            reading.read(path, values=HEADS)
        assert "\n" not in str(error.value)

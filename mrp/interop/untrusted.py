"""Files of weights from strangers: read without executing anything, and without taking more memory than they should."""

from __future__ import annotations

import argparse
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from encodings import normalize_encoding
from encodings.aliases import aliases
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mrp.config import ConfigError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in a folder of timm or transformers; the first that exists
_ENLARGING = {"base64_codec", "bz2_codec", "hex_codec", "quopri_codec", "rot_13", "uu_codec", "zlib_codec"}
_OLD_PICKLES = 5  # in a file that torch.save wrote before it wrote archives; then come the tensors
_REMEDY = "save its weights alone, with torch.save(model.state_dict(), PATH)"


class _StandIn:
    """Stands for a harmless class whose value nobody needs, and drops what it is given."""

    def __new__(cls, *values: Any) -> _StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _empty_mapping(*values: Any) -> dict[Any, Any]:
    return OrderedDict()


# What checkpoints hold besides tensors. Anything else is refused by its name.
_KEPT = """yacs.config.CfgNode
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.nodes.AnyNode
    omegaconf.base.ContainerMetadata omegaconf.base.Metadata typing.Any"""  # SimMIM's settings, and data2vec's
_DROPPED = """builtins.dict builtins.list builtins.tuple builtins.int builtins.float builtins.str builtins.bool
    numpy.dtype numpy.ndarray
    numpy.core.multiarray.scalar numpy.core.multiarray._reconstruct
    numpy._core.multiarray.scalar numpy._core.multiarray._reconstruct
    pathlib.Path pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath pathlib.PureWindowsPath
    pathlib._local.Path pathlib._local.PosixPath pathlib._local.PurePosixPath
    pathlib._local.WindowsPath pathlib._local.PureWindowsPath
    deepspeed.runtime.fp16.loss_scaler.LossScaler deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"""
_ALLOWED: list[Any] = [
    argparse.Namespace,
    (_empty_mapping, "collections.defaultdict"),
    *((OrderedDict, name) for name in _KEPT.split()),
    *((_StandIn, name) for name in _DROPPED.split()),
]


def read(path: Path) -> Any:
    """Returns a file's content: tensors, numbers, text and settings. Its first bytes tell the format, not its name."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{":  # safetensors: the length of a JSON header, then the header
            return load_file(path)
        _check_pickles(path, _opcodes_of_archive(path) if start.startswith(b"PK\x03\x04") else _opcodes_of_file(path))
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:  # a damaged file makes the reader fail in any way
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise ConfigError(f"{path}: is damaged, or not a checkpoint; fetch it again") from None
        raise ConfigError(
            f"{path}: refused: it asks to load '{refused[1]}', which could run code; {_REMEDY} where that is installed"
        ) from None


def _opcodes_of_archive(path: Path) -> Iterator[Any]:
    """Yields the arguments of all opcodes, after checking that the archive does not grow when it is unpacked."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ConfigError(
                f"{path}: refused: its {path.stat().st_size:,} bytes unpack to {unpacked:,}, and torch.save does not "
                "compress; unpack it with a tool that you trust, and save it again with torch.save"
            )
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                yield from (argument for _, argument, _ in pickletools.genops(archive.read(name)))


def _opcodes_of_file(path: Path) -> Iterator[Any]:
    """Yields the arguments of all opcodes of a file that torch.save wrote before it wrote archives."""
    with path.open("rb") as file:
        for _ in range(_OLD_PICKLES):
            yield from (argument for _, argument, _ in pickletools.genops(file))


def _check_pickles(path: Path, arguments: Iterator[Any]) -> None:
    """Refuses pickles that enlarge bytes with codecs such as `hex`, which torch's reader applies again and again.

    It knows `_codecs.encode` because bytes are pickled with it, as text in latin1.
    """
    texts = {argument for argument in arguments if isinstance(argument, str)}
    codecs = {normalize_encoding(text).lower() for text in texts}
    if "_codecs encode" in texts and any(aliases.get(name, name) in _ENLARGING for name in codecs):
        raise ConfigError(f"{path}: refused: it asks to recode bytes, which no checkpoint needs; {_REMEDY}")


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Returns the named tensors of a model in a file's content, after checking that they are what they look like."""
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise ConfigError(f"{path}: holds no weights by name; is it a checkpoint of an official implementation?")
    for name, part in content.items():
        if isinstance(part, dict) and any(isinstance(tensor, Tensor) for tensor in part.values()):
            raise ConfigError(
                f"{path}: holds weights under '{name}', which is no name known here; if they are the ones, save them "
                f"alone, with torch.save(content['{name}'], PATH)"
            )
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            raise ConfigError(f"{path}: holds no weights by name: '{name}' is no tensor; save its weights alone")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ConfigError(f"{path}: '{name}' is sparse or quantized; save it as a dense tensor")
    size = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if size > path.stat().st_size:
        raise ConfigError(f"{path}: refused: its weights would take {size:,} bytes, more than the file holds")
    return content


def as_float32(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Returns the weights in float32, and the other number formats that they were stored in."""
    formats: set[str] = set()
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stored = str(tensor.dtype).removeprefix("torch.")
        if stored not in {"float16", "bfloat16", "float32", "float64"}:
            raise ConfigError(f"'{name}' is stored as {stored}, which is no format of weights; save it as float32")
        converted[name] = tensor.float()
        if not bool(converted[name].isfinite().all()):
            raise ConfigError(f"'{name}' holds NaN or infinite values; take a checkpoint from before training diverged")
        formats.add(stored)
    return converted, tuple(sorted(formats - {"float32"}))


def weights_file(folder: Path) -> Path:
    """Returns the file that holds the weights in a folder of timm or transformers."""
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ConfigError(f"has neither {' nor '.join(WEIGHTS)}")
    return file

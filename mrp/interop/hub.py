"""Folders of the Hugging Face hub, fetched when they are asked for by `hf:OWNER/NAME` and at no other time."""

from __future__ import annotations

from pathlib import Path

from mrp.config import ConfigError

_PREFIX = "hf:"
_SMALL = ("config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there


def is_name(source: str) -> bool:
    """Whether a word names a model of the hub."""
    return source.startswith(_PREFIX)


def fetch(source: str) -> Path:
    """The folder of a model (`hf:OWNER/NAME`, or with `@REVISION`): its configuration and one file of weights."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, revision = source.removeprefix(_PREFIX).partition("@")
    try:
        files = HfApi().list_repo_files(name, revision=revision or None)
        wanted = next((file for file in WEIGHTS if file in files), None)
        if wanted is None:
            raise ConfigError(f"{source}: holds neither {' nor '.join(WEIGHTS)}, which are what is read")
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*_SMALL, wanted]))
    except ConfigError:
        raise
    except HFValidationError:
        raise ConfigError(f"{source}: is no name of a model; write hf:OWNER/NAME") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ConfigError(f"{source}: the hub is not reached (offline); fetch the folder and give its path") from None
    except Exception as error:  # a network fails in any way
        reason = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
        raise ConfigError(f"{source}: cannot be fetched: {reason}; give a folder or a file instead") from None

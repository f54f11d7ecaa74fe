"""Folders of the Hugging Face hub: fetched when `hf:OWNER/NAME` asks for one, and at no other time."""

from __future__ import annotations

from pathlib import Path

from mrp.config import ConfigError
from mrp.interop.untrusted import WEIGHTS

PREFIX = "hf:"
_SETTINGS = ("config.json", "preprocessor_config.json")


def fetch(source: str) -> Path:
    """Returns the folder of a model (`hf:OWNER/NAME@REVISION`) with its settings and one file of weights."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, revision = source.removeprefix(PREFIX).partition("@")
    try:
        # One request, which fails at once where there is no network: listing files would try again and again.
        files = {file.rfilename for file in HfApi().model_info(name, revision=revision or None).siblings or ()}
        weights = next((file for file in WEIGHTS if file in files), None)
        if weights is None:
            raise ConfigError(f"{source}: holds neither {' nor '.join(WEIGHTS)}, which are what is read")
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*_SETTINGS, weights]))
    except ConfigError:
        raise
    except HFValidationError:
        raise ConfigError(f"{source}: is no name of a model; write hf:OWNER/NAME") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ConfigError(f"{source}: the hub is not reached (offline); fetch the folder and give its path") from None
    except Exception as error:  # a network fails in any way
        reason = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
        raise ConfigError(f"{source}: cannot be fetched: {reason}; give a folder or a file instead") from None

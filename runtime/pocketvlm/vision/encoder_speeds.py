"""Which encoder was how fast on this device: a small JSON file in the user's cache folder. Losing it costs a second.

{"format": 1, "devices": {DEVICE: {ENCODER: {"name": ..., "threads": ..., "seconds": ...}}}}, where ENCODER starts with
a hash of the file. Nothing about pictures or prompts is in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from pocketvlm.errors import PocketVLMError
from pocketvlm.system.atomic import keep_text
from pocketvlm.system.machine import cache_folder

_log = logging.getLogger(__name__)
_ENDS = 1 << 20  # bytes at either end of a file that its hash looks at


class EncoderSpeed(BaseModel):
    """`seconds` for one tile with `threads`; `name` is for a person: file and encoder.

    Not `steady` where that varied, or other programs had the processor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    threads: PositiveInt
    seconds: PositiveFloat
    steady: bool = True


EncoderSpeeds = dict[str, EncoderSpeed]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    devices: dict[str, EncoderSpeeds] = {}


def path() -> Path:
    return cache_folder() / "encoders.json"


def recall_all() -> dict[str, EncoderSpeeds]:
    """By device. Empty where nothing was measured yet, or the file is not ours."""
    try:
        return _File.model_validate_json(path().read_bytes()).devices
    except (OSError, ValidationError):
        return {}


def recall(device: str) -> EncoderSpeeds:
    return recall_all().get(device, {})


def remember(device: str, measured: Mapping[str, EncoderSpeed]) -> None:
    """Add to the file. Where it cannot be written, the next start measures again."""
    devices = recall_all()
    devices[device] = {**devices.get(device, {}), **measured}
    target = path()
    text = json.dumps(_File(devices=devices).model_dump(mode="json"), indent=1)
    try:
        keep_text(target, text)
    except OSError as error:
        _log.info("speeds of the vision encoders are not remembered: %s", error)


def forget(file: Path | None = None) -> bool:
    """Remove the file, or another of what was measured; False where there was none."""
    file = file or path()
    try:
        file.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise PocketVLMError(f"{file}: cannot be removed: {error.strerror}") from None
    return True


def file_hash(file: Path) -> str:
    """SHA-256 of a file's size and its two ends: enough to tell models apart, and no second of reading."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        digest.update(opened.read(_ENDS))
        opened.seek(max(0, size - _ENDS))
        digest.update(opened.read(_ENDS))
    return digest.hexdigest()

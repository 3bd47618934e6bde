"""Remember how fast each vision encoder was on each device. Nothing about pictures or prompts is stored.

encoders.json is {"format": 1, "devices": {DEVICE: {ENCODER: {"name": ..., "threads": ..., "seconds": ...}}}}, where
ENCODER begins with the hash of the encoder's file.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from pocketvlm.system.json_cache import JSONCache

CACHE = JSONCache("encoders.json", "devices", most=64)


class EncoderSpeed(BaseModel):
    """`seconds` for one tile with `threads`. `name` is for people: the file and the encoder.

    Not `steady`: the times varied, or other programs used the processor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    threads: PositiveInt
    seconds: PositiveFloat
    steady: bool = True


EncoderSpeeds = dict[str, EncoderSpeed]
_ADAPTER = TypeAdapter(EncoderSpeeds)


def recall_all() -> dict[str, EncoderSpeeds]:
    """Return the speeds of all devices by name; devices without valid speeds are left out."""
    speeds = {device: _parse(entry) for device, entry in CACHE.read().items()}
    return {device: measured for device, measured in speeds.items() if measured}


def recall(device: str) -> EncoderSpeeds:
    """Return the speeds of a device by encoder."""
    return recall_all().get(device, {})


def remember(device: str, measured: Mapping[str, EncoderSpeed]) -> None:
    """Add speeds to those of a device."""
    CACHE.add(device, _ADAPTER.dump_python({**recall(device), **measured}, mode="json"))


def _parse(entry: object) -> EncoderSpeeds:
    try:
        return _ADAPTER.validate_python(entry)
    except ValidationError:
        return {}

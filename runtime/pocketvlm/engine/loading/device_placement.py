"""What of a model goes to a GPU: as much as its free memory surely holds, computed before anything is loaded.

Pure: devices come as ggml describes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pocketvlm.errors import NativeLibraryError, RequestError
from pocketvlm.files.footprint import Weights
from pocketvlm.native.backends import Backend

NATIVE = {"cuda": "CUDA", "vulkan": "Vulkan", "metal": "MTL"}  # as ggml begins the names of its devices
_ONNX = {"cuda": "cuda", "metal": "coreml"}  # the same device, as onnxruntime's users name it
_SPARE_PART, _SPARE = 20, 256 << 20  # of a device's memory: for the driver, for pools, for what else is drawn on it
_MIB = 1 << 20


@dataclass(frozen=True)
class MemoryDemand:
    """Bytes. `cells` in the KV cache; `scratch` of an evaluation on the device; `encoder` with its largest tile.

    `encoder_moves` where it is a file that llama.cpp runs.
    """

    weights: Weights
    cells: int
    scratch: int
    encoder: int = 0
    encoder_moves: bool = False


@dataclass(frozen=True)
class DevicePlacement:
    """`device` is a number in ggml's list, None the CPU. `layers` counts as llama.cpp does: the output, then the last.

    `summary` says for people what was decided, `short` whether something did not fit.
    """

    device: int | None
    layers: int
    encoder: bool
    summary: str
    short: bool = False

    def smaller(self) -> DevicePlacement | None:
        """The next to try where a device had less than it said; None after the CPU."""
        if self.device is None:
            return None
        if self.encoder and self.layers:
            return DevicePlacement(
                self.device, self.layers // 2, self.encoder, "the GPU has less memory than it says", True
            )
        if self.layers > 1:
            return DevicePlacement(self.device, self.layers // 2, False, "the GPU has less memory than it says", True)
        return DevicePlacement(None, 0, False, "the GPU has less memory than it says: all on the CPU", True)


def place_on_devices(
    devices: Sequence[Backend], asked: str, demand: MemoryDemand, *, host: int | None
) -> DevicePlacement:
    """`asked` is auto, cpu, or a kind of device with or without its number, as in vulkan:1. `host`: free bytes there.

    The encoder goes first, as it is most of the wait, then the output, then layers from the last. RequestError for a
    name that nobody knows, NativeLibraryError for a device that is not there.
    """
    found = _device(devices, asked)
    if found is None:
        return DevicePlacement(None, 0, False, "all on the CPU")
    device = devices[found]
    room = _room(device, host)
    encoder = demand.encoder_moves and demand.encoder <= room
    left = room - (demand.encoder if encoder else 0)
    layers = _layers(demand, left)
    most = len(demand.weights.layers) + 1
    if not layers and not encoder:
        summary = f"{device.name} has {_mib(room)} to spare, too little for a layer: all on the CPU"
        return DevicePlacement(None, 0, False, summary, True)
    parts = [f"{'all' if layers == most else f'{layers} of {most}'} layers"]
    if demand.encoder_moves:
        parts.append("the vision encoder" if encoder else "not the vision encoder")
    short = layers < most or (demand.encoder_moves and not encoder)
    summary = f"on {device.name} ({device.description}): {' and '.join(parts)}"
    return DevicePlacement(found, layers, encoder, f"{summary}, in {_mib(room)}" if short else summary, short)


def onnx_device(asked: str, offered: Sequence[str]) -> str:
    """Where onnxruntime runs then; `offered` are the devices that it has here."""
    kind = asked.partition(":")[0]
    if kind not in NATIVE:
        return asked
    other = _ONNX.get(kind, "cpu")
    return other if other in offered else "cpu"


def check_name(asked: str, others: Sequence[str]) -> None:
    """RequestError for a device that neither llama.cpp nor onnxruntime (`others`) knows."""
    kind, colon, number = asked.partition(":")
    known = (*others, *(name for name in NATIVE if name not in others))
    if kind not in known or (colon and (kind not in NATIVE or not re.fullmatch(r"\d{1,3}", number))):
        names = ", ".join(known)
        raise RequestError(f"{asked!r} is unknown; known: {names}; a number may follow, as in vulkan:1", "device")


def scratch_bytes(width: int, inner: int, vocabulary: int, *, batch: int, context: int, sequences: int) -> int:
    """A bound for an evaluation of `batch` rows: activations, the mask of attention, logits."""
    return 4 * batch * (3 * inner + 6 * width) + 4 * batch * context * sequences + 4 * vocabulary * (sequences + 1)


def _device(devices: Sequence[Backend], asked: str) -> int | None:
    gpus = [number for number, device in enumerate(devices) if device.kind in ("gpu", "igpu")]
    kind, _, index = asked.partition(":")
    if kind == "auto":
        # One with memory of its own before one that shares the host's, the most of it first.
        own = sorted(gpus, key=lambda n: (devices[n].kind == "gpu", devices[n].free), reverse=True)
        return own[0] if own else None
    if kind not in NATIVE:
        return None
    named = [number for number in gpus if re.fullmatch(rf"{NATIVE[kind]}\d*", devices[number].name)]
    if index:
        named = [number for number in named if devices[number].name == f"{NATIVE[kind]}{index}"]
    if not named:
        here = ", ".join(devices[number].name for number in gpus) or "no GPU"
        raise NativeLibraryError(f"device {asked}: this build of llama.cpp has {here} here")
    return named[0]


def _room(device: Backend, host: int | None) -> int:
    """What may be taken. Memory that is the host's is no more than the host has free."""
    free = device.free
    if (device.kind == "igpu" or device.name.startswith(NATIVE["metal"])) and host is not None:
        free = min(free, host) if free else host
    return max(0, free - max(_SPARE, device.total // _SPARE_PART))


def _layers(demand: MemoryDemand, room: int) -> int:
    """How many fit, in llama.cpp's count."""
    weights = demand.weights
    left = room - demand.scratch - weights.output
    if left < 0:
        return 0
    count = 1
    for layer in reversed(range(len(weights.layers))):
        left -= weights.layers[layer] + demand.cells * (weights.cell[layer] if weights.cell else 0)
        if left < 0:
            break
        count += 1
    return count


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB"

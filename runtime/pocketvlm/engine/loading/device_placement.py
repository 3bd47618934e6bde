"""Which parts of a model go to a GPU: as much as surely fits its free memory, computed before anything is loaded.

Pure: devices come as ggml describes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pocketvlm.errors import NativeLibraryError, RequestError, quoted
from pocketvlm.files.footprint import Weights
from pocketvlm.native.backends import Backend

NATIVE = {"cuda": "CUDA", "vulkan": "Vulkan", "metal": "MTL"}  # how ggml's names of such devices begin
_ONNX = {"cuda": "cuda", "metal": "coreml"}  # the same devices by the names that onnxruntime's users know
# Kept free on a device for the driver, for memory pools and for what else is drawn on it: the larger of these two.
_RESERVED_PART = 20  # of its memory: a twentieth
_RESERVED = 256 << 20  # bytes
_MIB = 1 << 20
_OVERSTATED = "the GPU has less memory than it reports"


@dataclass(frozen=True)
class MemoryDemand:
    """What a model takes on a device. `cells` counts cells of the KV cache; the other numbers are bytes.

    `scratch` is the memory of an evaluation, `encoder` that of the vision encoder with its largest tile.
    `encoder_moves`: llama.cpp runs the encoder, so it can go to the device.
    """

    weights: Weights
    cells: int
    scratch: int
    encoder: int = 0
    encoder_moves: bool = False


@dataclass(frozen=True)
class DevicePlacement:
    """`device` is a number in ggml's list, or None for the CPU.

    `layers` counts as llama.cpp does: first the output, then layers from the last one on. `summary` is a sentence about
    the decision, `short` says whether something did not fit.
    """

    device: int | None
    layers: int
    encoder: bool
    summary: str
    short: bool = False

    def smaller(self) -> DevicePlacement | None:
        """Return what to try next where the device had less memory than it reported; None after the CPU."""
        if self.device is None:
            return None
        if self.layers > (0 if self.encoder else 1):
            return DevicePlacement(self.device, self.layers // 2, self.encoder, _OVERSTATED, True)
        return DevicePlacement(None, 0, False, f"{_OVERSTATED}: all on the CPU", True)


def place_on_devices(
    devices: Sequence[Backend], requested: str, demand: MemoryDemand, *, host: int | None
) -> DevicePlacement:
    """Decide what goes to which of the `devices`.

    `requested` is auto, cpu, or a kind of device with or without a number, as in vulkan:1. `host` is the free memory of
    this machine in bytes, None if unknown. The encoder goes first, because users wait for it longest; then the output,
    then layers from the last one on. Raises NativeLibraryError for a device that is not there.
    """
    number = _find_device(devices, requested)
    if number is None:
        return DevicePlacement(None, 0, False, "all on the CPU")
    device = devices[number]
    available = _available_bytes(device, host)
    encoder = demand.encoder_moves and demand.encoder <= available
    layers = _count_layers(demand, available - (demand.encoder if encoder else 0))
    total = len(demand.weights.layers) + 1
    if not layers and not encoder:
        summary = f"{device.name} has {_mib(available)} available, too little for a layer: all on the CPU"
        return DevicePlacement(None, 0, False, summary, True)
    parts = [f"{'all' if layers == total else f'{layers} of {total}'} layers"]
    if demand.encoder_moves:
        parts.append("the vision encoder" if encoder else "not the vision encoder")
    short = layers < total or (demand.encoder_moves and not encoder)
    summary = f"on {device.name} ({device.description}): {' and '.join(parts)}"
    return DevicePlacement(number, layers, encoder, f"{summary}, in {_mib(available)}" if short else summary, short)


def device_bytes(demand: MemoryDemand, placement: DevicePlacement) -> int:
    """Return how many bytes of its device's memory a placement takes, as it was computed to fit."""
    taken = demand.encoder if placement.encoder else 0
    if not placement.layers:
        return taken
    weights = demand.weights
    first = max(0, len(weights.layers) - (placement.layers - 1))
    cells = sum(weights.cell[first:]) * demand.cells
    return taken + demand.scratch + weights.output + sum(weights.layers[first:]) + cells


def onnx_device(requested: str, offered: Sequence[str]) -> str:
    """Return the device for onnxruntime where `requested` names one of llama.cpp's; it has those `offered` here."""
    kind = requested.partition(":")[0]
    if kind not in NATIVE:
        return requested
    device = _ONNX.get(kind, "cpu")
    return device if device in offered else "cpu"


def check_name(requested: str, onnx_devices: Sequence[str]) -> None:
    """Raise RequestError for a device that neither llama.cpp nor onnxruntime knows."""
    kind, colon, number = requested.partition(":")
    known = (*onnx_devices, *(name for name in NATIVE if name not in onnx_devices))
    if kind not in known or (colon and (kind not in NATIVE or not re.fullmatch(r"\d{1,3}", number))):
        names = ", ".join(known)
        raise RequestError(
            f"unknown device {quoted(requested)}; use one of {names}, or with a number: vulkan:1", "device"
        )


def scratch_bytes(
    width: int, inner: int, vocabulary: int, *, batch: int, context: int, sequences: int, outputs: int
) -> int:
    """Return an upper bound for an evaluation of `batch` rows: activations, the mask, `outputs` rows of logits."""
    return 4 * batch * (3 * inner + 6 * width) + 4 * batch * context * sequences + 4 * vocabulary * outputs


def _find_device(devices: Sequence[Backend], requested: str) -> int | None:
    gpus = [number for number, device in enumerate(devices) if device.kind in ("gpu", "igpu")]
    kind, _, index = requested.partition(":")
    if kind == "auto":
        # A device with memory of its own is better than one that shares the host's; then the one with more free memory.
        return max(gpus, key=lambda n: (devices[n].kind == "gpu", devices[n].free), default=None)
    if kind not in NATIVE:
        return None
    named = [number for number in gpus if re.fullmatch(rf"{NATIVE[kind]}\d*", devices[number].name)]
    if index:
        named = [number for number in named if devices[number].name == f"{NATIVE[kind]}{index}"]
    if not named:
        present = ", ".join(devices[number].name for number in gpus) or "no GPU"
        raise NativeLibraryError(f"no device {requested} here; this build of llama.cpp has {present}")
    return named[0]


def _available_bytes(device: Backend, host: int | None) -> int:
    """Return how much memory may be used. Where it is the host's memory, it is no more than the host has free."""
    free = device.free
    if (device.kind == "igpu" or device.name.startswith(NATIVE["metal"])) and host is not None:
        free = min(free, host) if free else host
    return max(0, free - max(_RESERVED, device.total // _RESERVED_PART))


def _count_layers(demand: MemoryDemand, available: int) -> int:
    """Return how many layers fit, in llama.cpp's count."""
    weights = demand.weights
    left = available - demand.scratch - weights.output
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

"""The devices that onnxruntime may run on: their names for people, and its execution providers.

We have tested only `cpu`. The others are used if the installed onnxruntime lists their provider as available.
"""

from __future__ import annotations

from collections.abc import Sequence

from pocketvlm.errors import NativeLibraryError, RequestError, quoted

CPU = "cpu"
_PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    CPU: "CPUExecutionProvider",
}
DEVICES = ("auto", *_PROVIDERS)


def devices_for(requested: str, offered: Sequence[str]) -> tuple[str, ...]:
    """Return the devices to consider: for `auto` all that onnxruntime offers, else the `requested` one.

    `offered` are onnxruntime's available providers. Raises RequestError for an unknown name, NativeLibraryError for a
    device that this onnxruntime does not offer.
    """
    check_device(requested)
    available = tuple(device for device, provider in _PROVIDERS.items() if provider in offered)
    if requested == "auto":
        return available
    if requested not in available:
        raise NativeLibraryError(
            f"device {requested}: this onnxruntime offers {', '.join(available) or 'no known device'} only; "
            f"install a build with {_PROVIDERS[requested]}"
        )
    return (requested,)


def check_device(name: str) -> None:
    """Raise RequestError for an unknown device."""
    if name not in DEVICES:
        raise RequestError(f"{quoted(name)} is unknown; known: {', '.join(DEVICES)}", "device")


def providers_of(device: str) -> list[str]:
    """Return onnxruntime's providers in order of preference. The CPU runs the operators that a device lacks."""
    return [_PROVIDERS[device]] if device == CPU else [_PROVIDERS[device], _PROVIDERS[CPU]]

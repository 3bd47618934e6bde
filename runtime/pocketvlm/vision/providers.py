"""Where onnxruntime may run: the devices that people name, and the execution providers behind them.

Only `cpu` has been run by us. The others are chosen by what the installed onnxruntime says that it offers.
"""

from __future__ import annotations

from collections.abc import Sequence

from pocketvlm.errors import NativeLibraryError, RequestError

CPU = "cpu"
_PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    CPU: "CPUExecutionProvider",
}
DEVICES = ("auto", *_PROVIDERS)


def devices_for(asked: str, offered: Sequence[str]) -> tuple[str, ...]:
    """The devices to consider for what a user asked: for `auto` all that are offered, else the one.

    `offered` are onnxruntime's available providers. RequestError for an unknown name, NativeLibraryError for a
    device that this onnxruntime does not offer.
    """
    check_device(asked)
    here = tuple(device for device, provider in _PROVIDERS.items() if provider in offered)
    if asked == "auto":
        return here
    if asked not in here:
        raise NativeLibraryError(
            f"device {asked}: this onnxruntime offers {', '.join(here) or 'none that is known'} only; "
            f"it needs a build with {_PROVIDERS[asked]}"
        )
    return (asked,)


def check_device(name: str) -> None:
    """RequestError for a device that nobody knows."""
    if name not in DEVICES:
        raise RequestError(f"{name!r} is unknown; known: {', '.join(DEVICES)}", "device")


def providers_of(device: str) -> list[str]:
    """onnxruntime's providers in order of preference: what a device cannot do is left to the CPU."""
    return [_PROVIDERS[device]] if device == CPU else [_PROVIDERS[device], _PROVIDERS[CPU]]

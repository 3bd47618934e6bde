"""What goes to which device, by descriptions of devices as ggml gives them. No device is touched.

devices/ holds what `pocketvlm doctor --json` printed on real machines, and figures of others that were published. What
was changed to get a case that nobody recorded is told where it is made.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.engine.loading.device_placement import (
    DevicePlacement,
    MemoryDemand,
    check_name,
    device_bytes,
    onnx_device,
    place_on_devices,
)
from pocketvlm.errors import NativeLibraryError, RequestError
from pocketvlm.files.footprint import Weights
from pocketvlm.native.backends import Backend

GIB, MIB = 1 << 30, 1 << 20
DEVICES = Path(__file__).parent / "devices"
RECORDED = {
    path.stem: json.loads(path.read_text()) for path in sorted(DEVICES.glob("*.json")) if path.stem != "published"
}
PUBLISHED: list[dict[str, Any]] = json.loads((DEVICES / "published.json").read_text())["devices"]


def recorded(machine: str) -> tuple[Backend, ...]:
    return tuple(Backend(**device) for device in RECORDED[machine]["devices"])


def published(description: str) -> Backend:
    (found,) = (device for device in PUBLISHED if device["description"] == description)
    free, total = (int(found[key] * MIB) for key in ("free", "total"))
    return Backend(found["name"], description, found["kind"], free, total)


(CPU,) = recorded("linux-cpu")
LAVAPIPE = recorded("linux-lavapipe")[0]
RTX, APPLE, ARC = map(published, ("NVIDIA GeForce RTX 3090", "Apple M1", "Intel(R) Arc(TM) 140V GPU (16GB)"))
# Changed: a second and smaller card beside it, with what a desktop leaves free; and one that others have filled.
SMALL = replace(RTX, name="CUDA1", free=1 * GIB, total=2 * GIB)
FULL = replace(RTX, free=200 * MIB)
BLAS = Backend("BLAS", "Accelerate", "accel", 0, 0)  # as ggml-blas.cpp describes itself; not recorded

# A model of 2 B parameters in four bits: 28 layers of 40 MiB, 8 KiB a cell and layer; an encoder of 1 GiB.
WEIGHTS = Weights((40 * MIB,) * 28, 200 * MIB, 200 * MIB, (8192,) * 28)
DEMAND = MemoryDemand(WEIGHTS, 8192, 300 * MIB, 1 * GIB, True)


def taken(placement: DevicePlacement, demand: MemoryDemand) -> int:
    layers = demand.weights.layers[len(demand.weights.layers) + 1 - placement.layers :]
    size = sum(layers) + len(layers) * demand.cells * 8192
    if placement.layers:
        size += demand.weights.output + demand.scratch
    return size + (demand.encoder if placement.encoder else 0)


def test_all_of_it_where_there_is_room() -> None:
    for devices, asked, number in (
        ((CPU, RTX), "auto", 1),
        ((RTX, SMALL, CPU), "cuda", 0),
        ((RTX, CPU), "cuda:0", 0),
        ((ARC, CPU), "vulkan:0", 0),
        ((APPLE, BLAS, CPU), "metal", 0),
        ((BLAS, APPLE, CPU), "auto", 1),
    ):
        found = place_on_devices(devices, asked, DEMAND, host=16 * GIB)
        assert (found.device, found.layers, found.encoder, found.short) == (number, 29, True, False), asked
        assert devices[number].description in found.summary


@pytest.mark.parametrize("machine", RECORDED)
def test_machines_that_were_recorded(machine: str) -> None:
    """Nothing is taken that is not there; and what has no GPU, or hides it, computes on its CPU."""
    found = RECORDED[machine]
    devices = recorded(machine)
    placed = place_on_devices(devices, "auto", DEMAND, host=found["host_free"])
    gpus = [device for device in devices if device.kind in ("gpu", "igpu")]
    assert (placed.device is None) == (not gpus)
    if gpus:
        assert placed.device is not None
        device = devices[placed.device]
        assert device.description in placed.summary and taken(placed, DEMAND) <= device.free
    else:
        assert placed == DevicePlacement(None, 0, False, "all on the CPU")
        with pytest.raises(NativeLibraryError, match="no GPU"):
            place_on_devices(devices, "vulkan", DEMAND, host=found["host_free"])


@pytest.mark.parametrize("free", [0.2, 0.6, 1.3, 1.6, 2.0, 3.0, 20.0])
def test_the_memory_of_a_placement(free: float) -> None:
    """It is what was computed to fit: with one layer more it would not."""
    device = replace(RTX, free=int(free * GIB))
    placed = place_on_devices((device, CPU), "auto", DEMAND, host=16 * GIB)
    assert device_bytes(DEMAND, placed) == taken(placed, DEMAND)
    assert device_bytes(DEMAND, placed) <= device.free
    all_of_it = DevicePlacement(0, 99, placed.encoder, "as asked")
    assert device_bytes(DEMAND, all_of_it) == taken(replace(all_of_it, layers=29), DEMAND)


def test_lavapipe_has_the_encoder_and_some_layers() -> None:
    """It tells of 2 GiB, whatever the host has."""
    placed = place_on_devices((LAVAPIPE, CPU), "vulkan:0", DEMAND, host=24 * GIB)
    assert LAVAPIPE.free == 2 * GIB and placed.encoder and placed.short and 0 < placed.layers < 29


@pytest.mark.parametrize("device", PUBLISHED, ids=lambda device: device["description"])
def test_devices_that_others_told_of(device: dict[str, Any]) -> None:
    """All of a model of 2 B parameters fits each; where memory is the host's, no more goes there than that has left."""
    found = published(device["description"])
    placed = place_on_devices((found, CPU), "auto", DEMAND, host=device["host"] and device["host"] * GIB // 2)
    assert (placed.layers, placed.encoder, placed.short) == (29, True, False)
    shared = place_on_devices((found, CPU), "auto", DEMAND, host=1 * GIB)
    assert shared.short == (device["host"] is not None)
    assert taken(shared, DEMAND) <= (1 * GIB if shared.short else found.free)


def test_less_where_there_is_less_and_it_says_so() -> None:
    for free in range(6 * GIB, 0, -64 * MIB):
        device = replace(RTX, free=free, total=12 * GIB)
        found = place_on_devices((device, CPU), "auto", DEMAND, host=None)
        assert taken(found, DEMAND) <= max(0, free - 12 * GIB // 20)
        assert found.short == (found.layers < 29 or not found.encoder)
        if found.short and found.device is not None:
            assert "of 29 layers" in found.summary or "not the vision encoder" in found.summary
    assert found == DevicePlacement(None, 0, False, found.summary, True)
    assert "all on the CPU" in found.summary


def test_the_encoder_goes_first() -> None:
    device = replace(RTX, free=2 * GIB, total=2 * GIB)
    found = place_on_devices((device, CPU), "auto", DEMAND, host=None)
    assert found.encoder and 0 < found.layers < 29
    onnx = place_on_devices((device, CPU), "auto", MemoryDemand(WEIGHTS, 8192, 300 * MIB, 1 * GIB, False), host=None)
    assert not onnx.encoder and onnx.layers > found.layers
    assert place_on_devices((FULL, CPU), "auto", DEMAND, host=None).device is None


def test_a_longer_context_leaves_less_room() -> None:
    device = replace(RTX, free=4 * GIB, total=4 * GIB)
    counts = [
        place_on_devices((device, CPU), "auto", MemoryDemand(WEIGHTS, cells, 300 * MIB, 0, False), host=None).layers
        for cells in (2048, 32768, 131072)
    ]
    assert counts[0] == 29 > counts[1] > counts[2] >= 1


def test_unified_memory_is_the_hosts() -> None:
    assert place_on_devices((ARC, CPU), "auto", DEMAND, host=16 * GIB).layers == 29
    assert place_on_devices((ARC, CPU), "auto", DEMAND, host=2 * GIB).layers < 29
    assert place_on_devices((APPLE, CPU), "metal", DEMAND, host=1 * GIB).short
    silent = replace(ARC, free=0, total=0)  # a driver that does not tell
    assert place_on_devices((silent, CPU), "auto", DEMAND, host=8 * GIB).layers == 29
    assert place_on_devices((RTX, CPU), "auto", DEMAND, host=1 * GIB).layers == 29  # memory of its own


def test_which_device() -> None:
    assert place_on_devices((ARC, RTX, SMALL, CPU), "auto", DEMAND, host=8 * GIB).device == 1
    assert place_on_devices((SMALL, RTX, CPU), "auto", DEMAND, host=None).device == 1
    assert place_on_devices((RTX, SMALL, CPU), "cuda:1", DEMAND, host=None).device == 1
    assert place_on_devices((RTX, CPU), "cpu", DEMAND, host=None).device is None
    assert place_on_devices((CPU, BLAS), "auto", DEMAND, host=None) == DevicePlacement(None, 0, False, "all on the CPU")
    for asked in ("vulkan", "cuda:2", "metal"):
        with pytest.raises(NativeLibraryError, match=r"CUDA0, CUDA1"):
            place_on_devices((RTX, SMALL, CPU), asked, DEMAND, host=None)


def test_names() -> None:
    others = ("auto", "cuda", "coreml", "cpu")
    for name in ("auto", "cpu", "cuda", "cuda:1", "vulkan:0", "metal", "coreml"):
        check_name(name, others)
    for name in ("gpu", "cuda:", "cuda:x", "coreml:1", "auto:0", "vulkan:-1", ""):
        with pytest.raises(RequestError, match="vulkan"):
            check_name(name, others)
    assert onnx_device("cuda:1", ("cuda", "cpu")) == "cuda"
    assert onnx_device("cuda", ("cpu",)) == onnx_device("vulkan", ("cuda", "cpu")) == "cpu"
    assert onnx_device("metal", ("coreml", "cpu")) == "coreml"
    assert onnx_device("auto", ("cpu",)) == "auto" and onnx_device("openvino", ("cpu",)) == "openvino"


def test_what_comes_after_a_device_that_lied() -> None:
    found: DevicePlacement | None = DevicePlacement(0, 29, True, "")
    seen = []
    while found is not None:
        seen.append((found.device, found.layers, found.encoder))
        found = found.smaller()
    assert seen[:3] == [(0, 29, True), (0, 14, True), (0, 7, True)]
    assert seen[-1] == (None, 0, False) and len(seen) < 12

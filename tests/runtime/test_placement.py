"""What goes to which device, by descriptions of devices as ggml gives them. No device is touched."""

from __future__ import annotations

import pytest

from pocketvlm.engine.placement import Demand, Placement, check_name, onnx_device, place
from pocketvlm.errors import NativeLibraryError, RequestError
from pocketvlm.files.footprint import Weights
from pocketvlm.native.backends import Backend

GIB, MIB = 1 << 30, 1 << 20
CPU = Backend("CPU", "AMD EPYC", "cpu", 20 * GIB, 24 * GIB)
RTX = Backend("CUDA0", "NVIDIA GeForce RTX 3060", "gpu", 11 * GIB, 12 * GIB)
SMALL = Backend("CUDA1", "NVIDIA GeForce GTX 1050", "gpu", 1 * GIB, 2 * GIB)
FULL = Backend("CUDA0", "NVIDIA GeForce RTX 3060", "gpu", 200 * MIB, 12 * GIB)
ADRENO = Backend("Vulkan0", "Intel(R) Iris(R) Xe Graphics", "igpu", 12 * GIB, 12 * GIB)
LLVMPIPE = Backend("Vulkan0", "llvmpipe (LLVM 15.0.6, 256 bits)", "gpu", 23 * GIB, 23 * GIB)
APPLE = Backend("MTL0", "Apple M2", "gpu", 5 * GIB, 5461 * MIB)
BLAS = Backend("BLAS", "Accelerate", "accel", 0, 0)

# A model of 2 B parameters in four bits: 28 layers of 40 MiB, 8 KiB a cell and layer; an encoder of 1 GiB.
WEIGHTS = Weights((40 * MIB,) * 28, 200 * MIB, 200 * MIB, (8192,) * 28)
DEMAND = Demand(WEIGHTS, 8192, 300 * MIB, 1 * GIB, True)


def taken(placement: Placement, demand: Demand) -> int:
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
        ((LLVMPIPE, CPU), "vulkan:0", 0),
        ((APPLE, BLAS, CPU), "metal", 0),
        ((BLAS, APPLE, CPU), "auto", 1),
    ):
        found = place(devices, asked, DEMAND, host=16 * GIB)
        assert (found.device, found.layers, found.encoder, found.short) == (number, 29, True, False), asked
        assert devices[number].description in found.told


def test_less_where_there_is_less_and_it_says_so() -> None:
    for free in range(6 * GIB, 0, -64 * MIB):
        device = Backend("CUDA0", "NVIDIA GeForce RTX 3060", "gpu", free, 12 * GIB)
        found = place((device, CPU), "auto", DEMAND, host=None)
        assert taken(found, DEMAND) <= max(0, free - 12 * GIB // 20)
        assert found.short == (found.layers < 29 or not found.encoder)
        if found.short and found.device is not None:
            assert "of 29 layers" in found.told or "not the vision encoder" in found.told
    assert found == Placement(None, 0, False, found.told, True)
    assert "all on the CPU" in found.told


def test_the_encoder_goes_first() -> None:
    device = Backend("CUDA0", "NVIDIA", "gpu", 2 * GIB, 2 * GIB)
    found = place((device, CPU), "auto", DEMAND, host=None)
    assert found.encoder and 0 < found.layers < 29
    onnx = place((device, CPU), "auto", Demand(WEIGHTS, 8192, 300 * MIB, 1 * GIB, False), host=None)
    assert not onnx.encoder and onnx.layers > found.layers
    assert place((FULL, CPU), "auto", DEMAND, host=None).device is None


def test_a_longer_context_leaves_less_room() -> None:
    device = Backend("CUDA0", "NVIDIA", "gpu", 4 * GIB, 4 * GIB)
    counts = [
        place((device, CPU), "auto", Demand(WEIGHTS, cells, 300 * MIB, 0, False), host=None).layers
        for cells in (2048, 32768, 131072)
    ]
    assert counts[0] == 29 > counts[1] > counts[2] >= 1


def test_unified_memory_is_the_hosts() -> None:
    assert place((ADRENO, CPU), "auto", DEMAND, host=16 * GIB).layers == 29
    assert place((ADRENO, CPU), "auto", DEMAND, host=2 * GIB).layers < 29
    assert place((APPLE, CPU), "metal", DEMAND, host=1 * GIB).short
    silent = Backend("Vulkan0", "Mali", "igpu", 0, 0)
    assert place((silent, CPU), "auto", DEMAND, host=8 * GIB).layers == 29
    assert place((RTX, CPU), "auto", DEMAND, host=1 * GIB).layers == 29  # memory of its own


def test_which_device() -> None:
    assert place((ADRENO, RTX, SMALL, CPU), "auto", DEMAND, host=8 * GIB).device == 1
    assert place((SMALL, RTX, CPU), "auto", DEMAND, host=None).device == 1
    assert place((RTX, SMALL, CPU), "cuda:1", DEMAND, host=None).device == 1
    assert place((RTX, CPU), "cpu", DEMAND, host=None).device is None
    assert place((CPU, BLAS), "auto", DEMAND, host=None) == Placement(None, 0, False, "all on the CPU")
    for asked in ("vulkan", "cuda:2", "metal"):
        with pytest.raises(NativeLibraryError, match=r"CUDA0, CUDA1"):
            place((RTX, SMALL, CPU), asked, DEMAND, host=None)


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
    found: Placement | None = Placement(0, 29, True, "")
    seen = []
    while found is not None:
        seen.append((found.device, found.layers, found.encoder))
        found = found.less()
    assert seen[:3] == [(0, 29, True), (0, 14, True), (0, 7, True)]
    assert seen[-1] == (None, 0, False) and len(seen) < 12

"""The ONNX encoder's files: what is read from them, what is refused, and who is chosen."""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketvlm.errors import (
    BundleError,
    EngineClosedError,
    ModelFormatError,
    ModelNotFoundError,
    NativeLibraryError,
    PairingError,
    RequestError,
)
from pocketvlm.files.locate import locate
from pocketvlm.files.onnx_header import read_onnx
from pocketvlm.native.context import Aborted
from pocketvlm.server.model_facts import read_facts
from pocketvlm.system import machine
from pocketvlm.system.json_cache import file_hash
from pocketvlm.vision import encoder_speeds, families
from pocketvlm.vision.compatibility import EncoderChoice, check_files
from pocketvlm.vision.encoder_speeds import EncoderSpeed
from pocketvlm.vision.families.smolvlm import SmolVLM
from pocketvlm.vision.onnx import _INT8_PROBE, OnnxEncoder, int8_is_exact, runtime
from pocketvlm.vision.providers import devices_for, providers_of
from pocketvlm.vision.select_encoder import Candidate, device_name, select_encoder

MODEL, MMPROJ, VISION = "model-F32.gguf", "mmproj-f32.gguf", "vision-fp32.onnx"


@pytest.fixture
def bundle(iota_onnx: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(iota_onnx, tmp_path / "bundle"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pocketvlm" / "encoders.json"


def check(bundle: Path) -> None:
    check_files(bundle / MODEL, None, bundle / VISION)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def set_metadata(model: Any, **values: Any) -> None:
    kept = {entry.key: entry.value for entry in model.metadata_props}
    kept |= {key.replace("__", "."): json.dumps(value) for key, value in values.items()}
    del model.metadata_props[:]
    helper.set_model_props(model, kept)


# ---- reading


def test_header(iota_onnx: Path) -> None:
    header = read_onnx(iota_onnx / VISION)
    wanted = onnx.load(iota_onnx / VISION)
    assert header.producer == "pocketvlm" and header.domains == {"", "com.microsoft"}
    assert header.nodes == len(wanted.graph.node)
    assert [(value.name, value.shape) for value in header.inputs] == [("pixels", (None, 96, 96, 3))]
    assert [(value.name, value.shape) for value in header.outputs] == [("embeddings", (None, 16, 256))]
    assert header.metadata == {entry.key: json.loads(entry.value) for entry in wanted.metadata_props}
    assert header.data_files == ()


@pytest.mark.parametrize("keep", [0.999999, 0.99, 0.5, 0.1, 0.001, 10, 1, 0])
def test_truncated(bundle: Path, keep: float) -> None:
    path = bundle / VISION
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    with pytest.raises(ModelFormatError, match=f"{VISION}.*(truncated|empty)") as caught:
        check(bundle)
    assert caught.value.path == path


@pytest.mark.parametrize("spoil", [lambda _: b"GGUF" + b"\0" * 5000, lambda _: b"a page about ONNX\n" * 100])
def test_of_another_format(bundle: Path, spoil: Callable[[bytes], bytes]) -> None:
    (bundle / VISION).write_bytes(spoil(b""))
    with pytest.raises(ModelFormatError, match="not an ONNX file"):
        check(bundle)


def test_every_cut_is_a_typed_error(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    data = helper.make_model(graph).SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data)
    assert read_onnx(path).inputs[0].shape == (None, 3)
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(ModelFormatError):
            read_onnx(path)


def test_missing_or_a_folder(bundle: Path) -> None:
    (bundle / VISION).unlink()
    with pytest.raises(ModelNotFoundError):
        check(bundle)
    (bundle / VISION).mkdir()
    with pytest.raises(ModelFormatError, match="directory"):
        check(bundle)


# ---- what does not belong here


def test_another_model(bundle: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    (bundle / VISION).write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelFormatError, match="not a vision encoder of a known family"):
        check(bundle)


def test_another_checkpoint(bundle: Path) -> None:
    edit(bundle / VISION, lambda model: set_metadata(model, pocketvlm__weights_sha256="0" * 64))
    with pytest.raises(PairingError, match="another checkpoint"):
        check(bundle)


def test_another_interface(bundle: Path) -> None:
    edit(bundle / VISION, lambda model: setattr(model.graph.input[0], "name", "image"))
    with pytest.raises(ModelFormatError, match="pixels"):
        check(bundle)


@pytest.mark.parametrize("value", ["9" * 400, "[" * 100_000])
def test_metadata_that_no_gguf_holds(bundle: Path, value: str) -> None:
    def change(model: Any) -> None:
        entry = next(e for e in model.metadata_props if e.key == "clip.vision.feed_forward_length")
        entry.value = value

    edit(bundle / VISION, change)
    assert read_onnx(bundle / VISION).metadata["clip.vision.feed_forward_length"] == value


def test_metadata_without_what_the_family_needs(bundle: Path) -> None:
    edit(bundle / VISION, lambda model: set_metadata(model, clip__vision__patch_size=None))
    with pytest.raises(ModelFormatError, match=r"metadata is wrong: clip\.vision\.patch_size is None"):
        check(bundle)


def test_declared_width(bundle: Path) -> None:
    edit(
        bundle / VISION,
        lambda model: setattr(model.graph.output[0].type.tensor_type.shape.dim[2], "dim_value", 512),
    )
    with pytest.raises(PairingError, match=r"512 wide.*256"):
        check(bundle)


@pytest.mark.parametrize("domain", ["ai.onnx.ml", "com.example"])
def test_foreign_domain(bundle: Path, domain: str) -> None:
    def change(model: Any) -> None:
        model.graph.node[3].domain = domain
        model.opset_import.append(helper.make_opsetid(domain, 1))

    edit(bundle / VISION, change)
    with pytest.raises(ModelFormatError, match=f"domain '{domain}'"):
        check(bundle)


def test_foreign_domain_within_a_branch(bundle: Path) -> None:
    def change(model: Any) -> None:
        inner = helper.make_node("Secret", [], ["z"], domain="com.example")
        branch = helper.make_graph([inner], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])])
        model.graph.node.append(helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch))

    edit(bundle / VISION, change)
    with pytest.raises(ModelFormatError, match=r"com\.example"):
        check(bundle)


def test_external_data(bundle: Path) -> None:
    path, data = bundle / VISION, bundle / f"{VISION}.data"
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location=data.name, size_threshold=100)
    check(bundle)
    whole = data.read_bytes()
    data.write_bytes(whole[:-1000])
    with pytest.raises(ModelFormatError, match="truncated") as cut:
        check(bundle)
    data.unlink()
    with pytest.raises(ModelNotFoundError, match=f"{data.name}.*missing") as missing:
        check(bundle)
    assert cut.value.path == missing.value.path == data
    (bundle.parent / data.name).write_bytes(whole)

    def point_outside(model: Any) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = f"../{data.name}" if entry.key == "location" else entry.value

    edit(path, point_outside)
    with pytest.raises(ModelFormatError, match="in the same folder"):
        check(bundle)


def test_a_graph_that_onnxruntime_refuses(bundle: Path) -> None:
    """All that the header tells is in order; the rest is onnxruntime's to say, and stays a typed error."""
    edit(bundle / VISION, lambda model: setattr(model.graph.node[1], "op_type", "Nonsense"))
    with pytest.raises(ModelFormatError, match="onnxruntime cannot load it"):
        OnnxEncoder(read_onnx(bundle / VISION), threads=1)


def test_names_of_dimensions_in_another_encoding(bundle: Path) -> None:
    """A name that is not UTF-8 is not read: the header has all that the encoder needs."""
    path = bundle / VISION
    edit(path, lambda model: setattr(model.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "batch_of"))
    path.write_bytes(path.read_bytes().replace(b"batch_of", b"batch\xed\xa0\x80"))
    check(bundle)
    encoder = OnnxEncoder(read_onnx(path), threads=1)
    assert (encoder.frames, encoder.width) == (1, 256)


def test_an_embedding_of_unknown_width(bundle: Path) -> None:
    edit(bundle / VISION, lambda model: setattr(model.graph.output[0].type.tensor_type.shape.dim[2], "dim_param", "w"))
    with pytest.raises(ModelFormatError, match="does not state the width"):
        check(bundle)


def test_a_wanted_encoder_that_is_not_there(bundle: Path) -> None:
    model, mmproj, vision = (bundle / name for name in (MODEL, MMPROJ, VISION))
    with pytest.raises(ModelNotFoundError, match="ONNX"):
        check_files(model, mmproj, None, "onnx")
    with pytest.raises(ModelNotFoundError, match="mmproj"):
        check_files(model, None, vision, "gguf")
    with pytest.raises(RequestError, match="known: auto, gguf, onnx"):
        check_files(model, mmproj, vision, "tflite")  # type: ignore[arg-type]
    assert check_files(model, None, None).encoder is None


def test_what_is_not_wanted_is_not_read(bundle: Path) -> None:
    (bundle / VISION).write_bytes(b"")
    assert check_files(bundle / MODEL, bundle / MMPROJ, bundle / VISION, "gguf").encoder is None


def test_a_bundle_that_lacks_what_it_lists(bundle: Path) -> None:
    from pocketvlm import VLM

    (bundle / VISION).unlink()
    with pytest.raises(BundleError, match=VISION):
        VLM.load(bundle)


# ---- running


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of many products: seconds of work, in small steps."""
    nodes = [helper.make_node("Cast", ["pixels"], ["v0"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("MatMul", [f"v{i}", "w"], [f"v{i + 1}"]) for i in range(3000)]
    nodes.append(helper.make_node("Identity", ["v3000"], ["embeddings"]))
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, [1, 512, 512])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, [1, 512, 512])],
        [numpy_helper.from_array(np.eye(512, dtype=np.float32), "w")],
    )
    path = tmp_path_factory.mktemp("slow") / "slow.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )
    return path


def test_cancelling_a_run(slow: Path) -> None:
    encoder = OnnxEncoder(read_onnx(slow), threads=1)
    picture = np.zeros((512, 512), np.uint8)
    timer = threading.Timer(0.1, encoder.cancel)
    timer.start()
    with pytest.raises(Aborted):
        encoder.encode_tile(picture)
    with pytest.raises(Aborted):
        encoder.encode_tile(picture)  # until it is allowed again
    timer.join()
    encoder.close()
    with pytest.raises(EngineClosedError):
        encoder.encode_tile(picture)


def test_running_again_after_cancelling(iota_onnx: Path) -> None:
    encoder = OnnxEncoder(read_onnx(iota_onnx / VISION), threads=1)
    tile = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    before = encoder.encode_tile(tile)
    assert before.shape == (16, encoder.width) == (16, 256) and before.dtype == np.float32
    encoder.cancel()
    with pytest.raises(Aborted):
        encoder.encode_tile(tile)
    encoder.allow()
    assert np.array_equal(encoder.encode_tile(tile), before)
    assert before.flags.owndata  # what a cache keeps is no piece of onnxruntime's scratch memory


# ---- devices


CPU_ONLY = ["AzureExecutionProvider", "CPUExecutionProvider"]


def test_the_probe_of_int8_products() -> None:
    """Its bytes are the model that its comment describes."""
    values = numpy_helper.from_array(np.full((4, 16), 127, np.int8), "B")
    node = helper.make_node("MatMulInteger", ["A", "B"], ["Y"])
    given = helper.make_tensor_value_info("A", TensorProto.UINT8, [1, 4])
    made = helper.make_tensor_value_info("Y", TensorProto.INT32, [1, 16])
    graph = helper.make_graph([node], "g", [given], [made], [values])
    assert onnx.ModelProto.FromString(_INT8_PROBE).graph == graph


@pytest.mark.skipif(platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists(), reason="not Linux on x86")
def test_int8_products_are_exact_with_vnni_alone() -> None:
    flags = set(re.findall(r"avx\w*_vnni", Path("/proc/cpuinfo").read_text()))
    assert int8_is_exact() == bool(flags & {"avx_vnni", "avx512_vnni"})


def test_devices() -> None:
    everything = ["CUDAExecutionProvider", "DmlExecutionProvider", *CPU_ONLY]
    assert devices_for("auto", CPU_ONLY) == ("cpu",)
    assert devices_for("auto", everything) == ("cuda", "directml", "cpu")
    assert devices_for("cpu", everything) == ("cpu",)
    assert devices_for("cuda", everything) == ("cuda",)
    with pytest.raises(NativeLibraryError, match=r"offers cpu only.*CoreMLExecutionProvider"):
        devices_for("coreml", CPU_ONLY)
    with pytest.raises(RequestError, match="known: auto, cuda"):
        devices_for("abacus", everything)


def test_what_a_device_cannot_do_is_left_to_the_cpu() -> None:
    assert providers_of("cpu") == ["CPUExecutionProvider"]
    assert providers_of("openvino") == ["OpenVINOExecutionProvider", "CPUExecutionProvider"]


# ---- remembering


def test_speeds_are_remembered_by_device(cache: Path) -> None:
    assert encoder_speeds.recall("here") == {} and not encoder_speeds.CACHE.remove()
    one, two = EncoderSpeed(name="a", threads=2, seconds=0.5), EncoderSpeed(name="b", threads=1, seconds=0.25)
    encoder_speeds.remember("here", {"x": one})
    encoder_speeds.remember("there", {"x": two})
    encoder_speeds.remember("here", {"y": two})
    assert encoder_speeds.recall("here") == {"x": one, "y": two}
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    assert encoder_speeds.CACHE.remove() and encoder_speeds.recall_all() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"devices": {"here": {"x": {"seconds": -1}}}}'])
def test_a_corrupt_memory_is_none(cache: Path, text: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text)
    assert encoder_speeds.recall("here") == {}
    encoder_speeds.remember("here", {"x": EncoderSpeed(name="a", threads=2, seconds=0.5)})
    assert set(encoder_speeds.recall("here")) == {"x"}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    encoder_speeds.remember("here", {"x": EncoderSpeed(name="a", threads=2, seconds=0.5)})
    assert encoder_speeds.recall("here") == {}


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / "pocketvlm"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # the specification says to ignore it
    assert machine.cache_folder() != Path("not/absolute/pocketvlm")


def test_file_hash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    found = set()
    for data in (b"", b"a", b"b", b"a" * (3 << 20), b"a" * (3 << 20) + b"b"):
        path.write_bytes(data)
        found.add(file_hash(path))
    assert len(found) == 5


@pytest.mark.usefixtures("cache")
def test_remembered_threads_stay_within_the_cores(iota_onnx: Path) -> None:
    """The memory may come from a day on which this process was allowed more."""
    candidates = [
        Candidate(key, key, lambda threads: OnnxEncoder(read_onnx(iota_onnx / VISION), threads=threads))
        for key in ("x", "y")
    ]
    for key, seconds in (("x", 0.2), ("y", 0.1)):
        encoder_speeds.remember("here", {key: EncoderSpeed(name=key, threads=64, seconds=seconds)})
    best, threads = select_encoder(candidates, lambda: np.zeros((96, 96, 3), np.uint8), "here", (2, 1))
    assert (best.key, threads) == ("y", 2)
    best, threads = select_encoder(candidates, lambda: np.zeros((96, 96, 3), np.uint8), "elsewhere", (2, 1))
    assert set(encoder_speeds.recall("elsewhere")) == {"x", "y"} and threads in (1, 2)
    best, threads = select_encoder(candidates[:1], lambda: np.zeros((96, 96, 3), np.uint8), "nowhere", (2, 1))
    assert (best.key, threads, encoder_speeds.recall("nowhere")) == ("x", 2, {})


def test_the_device_is_named_by_what_matters() -> None:
    assert device_name(None) != device_name(1)
    assert "onnxruntime 1." in device_name(None) and "llama-cpp-python 0." in device_name(None)


def test_an_interrupt_while_onnxruntime_loads_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Extension:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "onnxruntime":
                raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Extension(), *sys.meta_path])
    with pytest.raises(KeyboardInterrupt):
        runtime.__wrapped__()


def test_the_facts_of_a_model_are_of_the_encoder_that_is_used(bundle: Path) -> None:
    edit(bundle / VISION, lambda model: set_metadata(model, clip__vision__preproc_image_size=384))
    located = locate(bundle, model=None, mmproj=None, verify=False)
    edges: tuple[tuple[EncoderChoice, int], ...] = (("auto", 384), ("onnx", 384), ("gguf", 192))
    for choice, edge in edges:
        files = check_files(bundle / MODEL, bundle / MMPROJ, bundle / VISION, choice)
        known = families.find(files.picture_metadata)
        family = read_facts(located, vision_choice=choice).family
        assert known and known[1] == family and isinstance(family, SmolVLM) and family.longest_edge == edge

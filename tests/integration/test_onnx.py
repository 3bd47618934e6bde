"""A bundle through its ONNX encoder: the same answers as through libmtmd and transformers, and nothing else needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from engine_seam import model_of, mtmd_of, vision_of
from iota.evaluate import evaluate, trials
from iota.questions import ask
from iota.scenes import draw, random_scene
from pocketvlm import VLM
from pocketvlm.cli.commands import app
from pocketvlm.errors import ContextLengthError, ModelFormatError, ModelNotFoundError, NativeLibraryError, RequestError
from pocketvlm.messages import ImagePart
from pocketvlm.native import library
from pocketvlm.native.backends import Backend
from pocketvlm.pictures.images import Picture, read_picture
from pocketvlm.system.json_cache import file_hash
from pocketvlm.vision import encoder_speeds
from pocketvlm.vision.encoder_speeds import EncoderSpeed
from pocketvlm.vision.mtmd import NativeVision
from pocketvlm.vision.select_encoder import device_name
from store import IOTA, Store
from tiers import slow_but

MODEL, MMPROJ, VISION = "model-F32.gguf", "mmproj-f32.gguf", "vision-fp32.onnx"


@pytest.fixture(scope="module")
def through_onnx(iota_onnx: Path) -> Iterator[VLM]:
    with VLM.load(iota_onnx, vision="onnx", exact=True) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def through_gguf(iota_onnx: Path) -> Iterator[VLM]:
    with VLM.load(iota_onnx, vision="gguf", exact=True) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def alone(store: Store) -> Path:
    """A bundle without an mmproj, as `convert` makes it: int8. Do not write to it."""
    return store.bundle(IOTA, mmproj="none", onnx="int8")


@pytest.fixture
def bundle(iota_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle with both encoders, and a memory of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(iota_onnx, tmp_path / "bundle"))


def asked(question: str, picture: Any, **options: Any) -> list[Any]:
    part = {"type": "image", "image": picture, **options}
    return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]


# ---- the same answers


@pytest.mark.oracle
@pytest.mark.parametrize("scenes", slow_but([20, 60], 20))
def test_answers_as_transformers_and_libmtmd(through_onnx: VLM, through_gguf: VLM, scenes: int) -> None:
    processor: Any = AutoProcessor.from_pretrained(IOTA)
    reference: Any = AutoModelForImageTextToText.from_pretrained(IOTA, dtype=torch.float32).eval()
    rng = Random(4)
    for number in range(scenes):
        scene = random_scene(rng)
        picture = draw(scene, rng)
        turn = ask(scene, ("describe", "count")[number % 2], rng)
        assert turn is not None
        said = {
            vlm.chat(asked(turn.question, picture, detail="high"), max_tokens=80).text
            for vlm in (through_onnx, through_gguf)
        }
        parts = [{"type": "image"}, {"type": "text", "text": turn.question}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        inputs = processor(text=text, images=[picture], return_tensors="pt")
        with torch.no_grad():
            generated = reference.generate(**inputs, max_new_tokens=80, do_sample=False)[0]
        expected = processor.decode(generated[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert said == {expected.strip()}


@pytest.mark.parametrize("scenes", slow_but([6, 20], 6))
def test_every_kind_of_question_as_libmtmd(through_onnx: VLM, through_gguf: VLM, scenes: int) -> None:
    for trial in trials(scenes, seed=5):
        one, two = (vlm.chat(trial.messages, max_tokens=80).text for vlm in (through_onnx, through_gguf))
        assert one == two


@pytest.mark.slow
def test_int8_is_as_often_right(alone: Path, through_onnx: VLM) -> None:
    """Within a point, over all kinds of questions."""

    def share(vlm: VLM) -> float:
        counts = evaluate(vlm, 100, seed=8).values()
        return sum(right for right, _ in counts) / sum(asked for _, asked in counts)

    with VLM.load(alone) as vlm:
        assert vlm.info.vision == "onnxruntime int8"
        assert abs(share(vlm) - share(through_onnx)) <= 0.01


# ---- nothing else needed


def test_without_mmproj_torch_or_converters(alone: Path, sample_png: Path) -> None:
    assert not list(alone.glob("mmproj*"))
    code = f"""
import sys
unwanted = "torch transformers onnx safetensors tokenizers pocketvlm_converters".split()
for name in unwanted:
    sys.modules[name] = None
from pocketvlm import VLM
part = {{"type": "image", "path": {str(sample_png)!r}}}
with VLM.load({str(alone)!r}) as vlm:
    answer = vlm.chat([{{"role": "user", "content": [part, {{"type": "text", "text": "How many shapes are there?"}}]}}])
    print(answer.text, vlm.info.vision)
assert not [name for name in sys.modules if name.split(".")[0] in unwanted and sys.modules[name] is not None]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1:] == ["onnxruntime", "int8"] and done.stdout.split()[0].isdigit()


def test_onnxruntime_is_not_loaded_for_an_mmproj(iota_onnx: Path) -> None:
    code = f"""
import sys
sys.modules["onnxruntime"] = None
from pocketvlm import VLM
with VLM.load({str(iota_onnx)!r}, vision="gguf") as vlm:
    print(vlm.info.vision)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("libmtmd\n", 0), done.stderr


def test_a_pair_with_an_onnx_encoder(bundle: Path, sample_png: Path) -> None:
    with VLM.load(model=bundle / MODEL, mmproj=bundle / VISION) as vlm:
        assert vlm.info.vision == "onnxruntime fp32"
        assert vlm.chat(asked("How many shapes are there?", Image.open(sample_png))).text.isdigit()


# ---- which encoder


def test_asked_for_by_name(bundle: Path) -> None:
    for wanted, name in (("gguf", "libmtmd"), ("onnx", "onnxruntime fp32")):
        with VLM.load(bundle, vision=wanted) as vlm:  # type: ignore[arg-type]
            assert vlm.info.vision == name
    assert not encoder_speeds.CACHE.path.exists(), "nothing to choose, nothing to measure"
    (bundle / "manifest.json").unlink()
    with pytest.raises(ModelNotFoundError, match="ONNX"):
        VLM.load(model=bundle / MODEL, mmproj=bundle / MMPROJ, vision="onnx")
    with pytest.raises(ModelNotFoundError, match="mmproj"):
        VLM.load(model=bundle / MODEL, mmproj=bundle / VISION, vision="gguf")


def test_auto_measures_once_and_remembers(bundle: Path) -> None:
    with VLM.load(bundle):
        pass
    written = encoder_speeds.CACHE.path.stat().st_mtime_ns
    measured = encoder_speeds.recall(device_name(None))
    assert sorted(speed.name for speed in measured.values()) == [f"{MMPROJ}, libmtmd", f"{VISION}, onnxruntime, cpu"]
    with VLM.load(bundle) as vlm:
        fastest = min(measured.values(), key=lambda speed: speed.seconds)
        assert (vlm.info.vision or "").split()[0] in fastest.name
    assert encoder_speeds.CACHE.path.stat().st_mtime_ns == written


@pytest.mark.parametrize("winner", ["libmtmd", "onnxruntime"])
def test_auto_takes_what_was_fastest(bundle: Path, winner: str) -> None:
    for path, key in ((MMPROJ, ""), (VISION, ":cpu")):
        found = EncoderSpeed(name=path, threads=1, seconds=0.1 if (winner == "libmtmd") == (path == MMPROJ) else 0.2)
        encoder_speeds.remember(device_name(None), {file_hash(bundle / path) + key: found})
    with VLM.load(bundle) as vlm:
        assert (vlm.info.vision or "").split()[0] == winner


def test_another_file_is_measured_anew(bundle: Path, alone: Path) -> None:
    with VLM.load(bundle):
        pass
    manifest = json.loads((bundle / "manifest.json").read_text())
    other = json.loads((alone / "manifest.json").read_text())
    shutil.copy(alone / "vision-int8.onnx", bundle)
    manifest["files"] = [*manifest["files"][:2], other["files"][1]]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with VLM.load(bundle):
        pass
    assert len(encoder_speeds.recall(device_name(None))) == 3


def test_doctor_shows_and_forgets(bundle: Path) -> None:
    def told(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["doctor", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "nothing yet" in told()
    with VLM.load(bundle):
        pass
    shown = told()
    assert "s per tile" in shown and "vision-fp32.onnx" in shown and "mmproj-f32.gguf" in shown
    assert "removed" in told("--forget")
    assert "nothing to remove" in told("--forget") and "nothing yet" in told()
    machine = json.loads(told("--json"))  # as tests/runtime/devices has it
    assert [Backend(**device).name for device in machine["devices"]] == [device.name for device in library.devices()]
    assert machine["host_total"] is None or machine["host_total"] >= machine["host_free"] > 0


def test_command_line(bundle: Path, sample_png: Path) -> None:
    def told(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    asking = ("chat", "How many shapes are there?", "-i", str(sample_png), "-m", str(bundle))
    for wanted in ("onnx", "gguf"):
        assert told(*asking, "--vision", wanted, "--device", "cpu").strip().isdigit()
    shown = told("inspect", str(bundle))
    assert "vision-fp32.onnx  vision, fp32" in shown and "ai.onnx, com.microsoft" in shown
    assert "any x 96 x 96 x 3" in shown and "16 for a small picture" in shown
    assert "clip.projector_type = 'idefics3'" in told("inspect", "--metadata", str(bundle / VISION))


def test_devices_and_names_that_are_not_there(bundle: Path) -> None:
    with pytest.raises(NativeLibraryError, match="offers cpu only"):
        VLM.load(bundle, device="coreml")
    with pytest.raises(RequestError, match="device"):
        VLM.load(bundle, device="abacus")
    with pytest.raises(RequestError, match="vision"):
        VLM.load(bundle, vision="tflite")  # type: ignore[arg-type]


def test_a_width_that_the_header_hides(bundle: Path) -> None:
    """The language model would read embeddings out of bounds."""
    import onnx

    model = onnx.load(bundle / VISION)
    weight = next(t for t in model.graph.initializer if t.name.endswith("modality_projection.proj.weight"))
    narrow = onnx.numpy_helper.to_array(weight)[:, :128]
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(narrow), weight.name))
    model.graph.output[0].type.tensor_type.shape.dim[2].ClearField("dim_value")
    (bundle / VISION).write_bytes(model.SerializeToString())
    with pytest.raises(ModelFormatError, match="does not state the width"):
        VLM.load(model=bundle / MODEL, mmproj=bundle / VISION)


# ---- pictures


@pytest.mark.parametrize(
    ("size", "options", "used", "tiles", "shrunk"),
    [
        ((640, 480), {"detail": "low"}, (96, 96), 1, True),
        ((50, 40), {}, (96, 96), 1, False),
        ((100, 90), {}, (192, 96), 3, False),
        ((640, 480), {}, (192, 192), 5, True),
        ((50, 40), {"detail": "high"}, (192, 192), 5, False),
        ((640, 480), {"max_image_tokens": 50}, (192, 96), 3, True),
        ((480, 640), {"max_image_tokens": 50}, (96, 192), 3, True),
        ((640, 480), {"max_image_tokens": 47}, (96, 96), 1, True),
    ],
)
def test_detail_is_the_same_for_both(
    through_onnx: VLM,
    through_gguf: VLM,
    size: tuple[int, int],
    options: dict[str, Any],
    used: tuple[int, int],
    tiles: int,
    shrunk: bool,
) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    for vlm in (through_onnx, through_gguf):
        seen = vlm.chat(asked("What is this?", picture, **options), max_tokens=1).timings.images[0]
        assert (tuple(seen.original_size), tuple(seen.used_size), seen.shrunk) == (size, used, shrunk)
        assert (seen.tiles, seen.tokens) == (tiles, 16 * tiles)
        assert seen.encode_ms > 0 and seen.preprocess_ms > 0


def test_fewer_tokens_than_a_tile_has(through_onnx: VLM) -> None:
    with pytest.raises(RequestError, match="max_image_tokens is 15; this model needs 16") as caught:
        through_onnx.chat(asked("What is this?", Image.new("RGB", (640, 480), "red"), max_image_tokens=15))
    assert caught.value.param == "messages.0.content.0"


def test_caches_know_the_encoder(through_onnx: VLM, through_gguf: VLM) -> None:
    keys = []
    for vlm in (through_onnx, through_gguf):
        seen = vision_of(vlm).prepare(picture_of(Image.new("RGB", (64, 64), "red")), "auto", None, "image")
        keys.append({span.key for span in seen.spans})
    assert keys[0] and not keys[0] & keys[1]


def test_too_many_tiles_are_counted_before_encoding(iota_onnx: Path) -> None:
    progress: list[int] = []
    with VLM.load(iota_onnx, vision="onnx", context_size=256) as vlm:
        turns = [*asked("What is this?", Image.new("RGB", (640, 480), "red"))] * 3
        with pytest.raises(ContextLengthError, match="240 of them pictures"):
            vlm.chat(turns, progress=lambda done, _: progress.append(done))
        assert not progress
        assert vlm.chat(turns[:1], max_tokens=4).usage.prompt_tokens < 256


def test_an_unknown_family_has_no_say_in_sizes(through_gguf: VLM) -> None:
    """libmtmd's own preprocessing, as it serves projectors that we do not know."""
    native = NativeVision(mtmd_of(through_gguf), model_of(through_gguf).n_vocab)
    picture = picture_of(Image.new("RGB", (64, 64), "red"))
    for detail, most, words in (("low", None, "detail: low"), ("auto", 16, "max_image_tokens")):
        with pytest.raises(RequestError, match=rf"{words} needs a projector of a known family") as caught:
            native.prepare(picture, detail, most, "messages.0.content.0")  # type: ignore[arg-type]
        assert caught.value.param == "messages.0.content.0"


def picture_of(image: Image.Image) -> Picture:
    return read_picture(ImagePart.model_validate({"type": "image", "image": image}), "image")

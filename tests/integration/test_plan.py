"""`pocketvlm plan` against what loading and answering then take, and `--memory` against its promise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hybrid
from pocketvlm import LoadOptions
from pocketvlm.engine.loading import layer_benchmark
from pocketvlm.engine.loading.layer_benchmark import benchmark_layers
from pocketvlm.errors import MemoryBudgetError, ModelError, RequestError
from pocketvlm.files.gguf_header import read_header
from pocketvlm.files.locate import locate
from pocketvlm.native import log, memory_estimate
from pocketvlm.native.context import Context
from pocketvlm.native.llama import Model
from pocketvlm.plan import probe_cache
from pocketvlm.plan.budget import read_picture_size, read_size
from pocketvlm.plan.prediction import Planner, RunConfiguration
from pocketvlm.plan.probe import ProbeRequest
from pocketvlm.system.timing import RepeatedTiming
from pocketvlm.vision.compatibility import EncoderChoice

COMMAND = [sys.executable, "-c", "from pocketvlm.cli import main; main()"]
# Answers a question about a picture and prints the process's greatest resident memory.
CHAT = """
import sys
from pathlib import Path
from pocketvlm import VLM
part = {"type": "image", "path": sys.argv[2]}
with VLM.load(vision=sys.argv[1], context_size=2048, threads=1, verify=False) as vlm:
    answer = vlm.chat([{"role": "user", "content": [part, {"type": "text", "text": "What is in the picture?"}]}])
    status = Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0], answer.timings.images[0].tokens)
"""
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def planned(*arguments: str | Path) -> dict[str, Any]:
    command = [*COMMAND, "plan", "--threads", "1", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@linux
@pytest.mark.parametrize("encoder", ["gguf", "onnx"])
def test_memory_and_tokens_are_as_measured(encoder: str, sample_png: Path) -> None:
    found = planned("--vision", encoder, "--ctx", "2048", "--picture", "640x480")
    command = [sys.executable, "-c", CHAT, encoder, str(sample_png)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    peak, tokens = map(int, done.stdout.split())
    assert found["memory_bytes"] == pytest.approx(1024 * peak, rel=0.1)
    assert found["memory_bytes"] == found["anonymous_bytes"] + found["mapped_bytes"] == sum(found["parts"].values())
    assert found["picture_tokens"] == tokens
    assert found["first_token_s"] > 0 and found["tokens_per_s"] > 0
    assert found["encoder"] == encoder and found["fits"]


def test_cache_and_scratch_are_those_of_the_real_thing(iota_bundle: Path) -> None:
    """libllama's own words about a context that it has really made."""
    path = next(iota_bundle.glob("model-*.gguf"))
    with log.capture() as lines:
        model = Model(path, gpu_layers=0)
        Context(model, n_ctx=700, n_batch=512, threads=1, sequences=3, outputs=3).close()
        model.close()
    words = " ".join(lines)
    simulated = Model(path, gpu_layers=0, simulated=True)
    found = memory_estimate.estimate_buffers(simulated, n_ctx=700, n_batch=512, sequences=3, outputs=3)
    simulated.close()
    assert f"KV buffer size = {found.cache / 2**20:8.2f} MiB" in words
    assert f"compute buffer size = {found.scratch['CPU'] / 2**20:8.2f} MiB" in words
    copied = sum(
        tensor.n_bytes
        for tensor in read_header(path).tensors
        if len(tensor.shape) > 1 and not tensor.name.startswith("token_embd") and memory_estimate.reordered(tensor.type)
    )
    assert (f"REPACK model buffer size = {copied / 2**20:8.2f} MiB" in words) == bool(copied)


def test_a_sketch_runs_as_fast_as_the_model(iota_bundle: Path) -> None:
    """No times are compared here: shapes are."""
    header = read_header(next(iota_bundle.glob("model-*.gguf")))
    speed = benchmark_layers(header, rows=16, threads=1)
    assert speed.prompt > 0 and speed.answer > 0


def test_a_sketch_of_layers_that_differ(iota_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some attend and some do not, as an array tells of all: a part of the layers has a part of the array."""
    monkeypatch.setattr(layer_benchmark, "_LAYER_BYTES", 1)
    speed = benchmark_layers(
        read_header(hybrid.save(iota_onnx / "model-F32.gguf", tmp_path / "m.gguf")), rows=16, threads=1
    )
    assert speed.prompt > 0 and speed.answer > 0


@pytest.fixture(scope="module")
def planner() -> Planner:
    options = LoadOptions(context_size=2048, threads=1)
    return Planner(locate(None, model=None, mmproj=None), options, picture=(640, 480), timed=False)


def smallest(kind: EncoderChoice) -> RunConfiguration:
    return RunConfiguration(kind, 512, "auto", cache_type="q8_0")


def test_what_is_given_up_first(planner: Planner) -> None:
    """The type of the cache, context, then the encoder, then detail; and nothing where all fits."""
    full = planner.predict(planner.usual())
    assert planner.within(full.memory_bytes).configuration == planner.usual()
    quantized = planner.within(full.memory_bytes - 1)
    assert quantized.configuration == replace(planner.usual(), cache_type="q8_0")
    assert quantized.parts["KV cache"] == pytest.approx(full.parts["KV cache"] * 34 / 64, rel=0.01)
    less = planner.within(quantized.memory_bytes - 1)
    assert (
        less.configuration.context < full.configuration.context
        and less.configuration.encoder == full.configuration.encoder
    )
    other = "gguf" if full.configuration.encoder == "onnx" else "onnx"
    both = {kind: planner.predict(smallest(kind)).memory_bytes for kind in ("onnx", "gguf")}
    if both[other] < both[full.configuration.encoder]:
        assert planner.within(both[full.configuration.encoder] - 1).configuration.encoder == other
    for budget in range(min(both.values()), full.memory_bytes, 1 << 19):
        assert planner.within(budget).memory_bytes <= budget


def test_what_does_not_fit_says_what_would_be_needed(planner: Planner) -> None:
    with pytest.raises(MemoryBudgetError, match="iota needs") as refused:
        planner.within(1 << 20)
    assert planner.within(refused.value.needed).memory_bytes == refused.value.needed
    assert refused.value.param == "--memory"
    options = LoadOptions(context_size=100, threads=1)
    big = Planner(planner.located, options, picture=(640, 480), timed=False)
    with pytest.raises(RequestError, match="do not fit 100"):
        big.within(1 << 40)


@linux
def test_chat_within_a_budget(sample_png: Path, planner: Planner) -> None:
    least = min(planner.predict(smallest(kind)).memory_bytes for kind in ("onnx", "gguf"))
    base = [*COMMAND, "chat", "How many shapes are there?", "-i", str(sample_png), "--threads", "1", "--memory"]
    done = subprocess.run([*base, str(least + (24 << 20))], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
    assert "memory: about" in done.stderr
    done = subprocess.run([*base, "20M"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "--memory: 21 MB is too little" in done.stderr, done.stderr


def test_it_is_remembered_and_works_where_nothing_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept() -> int:
        options = LoadOptions(context_size=512, threads=1)
        planner = Planner(locate(None, model=None, mmproj=None), options, picture=(64, 64), timed=False)
        return planner.predict(planner.usual()).parts["scratch"]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = kept()
    file = tmp_path / "pocketvlm" / "plans.json"
    entry = json.loads(file.read_text())
    (key,) = entry["rehearsals"]
    entry["rehearsals"][key]["scratch"]["f16"] = [12345]
    file.write_text(json.dumps(entry))
    assert kept() == 12345
    file.write_text("{")
    assert kept() == found
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    assert kept() == found


def test_what_a_busy_machine_told_is_not_remembered(
    planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = ProbeRequest("", None, None, (512,), 512, 16, 1, ("f16",), 1, "cpu", True, False)
    monkeypatch.setattr(probe_cache, "_key", lambda _: "key")
    for steady in (False, True):
        monkeypatch.setattr(probe_cache, "run_probe", lambda _, steady=steady: replace(planner.probe, steady=steady))
        assert probe_cache.cached_probe(asked).steady == steady
        assert list(probe_cache.CACHE.read()) == ["key"] * steady


def test_takes() -> None:
    """Times are given here: what disturbs makes them longer, and what others compute is not this process's."""

    def judged(*seconds: float, own: float = 1.0, threads: int | None = 2) -> RepeatedTiming:
        takes = RepeatedTiming(threads, least=2, most=4, enough=10)
        for wall in seconds:
            assert takes.wanted
            takes.add(wall, own * wall * (threads or 0))
        return takes

    quiet = judged(1.0, 1.05)
    assert quiet.steady and not quiet.wanted and quiet.seconds == pytest.approx(1.025)
    disturbed = judged(3.0, 1.0, 1.05)
    assert disturbed.steady and not disturbed.wanted and disturbed.seconds == 1.05
    varying = judged(1.0, 1.3, 1.7, 2.2)
    assert not varying.steady and not varying.wanted
    busy = judged(1.0, 1.0, 1.0, 1.0, own=0.5)
    assert not busy.steady and not busy.wanted
    assert judged(1.0, 1.0, own=0.0, threads=None).steady, "a device computes"
    long = judged(11.0)
    assert long.steady and not long.wanted and long.seconds == 11.0


def test_wrong_options(tmp_path: Path) -> None:
    for text, size in (("4G", 4 << 30), ("512m", 512 << 20), ("1.5 GiB", 3 << 29), ("1000", 1000)):
        assert read_size(text) == size
    for text in ("", "G", "-4G", "4T", "0", "4 G 2"):
        with pytest.raises(RequestError, match="invalid size"):
            read_size(text)
    assert read_picture_size("1920x1080") == (1920, 1080)
    for text in ("1920", "0x5", "ax3", "1x2x3"):
        with pytest.raises(RequestError, match="--picture"):
            read_picture_size(text)
    with pytest.raises(ModelError, match="none"):
        locate(tmp_path / "none", model=None, mmproj=None)

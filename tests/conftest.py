"""What all tests share: no network, the bundle in the box, the sample picture."""

from __future__ import annotations

import os
import runpy
import signal
import tempfile
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OFFLINE = Path(__file__).parent / "offline"

runpy.run_path(str(OFFLINE / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")]))
_CACHE = tempfile.TemporaryDirectory(prefix="pocketvlm-cache-")  # what tests measure is nobody's business
os.environ["XDG_CACHE_HOME"] = _CACHE.name
os.environ.setdefault("POCKETVLM_NATIVE", "llama-cpp-python")  # not what `make native` may have left in .venv
# A shell starts what it runs in the background deaf to these, and so would our children be.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--malformed", type=int, default=150, help="random requests of each kind that the server must refuse"
    )
    parser.addoption("--conversations", type=int, default=2, help="random conversations with each kind of model")


@pytest.fixture(scope="session")
def iota_bundle() -> Path:
    """The folder of the model in the box."""
    path = Path(str(files("pocketvlm_models") / "iota"))
    assert (path / "manifest.json").is_file(), f"no bundle in {path}"
    return path


@pytest.fixture(scope="session")
def iota_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of iota with every encoder in float32: mmproj and ONNX."""
    from pocketvlm_converters.convert import convert

    checkpoint = ROOT / "models" / "iota" / "checkpoint"
    assert checkpoint.is_dir(), f"no checkpoint at {checkpoint}"
    folder = tmp_path_factory.mktemp("iota") / "both"
    return convert(checkpoint, folder, quantize="F32", mmproj="f32", onnx="fp32", verify=False).path


@pytest.fixture(scope="session")
def sample_png() -> Path:
    path = ROOT / "docs" / "sample.png"
    assert path.is_file(), f"no sample picture at {path}"
    return path

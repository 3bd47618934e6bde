"""What all tests share: no network, the bundle in the box, the sample picture."""

from __future__ import annotations

import os
import runpy
import signal
import tempfile
from importlib.resources import files
from pathlib import Path

import pytest

from pocketvlm.system.machine import allowed_cpus
from store import IOTA, Store

ROOT = Path(__file__).parent.parent
OFFLINE = Path(__file__).parent / "offline"

runpy.run_path(str(OFFLINE / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")]))
_CACHE = tempfile.TemporaryDirectory(prefix="pocketvlm-cache-")  # measured speeds do not outlive the run
os.environ["XDG_CACHE_HOME"] = os.environ["XDG_STATE_HOME"] = _CACHE.name
# Modules that are grouped by a parameter, too.
BY_PARAMETER = {
    "converters/test_fuzz.py": "family",
    "families/test_conversations.py": "load",
    "families/test_faithful.py": "pair",
    "families/test_naming.py": "case",
    "families/test_together.py": "name",
    "families/test_verify.py": "case",
}
os.environ.setdefault("POCKETVLM_NATIVE", "llama-cpp-python")  # not what `make native` may have left in .venv
# The threads of libllama and torch sleep while they wait: spinning would slow down the other workers.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Containers often set this. Each child would then compile our modules, a fifth of the time of a short command.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A shell starts background jobs with these ignored, which the tests' children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--conversations", type=int, default=2, help="random conversations with each kind of model")


def pytest_xdist_auto_num_workers() -> int:
    """As many workers as cores, at most 8: each needs up to 1.5 GB."""
    return min(allowed_cpus(), 8)


def pytest_configure(config: pytest.Config) -> None:
    """Show one core to each worker of pytest-xdist and its children, by offline/sitecustomize.py."""
    if hasattr(config, "workerinput"):
        os.environ["POCKETVLM_TEST_ONE_CORE"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests for pytest-xdist, which runs a group in one worker."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))


def group_of(item: pytest.Item) -> str:
    """A module, or the tests of a module with one value of a parameter: their fixtures are made once."""
    path = item.path.relative_to(ROOT / "tests").as_posix()
    if path.startswith("page/"):  # which share a browser and a server
        return "page"
    callspec = getattr(item, "callspec", None)
    if callspec is None or path not in BY_PARAMETER:
        return path
    return f"{path} {callspec.params.get(BY_PARAMETER[path])}"


@pytest.fixture(scope="session")
def iota_bundle() -> Path:
    """The folder of the model in the box."""
    path = Path(str(files("pocketvlm_models") / "iota"))
    assert (path / "manifest.json").is_file(), f"no bundle in {path}"
    return path


@pytest.fixture(scope="session")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Checkpoints and bundles that tests read."""
    cache = getattr(request.config, "cache", None)  # not with `-p no:cacheprovider`
    found = Store(cache.mkdir("bundles") if cache else tmp_path_factory.getbasetemp() / "bundles")
    found.tidy()
    return found


@pytest.fixture(scope="session")
def iota_onnx(store: Store) -> Path:
    """A bundle of iota with every encoder in float32: mmproj and ONNX. Do not write to it."""
    return store.bundle(IOTA)


@pytest.fixture(scope="session")
def sample_png() -> Path:
    path = ROOT / "docs" / "sample.png"
    assert path.is_file(), f"no sample picture at {path}"
    return path

"""scripts/wheels.py, and the files that run a server from wheels. `make test-wheels` tries what it builds."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SYSTEMD = ROOT / "service" / "systemd"


@pytest.fixture(scope="module")
def wheels() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheels", ROOT / "scripts" / "wheels.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed(folder: Path, names: list[str]) -> Path:
    path = folder / "llama_cpp_python-0-1-py3-none-manylinux_2_31_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


def complete(wheels: ModuleType) -> list[str]:
    libraries = [*wheels.PARTS, *(f"ggml-cpu-{name}" for name in wheels.GENERATIONS["x86_64"])]
    licences = [f"llama_cpp_python-0.dist-info/licenses/{name}" for name in ("llama.cpp", "libgomp")]
    return [*(f"llama_cpp/lib/lib{name}.so" for name in libraries), "llama_cpp_python.libs/libgomp-1.so.1", *licences]


def test_a_wheel_that_lacks_something_is_refused(wheels: ModuleType, tmp_path: Path) -> None:
    names = complete(wheels)
    wheels.check(packed(tmp_path, names), "x86_64")
    for lacking in names:
        with pytest.raises(SystemExit, match="lacks"):
            wheels.check(packed(tmp_path, [name for name in names if name != lacking]), "x86_64")


def test_the_generations_are_those_that_ggml_builds(wheels: ModuleType) -> None:
    """Those that cmake/unsupported.cmake leaves out are not expected in a wheel."""
    left_out = re.findall(r"INCLUDE REGEX \"([^\"]+)\"", (ROOT / "cmake" / "unsupported.cmake").read_text("utf-8"))
    assert left_out
    for names in wheels.GENERATIONS.values():
        assert not [name for name in names for pattern in left_out if re.search(pattern.replace("\\\\", "\\"), name)]


def test_extras(wheels: ModuleType) -> None:
    assert wheels.with_extras("pocketvlm @ file:///a", "server,heif") == "pocketvlm[server,heif] @ file:///a"
    assert wheels.with_extras("/a/folder", "server") == "/a/folder[server]"
    assert wheels.with_extras("/a/folder", "") == "/a/folder"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="NO systemd ON THIS MACHINE")
def test_the_units_of_systemd(tmp_path: Path) -> None:
    for unit in SYSTEMD.iterdir():
        text = unit.read_text("utf-8")
        (tmp_path / unit.name).write_text(text.replace("/opt/pocketvlm/bin/pocketvlm serve", "/bin/true"))
    units = [str(tmp_path / unit.name) for unit in SYSTEMD.iterdir()]
    verify = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    # It also verifies the units that these need, which are this machine's.
    assert [line for line in (done.stdout + done.stderr).splitlines() if "pocketvlm" in line] == []
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=8"]
    done = subprocess.run([*command, tmp_path / "pocketvlm.service"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_running_answers_get_their_time() -> None:
    """systemd and compose wait longer than the server does."""
    from pocketvlm.server.settings import Settings

    unit = (SYSTEMD / "pocketvlm.service").read_text("utf-8")
    seconds = int(re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[0])
    assert seconds > Settings().grace
    compose = (ROOT / "service" / "compose.yaml").read_text("utf-8")
    assert int(re.findall(r"stop_grace_period: (\d+)s", compose)[0]) > Settings().grace

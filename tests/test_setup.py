"""scripts/setup_venv.py and what it leaves out of llama.cpp's build. Nothing is compiled or installed here."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with a .venv of its own and a pip that only logs its calls to pip.log in `tmp_path`.

    pip finds no wheel of llama-cpp-python until `pip wheel` has run.
    """
    spec = importlib.util.spec_from_file_location("setup_venv", ROOT / "scripts" / "setup_venv.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    pip = tmp_path / "pip.py"
    pip.write_text(
        f"""
import os, pathlib, sys, time
folder = pathlib.Path({str(tmp_path)!r})
log = folder / "pip.log"
with log.open("a") as file:
    print(*sys.argv[1:], file=file)
arguments = sys.argv[1:]
if arguments[0] == "wheel":
    time.sleep(1)
    (folder / "environment").write_text(os.environ["CMAKE_ARGS"] + "\\n" + os.environ["SKBUILD_BUILD_DIR"])
    (folder / "wheel").touch()
fails = folder / "fails"
sys.exit(
    ("--no-index" in arguments and not (folder / "wheel").exists())
    or (fails.exists() and fails.read_text() in arguments)
)
"""
    )
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(module, "WHEELS", venv / "wheels")
    monkeypatch.setattr(module, "pip", lambda *arguments: [sys.executable, str(pip), *arguments])
    monkeypatch.setattr(module, "require_compiler", lambda: None)
    monkeypatch.setattr(sys, "argv", ["setup_venv.py", "demo"])
    return module


def calls(folder: Path) -> list[str]:
    return (folder / "pip.log").read_text().splitlines()


def test_compiles_while_pip_installs_the_rest(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_VULKAN=ON")
    setup.main()
    probe, *during, installed, project = calls(tmp_path)
    bindings = next(line for line in setup.requirements([]) if line.startswith("llama-cpp-python"))
    assert probe == installed == f"install --no-deps --no-index --find-links {tmp_path}/.venv/wheels {bindings}"
    wheel, others = sorted(during, reverse=True)
    assert wheel == f"wheel --no-deps --wheel-dir {tmp_path}/.venv/wheels {bindings}"
    assert "numpy>=1.26" in others
    assert "llama-cpp-python" not in others
    assert project == "install -e ."
    assert (tmp_path / ".venv" / ".demo").exists()
    arguments, folder = (tmp_path / "environment").read_text().splitlines()
    assert arguments.startswith("-DGGML_VULKAN=ON -DCMAKE_PROJECT_llama_cpp_INCLUDE=")
    assert not Path(folder).exists()


def test_dev_installs_torch_before_what_requires_it(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["setup_venv.py", "dev"])
    setup.main()
    installs = [call.split()[1] for call in calls(tmp_path) if call.startswith("install") and "--no-index" not in call]
    assert installs[0].startswith("torch==")
    assert calls(tmp_path)[-1] == "install -e .[convert,server,heif,dev,oracle]"
    assert {path.name for path in (tmp_path / ".venv").glob(".*")} == {".demo", ".dev"}


def test_compiles_nothing_if_llama_cpp_python_is_installed(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "wheel").touch()
    setup.main()
    assert [call.split()[0] for call in calls(tmp_path)] == ["install", "install"]


def test_a_failed_download_does_not_waste_the_compilation(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "fails").write_text("numpy>=1.26")
    with pytest.raises(SystemExit, match=r"Failed: .* install .*numpy"):
        setup.main()
    assert not (tmp_path / ".venv" / ".demo").exists()
    assert (tmp_path / "wheel").exists()
    (tmp_path / "fails").unlink()
    (tmp_path / "pip.log").unlink()
    setup.main()
    assert [call.split()[0] for call in calls(tmp_path)] == ["install", "install"]


def test_a_failed_compilation_is_an_error(setup: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "fails").write_text("wheel")
    with pytest.raises(SystemExit, match=r"Failed: .* wheel .*llama-cpp-python"):
        setup.main()
    assert not (tmp_path / ".venv" / ".demo").exists()


@pytest.mark.parametrize("kind", ["demo", "dev"])
def test_reads_the_requirements_of_pyproject(setup: ModuleType, kind: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    extras = [*setup.EXTRAS[kind], "hub", "docs", "documents", "video"] if kind == "dev" else []  # dev requires those
    expected = set(project["dependencies"]).union(*(project["optional-dependencies"][extra] for extra in extras))
    assert set(setup.requirements(setup.EXTRAS[kind])) == {line for line in expected if "pocketvlm[" not in line}


def test_progress_counts_compiled_files(setup: ModuleType, tmp_path: Path) -> None:
    assert setup.describe(tmp_path) == "preparing llama.cpp"
    units = [{"file": name} for name in ("a.cpp", "b.cpp", "c.cpp")]
    (tmp_path / "compile_commands.json").write_text(json.dumps(units))
    assert setup.describe(tmp_path) == "compiling llama.cpp: 0 of 3 files"
    for name in ("a.cpp.o", "ggml-cpu/b.cpp.o"):
        path = tmp_path / "src" / "CMakeFiles" / "llama.dir" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert setup.describe(tmp_path) == "compiling llama.cpp: 2 of 3 files"


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")
def test_leaves_common_out_and_compiles_models_in_batches(setup: ModuleType, tmp_path: Path) -> None:
    """A project with llama-cpp-python's CMake structure: what CMake would compile."""
    files = {
        "CMakeLists.txt": """
            cmake_minimum_required(VERSION 3.21)
            project(llama_cpp CXX)
            set(LLAMA_BUILD_COMMON ON CACHE BOOL "" FORCE)
            add_subdirectory(vendor/llama.cpp)
            add_subdirectory(vendor/llama.cpp/tools/mtmd)
            """,
        "vendor/llama.cpp/CMakeLists.txt": """
            cmake_minimum_required(VERSION 3.14...3.28)
            project("llama.cpp" CXX)
            option(LLAMA_BUILD_COMMON "" OFF)
            if(LLAMA_BUILD_COMMON)
                add_library(llama-common common.cpp)
            endif()
            """,
        "vendor/llama.cpp/tools/mtmd/CMakeLists.txt": """
            add_library(mtmd mtmd.cpp mtmd.h clip.cpp models/models.h models/a.cpp models/b.cpp)
            """,
        **{f"vendor/llama.cpp/{name}": "" for name in ("common.cpp", "tools/mtmd/mtmd.cpp", "tools/mtmd/mtmd.h")},
        **{f"vendor/llama.cpp/tools/mtmd/{name}": "" for name in ("clip.cpp", "models/models.h", "models/a.cpp")},
        "vendor/llama.cpp/tools/mtmd/models/b.cpp": "",
    }
    for name, text in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    build = tmp_path / "build"
    options = [f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={setup.HOOK}", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    subprocess.run(["cmake", "-S", str(tmp_path / "source"), "-B", str(build), *options], check=True, timeout=120)
    units = json.loads((build / "compile_commands.json").read_text())
    names = sorted(Path(unit["file"]).name for unit in units)
    assert names == ["clip.cpp", "mtmd.cpp", "unity_0_cxx.cxx"]
    if platform.machine() == "x86_64":  # ggml's AMX kernels, which GCC 12 compiles wrongly
        assert all("-U__AMX_INT8__" in unit["command"] for unit in units)

"""Which build of the native libraries is taken, and that one for another llama-cpp-python is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pocketvlm.errors import NativeLibraryError
from pocketvlm.native import build, library, memory_estimate

Q4_0 = 2  # the type of ggml that llama.cpp reorders on most processors


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Python environment of our own, without builds."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    for name in ("POCKETVLM_NATIVE", "LLAMA_CPP_LIB_PATH", "MTMD_CPP_LIB"):
        monkeypatch.delenv(name, raising=False)


def install(name: str, bound: str | None = None) -> Path:
    """What `cmake --build --target install` leaves, less the libraries."""
    folder = build.home() / name
    folder.mkdir(parents=True)
    stamp = {"build": name, "llama_cpp_python": bound or build.version()}
    (folder / "pocketvlm.json").write_text(json.dumps(stamp))
    return folder


def test_its_own_without_others() -> None:
    taken = build.choose()
    assert (taken.name, taken.folder) == ("llama-cpp-python", None)
    assert "no other build" in taken.why


def test_the_best_installed_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cpu", "vulkan", "aarch64-linux"):
        install(name)
    assert build.installed() == ("vulkan", "cpu", "aarch64-linux")
    assert build.choose().folder == build.home() / "vulkan"
    monkeypatch.setenv("POCKETVLM_NATIVE", "cpu")
    assert build.choose().name == "cpu"
    monkeypatch.setenv("POCKETVLM_NATIVE", "llama-cpp-python")
    assert build.choose().folder is None


def test_a_name_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install("cpu")
    monkeypatch.setenv("POCKETVLM_NATIVE", "cuda")
    with pytest.raises(NativeLibraryError, match=r"it has: cpu, llama-cpp-python; to make it: cmake --preset cuda"):
        build.choose()


def test_libraries_for_another_version() -> None:
    folder = install("vulkan", "0.3.35")
    with pytest.raises(
        NativeLibraryError, match=rf"{folder}: these libraries are for llama-cpp-python 0\.3\.35, but 0\.3\."
    ):
        build.choose()


@pytest.mark.parametrize("stamp", ["", "[]", '{"build": "cpu"}'])
def test_a_broken_stamp(stamp: str) -> None:
    (install("cpu") / "pocketvlm.json").write_text(stamp)
    with pytest.raises(NativeLibraryError, match=r"pocketvlm\.json: not a stamp"):
        build.choose()


def test_the_path_wins_and_without_a_stamp_is_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install("vulkan")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    taken = build.choose()
    assert (taken.folder, taken.stamped) == (tmp_path, False)
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(NativeLibraryError, match="nowhere: no such folder"):
        build.choose()


def test_an_empty_path_is_none_and_not_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "libllama.so").write_text("somebody else's")
    variables = {**os.environ, "LLAMA_CPP_LIB_PATH": "", "MTMD_CPP_LIB": "", "POCKETVLM_NATIVE": "llama-cpp-python"}
    code = "from pocketvlm.native import library; library.mtmd(); print(library.llama()._lib._name)"
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=variables, cwd=tmp_path
    )
    assert Path(child.stdout.strip()).parent.name == "lib", child.stderr


def test_both_libraries_are_loaded_from_there(tmp_path: Path) -> None:
    """In a process of its own, as this one may have loaded them; and it leaves no variable behind."""
    package = find_spec("llama_cpp")
    assert package and package.origin
    for file in (Path(package.origin).parent / "lib").iterdir():
        (tmp_path / file.name).symlink_to(file)
    code = (
        "import os; from pocketvlm.native import library; "
        "print(library.llama()._lib._name); print(library.mtmd()._libmtmd._name); "
        "print(os.environ.get('MTMD_CPP_LIB')); print([device.kind for device in library.devices()])"
    )
    variables = {**os.environ, "LLAMA_CPP_LIB_PATH": str(tmp_path)}
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=variables)
    llama, mtmd, left, devices = child.stdout.splitlines()
    assert Path(llama).parent == Path(mtmd).parent == tmp_path
    assert left == "None"
    assert "cpu" in devices


@pytest.mark.parametrize("amx", [False, True])
def test_weights_are_not_reordered_for_amx(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    """GCC 12 compiles ggml's AMX kernels so that they end the process."""
    features = library.llama().llama_print_system_info().replace(b"AMX_INT8 = 1 | ", b"")
    text = features + b"AMX_INT8 = 1 | " if amx else features
    monkeypatch.setattr(library.llama(), "llama_print_system_info", lambda: text)
    library.reorders.cache_clear()
    memory_estimate.reordered.cache_clear()
    try:
        assert library.reorders() is not amx
        assert not (amx and memory_estimate.reordered(Q4_0))
    finally:
        library.reorders.cache_clear()
        memory_estimate.reordered.cache_clear()

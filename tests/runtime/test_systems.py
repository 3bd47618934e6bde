"""What Windows and macOS do otherwise, as far as it can be tried on another system."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pocketvlm.cli.typed_path import _unquoted
from pocketvlm.errors import NativeLibraryError
from pocketvlm.native import instructions, library, structures
from pocketvlm.native.ggml import GGML
from pocketvlm.pictures.sources import is_url, path_of_uri
from pocketvlm.system import atomic, machine, windows
from pocketvlm.system.file_lock import try_lock
from pocketvlm.system.subprocess import ExitedProcess, ending

FOLDERS = {"cache": machine.cache_folder, "data": machine.data_folder, "state": machine.state_folder}


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_folders_are_where_programs_of_the_system_have_theirs(
    system: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """platformdirs knows the places."""
    pytest.importorskip("platformdirs")
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LOCALAPPDATA", "/users/me/local")
    from platformdirs.macos import MacOS
    from platformdirs.unix import Unix
    from platformdirs.windows import Windows, get_win_folder_from_env_vars

    # It would ask Windows itself, or else reads the variable.
    monkeypatch.setattr("platformdirs.windows.get_win_folder", get_win_folder_from_env_vars)
    kinds = {"linux": Unix, "darwin": MacOS, "win32": Windows}
    expected = getattr(kinds[system]("pocketvlm", appauthor=False), f"user_{kind}_dir")
    monkeypatch.setattr(sys, "platform", system)
    assert FOLDERS[kind]() == Path(expected.replace("\\", "/"))


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:///C:/a%20b.png", "C:/a b.png"),
        ("file://C:/a.png", "C:/a.png"),
        ("file:C:/a.png", "C:/a.png"),
        ("file:///c|/a.png", "c:/a.png"),
        ("file://localhost/C:/a.png", "C:/a.png"),
        ("file:///pictures/a.png", "/pictures/a.png"),
        ("file://server/share/a.png", None),  # Windows would send the user's name and a proof of the password there
    ],
)
def test_uris_of_files_on_windows(uri: str, path: str | None) -> None:
    assert path_of_uri(uri, windows=True) == path


def test_a_drive_is_not_a_scheme() -> None:
    assert not is_url("C:\\pictures\\a.png")
    assert not is_url("C:/pictures/a.png")


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        (r'"C:\my pictures\a.png"', r"C:\my pictures\a.png"),  # Explorer: copy as path
        (r"& 'C:\my pictures\it''s.png'", r"C:\my pictures\it's.png"),  # PowerShell, of a file that is dropped
        (r"'C:\a.png'", r"C:\a.png"),
        (r"C:\a.png", r"C:\a.png"),
        ("it's", "it's"),
    ],
)
def test_paths_as_windows_writes_them(typed: str, path: str) -> None:
    assert _unquoted(typed, windows=True) == path


def test_structures_are_those_of_windows_headers() -> None:
    """The sizes and places are those that a C program prints, compiled with the headers of mingw-w64."""
    assert ctypes.sizeof(windows.MemoryStatus) == 64
    assert (windows.MemoryStatus.total.offset, windows.MemoryStatus.available.offset) == (8, 16)
    assert ctypes.sizeof(windows.MemoryCounters) == 80
    places = [getattr(windows.MemoryCounters, name).offset for name in ("peak_working_set", "working_set", "private")]
    assert places == [8, 16, 72]
    assert (ctypes.sizeof(windows.Overlapped), windows.Overlapped.offset_high.offset) == (32, 20)
    assert ctypes.sizeof(windows.JobLimits) == 144
    assert [getattr(windows.JobLimits, name).offset for name in ("flags", "io_counters", "process_memory")] == [
        16,
        64,
        112,
    ]


def test_cores_are_counted_in_the_records_of_windows() -> None:
    def record(kind: int, size: int) -> bytes:
        return kind.to_bytes(4, "little") + size.to_bytes(4, "little") + bytes(size - 8)

    assert windows.core_count(record(0, 48) + record(1, 56) + record(0, 48)) == 2
    assert windows.core_count(record(0, 48)[:4]) == 0
    assert windows.core_count(bytes(16)) == 0, "a size of zero would be read for ever"


def test_how_a_process_of_windows_ended() -> None:
    assert ending(0xC0000005) == "was ended by an access violation (0xC0000005)"
    assert ending(3) == "ended with status 3"
    assert ending(-11) == "was ended by SIGSEGV"
    assert ExitedProcess(0xC0000409, ()).signal == "process was ended by an abort (0xC0000409): "
    assert ExitedProcess(3, ()).signal == ""


def test_a_file_that_another_program_has_open_is_replaced_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    real = Path.replace

    def refused_twice(self: Path, target: Path) -> Path:
        tries.append(self)
        if len(tries) < 3:
            raise PermissionError(13, "The process cannot access the file because it is being used")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", refused_twice)
    monkeypatch.setattr(sys, "platform", "win32")
    with atomic.new_file(tmp_path / "x") as file:
        file.write(b"new")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert len(tries) == 3


def test_a_file_that_stays_open_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Path) -> Path:
        raise PermissionError(13, "The process cannot access the file because it is being used")

    monkeypatch.setattr(Path, "replace", refused)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(atomic, "_WAITS", (0.0, 0.0))
    with pytest.raises(PermissionError), atomic.new_file(tmp_path / "x") as file:
        file.write(b"new")
    assert not [*tmp_path.iterdir()]


def test_locks_exclude_other_openings_of_a_file(tmp_path: Path) -> None:
    """The same on every system."""
    (tmp_path / "x").touch()
    with (tmp_path / "x").open("r+b") as one, (tmp_path / "x").open("rb") as two, (tmp_path / "x").open("rb") as three:
        assert try_lock(one, shared=True)
        assert try_lock(two, shared=True)
        assert not try_lock(three)
        one.write(b"written")
        one.flush()
        assert three.read() == b"written"
    with (tmp_path / "x").open("rb") as one:
        assert try_lock(one)


@pytest.mark.skipif(sys.platform != "linux", reason="the libraries have other names")
def test_libggml_is_searched_where_the_loader_searches_one_library_only(tmp_path: Path) -> None:
    """Windows looks a name up in one library, and libllama's has none of libggml's."""
    folder = Path(library.llama()._lib._name).parent
    for name, base in (("ggml", "libggml.so"), ("ggml-base", "libggml-base.so")):
        (tmp_path / f"{name}.dll").symlink_to(folder / base)
    functions = GGML(library.llama()._lib, tmp_path, system="win32")
    functions.ggml_version.restype = ctypes.c_char_p
    assert functions.ggml_version() == library._GGML_VERSION.encode()
    assert functions.library("ggml_backend_dev_count")._name == str(tmp_path / "ggml.dll")
    with pytest.raises(AttributeError, match="llama_decode"):
        functions.library("llama_decode")
    (tmp_path / "ggml-base.dll").unlink()
    with pytest.raises(NativeLibraryError, match=r"has no ggml-base\.dll"):
        GGML(library.llama()._lib, tmp_path, system="win32")


def test_another_structure_is_noticed() -> None:
    """Libraries and bindings of different versions: here bindings with one more field in llama_model_params."""
    module = library.llama()
    fields = [*module.llama_model_params._fields_]

    class Later(ctypes.Structure):
        _fields_ = (*fields[:3], ("another", ctypes.c_int32), *fields[3:])

    class Bindings:
        llama_model_default_params = ctypes.CFUNCTYPE(Later)(("llama_model_default_params", module._lib))

    assert structures.first_difference(module, structures.LLAMA) is None
    expected = {"llama_model_default_params": structures.LLAMA["llama_model_default_params"]}
    difference = structures.first_difference(Bindings, expected)
    assert difference == "split_mode of llama_model_default_params is -1, not 1"
    assert structures.first_difference(object, expected) == "llama_model_default_params is missing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("build.version = library.version = lambda: '0.3.35'", "0.3.35 is installed, and pocketvlm needs >=0.3.36"),
        ("build.version = library.version = lambda: '0.3.37+cu124'", "0.3.37+cu124 is installed"),
        ("library._GGML_VERSION = '0.20.0'", "have ggml 0.25.3, and pocketvlm needs ggml 0.20.0"),
        (
            "from pocketvlm.native import instructions; instructions._is_compiled = lambda *_: True; "
            "instructions._of_processor = lambda: {'AVX': True, 'AVX2': False, 'F16C': False}",
            "were compiled for a processor with AVX2, F16C, which this one lacks",
        ),
    ],
)
def test_libraries_of_another_version_are_refused(change: str, message: str) -> None:
    code = f"from pocketvlm.native import build, library; {change}; library.llama()"
    environment = {key: value for key, value in os.environ.items() if key != "LLAMA_CPP_LIB_PATH"}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert child.returncode == 1
    assert message in child.stderr.splitlines()[-1]
    assert "install" in child.stderr.splitlines()[-1]


def test_the_processor_is_asked() -> None:
    """Linux says the same of it. On other systems, and of other processors, numpy's names are known all the same."""
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    features = instructions._of_processor()
    assert features
    if "avx2" in flags and platform.machine() == "x86_64":
        for name in ("AVX", "AVX2", "F16C", "AVX512F"):
            assert features[name] == (name.lower() in flags)
    assert not instructions.missing_instructions(library.ggml())


def test_a_python_for_musl_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.other_libc() == ""
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: "x86_64-alpine-linux-musl")
    assert "use a system with glibc" in machine.other_libc()


@pytest.mark.parametrize("name", ["con", "AUX.md", "nul .txt", "Com1.tar.gz", "lpt\u00b2", "CONOUT$"])
def test_names_of_devices(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert atomic.is_device_name(name, system="win32")
    assert not atomic.is_device_name(name, system="linux")
    monkeypatch.setattr(atomic, "is_device_name", lambda name: name == "con")
    with pytest.raises(OSError, match="name of a device"), atomic.new_file(tmp_path / "con"):
        pass


@pytest.mark.parametrize("name", ["console", "com", "com10", "a.con", "auxiliary.md", ""])
def test_names_of_files(name: str) -> None:
    assert not atomic.is_device_name(name, system="win32")

"""Small and embedded machines: little memory, one core, nothing to write to, no extras. iota answers all the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pocketvlm.system import machine
from pocketvlm.vision import encoder_speeds

QUESTION = """
import sys
from pocketvlm import VLM
part = {"type": "image", "path": sys.argv[1]}
with VLM.load() as vlm:
    print(vlm.chat([{"role": "user", "content": [part, {"type": "text", "text": "How many shapes are there?"}]}]).text)
"""
# What `pip install .` does not bring.
EXTRAS = (
    "safetensors onnx tokenizers starlette uvicorn prometheus_client pillow_heif ray torch transformers matplotlib "
    "pocketvlm_converters requests httpx"
)
WITHOUT = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS.split()!r}:
            raise ModuleNotFoundError("not installed: " + name, name=name)
sys.meta_path.insert(0, Missing())
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="as Linux does it")


def answer(
    picture: Path,
    *,
    code: str = QUESTION,
    before: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    limit: Callable[[], None] | None = None,
) -> str:
    done = subprocess.run(
        [*before, sys.executable, "-c", code, str(picture)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **(environment or {})},
        preexec_fn=limit,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def test_chat_needs_no_extra(sample_png: Path) -> None:
    assert answer(sample_png, code=WITHOUT + QUESTION) == "2"


@linux
def test_512_megabytes_and_one_core(sample_png: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))  # addresses: more than what is used
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    assert answer(sample_png, limit=limit) == "2"


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting takes root")
def test_nothing_to_write_to_and_no_shared_memory(sample_png: Path) -> None:
    unshare = shutil.which("unshare")
    script = "mount -t tmpfs -o ro none /dev/shm && mount -o remount,bind,ro / && ! touch /var/pocketvlm-x 2>&-"
    if (
        unshare is None
        or subprocess.run([unshare, "-m", "sh", "-c", script], check=False, capture_output=True).returncode
    ):
        pytest.skip("this system does not let us mount")
    before = (unshare, "-m", "sh", "-c", f'{script} && exec "$@"', "sh")
    assert answer(sample_png, before=before, environment={"XDG_CACHE_HOME": "/var/none"}) == "2"


def test_nobody_is_at_home(sample_png: Path, tmp_path: Path) -> None:
    """HOME is not there; and what is there after a chat is ours alone."""
    assert answer(sample_png, environment={"XDG_CACHE_HOME": "", "HOME": "/nonexistent"}) == "2"
    assert answer(sample_png, environment={"XDG_CACHE_HOME": "", "HOME": str(tmp_path)}) == "2"
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert set(found) <= {".cache", ".cache/pocketvlm", ".cache/pocketvlm/encoders.json"}, found


@linux
def test_a_user_without_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def unknown(_: int) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert machine.cache_folder() == Path("/dev/null/pocketvlm")
    assert encoder_speeds.recall_all() == {}
    encoder_speeds.remember("here", {})

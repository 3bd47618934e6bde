"""A folder that takes another's place, wherever a signal comes; and processes of our own, wherever they start."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from subprocess import run

import pytest

from pocketvlm.errors import OutputError
from pocketvlm.system import subprocess
from pocketvlm_converters.atomic import new_folder


@pytest.mark.parametrize(("renames", "left"), [(1, "manifest.json"), (2, "new")])
def test_interrupted_right_after_a_rename(
    renames: int, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rename, count = tmp_path / "bundle", Path.rename, 0
    output.mkdir()
    (output / "manifest.json").touch()

    def interrupted(self: Path, target: Path) -> Path:
        nonlocal count
        made, count = rename(self, target), count + 1
        if count == renames:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), new_folder(output, force=True) as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert [path.name for path in output.iterdir()] == [left]


@pytest.mark.parametrize(("force", "appears"), [(False, "manifest.json"), (True, "precious")])
def test_what_appeared_meanwhile_stays(force: bool, appears: str, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    with pytest.raises(OutputError, match="already exists"), new_folder(output, force) as folder:
        (folder / "new").touch()
        output.mkdir()
        (output / appears).touch()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert [path.name for path in output.iterdir()] == [appears]


KILLED = """
import os, pathlib, signal, sys
from pocketvlm_converters.atomic import new_folder

with new_folder(pathlib.Path(sys.argv[1]), force=True) as folder:
    (folder / "half").touch()
    if len(sys.argv) > 2:
        rename = pathlib.Path.rename
        pathlib.Path.rename = lambda self, target: (rename(self, target), os.kill(os.getpid(), signal.SIGKILL))
    else:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("between_renames", [False, True])
def test_what_a_killed_process_left_is_removed(between_renames: bool, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "manifest.json").touch()
    with new_folder(tmp_path / "other", force=False), new_folder(output, force=True):
        held = sorted(tmp_path.iterdir())
        more = ["between"] if between_renames else []
        ended = run([sys.executable, "-c", KILLED, str(output), *more], check=False)
        assert ended.returncode == -signal.SIGKILL
        left = sorted({path.suffix for path in set(tmp_path.iterdir()) - set(held)})
        assert left == ([".lock", ".old", ".partial"] if between_renames else [".lock", ".partial"])
        with pytest.raises(OutputError, match="already exists"), new_folder(output, force=False):
            pass
        assert sorted(tmp_path.iterdir()) == held, "those whose writer lives stay, and a bundle keeps its place"
    assert [path.name for path in output.iterdir()] == []


def test_no_module_of_the_working_directory_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints bring Python files along, and people convert them where they lie."""
    for name in ("numpy", "argparse", "pocketvlm", "runpy"):
        (tmp_path / f"{name}.py").write_text(f"open({name!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    ended = subprocess.run("pocketvlm.native.quantize", "nothing", "out", "Q8_0", take=lambda _: False)
    assert ended.code == 1 and any("nothing" in line for line in ended.lines)
    assert sorted(tmp_path.iterdir()) == before

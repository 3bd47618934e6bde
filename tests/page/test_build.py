"""The static files in git are what page/ builds, and stay small."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

from page.conftest import PAGE

BUILT = PAGE.parent / "runtime" / "pocketvlm" / "server" / "static"


def test_it_is_built_from_its_source(tmp_path: Path) -> None:
    if shutil.which("node") is None or not (PAGE / "node_modules").is_dir():
        pytest.skip("NO page/node_modules: the built page is NOT compared with its source; `make page` installs it")
    target = tmp_path / "static"
    done = subprocess.run(["node", "build.mjs", target], cwd=PAGE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for folder in (target, BUILT):
        assert not [path for path in folder.iterdir() if not path.is_file()]
    built, kept = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (target, BUILT))
    assert set(built) == set(kept)
    assert [name for name in built if built[name] != kept[name]] == [], "run `make page`"


def test_it_is_small_and_names_nobody_else() -> None:
    sizes = {path.name: len(gzip.compress(path.read_bytes())) for path in BUILT.iterdir()}
    assert sum(sizes.values()) < 200_000, sizes
    assert sizes["main.js"] < 80_000
    for name in ("index.html", "main.css"):
        text = (BUILT / name).read_text("utf-8")
        assert "http:" not in text and "https:" not in text and "//" not in text.replace("<!doctype html>", "")

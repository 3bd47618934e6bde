"""Files that appear when they are complete."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pocketvlm.batch.requests import Defaults, read_batch
from pocketvlm.batch.results import Results
from pocketvlm.errors import RequestError
from pocketvlm.system.atomic import new_file

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")


def test_no_file_takes_the_place_of_a_device_or_pipe(tmp_path: Path) -> None:
    """As root, `/save /dev/null` would leave everybody without it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"), new_file(pipe):
        pass
    with pytest.raises(RequestError, match="not a regular file"):
        Results(pipe, {})
    with pytest.raises(RequestError, match="not a regular file"):
        read_batch(pipe, Defaults())
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]

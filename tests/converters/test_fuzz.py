"""Whatever the files of a checkpoint hold: a ConversionError or a bundle, never another exception, never a hang.

`make fuzz ARGS=checkpoints` converts others, and uses the bundles.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from fuzz.cases import Case
from fuzz.kinds.checkpoints import files_of
from pocketvlm.errors import ConversionError
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.convert import convert
from pocketvlm_converters.families import find_family
from store import Store
from tiers import slow_but
from tiny import families

CASES = 100
CONVERTED = 12  # of them
MOST = 5  # seconds of a processor for one


@pytest.mark.parametrize("family", slow_but(families(), "smolvlm"))
def test_damaged_files(family: str, store: Store, tmp_path: Path) -> None:
    original = store.checkpoint(family)
    files = files_of(original)
    victim = Path(shutil.copytree(original, tmp_path / "checkpoint"))
    for number in range(CASES):
        case = Case.random(family, files, 0, number)
        (victim / case.original).write_bytes(files[case.original].damaged(case.mutations))
        began = time.process_time()
        attempt(victim, whole=number < CONVERTED)
        assert time.process_time() - began < MOST, case.dump()
        (victim / case.original).write_bytes(files[case.original].data)


def attempt(folder: Path, whole: bool) -> None:
    """Read all that describes the checkpoint; convert the `whole` where nothing is wrong with it."""
    try:
        family = find_family(Checkpoint(folder))
        family.language(), family.projector()
        family.check_all_used()
        if whole:
            convert(
                folder, folder.parent / "bundle", quantize="f32", mmproj="f32", onnx="fp32", force=True, verify=False
            )
    except ConversionError as error:
        str(error).encode()  # it can be printed

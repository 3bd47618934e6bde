"""Load files that could not be checked in a process of their own first: if native code ends it, the caller lives on.

`python -m pocketvlm.engine.loading.trial '{...}'` loads the files on the CPU, evaluates a text and encodes a picture.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from pocketvlm.engine.loading.loader import load
from pocketvlm.engine.options import EngineOptions
from pocketvlm.engine.threads import ThreadBudget
from pocketvlm.errors import ModelFormatError, PocketVLMError, SystemLimitError
from pocketvlm.files.gguf_header import GGUFHeader
from pocketvlm.messages import ImagePart
from pocketvlm.native import library
from pocketvlm.pictures.images import read_picture
from pocketvlm.system import subprocess
from pocketvlm.system.json_cache import JSONCache
from pocketvlm.system.machine import physical_cores
from pocketvlm.vision.compatibility import CheckedFiles, check_files

_log = logging.getLogger(__name__)
CACHE = JSONCache("trials.json", "trials", most=256)
_LIVED = "trial: lived"  # the line of a process that was not ended, whether it could use the files or not
_PYTHON_FAILED = 1  # exit code: not native code, which ends with a signal, or on Windows with 3 or a larger number
_OPTIONS = EngineOptions(context_size=1024, device="cpu", gpu_layers=0, vision="gguf", picture_cache_size=0)
_TEXT = "Hello, world!\n\tZürich, 北京 😀 \x7f"  # letters, bytes without a token of their own, control characters
_FOLDERS = re.compile(r"\S*/(?=[\w.-]+:\d+: )")  # of llama.cpp's sources, on the machine that compiled them
_SIZE = (200, 150)  # pixels of the picture
_SECONDS, _BYTES_PER_SECOND = 600, 5_000_000  # for a trial: far more than a slow device and disk take


def try_files(checked: CheckedFiles) -> None:
    """Try files about which there is a doubt, once.

    Raises ModelFormatError where the process that tries them ends, or takes many minutes, and SystemLimitError where
    the system kills it.

    Files are loaded untried where Python cannot start a process: in an app that is one file, or without the right to.
    """
    if checked.doubt is None or not subprocess.can_start():
        return
    headers = [header for header in (checked.model, checked.projector) if header is not None]
    key = _key(headers)
    if key in CACHE.read():
        return
    reports = subprocess.PrefixedLines(_LIVED)
    files = [path for header in headers for path in header.files]
    seconds = _SECONDS + sum(path.stat().st_size for path in files) / _BYTES_PER_SECOND
    request = json.dumps([str(header.path) for header in headers])
    try:
        process = subprocess.run(__name__, request, take=reports, seconds=seconds)
    except TimeoutError as error:
        raise ModelFormatError(
            f"{checked.doubt.message}; llama.cpp cannot load it: {error}", checked.doubt.path
        ) from None
    except OSError as error:
        _log.warning("%s; no process can be started to try it: %s", checked.doubt, error)
        return
    if not reports.lines and process.code == subprocess.KILLED:
        raise SystemLimitError(
            f"the process that tried {checked.model.path.name} was killed, as where memory is full; `pocketvlm plan` "
            "shows what a model needs"
        )
    if not reports.lines and process.code in (_PYTHON_FAILED, *subprocess.REQUESTED_ENDS):
        _log.warning("%s; it could not be tried: %s%s", checked.doubt, process.signal, " ".join(process.lines))
        return
    if not reports.lines:
        reason = process.signal + _FOLDERS.sub("", " ".join(process.lines))
        raise ModelFormatError(f"{checked.doubt.message}; llama.cpp cannot load it: {reason}", checked.doubt.path)
    CACHE.add(key, {"files": [header.path.name for header in headers]})


def _key(headers: Iterable[GGUFHeader]) -> str:
    """Return a key for what is tried: the headers of all files, and the libraries that read them."""
    digest = hashlib.sha256(library.build().label.encode())
    for header in headers:
        for piece in header.pieces or (header,):
            with piece.path.open("rb") as file:
                digest.update(file.read(piece.start))
    return digest.hexdigest()


def _try(model: Path, mmproj: Path | None) -> None:
    """Do everything with the files that can end the process. Raises PocketVLMError, as a chat would."""
    checked = check_files(model, mmproj, None, _OPTIONS.vision if mmproj else "auto")
    count = physical_cores()
    threads = ThreadBudget.split(count, parallel=1)
    loaded = load(checked, _OPTIONS, threads=threads, encoder_threads=count, disk_cache=None)
    tokens = loaded.model.tokenize(_TEXT, special=True, first=True)
    loaded.context.decode_tokens(tokens, 0)
    if loaded.vision is None:
        return
    pixels = np.random.default_rng(0).integers(0, 256, (*_SIZE[::-1], 3), dtype=np.uint8)
    part = ImagePart(type="image", image=pixels)
    image = loaded.vision.prepare(read_picture(part, "picture"), "auto", None, "picture")
    position = len(tokens)
    for span in image.spans:
        rows = image.encode(span)
        loaded.context.decode_embeddings(rows, span.at(position), causal=span.causal)
        position += span.advance
    image.close()


def main() -> None:
    model, *mmproj = map(Path, json.loads(sys.argv[1]))
    with suppress(PocketVLMError):  # the caller gets the same error
        _try(model, mmproj[0] if mmproj else None)
    print(_LIVED, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

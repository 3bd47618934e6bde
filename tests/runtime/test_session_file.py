"""The file of a session, byte by byte: what version 0.1 wrote is read, and the same is written."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from pocketvlm.chat import session
from pocketvlm.engine.interface import EngineInfo
from pocketvlm.native.build import version

INFO = EngineInfo("name", "template", "", "", {}, frozenset(), None, True, "encoder", 512, "fp_1")
MADE_FOR = {
    "model": "fp_1",
    "vision encoder": "encoder",
    "chat template": hashlib.sha256(b"template").hexdigest(),
    "context size": 512,
    "type of cache": "default",
    "llama-cpp-python": version(),
}


def test_what_version_0_1_wrote(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(png, "PNG")
    states = [b"whole state", b"after one unit", b""]
    content = [{"type": "image", "image": 0, "detail": "low"}, {"type": "text", "text": "caf\u00e9?"}]
    header = {
        "made for": MADE_FOR,
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}],
        "cache": {
            "keys": [1, "key of a picture", 17],
            "ends": [1, 65, 66],
            "marks": [1, 2],
            "sizes": [len(state) for state in states],
        },
        "pictures": [len(png.getvalue())],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    rest = struct.pack("<Q", len(text)) + text + b"".join(states) + png.getvalue()
    data = b"pocketvlm session 1\n" + hashlib.sha256(rest).digest() + rest
    (tmp_path / "old").write_bytes(data)

    read = session.read(tmp_path / "old", INFO)
    assert read.messages[0]["content"] == [{**content[0], "image": png.getvalue()}, content[1]]
    assert read.messages[1] == {"role": "assistant", "content": "Yes."}
    snapshot = read.snapshot
    assert (snapshot.keys, snapshot.ends) == ((1, "key of a picture", 17), (1, 65, 66))
    assert snapshot.state is not None and snapshot.state.tobytes() == states[0]
    assert [(count, state.tobytes()) for count, state in snapshot.checkpoints] == [(1, states[1]), (2, states[2])]
    assert all(state.dtype == np.uint8 for _, state in snapshot.checkpoints)

    session.write(tmp_path / "new", read, INFO)
    assert (tmp_path / "new").read_bytes() == data

"""What tests do to checkpoints on disk, and how they look at what a family makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pocketvlm.errors import CheckpointError
from pocketvlm.files.onnx_header import read_onnx
from pocketvlm.vision.onnx import OnnxEncoder
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.export_parts import parts_of, write_encoder
from pocketvlm_converters.families import find_family
from pocketvlm_converters.gguf import write_projector
from pocketvlm_converters.weights import Part, weights_sha256


def parts(folder: Path) -> tuple[Part, Part]:
    """Language model and projector to be; nothing of the checkpoint may be left."""
    family = find_family(Checkpoint(folder))
    found = family.language(), family.projector()
    family.check_all_used()
    return found


def same(one: tuple[Part, Part], other: tuple[Part, Part]) -> bool:
    return weights_sha256(one) == weights_sha256(other) and [p.metadata for p in one] == [p.metadata for p in other]


def onnx_encoder(checkpoint: Path, kind: Any, folder: Path) -> OnnxEncoder:
    """As a conversion writes it to `folder`; without the rest of the bundle."""
    family = find_family(Checkpoint(checkpoint))
    path = folder / f"vision-{kind}.onnx"
    write_encoder(family, parts_of(family, "tiny").vision, path, kind)
    return OnnxEncoder(read_onnx(path), threads=1)


def mmproj(checkpoint: Path, kind: Any, folder: Path) -> Path:
    """The other format, likewise."""
    path = folder / f"mmproj-{kind}.gguf"
    write_projector(parts_of(find_family(Checkpoint(checkpoint)), "tiny").vision, path, kind)
    return path


def change(path: Path, work: Callable[[dict[str, Any]], Any]) -> None:
    """Let `work` change the object in a JSON file."""
    data = json.loads(path.read_text())
    work(data)
    path.write_text(json.dumps(data))


def put(path: Path, values: Mapping[str, Any]) -> None:
    """Set keys of a JSON file: `put(path, {"text_config.hidden_act": "relu"})`."""

    def work(data: dict[str, Any]) -> None:
        for where, value in values.items():
            *parents, last = where.split(".")
            at = data
            for parent in parents:
                at = at[parent]
            at[last] = value

    change(path, work)


def refusal(folder: Path, work: Callable[[dict[str, Any]], Any], name: str = "config.json") -> str:
    """What the converter says once `work` has changed the file `name`, which it must name."""
    change(folder / name, work)
    with pytest.raises(CheckpointError) as error:
        parts(folder)
    assert error.value.path == folder / name
    return str(error.value)


def rename(folder: Path, new_name: Callable[[str], str]) -> None:
    """Tensors of a checkpoint in one file."""
    path = folder / "model.safetensors"
    save_file({new_name(name): tensor for name, tensor in load_file(path).items()}, path)


def drop(folder: Path, prefix: str) -> None:
    """Tensors of a checkpoint in one file."""
    path = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith(prefix)}, path)


def worst(rows: Any, wanted: Any) -> float:
    """The lowest cosine of two rows, of arrays [tokens, width]."""
    assert rows.shape == wanted.shape
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(((rows * wanted).sum(1) / norms).min())

"""One model under every naming, in one file or several, with its configuration old or new: the same files.

Compared is what the files of a bundle are written from, and the encoder's graph as it is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.export_parts import parts_of, write_encoder
from pocketvlm_converters.families import find_family
from pocketvlm_converters.weights import weights_sha256
from store import Store
from tiers import slow_but
from tiny import Tiny, families

CASES = [(name, variant) for name, tiny in families().items() for variant in tiny.VARIANTS]
FAST = [case for case in CASES if case[1] in ("gemma3", "qwen2_5_vl")]  # prefixes that differ, tied heads
SINGLE, SHARDS = "model.safetensors", 3


def write(tensors: dict[str, Any], folder: Path, shards: int = 1) -> None:
    """In place of the folder's weights; shards hold tensors from everywhere, the last names first."""
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    if shards == 1:
        save_file(tensors, folder / SINGLE)
        return
    names = sorted(tensors, reverse=True)
    placed = {name: f"model-{at % shards + 1:05}-of-{shards:05}.safetensors" for at, name in enumerate(names)}
    for shard in set(placed.values()):
        save_file({name: tensors[name] for name in names if placed[name] == shard}, folder / shard)
    (folder / f"{SINGLE}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def in_old_files(folder: Path, hub_config: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """config.json of the hub, the image processor in a file of its own, the template with the tokenizer."""

    def edit(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        path = folder / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    edit("config.json", hub_config)
    if (folder / "processor_config.json").exists():
        processor = json.loads((folder / "processor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps(processor.pop("image_processor")))
        (folder / "processor_config.json").write_text(json.dumps(processor))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit("tokenizer_config.json", lambda found: found | {"chat_template": template})


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_the_same_model(case: tuple[str, str], store: Store, tmp_path: Path) -> None:
    tiny: Tiny = families()[case[0]]
    changes = tiny.VARIANTS[case[1]]
    model = tiny.model(**changes)
    saved = store.checkpoint(case[0], **changes)
    memory = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    tied = model.config.tie_word_embeddings
    without_head = {name: tensor for name, tensor in memory.items() if not tied or name != "lm_head.weight"}
    on_hub = {tiny.hub_name(name): tensor for name, tensor in memory.items()}
    assert len(on_hub) == len(memory)

    def variant(name: str, tensors: dict[str, Any], shards: int, old: bool) -> Path:
        folder = Path(shutil.copytree(saved, tmp_path / name))
        write(tensors, folder, shards)
        if old:
            in_old_files(folder, tiny.hub_config)
        return folder

    wanted = written(saved, tmp_path)
    for folder in (
        variant("memory", without_head, 1, old=False),
        variant("hub", on_hub, 1, old=True),
        variant("hub-sharded-head", on_hub, SHARDS, old=True),
        variant("memory-sharded-old", without_head, SHARDS, old=True),
    ):
        assert written(folder, tmp_path) == wanted, folder.name


@pytest.mark.oracle
@pytest.mark.parametrize("case", slow_but(CASES, *FAST), ids=lambda case: case[1])
def test_adapters_of_both_namings(case: tuple[str, str], store: Store, tmp_path: Path) -> None:
    """An adapter of every linear layer, under either naming, gives what a checkpoint with the sums gives."""
    tiny: Tiny = families()[case[0]]
    changes = tiny.VARIANTS[case[1]]
    model = tiny.model(**changes)
    memory = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    sums, low_rank, random = dict(memory), {}, np.random.default_rng(0)
    for module in [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]:
        weight = memory[f"{module}.weight"]
        down, up = (random.normal(size=size).astype(np.float32) for size in ((3, weight.shape[1]), (len(weight), 3)))
        sums[f"{module}.weight"] = weight + up @ down * np.float32(0.5)
        low_rank |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    saved = store.checkpoint(case[0], **changes)
    merged = Path(shutil.copytree(saved, tmp_path / "merged"))
    write(sums, merged)
    hub = Path(shutil.copytree(saved, tmp_path / "hub"))
    write({tiny.hub_name(name): tensor for name, tensor in memory.items()}, hub)
    wanted = written(merged, tmp_path)
    for name in ("memory", "hub"):
        adapter = tmp_path / f"adapter-{name}"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 1.5}))
        named = {tiny.hub_name(key) if name == "hub" else key: array for key, array in low_rank.items()}
        tensors = {f"base_model.model.{key}": array for key, array in named.items()}
        save_file(tensors, adapter / "adapter_model.safetensors")
        assert written(saved, tmp_path, adapter) == wanted, name
        assert written(hub, tmp_path, adapter) == wanted, name


def written(folder: Path, scratch: Path, *lora: Path) -> list[Any]:
    """Both parts, the hash of all their weights, and the bytes of the graph."""
    family = find_family(Checkpoint(folder, lora))
    made = parts_of(family, "model")
    path = scratch / "vision.onnx"
    assert write_encoder(family, made.vision, path, "fp32") is None, "all of it is in this file"
    found: list[Any] = [weights_sha256((made.language, made.vision)), path.read_bytes()]
    for part in (made.language, made.vision):
        found.append(part.architecture)
        found.append(list(part.metadata.items()))
        found.append([(weight.name, weight.exact, weight.tensor.dtype, weight.tensor.shape) for weight in part.weights])
    return found

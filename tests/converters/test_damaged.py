"""Checkpoints as attackers make them and as downloads leave them: each is refused in one line, at once, by name."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketvlm.cli import main
from pocketvlm.errors import CheckpointError, OutputError, TokenizerError
from pocketvlm_converters.checkpoint.folder import Checkpoint, Tensor
from pocketvlm_converters.convert import convert

NORM = "model.text_model.norm.weight"
QUERY = "model.text_model.layers.1.self_attn.q_proj.weight"
SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
DEEP = 100_000
LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca2\n"
)

Damage = Callable[[Path], object]
Header = dict[str, Any]


# --- ways to spoil a checkpoint


def raw_header(text: bytes, length: int | None = None) -> Damage:
    """In place of the header, before the same data."""

    def damage(folder: Path) -> None:
        raw = (folder / SINGLE).read_bytes()
        data = raw[8 + int.from_bytes(raw[:8], "little") :]
        size = len(text) if length is None else length
        (folder / SINGLE).write_bytes(size.to_bytes(8, "little") + text + data)

    return damage


def header(change: Callable[[Header], object]) -> Damage:
    def damage(folder: Path) -> None:
        raw = (folder / SINGLE).read_bytes()
        entries = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        change(entries)
        raw_header(json.dumps(entries).encode())(folder)

    return damage


def entry(name: str, **values: Any) -> Damage:
    return header(lambda entries: entries[name].update(values))


def shifted(by: int) -> Damage:
    """A tensor that begins `by` bytes later, or earlier, with as many bytes as before."""

    def change(entries: Header) -> None:
        entries[QUERY]["data_offsets"] = [at + by for at in entries[QUERY]["data_offsets"]]

    return header(change)


def doubled(entries: Header) -> bytes:
    text = json.dumps(entries)
    return (text[:-1] + ", " + json.dumps({NORM: entries[NORM]})[1:]).encode()


def duplicate_tensor(folder: Path) -> None:
    raw = (folder / SINGLE).read_bytes()
    raw_header(doubled(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])))(folder)


def renamed(old: str, new: str) -> Damage:
    def change(entries: Header) -> None:
        entries[new] = entries.pop(old)

    return header(change)


def swapped(one: str, other: str) -> Damage:
    def change(entries: Header) -> None:
        entries[one], entries[other] = entries[other], entries[one]

    return header(change)


def file(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, keep: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def settings(name: str = CONFIG, **changes: Any) -> Damage:
    """Change keys; `a__b` stands for `a.b`, and `...` for its removal."""

    def damage(folder: Path) -> None:
        data = json.loads((folder / name).read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            at = data
            for parent in parents:
                at = at[parent]
            at[last] = value
            if value is ...:
                del at[last]
        (folder / name).write_text(json.dumps(data))

    return damage


def text(**changes: Any) -> Damage:
    return settings(**{f"text_config__{key}": value for key, value in changes.items()})


def vision(**changes: Any) -> Damage:
    return settings(**{f"vision_config__{key}": value for key, value in changes.items()})


def weight_map(change: Callable[[dict[str, Any], list[str]], object]) -> Damage:
    """`change` gets the map and the sorted names of the shards."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"], sorted(set(index["weight_map"].values())))
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def moved_to(shard: str) -> Damage:
    return weight_map(lambda found, _: found.update({NORM: shard}))


def in_two_shards(folder: Path) -> None:
    one, two = sorted(folder.glob("model-*.safetensors"))[:2]
    shutil.copy(one, two)


def outside(folder: Path) -> None:
    """Weights that a path in the index would reach."""
    shutil.copy(next(folder.glob("model-*.safetensors")), folder.parent / "secret.safetensors")
    moved_to("../secret.safetensors")(folder)


def adapter(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def training(folder: Path) -> None:
    """A trainer's folder, with a checkpoint below it."""
    (folder / "checkpoint-500").mkdir()
    for path in folder.glob("*.*"):
        path.rename(folder / "checkpoint-500" / path.name)


def hub_cache(folder: Path) -> None:
    (folder / "snapshots").mkdir()
    for path in folder.glob("*.*"):
        path.rename(folder / "snapshots" / path.name)


SINGLE_FILE: dict[str, tuple[Damage, tuple[str, ...]]] = {
    # the header
    "header longer than the file": (raw_header(b"{}", 1 << 40), (SINGLE, "truncated or not safetensors")),
    "header of -1 bytes": (raw_header(b"{}", 2**64 - 1), (SINGLE, "truncated or not safetensors")),
    "header of no bytes": (raw_header(b""), (SINGLE, "not valid JSON")),
    "header not JSON": (raw_header(b"{'a': 1}"), (SINGLE, "not valid JSON")),
    "header a list": (raw_header(b"[]"), (SINGLE, "expected a JSON object")),
    "header null": (raw_header(b"null"), (SINGLE, "expected a JSON object")),
    "header NaN": (raw_header(b'{"a": NaN}'), (SINGLE, "tensor a: nan")),
    "header without tensors": (raw_header(b"{}"), (SINGLE, "no tensors")),
    "header not UTF-8": (raw_header(b'{"\xff": 1}'), (SINGLE, "not UTF-8")),
    "header half a surrogate": (raw_header(b'{"\\ud800": 1}'), (SINGLE, "not UTF-8")),
    "header nested deep": (raw_header(b'{"a":' * DEEP), (SINGLE, "nested too deep")),
    "header lists nested deep": (raw_header(b"[" * DEEP + b"]" * DEEP), (SINGLE, "nested too deep")),
    "header a number of many digits": (raw_header(b'{"a": ' + b"9" * 5000 + b"}"), (SINGLE, "not valid JSON")),
    "header very large": (raw_header(b" " * (17 << 20)), (SINGLE, "header has 17,825,792 bytes")),
    "header with a tensor twice": (duplicate_tensor, (SINGLE, "twice")),
    "name with control characters": (renamed(NORM, "\x1b[2Jall is well"), (SINGLE, r"'\x1b[2Jall")),
    "name of several lines": (renamed(NORM, "a\nb"), (SINGLE, r"'a\nb'")),
    "name empty": (renamed(NORM, ""), (SINGLE, "unusable name")),
    # its entries
    "entry a number": (header(lambda e: e.update({NORM: 7})), (SINGLE, NORM, "without a dtype")),
    "entry without dtype": (header(lambda e: e[NORM].pop("dtype")), (SINGLE, NORM, "without a dtype")),
    "entry without shape": (header(lambda e: e[NORM].pop("shape")), (SINGLE, NORM, "shape is None")),
    "entry without offsets": (header(lambda e: e[NORM].pop("data_offsets")), (SINGLE, NORM, "data_offsets is None")),
    "dtype unknown": (entry(NORM, dtype="F31"), (SINGLE, f"{NORM} is F31")),
    "dtype a number": (entry(NORM, dtype=32), (SINGLE, NORM, "without a dtype")),
    "shape text": (entry(NORM, shape="64"), (SINGLE, NORM, "shape is '64'")),
    "shape float": (entry(NORM, shape=[64.0]), (SINGLE, NORM, "shape is [64.0]")),
    "shape bool": (entry(NORM, shape=[True]), (SINGLE, NORM, "shape is [True]")),
    "shape negative": (entry(NORM, shape=[-8, -8]), (SINGLE, NORM, "shape is [-8, -8]")),
    "shape 0": (entry(NORM, shape=[0]), (SINGLE, NORM, "has 256 bytes")),
    "shape that overflows to the right size": (entry(NORM, shape=[2**62 + 16, 4]), (SINGLE, NORM, "has 256 bytes")),
    "shape of many axes": (entry(NORM, shape=[1] * 99 + [64]), (SINGLE, NORM, "shape is [1, 1")),
    "shape wrong": (entry(NORM, shape=[8, 8]), (SINGLE, NORM, "(8, 8)", "(64,)")),
    "offsets negative": (entry(NORM, data_offsets=[-256, 0]), (SINGLE, NORM, "data_offsets is [-256, 0]")),
    "offsets backwards": (entry(NORM, data_offsets=[256, 0]), (SINGLE, NORM, "data_offsets is [256, 0]")),
    "offsets beyond the file": (entry(NORM, data_offsets=[2**63, 2**63 + 256]), (SINGLE, NORM, "truncated")),
    "offsets float": (entry(NORM, data_offsets=[0.0, 256.0]), (SINGLE, NORM, "data_offsets is [0.0, 256.0]")),
    "offsets three": (entry(NORM, data_offsets=[0, 1, 2]), (SINGLE, NORM, "data_offsets is [0, 1, 2]")),
    "tensors that overlap": (shifted(-4), (SINGLE, QUERY, "overlaps")),
    "gap between tensors": (shifted(4), (SINGLE, QUERY, "gap")),
    "bytes after the last tensor": (
        lambda folder: (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes() + b"ELF!"),
        (SINGLE, "4 bytes after its last tensor"),
    ),
    "fp8": (entry(NORM, dtype="F8_E4M3", shape=[256]), (SINGLE, f"{NORM} is F8_E4M3", "quantized")),
    "GPTQ": (entry(QUERY, dtype="I32"), (SINGLE, f"{QUERY} is I32", "quantized")),
    "quantized, by its names": (renamed(NORM, f"{NORM}_scale_inv"), (SINGLE, f"{NORM}_scale_inv", "quantized")),
    "tensors swapped": (swapped(NORM, QUERY), (SINGLE, "q_proj.weight is (64,), the configuration says (64, 64)")),
    "tensor renamed": (renamed(NORM, "model.text_model.nrom.weight"), (f"{NORM} is missing",)),
    # the file
    "empty": (file(SINGLE, b""), (SINGLE, "is empty")),
    "cut in the length": (cut(SINGLE, 5), (SINGLE, "truncated")),
    "cut in the header": (cut(SINGLE, 500), (SINGLE, "truncated")),
    "cut in the data": (cut(SINGLE, -1), (SINGLE, "is truncated: tensor ")),
    "zeros": (file(SINGLE, bytes(1000)), (SINGLE, "not valid JSON")),
    "git-lfs pointer": (file(SINGLE, LFS), (SINGLE, "git-lfs pointer", "git lfs pull")),
    "web page": (file(SINGLE, b"<!DOCTYPE html><html>Please log in</html>"), (SINGLE, "web page")),
    "GGUF": (file(SINGLE, b"GGUF\3\0\0\0" + bytes(100)), (SINGLE, "is a GGUF file")),
    "PyTorch's zip": (file(SINGLE, b"PK\3\4" + bytes(100)), (SINGLE, "PyTorch")),
    "pickle": (file(SINGLE, b"\x80\x02}q\x00." + bytes(100)), (SINGLE, "pickle")),
    "folder": (instead(SINGLE, Path.mkdir), (SINGLE, "is a folder")),
    "FIFO": (instead(SINGLE, os.mkfifo), (SINGLE, "not a regular file")),
    "device": (instead(SINGLE, lambda path: path.symlink_to("/dev/zero")), (SINGLE, "not a regular file")),
    "link to nothing": (instead(SINGLE, lambda path: path.symlink_to("gone")), (SINGLE, "a file that is gone")),
    "link to itself": (instead(SINGLE, lambda path: path.symlink_to(path)), (SINGLE, "cannot be read")),
    "only consolidated weights": (
        lambda folder: (folder / SINGLE).rename(folder / "consolidated.safetensors"),
        (SINGLE, "not consolidated.safetensors"),
    ),
    "only a GGUF": (lambda folder: (folder / SINGLE).rename(folder / "m.gguf"), (SINGLE, "not m.gguf")),
    "adapter": (adapter, ("adapter (LoRA)", "lora=")),
    "no config": (lambda folder: (folder / CONFIG).unlink(), (f"has no {CONFIG}\n",)),
    "folder of a training": (training, ("config.json", "give one of the checkpoints in it, such as 'checkpoint-500'")),
    "folder of the hub's cache": (hub_cache, ("config.json", "snapshots")),
    # config.json
    "config empty": (file(CONFIG, b""), (CONFIG, "is empty")),
    "config a pointer": (file(CONFIG, LFS), (CONFIG, "git-lfs pointer")),
    "config huge": (file(CONFIG, b" " * (17 << 20)), (CONFIG, "17,825,792 bytes")),
    "config nested deep": (file(CONFIG, b'{"a":' * DEEP), (CONFIG, "nested too deep")),
    "config with a key twice": (
        file(CONFIG, b'{"model_type": "a", "model_type": "b"}'),
        (CONFIG, "'model_type' twice"),
    ),
    "config a FIFO": (instead(CONFIG, os.mkfifo), (CONFIG, "not a regular file")),
    "config a link to nothing": (instead(CONFIG, lambda path: path.symlink_to("gone")), (CONFIG, "is gone")),
    "model_type missing": (settings(model_type=...), (CONFIG, "model_type is missing")),
    "model_type a list": (settings(model_type=["llama"]), (CONFIG, "model_type is ['llama']")),
    "model_type unknown": (settings(model_type="x" * 9999), (CONFIG, "unknown architecture 'xxx", "idefics3")),
    "text_config missing": (settings(text_config=...), (CONFIG, "text_config is missing")),
    "text_config a number": (settings(text_config=4), (CONFIG, "text_config is 4")),
    "vision_config a list": (settings(vision_config=[]), (CONFIG, "vision_config is []")),
    "width of 10**12": (text(hidden_size=10**12), (CONFIG, "text_config.hidden_size is 1000000000000")),
    "width of 4000 digits": (text(hidden_size=10**4000), (CONFIG, "text_config.hidden_size is 1000")),
    "width of 10**9": (text(hidden_size=10**9), ("embed_tokens.weight is (", "1000000000")),
    "width true": (text(hidden_size=True), (CONFIG, "text_config.hidden_size is True; expected int")),
    "width NaN": (text(hidden_size=float("nan")), (CONFIG, "text_config.hidden_size is nan")),
    "10**9 layers": (text(num_hidden_layers=10**9), ("layers.2.", "is missing")),
    "-1 layers": (text(num_hidden_layers=-1), (CONFIG, "text_config.num_hidden_layers is -1")),
    "one layer less": (text(num_hidden_layers=1), ("tensor model.text_model.layers.1.", "is not part of")),
    "no heads": (text(num_attention_heads=0), (CONFIG, "text_config.num_attention_heads is 0")),
    "10**9 heads": (text(num_attention_heads=10**9, head_dim=64), ("q_proj.weight is (64, 64)",)),
    "heads that do not divide": (text(num_attention_heads=7, head_dim=None), (CONFIG, "num_attention_heads is 7")),
    "groups that do not divide": (text(num_key_value_heads=3), (CONFIG, "num_key_value_heads is 3")),
    "heads of 10**9": (text(head_dim=10**9), (CONFIG, "text_config.head_dim is 1000000000")),
    "heads of 15": (text(head_dim=15), (CONFIG, "15")),
    "epsilon infinite": (text(rms_norm_eps=float("inf")), (CONFIG, "text_config.rms_norm_eps is inf")),
    "epsilon of many digits": (text(rms_norm_eps=10**400), (CONFIG, "text_config.rms_norm_eps is 1000")),
    "epsilon 0": (text(rms_norm_eps=0), (CONFIG, "text_config.rms_norm_eps is 0")),
    "rope unknown": (text(rope_parameters={"rope_type": "twisted"}), (CONFIG, "'twisted'")),
    "rope a list": (text(rope_parameters=[1]), (CONFIG, "text_config.rope_parameters is [1]")),
    "rope theta 0": (text(rope_parameters={"rope_theta": 0}), (CONFIG, "rope_parameters.rope_theta is 0")),
    "rope factor NaN": (
        text(rope_parameters={"rope_type": "linear", "factor": float("nan")}),
        (CONFIG, "rope_parameters.factor is nan"),
    ),
    "context of 2**40": (text(max_position_embeddings=2**40), (CONFIG, "max_position_embeddings is 1099511627776")),
    "activation a list": (vision(hidden_act=["gelu"]), (CONFIG, "vision_config.hidden_act is ['gelu']")),
    "patch of 0": (vision(patch_size=0), (CONFIG, "vision_config.patch_size is 0")),
    "patch larger than the picture": (vision(patch_size=64), (CONFIG, "vision_config.patch_size is 64")),
    "picture of 10**9": (vision(image_size=10**9), ("longest_edge is 32; only 1000000000",)),
    "vision layers of 10**9": (vision(num_hidden_layers=10**9), ("encoder.layers.2.", "is missing")),
    "vision heads that do not divide": (vision(num_attention_heads=7), (CONFIG, "num_attention_heads is 7")),
    "scale factor negative": (settings(scale_factor=-2), (CONFIG, "scale_factor is -2")),
    # what is read beside it
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), ("preprocessor_config.json",)),
    "processor a pointer": (file("processor_config.json", LFS), ("processor_config.json", "git-lfs")),
    "processor of another kind": (
        file("processor_config.json", b'{"image_processor": {"size": 224}}'),
        ("processor_config.json", "max_image_size.longest_edge is missing"),
    ),
    "picture of 10**9 tiles": (
        settings("processor_config.json", image_processor__size={"longest_edge": 10**9}),
        ("processor_config.json", "size.longest_edge is 1000000000", "tiles"),
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ("tokenizer.json",)),
    "tokenizer a pointer": (file("tokenizer.json", LFS), ("tokenizer.json", "git-lfs")),
    "tokenizer nested deep": (file("tokenizer.json", b'{"model":' * DEEP), ("tokenizer.json", "nested too deep")),
    "no template": (
        lambda folder: (folder / "chat_template.jinja").unlink(),
        ("no chat template", "chat_template.jinja", "tokenizer_config.json"),
    ),
    "template not UTF-8": (file("chat_template.jinja", b"\xff"), ("chat_template.jinja", "utf-8")),
}
SHARDED: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "shard missing": (
        lambda folder: sorted(folder.glob("model-*"))[1].unlink(),
        ("model-00002-of-", "shard is missing", "tensor model."),
    ),
    "shard a pointer": (lambda f: sorted(f.glob("model-*"))[1].write_bytes(LFS), ("model-00002-of-", "git-lfs")),
    "shard cut": (lambda f: cut(sorted(f.glob("model-*"))[1].name, -9)(f), ("model-00002-of-", "truncated: tensor")),
    "path upwards": (outside, (INDEX, NORM, "'../secret.safetensors'")),
    "path absolute": (moved_to("/etc/passwd"), (INDEX, NORM, "'/etc/passwd'")),
    "path of Windows": (moved_to("..\\secret.safetensors"), (INDEX, NORM, "secret.safetensors")),
    "path with NUL": (moved_to("a\0.safetensors"), (INDEX, NORM, r"'a\x00.safetensors'")),
    "path of two lines": (moved_to("a\nb.safetensors"), (INDEX, NORM, r"'a\nb.safetensors'")),
    "path ..": (moved_to(".."), (INDEX, NORM, "'..'")),
    "path empty": (moved_to(""), (INDEX, NORM, "''")),
    "path to another file": (moved_to(CONFIG), (INDEX, NORM, "'config.json'")),
    "path a number": (weight_map(lambda found, _: found.update({NORM: 1})), (INDEX, NORM, "is in 1; expected")),
    "map missing": (file(INDEX, b'{"metadata": {}}'), (INDEX, "weight_map is missing")),
    "map a list": (file(INDEX, b'{"weight_map": ["a"]}'), (INDEX, "weight_map is ['a']")),
    "map empty": (file(INDEX, b'{"weight_map": {}}'), (INDEX, "names no tensors")),
    "map with a tensor twice": (file(INDEX, b'{"weight_map": {"a": "b", "a": "c"}}'), (INDEX, "'a' twice")),
    "map nested deep": (file(INDEX, b'{"weight_map":' * DEEP), (INDEX, "nested too deep")),
    "tensor in another shard": (
        weight_map(lambda found, shards: found.update({NORM: shards[0]})),
        ("model-00001-of-", f"{NORM} is missing", "it is in model-"),
    ),
    "tensor in no shard": (
        weight_map(lambda found, shards: found.update({"model.extra": shards[0]})),
        ("model-00001-of-", "model.extra is missing"),
    ),
    "tensor in two shards": (in_two_shards, ("model-00002-of-", "tensor model.", "as well")),
}


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory, make_model: Any, save: Any) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "checkpoint"
    save(make_model(), folder, max_shard_size="100KB")
    return Path(folder)


def refused(
    folder: Path, wanted: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the function and by the command: in one line, soon, in little memory, and nothing is left behind."""
    before = sorted(folder.parent.iterdir())
    began = time.process_time()
    tracemalloc.start()
    with pytest.raises((CheckpointError, TokenizerError)) as caught:
        convert(folder, folder.parent / "bundle")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - began < 1
    assert peak < 64 << 20
    told = str(caught.value)
    for part in wanted:
        assert part in f"{told}\n"
    assert told.isprintable() and len(told) < 600 + len(str(folder)), "one line"
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["pocketvlm", "convert", str(folder), "-o", str(folder.parent / "bundle")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"error: {told.replace('lora=', '--lora')}\n" in capsys.readouterr().err
    assert sorted(folder.parent.iterdir()) == before


@pytest.mark.parametrize("case", SINGLE_FILE)
def test_single(
    case: str, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, wanted = SINGLE_FILE[case]
    damage(checkpoint)
    refused(checkpoint, wanted, capsys, monkeypatch)


@pytest.mark.parametrize("case", SHARDED)
def test_sharded(
    case: str, sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, wanted = SHARDED[case]
    folder = Path(shutil.copytree(sharded, tmp_path / "checkpoint"))
    damage(folder)
    refused(folder, wanted, capsys, monkeypatch)


# --- what looks odd and is sound


def test_links_into_a_hub_cache(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(checkpoint.iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(Path("..") / "blobs" / str(number))
    convert(checkpoint, tmp_path / "bundle", quantize="f32", onnx="none", verify=False)


def test_a_single_file_beside_the_index_of_others(checkpoint: Path) -> None:
    """transformers takes the single file."""
    (checkpoint / INDEX).write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert NORM in Checkpoint(checkpoint).tensors


def test_buffers_of_old_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    name = "model.vision_model.embeddings.position_ids"

    def add(entries: Header) -> None:
        end = max(value["data_offsets"][1] for value in entries.values() if "data_offsets" in value)
        entries[name] = {"dtype": "I64", "shape": [1, 4], "data_offsets": [end, end + 32]}

    header(add)(checkpoint)
    with (checkpoint / SINGLE).open("ab") as out:
        out.write(bytes(32))
    convert(checkpoint, tmp_path / "bundle", quantize="f32", onnx="none", verify=False)


def test_a_folder_named_in_other_bytes(checkpoint: Path, tmp_path: Path) -> None:
    odd = checkpoint.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    checkpoint.symlink_to(odd)
    convert(checkpoint, tmp_path / "bundle", quantize="f32", onnx="none", verify=False)
    with pytest.raises(OutputError, match="UTF-8"):
        convert(checkpoint, tmp_path / os.fsdecode(b"\xe9"))


# --- files that change under us


def test_a_file_that_becomes_shorter(checkpoint: Path) -> None:
    tensor = Checkpoint(checkpoint).tensors[NORM]
    os.truncate(checkpoint / SINGLE, 5000)
    with pytest.raises(CheckpointError, match=f"shorter while tensor {NORM}"):
        list(tensor.blocks())


def test_a_file_that_is_written_during_the_conversion(checkpoint: Path, tmp_path: Path) -> None:
    def write(step: str, *_: Any) -> None:
        if step == "mmproj q8_0":
            with (checkpoint / SINGLE).open("r+b") as out:
                out.seek(-1, os.SEEK_END)
                out.write(b"\0")

    with pytest.raises(CheckpointError, match="changed during"):
        convert(checkpoint, tmp_path / "bundle", progress=write)
    assert not (tmp_path / "bundle").exists()


def test_a_tensor_of_no_rows_has_no_blocks() -> None:
    assert list(Tensor("none", np.empty((0, 4), np.float32)).blocks()) == []

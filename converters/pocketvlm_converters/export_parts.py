"""The files of a bundle as parts to be written: what a conversion and its rehearsal have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.family import Family
from pocketvlm_converters.onnx.graph import Graph, OnnxType
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.tokenizer import Vocabulary, check_picture_tokens, read_vocabulary
from pocketvlm_converters.weights import Part, weights_sha256


@dataclass(frozen=True)
class Parts:
    """`language` and `vision` with complete metadata; `vocabulary` is in the language model's."""

    language: Part
    vision: Part
    vocabulary: Vocabulary


def parts_of(family: Family, name: str, *, hashed: bool = True) -> Parts:
    """Everything that a checkpoint promises is checked, and that it has a chat template; `name` becomes the model's.

    Without `hashed` no weight is read, and the files would not know that they are a pair.
    """
    language, vision = family.language(), family.projector()
    family.check_all_used()
    rows = next(weight.tensor.shape[0] for weight in language.weights if weight.name == "token_embd.weight")
    vocabulary = read_vocabulary(family.checkpoint, rows, family.pre_tokenizers)
    if vocabulary.chat_template is None:
        raise CheckpointError(
            "has no chat template, neither chat_template.jinja nor chat_template in tokenizer_config.json: "
            "nothing says how a question is put, or where a picture stands",
            family.checkpoint.path,
        )
    check_picture_tokens(family.checkpoint, vision.metadata, vocabulary)
    labels = {
        "general.name": name,
        "pocketvlm.family": family.name,
        # Pairs the files. Not the checkpoint's own hash: that differs where only names or shards do.
        "pocketvlm.weights_sha256": weights_sha256((language, vision)) if hashed else "0" * 64,
    }
    return Parts(
        replace(language, metadata={**labels, **language.metadata, **vocabulary.metadata()}),
        replace(vision, metadata={**labels, **vision.metadata}),
        vocabulary,
    )


def write_encoder(
    family: Family, part: Part, path: Path, kind: OnnxType, progress: Progress = silent, *, meta: bool = False
) -> Path | None:
    """Write the ONNX vision encoder; the path of the weights beside it, if they are not in the graph."""
    weights = sum(weight.tensor.data.size for weight in part.weights)
    # The keys of the mmproj file, so that the runtime's families read both alike.
    metadata = {**part.metadata, "pocketvlm.type": kind}
    with Graph(path, kind, weights, progress, meta=meta) as graph:
        graph.finish(family.vision_graph(graph), metadata)
    return graph.data_path

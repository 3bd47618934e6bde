"""The parts of a bundle that a conversion and a dry run write: GGUF files and the ONNX encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.family import Family
from pocketvlm_converters.onnx.feed_forward import METHOD
from pocketvlm_converters.onnx.graph import Graph, OnnxType, Samples
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.tokenizer import Vocabulary, check_picture_tokens, read_vocabulary
from pocketvlm_converters.weights import Part, vocabulary_size, weights_sha256


@dataclass(frozen=True)
class Parts:
    """`language` and `vision` with complete metadata; that of `language` includes `vocabulary`."""

    language: Part
    vision: Part
    vocabulary: Vocabulary


def parts_of(family: Family, name: str, *, hashed: bool = True) -> Parts:
    """Return the parts of a bundle called `name`.

    Without `hashed`, no weight is read, and the hash that marks the files as a pair is all zeros. Raises
    CheckpointError, also for tensors that the family does not use or if there is no chat template, and TokenizerError.
    """
    language, vision = family.language(), family.projector()
    family.check_all_used()
    vocabulary = read_vocabulary(family.checkpoint, vocabulary_size(language), family.pre_tokenizers)
    if vocabulary.chat_template is None:
        raise CheckpointError(
            "has no chat template; expected chat_template.jinja, or chat_template in tokenizer_config.json",
            family.checkpoint.path,
        )
    check_picture_tokens(family.checkpoint, vision.metadata, vocabulary)
    shared = {
        "general.name": name,
        "pocketvlm.family": family.name,
        # Marks the files as a pair. The checkpoint's own hash would differ if only names or shards differed.
        "pocketvlm.weights_sha256": weights_sha256((language, vision)) if hashed else "0" * 64,
    }
    return Parts(
        replace(language, metadata={**shared, **language.metadata, **vocabulary.metadata()}),
        replace(vision, metadata={**shared, **vision.metadata}),
        vocabulary,
    )


def write_encoder(
    family: Family,
    part: Part,
    path: Path,
    kind: OnnxType,
    progress: Progress = silent,
    *,
    meta: bool = False,
    samples: Samples | None = None,
) -> Path | None:
    """Write the ONNX vision encoder. Returns the path of the separate file of weights, or None if the graph has them.

    With `meta`, the files have holes instead of weights, as those of `gguf.write_language`. `samples` are those of
    `sampled_inputs`, for int8.
    """
    # The same keys as in the mmproj file, so that the runtime's families read both alike.
    metadata = {**part.metadata, "pocketvlm.type": kind}
    if kind == "int8":
        metadata["pocketvlm.rounding"] = METHOD
    with Graph(path, kind, weight_count(part), progress, meta=meta, samples=samples) as graph:
        graph.finish(family.vision_graph(graph), metadata)
    return graph.data_path


def weight_count(part: Part) -> int:
    return sum(weight.tensor.data.size for weight in part.weights)

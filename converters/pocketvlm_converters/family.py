"""What a family states about its checkpoints, and how the family of a checkpoint is found."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError
from pocketvlm_converters import families
from pocketvlm_converters.checkpoint.config import Section, short
from pocketvlm_converters.checkpoint.folder import Checkpoint, Tensor

if TYPE_CHECKING:
    from pocketvlm_converters.onnx.graph import Graph, GraphOutput

Value = int | float | bool | str | Sequence[int] | Sequence[float] | Sequence[str]


@dataclass(frozen=True)
class Weight:
    """One tensor of a GGUF file. `order` is the order in which its rows are written; `exact` keeps it in float32."""

    name: str
    tensor: Tensor
    order: npt.NDArray[np.intp] | None = None
    exact: bool = False

    @property
    def width(self) -> int:
        """Length of a row, which is what a type with blocks must divide."""
        return self.tensor.shape[-1]

    @property
    def is_matrix(self) -> bool:
        return len(self.tensor.shape) > 1


@dataclass(frozen=True)
class Part:
    """A GGUF file to be: `architecture` is general.architecture, `metadata` holds complete GGUF keys.

    An int becomes a uint32, a float a float32, a list an array of its items' type.
    """

    architecture: str
    metadata: Mapping[str, Value]
    weights: tuple[Weight, ...]


def weights_sha256(parts: Iterable[Part]) -> str:
    """Of all names, types, shapes and values: the same for one model in whatever files, under whichever naming.

    Raises CheckpointError where a weight is NaN or infinite.
    """
    digest = hashlib.sha256()
    for weight in (weight for part in parts for weight in part.weights):
        digest.update(f"{weight.name} {weight.tensor.dtype} {weight.tensor.shape}\n".encode())
        for block in weight.tensor.blocks(weight.order):
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class PreTokenizer:
    """How text is split before byte-pair encoding, and libllama's name for it (tokenizer.ggml.pre).

    `steps` is the `pre_tokenizer` of tokenizer.json in the short form of `tokenizer.byte_bpe.steps_of`. libllama
    derives from the name whether a whole word that is a token skips the merges. Where it only approximates the split,
    the runtime has one of that name `of_ours`, for the merges of a tiktoken vocabulary.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    ignore_merges: bool = False
    of_ours: bool = False


class Family(ABC):
    """One subclass per module of `families/`; the module's name is the family's, as in the runtime's families."""

    model_types: ClassVar[frozenset[str]]
    # model_type and vision_config.model_type, where another family has the first with other encoders
    encoders: ClassVar[frozenset[tuple[str, str]]] = frozenset()
    other_formats: ClassVar[Mapping[str, str]] = {}  # of the same models, by model_type: what they are, what to take
    pre_tokenizers: ClassVar[tuple[PreTokenizer, ...]] = ()  # those that no other family has

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._used: set[str] = set()

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def language(self) -> Part:
        """The language model, without its vocabulary."""

    @abstractmethod
    def projector(self) -> Part:
        """The vision encoder and projector, with the keys that libmtmd wants."""

    def vision_graph(self, graph: Graph) -> GraphOutput:
        """Add the vision encoder and projector to `graph`, from its input to the embeddings."""
        raise CheckpointError(f"no ONNX vision encoder for family {self.name} yet; use --onnx none", graph.path)

    def names(self, prefixes: Sequence[str]) -> Names:
        """The checkpoint's tensors below the first of `prefixes` that occurs: hub naming or transformers' own."""
        prefix = next((p for p in prefixes if any(name.startswith(p) for name in self.checkpoint.tensors)), prefixes[0])
        return Names(self.checkpoint, prefix, self._used, prefixes[0])

    def check_all_used(self) -> None:
        """A weight that nobody asked for would be lost without a word; raises CheckpointError naming it."""
        left = [name for name in self.checkpoint.tensors if name not in self._used]
        if left:
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise CheckpointError(
                f"tensor {left[0]}{more} is not part of a {self.checkpoint.model_type} model", self.checkpoint.path
            )


# Where most checkpoints have their tensors: as on the hub and as transformers 5 holds them.
LANGUAGE = ("language_model.model.", "model.language_model.", "language_model.")
HEAD = ("language_model.", "")
TOWER = ("model.vision_tower.", "vision_tower.")
TOWER_MODEL = ("vision_tower.vision_model.", "model.vision_tower.vision_model.", *TOWER)
CONNECTOR = ("model.multi_modal_projector.", "multi_modal_projector.")


@dataclass(frozen=True)
class Names:
    """Tensors of a checkpoint below a prefix, labelled as under `first`. Remembers which were asked for."""

    checkpoint: Checkpoint
    prefix: str
    used: set[str]
    first: str

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Raises CheckpointError where the tensor is missing or of another shape."""
        full = self.prefix + name
        tensor = self.checkpoint.tensor(full, shape)
        if tensor is None:
            raise CheckpointError(f"tensor {full} is missing", self.checkpoint.path)
        if tensor.shape != shape:
            raise CheckpointError(f"tensor {full} is {tensor.shape}, the configuration says {shape}", tensor.path)
        self.used.add(full)
        return replace(tensor, given_label=self.first + name)

    def ignore(self, below: str) -> None:
        """Tensors that the reference does not use either."""
        self.used.update(name for name in self.checkpoint.tensors if name.startswith(self.prefix + below))

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.checkpoint.tensors


def find_family(checkpoint: Checkpoint) -> Family:
    """Raises CheckpointError with the known model types where none fits."""
    return check_model_type(checkpoint.config)(checkpoint)


def check_model_type(config: Section) -> type[Family]:
    """The family of a configuration, before there are weights. Raises CheckpointError likewise."""
    known = {kind: cls for cls in _all_families() for kind in cls.model_types}
    by_encoder = {both: cls for cls in _all_families() for both in cls.encoders}
    name = config.text("model_type")
    if found := by_encoder.get((name, config.section("vision_config").text("model_type", ""))):
        return found
    if name not in known:
        other = {kind: told for cls in _all_families() for kind, told in cls.other_formats.items()}
        if told := other.get(name):
            raise CheckpointError(f"model_type {name} is {told}", config.path)
        raise CheckpointError(f"unknown architecture {short(name)}; known: {', '.join(sorted(known))}", config.path)
    return known[name]


def _all_families() -> Iterable[type[Family]]:
    for info in pkgutil.iter_modules(families.__path__):
        module = importlib.import_module(f"{families.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module.__name__:
                yield value

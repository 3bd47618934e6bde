"""What a family states about its checkpoints, and how the family of a checkpoint is found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.folder import Checkpoint, Tensor
from pocketvlm_converters.tokenizer.pre_tokenizer import PreTokenizer
from pocketvlm_converters.weights import Part

if TYPE_CHECKING:
    from pocketvlm_converters.onnx.graph import Graph, GraphOutput


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

"""The base class of the families: what a family states about its checkpoints."""

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
    # Pairs of model_type and vision_config.model_type, for a model_type that another family has with other encoders.
    encoders: ClassVar[frozenset[tuple[str, str]]] = frozenset()
    # Unsupported formats of the same models by their model_type: the text of the error, with what to use instead.
    other_formats: ClassVar[Mapping[str, str]] = {}
    pre_tokenizers: ClassVar[tuple[PreTokenizer, ...]] = ()  # those that no other family has

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._used: set[str] = set()

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user: what of the checkpoint is left out."""
        return ()

    @abstractmethod
    def language(self) -> Part:
        """Return the language model, without its vocabulary."""

    @abstractmethod
    def projector(self) -> Part:
        """Return the vision encoder and projector, with the GGUF keys that libmtmd reads."""

    def vision_graph(self, graph: Graph) -> GraphOutput:
        """Add the vision encoder and projector to `graph`, from its input to the embeddings."""
        raise CheckpointError(f'family {self.name} has no ONNX vision encoder yet; use onnx="none"', graph.path)

    def names(self, prefixes: Sequence[str]) -> Names:
        """Return the checkpoint's tensors below the first of `prefixes` that occurs.

        Tensors have other prefixes on the hub than in files that transformers 5 has saved.
        """
        prefix = next((p for p in prefixes if any(name.startswith(p) for name in self.checkpoint.tensors)), prefixes[0])
        return Names(self.checkpoint, prefix, self._used, tuple(prefixes))

    def check_all_used(self) -> None:
        """Raise CheckpointError for tensors that no part uses: the conversion would drop them silently."""
        unused = [name for name in self.checkpoint.tensors if name not in self._used]
        if unused:
            more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
            value_head = any(name.startswith(_VALUE_HEADS) for name in unused)
            hint = ": it is a value head of reinforcement learning; save the model without it" if value_head else ""
            raise CheckpointError(
                f"tensor {unused[0]}{more} is not part of a {self.checkpoint.model_type} model{hint}",
                self.checkpoint.path,
            )
        self.checkpoint.adapters.check_all_used(self.checkpoint.model_type)


_VALUE_HEADS = ("v_head.", "pretrained_model.v_head.", "value_head.", "score.")  # beginnings of their names
# Prefixes of the tensors in most checkpoints: as on the hub and as transformers 5 names them.
LANGUAGE = ("language_model.model.", "model.language_model.", "language_model.")
HEAD = ("language_model.", "")
TOWER = ("model.vision_tower.", "vision_tower.")
TOWER_MODEL = ("vision_tower.vision_model.", "model.vision_tower.vision_model.", *TOWER)
CONNECTOR = ("model.multi_modal_projector.", "multi_modal_projector.")


@dataclass(frozen=True)
class Names:
    """The tensors of a checkpoint below `prefix`, one of the `prefixes` that they may have.

    Their labels begin with the first of these, whichever the checkpoint has. `used` collects the names of the tensors
    that were requested. An adapter may have any of the prefixes, whichever the checkpoint has.
    """

    checkpoint: Checkpoint
    prefix: str
    used: set[str]
    prefixes: tuple[str, ...]

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor, with adapters merged. Raises CheckpointError if it is missing or has another shape."""
        return self.merged(name, self.stored(name, shape))

    def stored(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor of the checkpoint, without adapters."""
        full_name = self.prefix + name
        tensor = self.checkpoint.tensor(full_name, shape)
        if tensor is None:
            raise CheckpointError(f"tensor {full_name} is missing", self.checkpoint.path)
        if tensor.shape != shape:
            raise CheckpointError(f"tensor {full_name} is {tensor.shape}, the configuration says {shape}", tensor.path)
        self.used.add(full_name)
        return tensor

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """Return `tensor` as the adapters change the weight `name`."""
        merged = self.checkpoint.adapters.merged(tensor, self._aliases(name))
        return replace(merged, given_label=self.prefixes[0] + name)

    def changed(self, name: str, tensor: Tensor) -> bool:
        """Return whether an adapter changes the weight `name`."""
        return self.checkpoint.adapters.changed(tensor, self._aliases(name))

    def separate(self, name: str, tensor: Tensor, *, rows: bool) -> bool:
        """Return whether an adapter changes the weight `name`, but not a matrix that it is tied to.

        `rows`: that can be a change of some rows.
        """
        return self.checkpoint.adapters.separate(tensor, self._aliases(name), rows=rows)

    def ignore(self, below: str) -> None:
        """Mark tensors as used that the reference implementation does not use either."""
        self.checkpoint.adapters.ignore(self._aliases(below))
        self.used.update(name for name in self.checkpoint.tensors if name.startswith(self.prefix + below))

    def _aliases(self, name: str) -> list[str]:
        return [prefix + name for prefix in self.prefixes]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.checkpoint.tensors

"""A folder with a LoRA adapter as PEFT saves it: which tensors change which weight of the base model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pocketvlm.errors import CheckpointError, quoted
from pocketvlm_converters.checkpoint.config import Section, parse_object
from pocketvlm_converters.checkpoint.files import SAFE_ADAPTER, read_limited, utf8_name
from pocketvlm_converters.checkpoint.lora.merge import LowRank
from pocketvlm_converters.checkpoint.lora.settings import read_settings
from pocketvlm_converters.checkpoint.safetensors import Tensor, read_safetensors, unreadable

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_LIMIT = 16 << 20  # bytes of the configuration, and of the chat template
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
# What training adds to the names of modules.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Parts of a module. In a training checkpoint the name of the adapter, such as `default`, follows.
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|token_adapter\.trainable_tokens_delta)(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<kind>weight|bias))?"
)
# Parts of names of tensors that stand in place of the base model's.
_REPLACED = re.compile(r"\.modules_to_save(?:\.default)?(?=\.)|\.base_layer(?=\.)")
_LOW_RANK = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
_ROWS = "token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class Change:
    """What one adapter does to one weight of the base model."""

    replaced: Tensor | None = None
    low_rank: LowRank | None = None
    shift: tuple[Tensor, float] | None = None
    rows: tuple[tuple[int, ...], Tensor] | None = None

    @property
    def adds(self) -> bool:
        """Whether it adds to the weight, so that others may add to it, too."""
        only = self.replaced is None and self.rows is None
        return only and (self.low_rank is None or self.low_rank.magnitude is None)


class Adapter:
    """The adapter in a folder. `strength` multiplies the scale that it was trained with.

    Raises CheckpointError if the folder is not one of a LoRA adapter that can be merged.
    """

    def __init__(self, path: str | Path, strength: float = 1.0) -> None:
        self.path = path = Path(path)
        self.strength = strength
        if not path.is_dir():
            reason = "is a file; give the adapter's folder" if path.exists() else "no such adapter folder"
            raise CheckpointError(reason, path)
        if not (path / CONFIG).exists():
            trained = sorted(folder.name for folder in path.glob("checkpoint-*"))
            hint = f"; it is a folder of a training, give e.g. {quoted(trained[-1])} in it" if trained else ""
            raise CheckpointError(f"is not a LoRA adapter: it has no {CONFIG}{hint}", path)
        config = path / CONFIG
        self.settings = read_settings(Section(parse_object(read_limited(config, _LIMIT), config), config))
        if not (path / WEIGHTS).exists():
            pickled = f", only {_PICKLE}; {SAFE_ADAPTER}" if (path / _PICKLE).exists() else ""
            raise CheckpointError(f"has no {WEIGHTS}{pickled}", path)
        self._replaced: dict[str, Tensor] = {}
        self._modules: dict[str, dict[str, Tensor]] = {}
        self._unused: dict[str, str] = {}  # names in the file to those in the model
        for tensor in read_safetensors(path / WEIGHTS):
            if tensor.packed:
                raise unreadable(tensor.name, tensor.packed, tensor.path)
            self._add(tensor)

    @property
    def name(self) -> str:
        return utf8_name(self.path.resolve())

    @property
    def files(self) -> tuple[Path, ...]:
        return self.path / CONFIG, self.path / WEIGHTS

    @property
    def chat_template(self) -> str | None:
        """The chat template that the training used, if it is in the folder. It is not that of the bundle."""
        path = self.path / "chat_template.jinja"
        return read_limited(path, _LIMIT).decode("utf-8", "replace") if path.is_file() else None

    @property
    def note(self) -> str:
        """A sentence about it for the user."""
        strength = f" at {self.strength:g} times its scale" if self.strength != 1 else ""
        origin = f", trained on {quoted(self.settings.base)}," if self.settings.base else ""
        return f"the adapter {self.name}{origin} is merged{strength}"

    def change(self, names: Sequence[str], shape: tuple[int, ...]) -> Change | None:
        """Return the change of a weight that has one of these `names`, or None. Its tensors count as used."""
        replaced = [self._replaced[name] for name in names if name in self._replaced]
        modules = [
            (module, ending)
            for name in names
            for module, _, ending in [name.rpartition(".")]
            if module in self._modules
        ]
        if len(replaced) > 1 or len(modules) > 1:
            raise self._error(f"has {names[0]} under two names")
        change = self._of_module(*modules[0], shape) if modules else Change()
        if replaced:
            if replaced[0].shape != shape:
                raise self._misfit(replaced[0], names[0], shape)
            change = replace(change, replaced=self._take(replaced[0]))
        return None if change == Change() else change

    def ignore(self, prefixes: Sequence[str]) -> None:
        """Count tensors as used that change weights below `prefixes`, which no part of a bundle has."""
        beginnings = tuple(prefixes)
        self._unused = {tensor: name for tensor, name in self._unused.items() if not name.startswith(beginnings)}

    def check_all_used(self, model_type: str) -> None:
        """Raise CheckpointError for tensors that change nothing in the base model: it is not theirs."""
        if self._unused:
            tensor, name = next(iter(self._unused.items()))
            more = f" and {len(self._unused) - 1} more" if len(self._unused) > 1 else ""
            raise self._error(f"tensor {tensor}{more} changes {name}, which this {model_type} model does not have")

    def check_class(self, architectures: object) -> None:
        """Raise CheckpointError if the adapter is known to be for a model of another class."""
        trained = self.settings.base_class.removeprefix("FSDP")
        if trained and isinstance(architectures, list) and architectures and trained not in architectures:
            raise self._error(f"is for {trained}; the checkpoint is {', '.join(map(str, architectures))}")

    def _add(self, tensor: Tensor) -> None:
        name = _WRAPPERS.sub("", tensor.name).removeprefix(_PREFIX)
        match = _PART.fullmatch(name)
        if match is None:
            place, key = self._replaced, _REPLACED.sub("", name)
        else:
            place = self._modules.setdefault(match["module"], {})
            key = f"{match['part']}.bias" if match["kind"] == "bias" else match["part"]
        if place.setdefault(key, tensor) is not tensor:
            raise self._error(f"tensor {tensor.name} is there twice, the other time as {place[key].name}")
        self._unused[tensor.name] = name if match else key

    def _of_module(self, module: str, ending: str, shape: tuple[int, ...]) -> Change:
        parts = self._modules[module]
        if ending == "weight":
            rows = parts.get(_ROWS)
            return (
                Change(rows=self._rows(module, rows, shape)) if rows else Change(low_rank=self._low_rank(module, shape))
            )
        bias = parts.get("lora_B.bias") if ending == "bias" else None
        if bias is None:
            return Change()
        if bias.data.size != math.prod(shape):
            raise self._misfit(bias, f"{module}.bias", shape)
        rank = self._need(module, "lora_A").shape[0]
        return Change(shift=(self._take(bias), self._scale(module, rank)))

    def _low_rank(self, module: str, shape: tuple[int, ...]) -> LowRank:
        parts = self._modules[module]
        embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        first, second = (self._need(module, part) for part in _LOW_RANK[embedding])
        if len(first.shape) < 2 or len(second.shape) < 2:
            raise self._misfit(first, f"{module}.weight", shape, second)
        rank = first.shape[0]
        transposed = embedding or self.settings.transposed
        inner = first.shape[1:] if second.data.size == rank * second.shape[0] else ()
        given = (*inner, second.shape[0]) if transposed else (second.shape[0], *inner)
        if not rank or given != shape:
            raise self._misfit(first, f"{module}.weight", shape, second)
        magnitude = parts.get("lora_magnitude_vector")
        if magnitude is not None and magnitude.data.size != second.shape[0]:
            raise self._misfit(magnitude, f"{module}.weight", shape)
        down, up = first.view(lambda data: data.reshape(rank, -1)), second.view(lambda data: data.reshape(-1, rank))
        return LowRank(
            left=self._take(first, down).view(np.transpose) if transposed else self._take(second, up),
            right=self._take(second, up).view(np.transpose) if transposed else self._take(first, down),
            scale=self._scale(module, rank),
            magnitude=None if magnitude is None else self._take(magnitude),
            by_column=transposed,
        )

    def _rows(self, module: str, rows: Tensor, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor]:
        """Return the numbers of the rows that are replaced, and the new rows."""
        given = self.settings.tokens
        indexes = next((given[end] for end in given if f".{module}".endswith(f".{end}")), ())
        if rows.shape != (len(indexes), *shape[1:]) or (indexes and max(indexes) >= shape[0]):
            raise self._misfit(rows, f"{module}.weight", shape)
        return indexes, self._take(rows)

    def _scale(self, module: str, rank: int) -> float:
        return self.strength * self.settings.scale(module, rank)

    def _need(self, module: str, part: str) -> Tensor:
        tensor = self._modules[module].get(part)
        if tensor is None:
            other = next(iter(self._modules[module].values()))
            raise self._error(f"tensor {other.name} is there, but {module}.{part} is missing")
        return tensor

    def _take(self, tensor: Tensor, view: Tensor | None = None) -> Tensor:
        """Return the tensor, or a view of it, and count it as used."""
        self._unused.pop(tensor.name, None)
        return tensor if view is None else view

    def _misfit(
        self, tensor: Tensor, name: str, shape: tuple[int, ...], other: Tensor | None = None
    ) -> CheckpointError:
        also = f" and {other.name} is {other.shape}; they do" if other else "; it does"
        reason = f"tensor {tensor.name} is {tensor.shape}{also} not fit {name} of the checkpoint, {shape}"
        if other is None and tensor.shape[1:] == shape[1:] and len(shape) > 1:
            reason += " (if the training added tokens, merge the adapter with PEFT first)"
        return self._error(reason)

    def _error(self, reason: str) -> CheckpointError:
        trained = f"; it was trained on {quoted(self.settings.base)}" if self.settings.base else ""
        return CheckpointError(f"{reason}{trained}", self.path)

"""LoRA adapters as they are merged into a checkpoint: a weight is computed when its values are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pocketvlm.errors import CheckpointError
from pocketvlm_converters.checkpoint.lora.adapter import Adapter, Change
from pocketvlm_converters.checkpoint.lora.merge import added, shifted, with_rows
from pocketvlm_converters.checkpoint.safetensors import Tensor

# A folder, or a folder and how strong to apply it (1 is as it was trained).
Lora = str | Path | tuple[str | Path, float]


class Adapters:
    """Adapters that are merged together. Without any, weights stay as they are."""

    def __init__(self, given: Iterable[Lora] = ()) -> None:
        self._adapters = tuple(Adapter(*entry) if isinstance(entry, tuple) else Adapter(entry) for entry in given)

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._adapters)

    def merged(self, tensor: Tensor, names: Sequence[str]) -> Tensor:
        """Return the tensor with all changes, in float32 if there are any; `names` are those that it may go by.

        Raises CheckpointError for a change that does not fit, or for several that cannot be added.
        """
        changes = self._changes(tensor, names)
        if not changes:
            return tensor
        if len(changes) > 1 and not all(change.adds for change in changes):
            raise CheckpointError(
                f"tensor {names[0]} is changed by several adapters, of which one replaces it or is a DoRA; merge them "
                "one by one, with PEFT",
                tensor.path,
            )
        base = tensor if changes[0].replaced is None else replace(changes[0].replaced, name=tensor.name)
        if changes[0].rows is not None:
            return with_rows(base, *changes[0].rows)
        if shifts := tuple(change.shift for change in changes if change.shift is not None):
            return shifted(base, shifts)
        low_rank = tuple(change.low_rank for change in changes if change.low_rank is not None)
        return added(base, low_rank) if low_rank else base

    def changed(self, tensor: Tensor, names: Sequence[str]) -> bool:
        """Return whether an adapter changes `tensor`."""
        return bool(self._changes(tensor, names))

    def separate(self, tensor: Tensor, names: Sequence[str], *, rows: bool) -> bool:
        """Return whether a change of `tensor` is not one of the matrix that it is tied to, too.

        `rows`: that can be a change of some rows.
        """
        return any(
            (rows or change.rows is None) and not adapter.settings.keeps_tied
            for adapter in self._adapters
            if (change := adapter.change(names, tensor.shape))
        )

    def ignore(self, prefixes: Sequence[str]) -> None:
        """Count changes of weights below `prefixes` as used."""
        for adapter in self._adapters:
            adapter.ignore(prefixes)

    def check_all_used(self, model_type: str) -> None:
        """Raise CheckpointError for a tensor of an adapter that changes nothing."""
        for adapter in self._adapters:
            adapter.check_all_used(model_type)

    def _changes(self, tensor: Tensor, names: Sequence[str]) -> list[Change]:
        changes = (adapter.change(names, tensor.shape) for adapter in self._adapters)
        return [change for change in changes if change is not None]

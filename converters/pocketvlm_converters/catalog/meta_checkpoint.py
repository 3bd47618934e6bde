"""A checkpoint with a configuration but no weights: every tensor that its family requests exists, as zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pocketvlm_converters.catalog.entry import Entry
from pocketvlm_converters.checkpoint.folder import Checkpoint, Section, Tensor

_ZERO = np.zeros((), np.uint16)  # bfloat16


class MetaCheckpoint(Checkpoint):
    """A checkpoint whose weights take no memory: each tensor is one zero, broadcast to the requested shape."""

    def __init__(self, entry: Entry) -> None:
        # Does not call super().__init__(), which reads a folder.
        self.path = entry.path
        self._files = {
            "config.json": entry.config,
            "preprocessor_config.json": entry.preprocessor,
            "processor_config.json": entry.processor,
        }
        self.config = self.json("config.json")
        self.model_type = self.config.text("model_type")
        self.tensors: dict[str, Tensor] = {}
        self.shards: list[Path] = []

    def json(self, name: str, optional: bool = False) -> Section:  # noqa: ARG002
        return Section(self._files.get(name, {}), self.path)

    def text(self, name: str) -> str | None:  # noqa: ARG002
        return None

    def token_id(self, text: str) -> int | None:  # noqa: ARG002
        return 0

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return Tensor(name, np.broadcast_to(_ZERO, shape), self.path)

"""A checkpoint of which only the configuration is known: every tensor that its family asks for is there, as zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pocketvlm_converters.catalog.entry import Entry
from pocketvlm_converters.checkpoint.folder import Checkpoint, Section, Tensor

_NOTHING = np.zeros((), np.uint16)  # bfloat16


class MetaCheckpoint(Checkpoint):
    """Takes no memory for its weights: each is one zero, seen as many times as the shape says."""

    def __init__(self, entry: Entry) -> None:  # nothing of a folder is read
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
        return Tensor(name, np.broadcast_to(_NOTHING, shape), self.path)

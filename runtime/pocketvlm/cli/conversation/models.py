"""Which model answers, and how a conversation goes on with another one."""

from __future__ import annotations

from dataclasses import replace

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.cli.console import waiting
from pocketvlm.cli.conversation.state import Conversation
from pocketvlm.cli.loading import load_chosen
from pocketvlm.files.locate import locate, pulled_models


class Models:
    """`model` is what the command line named: a path, the name of a pulled model, or None for iota."""

    def __init__(self, model: str | None, options: LoadOptions, memory: str | None) -> None:
        self.model = model
        self.options = options
        self._memory = memory

    @property
    def mmproj(self) -> str | None:
        return str(self.options.mmproj) if self.options.mmproj else None

    def names(self) -> list[str]:
        """Return the names of all models that are here; a star marks the one that answers."""
        current = self.model or "iota"
        names = dict.fromkeys(["iota", *pulled_models(), current])
        return [f"{'*' if name == current else ' '} {name}" for name in names]

    def switch(self, conversation: Conversation, model: str) -> None:
        """Load another model in place of the one that answers.

        There is room for one of them only. If the other one cannot be loaded, the first is loaded again. Raises
        ModelError and what `VLM.load` raises.
        """
        options = replace(self.options, mmproj=None)
        locate(model, model=None, mmproj=None, verify=False)
        conversation.close()
        try:
            self._load(conversation, model, options)
        except BaseException:  # Ctrl-C too
            self._load(conversation, self.model, self.options)
            raise
        self.model, self.options = model, options

    def _load(self, conversation: Conversation, model: str | None, options: LoadOptions) -> None:
        with waiting("loading"):
            vlm, chosen = load_chosen(model, options, memory=self._memory)
        conversation.use(vlm)
        conversation.max_image_tokens = chosen.max_image_tokens

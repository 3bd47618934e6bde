"""Questions that are typed in a terminal: several lines, history, completion with Tab."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import (
    BufferControl,
    CompletionsMenu,
    Dimension,
    Float,
    FloatContainer,
    HSplit,
    Layout,
    Window,
)
from prompt_toolkit.layout.processors import (
    AfterInput,
    ConditionalProcessor,
    HighlightIncrementalSearchProcessor,
    HighlightSelectionProcessor,
)
from prompt_toolkit.output import create_output
from prompt_toolkit.styles import Style
from prompt_toolkit.widgets import ArgToolbar, SearchToolbar

from pocketvlm.cli.conversation.plain_lines import AGAIN, PROMPT
from pocketvlm.cli.conversation.typed_message import is_open

_STYLE = Style.from_dict(
    {
        "prompt": "bold",
        "placeholder": "dim",
        "completion-menu": "noreverse bg:default fg:default",
        "completion-menu.completion": "noreverse bg:default fg:default",
        "completion-menu.completion.current": "reverse",
        "completion-menu.meta.completion": "noreverse bg:default fg:default dim",
        "completion-menu.meta.completion.current": "reverse",
        "scrollbar.background": "noreverse bg:default",
        "scrollbar.button": "noreverse bg:default",
    }
)
_MENU_ROWS = 8


class EditedLines:
    """Enter sends, Alt-Enter and pasted line breaks begin a new line, and so does Enter after three quotes.

    Ctrl-C clears the line; pressed twice where there is none, it ends.
    """

    def __init__(
        self,
        output: TextIO,
        complete: Callable[[str], Iterable[Completion]],
        history: History | None = None,
        placeholder: str = "",
        shown: Callable[[], None] = lambda: None,
    ) -> None:
        """`complete` is called with the text before the cursor, and `shown` once the first prompt is on the screen."""
        # The position of the cursor is not asked for: the answer of a slow terminal would be read as typed.
        os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")
        self._interrupted = False
        self._placeholder = placeholder
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            history=history or InMemoryHistory(),
            enable_history_search=True,
            completer=_Completer(complete),
            complete_while_typing=False,
            enable_suspend=True,
            key_bindings=self._keys(),
            style=_STYLE,
            include_default_pygments_style=False,
            output=create_output(stdout=output),
        )
        self._session.app.layout = self._layout()
        self._shown = shown
        self._session.app.after_render += self._first_shown
        self._session.default_buffer.on_text_changed += self._typed

    def read(self) -> str:
        """Return what is typed next. Raises EOFError at the end, and KeyboardInterrupt where Ctrl-C was pressed twice.

        The terminal shows what was sent, and the cursor is on the next line.
        """
        try:
            return self._session.prompt()
        finally:
            self._interrupted = False
            self._placeholder = ""

    def _first_shown(self, app: Application[str]) -> None:
        app.after_render -= self._first_shown
        self._shown()

    def _typed(self, _: Any) -> None:
        self._interrupted = False

    def _layout(self) -> Layout:
        """Return the text with its prompt, the menu of completions over it, and lines for searches and arguments.

        The session's own layout has 21 windows, for options that are not used here, and each key asks all of them.
        """
        buffer = self._session.default_buffer
        search = SearchToolbar(self._session.search_buffer)
        placeholder = AfterInput(lambda: [("class:placeholder", AGAIN if self._interrupted else self._placeholder)])
        control = BufferControl(
            buffer,
            search_buffer_control=search.control,
            input_processors=[
                HighlightIncrementalSearchProcessor(),
                HighlightSelectionProcessor(),
                ConditionalProcessor(placeholder, Condition(lambda: not buffer.text)),
            ],
            include_default_input_processors=False,
            preview_search=True,
        )
        text = Window(control, height=self._height, get_line_prefix=_prompt, wrap_lines=True)
        menu = CompletionsMenu(max_height=16, scroll_offset=1, extra_filter=has_focus(control))
        shown = FloatContainer(text, [Float(menu, xcursor=True, ycursor=True, transparent=True)])
        return Layout(HSplit([shown, ArgToolbar(), search]), text)

    def _height(self) -> Dimension:
        """Leave room for the menu of completions while there is one."""
        is_open = self._session.default_buffer.complete_state is not None and not self._session.app.is_done
        return Dimension(min=_MENU_ROWS) if is_open else Dimension()

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        typing = has_focus(DEFAULT_BUFFER)

        @keys.add("enter", filter=typing)
        def send(event: KeyPressEvent) -> None:
            if is_open(event.current_buffer.text):
                event.current_buffer.newline(copy_margin=False)
            else:
                event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=typing)
        def begin_line(event: KeyPressEvent) -> None:
            event.current_buffer.newline(copy_margin=False)

        @keys.add("c-c", filter=typing)
        @keys.add("<sigint>", filter=typing)
        def interrupt(event: KeyPressEvent) -> None:
            if event.current_buffer.text:
                event.current_buffer.reset()
            elif self._interrupted:
                event.app.exit(exception=KeyboardInterrupt, style="class:aborting")
            else:
                self._interrupted = True

        return keys


def _prompt(line: int, wrapped: int) -> StyleAndTextTuples:
    return [("class:prompt", " " * len(PROMPT) if line or wrapped else PROMPT)]


class _Completer(Completer):
    def __init__(self, complete: Callable[[str], Iterable[Completion]]) -> None:
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002
        return self._complete(document.text_before_cursor)

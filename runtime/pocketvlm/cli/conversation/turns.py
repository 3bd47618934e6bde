"""Questions and answers: attach pictures, ask, show the answer while it comes, and keep both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

from pocketvlm.cli.answer_report import ProgressBar, print_report
from pocketvlm.cli.conversation.screen import Screen
from pocketvlm.cli.conversation.state import Conversation, Message
from pocketvlm.messages import Timings


class Turns:
    """`keep` is called after each answer. Ctrl-C stops an answer; what there is of it is kept."""

    def __init__(self, conversation: Conversation, screen: Screen, keep: Callable[[], None]) -> None:
        self._conversation = conversation
        self._screen = screen
        self._keep = keep

    def attach(self, *sources: str | bytes) -> None:
        """Show pictures with the next question: all of them, or none where one raises ImageError."""
        pending = [*self._conversation.pending]
        try:
            for source in sources:
                self._screen.show_attached(self._conversation.attach(source), self._conversation)
        except BaseException:  # Ctrl-C too
            self._conversation.pending = pending
            raise

    def ask(self, question: str) -> None:
        self._answer(self._conversation.ask(question), {}, self._conversation.seen)

    def retry(self) -> None:
        """Ask the last question again. Raises RequestError where there is none."""
        messages, fields, before = self._conversation.last_question()
        if fields:
            self._screen.say(f"asked again with temperature {fields['temperature']}, for another answer")
        self._answer(messages, fields, before)

    def _answer(self, messages: list[Message], fields: dict[str, Any], before: int) -> None:
        """Answer the last of `messages`. `before` counts the pictures and pages before it."""
        conversation, screen = self._conversation, self._screen
        shown = screen.answer(as_text=bool(conversation.fields.get("response_format")))
        texts: list[str] = []
        timings: Timings | None = None
        notes: list[str] | None = None
        cut = complete = False
        thoughts = 0
        try:
            with ProgressBar() as bar:
                with closing(conversation.stream(messages, progress=bar, **fields)) as chunks:
                    for chunk in chunks:
                        bar.end()
                        timings, notes = chunk.timings or timings, chunk.notes or notes
                        cut = any(choice.finish_reason == "length" for choice in chunk.choices)
                        if chunk.text:
                            texts.append(chunk.text)
                            shown.add(chunk.text)
                        elif any(choice.delta.reasoning_content for choice in chunk.choices):
                            thoughts += 1
                            shown.think(thoughts)
                complete = True
        except KeyboardInterrupt:
            if not screen.interactive:
                raise
        finally:
            if texts or complete:
                shown.end()
            else:
                shown.drop()
        if not complete and not texts:
            screen.say("stopped; the question is not part of the conversation")
            return
        images = timings.images if timings else []
        seen = len(images) if timings else None
        conversation.add(messages, "".join(texts), before=before, seen=seen, complete=complete)
        if not complete:
            screen.say("stopped; the answer so far is kept, /retry asks again")
        reason = "max_tokens" if conversation.fields.get("max_tokens") else "the context is full, /reset starts again"
        images = images[before:]
        lines = conversation.run_notes.about_answer(notes, images, high="/set detail high")
        print_report(images, lines, timings if screen.timings else None, cut=reason if cut else None)
        screen.space()
        self._keep()

"""The texts that a conversation gives, and where a rendered prompt has them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pocketvlm.templates import sandbox
from pocketvlm.templates.sandbox import FIRST_TEXT, USER, Traced
from pocketvlm.templates.thoughts import THINK, THINK_END

# A text such as "/no_think" is for the template, which may remove it.
_SWITCH = re.compile(r"\s*/\w+\s*")


@dataclass(frozen=True)
class GivenText:
    """A text, whose message it is of, and the path of its field. `role` is None for a thought."""

    text: str
    role: str | None
    path: str

    @property
    def _must_be_written(self) -> bool:
        """Templates may drop thoughts."""
        thinks = self.role == "assistant" and (THINK_END in self.text or self.text.lstrip().startswith(THINK))
        return self.role is not None and not thinks and bool(self.text.strip()) and not _SWITCH.fullmatch(self.text)


def traced(number: int, text: str) -> Traced:
    """Return the text for templates, traced as the text of this number."""
    return Traced(text, author=FIRST_TEXT - number)


def missing(texts: Sequence[GivenText], prompt: str) -> list[GivenText]:
    """Return the texts that the prompt has nothing of."""
    runs = list(sandbox.runs_of(prompt))
    authors = {author for _, author in runs}
    unseen = [text for i, text in enumerate(texts) if text._must_be_written and FIRST_TEXT - i not in authors]
    if not unseen:
        return []
    # Where a template computes a string (`upper`, `tojson`), its authors are unknown.
    computed = _comparable(text for text, author in runs if author == USER)
    return [
        given
        for given in unseen
        if _comparable([given.text]) not in computed
        and not any(
            _comparable([json.dumps(given.text, ensure_ascii=ascii)[1:-1]]) in computed for ascii in (False, True)
        )
    ]


def up_to_the_end_of(text: str, prompt: str) -> str | None:
    """Return the prompt up to the end of a traced text, including white space that the template trimmed off its end.

    None where the prompt does not have the end of the text.
    """
    author = _authors(text)[-1]
    place = end = 0
    for run, run_author in sandbox.runs_of(prompt):
        place += len(run)
        if run_author == author:
            end = place
    if not end:
        return None
    return sandbox.joined([prompt[:end].rstrip(), text[len(text.rstrip()) :]])


def is_in_thought(text: str, prompt: str) -> bool:
    """Whether the template opened a thought right before this traced text, which is none."""
    author = _authors(text)[0]
    before = ""
    for run, run_author in sandbox.runs_of(prompt):
        if run_author == author:
            break
        before = run if run_author == sandbox.TEMPLATE else ""
    return before.rstrip().endswith(THINK)


def _authors(text: str) -> list[int]:
    return [author for run, author in sandbox.runs_of(text) if run.strip()]


def _comparable(texts: Iterable[str]) -> str:
    return "".join("".join(texts).casefold().split())

"""The variables that a request sets for chat templates: `reasoning_effort` under all its names, and its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketvlm.templates.sandbox import Traced

# For a word of reasoning_effort, the nearest ones to try where a template refuses it.
_NEAREST_EFFORTS = {
    "none": ("no_think",),
    "minimal": ("low",),
    "medium": ("high",),
    "xhigh": ("max", "high"),
    "max": ("high",),
}


def template_variables(effort: str | None, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the variables of `_effort_variables` with those that the request sets, which are text of a user."""
    return [{**variables, **given} for variables in _effort_variables(effort)]


def _effort_variables(effort: str | None) -> list[dict[str, Any]]:
    """Return the variables that templates may read for `reasoning_effort`, in the order in which to try them.

    The nearest words come first, then variables without a word.
    """
    if effort is None:
        return [{}]
    on = effort != "none"
    switch: dict[str, Any] = {"enable_thinking": on, "thinking": on, "thinking_mode": "enabled" if on else "disabled"}
    if not on:
        switch["thinking_budget"] = 0
    words = [Traced(word) for word in (effort, *_NEAREST_EFFORTS.get(effort, ()))]
    return [*({**switch, "reasoning_effort": word, "thinking_effort": word} for word in words), switch]

"""Find the fewest mutations that end a case in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fuzz.cases import Case
from fuzz.outcomes import Verdict


def reduced(case: Case, verdict: Verdict, run: Callable[[Case], Verdict]) -> Case | None:
    """Leave out one mutation after the other while the outcome stays. None where it does not come again."""
    again = run(case)
    if again.outcome != verdict.outcome:
        return None
    number = 0
    while len(case.mutations) > 1 and number < len(case.mutations):
        fewer = replace(case, mutations=[*case.mutations[:number], *case.mutations[number + 1 :]])
        found = run(fewer)
        if found.key == again.key:
            case = fewer
        else:
            number += 1
    return case

"""Which values of a parameter are tested in `make test`, and which only in `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Values for `parametrize`: all are slow, but those that are named here."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]

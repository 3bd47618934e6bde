"""Choose the parameters of a test that `make test` runs; `make test-all` runs all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Mark all `values` as slow, except for the `fast` ones. The result is for `parametrize`."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]

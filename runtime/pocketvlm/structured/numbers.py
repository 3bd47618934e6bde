"""The keywords of numbers, as the grammar's compiler takes them: narrower where it would take too much. Pure.

The compiler (llguidance 1.9) computes with double precision, allows exclusive bounds themselves, and lets a model write
digits without an end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from typing import Any

from pocketvlm.structured.dialects import LeaveOut

# The whole numbers that JavaScript and others read exactly: at most 16 digits.
MAX_INTEGER = 2**53 - 1
DECIMALS = 9  # the compiler takes no finer `multipleOf`
_GRID, _FINE_GRID = Decimal(1).scaleb(-DECIMALS), Decimal(1).scaleb(-40)
_LOWER, _UPPER = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_MAX_BOUND = Decimal(10**18 - 1000)  # the compiler's 64 bit arithmetic fails beyond
_MAX_MULTIPLE = 2**32 - 1  # its 32 bit one
# The compiler recognizes multiples by an automaton with a state for each remainder.
MAX_REMAINDERS = 10_000


@dataclass(frozen=True, order=True)
class Multiple:
    """`divisor / 10**decimals` divides a number. The compiler's automaton has `divisor` remainders."""

    divisor: int
    decimals: int

    @classmethod
    def of(cls, value: float) -> Multiple | None:
        """Return a `multipleOf` as the compiler takes it, in double precision; None where that has no whole divisor.

        Any that is larger than the compiler's largest counts as that one.
        """
        if value >= _MAX_MULTIPLE:
            return cls(_MAX_MULTIPLE, 0)
        scaled, decimals = float(value), 0
        while scaled <= _MAX_MULTIPLE and scaled % 1:
            scaled *= 10
            decimals += 1
        return cls(int(scaled), decimals).shortened() if scaled <= _MAX_MULTIPLE else None

    def common(self, other: Multiple) -> Multiple:
        """Return the least common multiple."""
        decimals = max(self.decimals, other.decimals)
        whole = [each.divisor * 10 ** (decimals - each.decimals) for each in (self, other)]
        return Multiple(math.lcm(*whole), decimals).shortened()

    def shortened(self) -> Multiple:
        divisor, decimals = self.divisor, self.decimals
        while decimals and not divisor % 10:
            divisor, decimals = divisor // 10, decimals - 1
        return Multiple(divisor, decimals)


def bounds(schema: Mapping[str, Any], types: set[str] | None, *, plain: bool, leave_out: LeaveOut) -> dict[str, Any]:
    """Return `minimum`, `maximum` and `multipleOf` for a schema that allows `types`, None for all.

    `plain`: no other schema applies to the same value, so its digits may be limited.
    """
    result: dict[str, Any] = {}
    divisor = schema.get("multipleOf")
    if divisor is not None and Multiple.of(divisor) is None:
        leave_out("multipleOf")
        divisor = None
    whole = types is not None and "number" not in types
    limited = plain and types is not None and bool(types & {"integer", "number"})
    step = Decimal(1) if whole else _GRID if divisor is None else Decimal(str(divisor))
    with localcontext() as context:
        context.prec = 400  # more than the digits of a double
        low, high = _range(schema, step)
        fine = step == _GRID and low is not None and high is not None and low > high
        if fine:  # a range between two numbers with so few decimals
            low, high = _range(schema, _FINE_GRID)
        if limited and not fine:
            usual = all(value is None or abs(value) <= MAX_INTEGER for value in (low, high))
            if low is None and (high is None or high > -MAX_INTEGER):
                low = -Decimal(MAX_INTEGER)
            if high is None and (low is None or low < MAX_INTEGER):
                high = Decimal(MAX_INTEGER)
            if step == _GRID and usual:
                result["multipleOf"] = float(_GRID)
        if low is not None and low > _MAX_BOUND:
            leave_out("minimum" if "minimum" in schema else "exclusiveMinimum")
        elif low is not None:
            result["minimum"] = _as_double(max(low, -_MAX_BOUND), math.inf)
        if high is not None and high < -_MAX_BOUND:
            leave_out("maximum" if "maximum" in schema else "exclusiveMaximum")
        elif high is not None:
            result["maximum"] = _as_double(min(high, _MAX_BOUND), -math.inf)
    if divisor is not None:
        result["multipleOf"] = divisor
    return result


def representable(value: Any) -> bool:
    """Whether the compiler can write a constant: it rounds whole numbers of more than 53 bits."""
    if isinstance(value, Mapping):
        return all(map(representable, value.values()))
    if isinstance(value, list | tuple):
        return all(map(representable, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= 2**1000 and int(float(value)) == value
    return True


def _range(schema: Mapping[str, Any], step: Decimal) -> tuple[Decimal | None, Decimal | None]:
    """Return the lowest and the highest multiple of `step` within the bounds; None where there is no bound."""
    lows = [_up(Decimal(str(schema[key])), step, key == "exclusiveMinimum") for key in _LOWER if key in schema]
    highs = [_down(Decimal(str(schema[key])), step, key == "exclusiveMaximum") for key in _UPPER if key in schema]
    return max(lows, default=None), min(highs, default=None)


def _up(value: Decimal, step: Decimal, beyond: bool) -> Decimal:
    multiple = (value / step).to_integral_value(ROUND_CEILING) * step
    return multiple + step if beyond and multiple == value else multiple


def _down(value: Decimal, step: Decimal, beyond: bool) -> Decimal:
    multiple = (value / step).to_integral_value(ROUND_FLOOR) * step
    return multiple - step if beyond and multiple == value else multiple


def _as_double(value: Decimal, inward: float) -> int | float:
    """Return the double that is next to a bound and not outside."""
    double = float(value)
    if double < value if inward > 0 else double > value:
        double = math.nextafter(double, inward)
    return int(double) if double == int(double) and abs(double) < 1e17 else double

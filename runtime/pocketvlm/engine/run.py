"""What of a prompt goes in one batch of embeddings: slots, and the tokens before, between and behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketvlm.native.context import Context
from pocketvlm.native.table import TokenTable
from pocketvlm.vision.encoder import Embeddings, Slot
from pocketvlm.vision.units import Unit


@dataclass(frozen=True, eq=False)
class Run:
    """The rows of `units`, and then those of the next one up to its `offset`.

    `rows` float32 [n, n_embd_inp], `positions` int32 [1 or 4, n]. Where it is not `causal`, it is one slot.
    """

    units: list[Unit]
    offset: int
    rows: Embeddings
    positions: npt.NDArray[np.int32]
    causal: bool = True


def next_run(
    units: Sequence[Unit],
    known: Mapping[Slot, Embeddings],
    room: int,
    context: Context,
    table: TokenTable | None,
    *,
    position: int,
    offset: int,
) -> Run | None:
    """Up to `room` rows of the `units` that stand at `position`, from `offset` of the first on.

    It ends before a slot that is not `known` yet, and without a `table` before a token. None where no slot is in it:
    tokens alone go in a batch of tokens.
    """
    if not any(isinstance(unit, Slot) for unit in units[: max(room, 0)]):  # before rows of tokens are made for nothing
        return None
    whole: list[Unit] = []
    rows: list[Embeddings] = []
    places: list[npt.NDArray[np.int32]] = []
    pictures = False
    for unit in units:
        if isinstance(unit, int):
            if table is None or room < 1:
                break
            rows.append(table.row(unit))
            places.append(context.positions(position, 1))
            position += 1
        else:
            if unit not in known or room < 1 or not (unit.causal or not whole):
                break
            part = slice(offset, offset + room if unit.causal else None)
            rows.append(known[unit][part])
            places.append(unit.at(position)[:, part])
            position += unit.advance
            pictures = True
            if not unit.causal:
                return Run([unit], 0, rows[0], places[0], causal=False)
            offset += len(rows[-1])
            if offset < unit.tokens:
                break
            offset = 0
        whole.append(unit)
        room -= len(rows[-1])
    if not pictures:
        return None
    return Run(whole, offset, np.concatenate(rows), np.concatenate(places, axis=1))

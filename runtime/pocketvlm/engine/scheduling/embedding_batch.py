"""The next rows of a prompt that go into one batch of embeddings: pictures, and the tokens around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pocketvlm.native.context import Context
from pocketvlm.native.token_embeddings import TokenEmbeddings
from pocketvlm.vision.encoder import Embeddings, EmbeddingSpan
from pocketvlm.vision.prompt_units import PromptUnit


@dataclass(frozen=True, eq=False)
class EmbeddingBatch:
    """The rows of whole `units`, followed by rows of the next unit up to its `next_row`.

    `rows` is float32 [n, n_embd_inp], `positions` int32 [1 or 4, n]. A batch that is not `causal` is one span.
    """

    units: list[PromptUnit]
    next_row: int
    rows: Embeddings
    positions: npt.NDArray[np.int32]
    causal: bool = True


def next_embedding_batch(
    units: Sequence[PromptUnit],
    embeddings: Mapping[EmbeddingSpan, Embeddings],
    limit: int,
    context: Context,
    token_embeddings: TokenEmbeddings | None,
    *,
    position: int,
    row: int,
) -> EmbeddingBatch | None:
    """Collect up to `limit` rows of the `units` at `position`, from `row` of the first unit on.

    The batch ends before a span that has no `embeddings` yet, and without `token_embeddings` before a token. None where
    it would hold no span: tokens alone go into a batch of tokens.
    """
    if not any(isinstance(unit, EmbeddingSpan) for unit in units[: max(limit, 0)]):  # saves making rows of tokens
        return None
    whole: list[PromptUnit] = []
    rows: list[Embeddings] = []
    positions: list[npt.NDArray[np.int32]] = []
    has_span = False
    for unit in units:
        if isinstance(unit, int):
            if token_embeddings is None or limit < 1:
                break
            rows.append(token_embeddings.row(unit))
            positions.append(context.positions(position, 1))
            position += 1
        else:
            if unit not in embeddings or limit < 1 or not (unit.causal or not whole):
                break
            part = slice(row, row + limit if unit.causal else None)
            rows.append(embeddings[unit][part])
            positions.append(unit.at(position)[:, part])
            position += unit.advance
            has_span = True
            if not unit.causal:
                return EmbeddingBatch([unit], 0, rows[0], positions[0], causal=False)
            row += len(rows[-1])
            if row < unit.tokens:
                break
            row = 0
        whole.append(unit)
        limit -= len(rows[-1])
    if not has_span:
        return None
    return EmbeddingBatch(whole, row, np.concatenate(rows), np.concatenate(positions, axis=1))

"""Nodes of a graph before they are computed: what they take, changed where libmtmd builds one wrong."""

from __future__ import annotations

from pocketvlm.native.tensor import GGMLTensor, is_known, op_desc, read, write

CLASS_TOKEN = "v.class_embd"
_TABLE = b"v.position_embd.weight"


class ClassTokenPatch:
    """Puts a class token before the patches, where its place in the table of positions is and where it is taken away.

    libmtmd's graph of encoders with a plain MLP puts it behind them: every patch then has its neighbour's position, the
    first one's embedding is lost, and the class token's stands in the picture. `done` once the order was right or made
    so: where it stays False after a picture, the graph or the structure of its nodes is not one that this knows.
    """

    done = False

    def mend(self, node: int) -> None:
        """The node at an address, about to be computed; nothing happens where no token is behind patches."""
        if not _is(node, b"CONCAT"):
            return
        sources = GGMLTensor.from_address(node).src
        first, last = _ends(node)
        if last and not first:
            sources[0], sources[1] = sources[1], sources[0]
        self.done |= first or last


class ClassPositionPatch:
    """Puts the class token's row of the table of positions, the first, behind the others, in the loaded weights.

    Where libmtmd's graph appends the class token to the patches and takes it away there again, the table alone is in
    another order: every patch has its neighbour's position, as where ClassTokenPatch mends. `done` as there.
    """

    done = False

    def mend(self, node: int) -> None:
        """The node at an address, about to be computed: the first that adds the table to patches with a token.

        A copy of the table for another device is left as it is: its original would be copied again.
        """
        if self.done or not _is(node, b"ADD"):
            return
        patches, at = GGMLTensor.from_address(node).src[:2]
        table = GGMLTensor.from_address(at)
        if _TABLE not in table.name or not _is(patches, b"CONCAT"):
            return
        first, last = _ends(patches)
        if last and not first and table.name == _TABLE:
            row, rows = table.nb[1], read(at, table.nb[1] * table.ne[1])
            write(at, rows[row:] + rows[:row])
            self.done = True
        self.done |= first


def _is(node: int, operation: bytes) -> bool:
    return op_desc(node) == operation and is_known(node)


def _ends(concat: int) -> tuple[bool, bool]:
    """Whether the first of two sources is the class token, and whether the second is."""
    node = GGMLTensor.from_address(concat)
    return _is_token(node.src[0]), _is_token(node.src[1])


def _is_token(address: int) -> bool:
    """Itself, a copy for another device, which has more in its name, or one for each tile."""
    tensor = GGMLTensor.from_address(address)
    return CLASS_TOKEN.encode() in (tensor.source(0) if _is(address, b"REPEAT") else tensor).name

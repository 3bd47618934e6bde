"""Correct graphs that libmtmd builds wrong: change the sources of a node before it is computed."""

from __future__ import annotations

from pocketvlm.native.tensor import GGMLTensor, is_known, op_desc, read, write

CLASS_TOKEN = "v.class_embd"
_POSITIONS = b"v.position_embd.weight"
_ANTIALIAS = 1 << 9  # GGML_SCALE_FLAG_ANTIALIAS


class GraphPatch:
    """Corrects nodes before they are computed. Where `done` is False after a picture, the graph is not known."""

    done = False

    def begin(self) -> None:
        """Be ready for the graph of another picture."""

    def apply(self, node: int) -> None:
        """Correct the node at an address, if it is one that is built wrong."""
        raise NotImplementedError


class ClassTokenPatch(GraphPatch):
    """Put the class token before the patches, as the position table and the removal of the token expect it.

    libmtmd's graph of encoders with a plain MLP appends it instead: then every patch gets its neighbour's position, the
    first patch's embedding is dropped, and the class token's stays among the picture's embeddings.

    `done`: the order was right or has been corrected. If it stays False after a picture, this class does not know the
    graph or the structure of its nodes.
    """

    def apply(self, node: int) -> None:
        """Correct the node at an address before it is computed, if it appends the class token to patches."""
        if not _is(node, b"CONCAT"):
            return
        sources = GGMLTensor.from_address(node).src
        token_first, token_last = _token_places(node)
        if token_last and not token_first:
            sources[0], sources[1] = sources[1], sources[0]
        self.done |= token_first or token_last


class ClassPositionPatch(GraphPatch):
    """Move the class token's row, the first of the position table, to the end, in the loaded weights.

    There libmtmd's graph appends the class token to the patches and removes it from the end again, so only the table
    has another order: every patch gets its neighbour's position. `done` as in ClassTokenPatch.
    """

    def apply(self, node: int) -> None:
        """Correct the table at the first node that adds it to patches with an appended class token.

        A copy of the table for another device is left as it is, because the original would be copied over it.
        """
        if self.done or not _is(node, b"ADD"):
            return
        patches, address = GGMLTensor.from_address(node).src[:2]
        table = GGMLTensor.from_address(address)
        if _POSITIONS not in table.name or not _is(patches, b"CONCAT"):
            return
        token_first, token_last = _token_places(patches)
        if token_last and not token_first and table.name == _POSITIONS:
            row, rows = table.nb[1], read(address, table.nb[1] * table.ne[1])
            write(address, rows[row:] + rows[:row])
            self.done = True
        self.done |= token_first


class PlainResamplingPatch(GraphPatch):
    """Resample the position table from the nearest rows, also if a picture has fewer patches than the table.

    libmtmd's graph widens the filter then, as some encoders do. `done` is False if the structure of a node that
    resamples is not known. A picture of exactly the table's size has no such node.
    """

    done = True

    def begin(self) -> None:
        self.done = True

    def apply(self, node: int) -> None:
        """Correct the node at an address before it is computed, if it resamples the table."""
        if op_desc(node) != b"UPSCALE":
            return
        if is_known(node):
            GGMLTensor.from_address(node).op_params[0] &= ~_ANTIALIAS
        else:
            self.done = False


def _is(node: int, operation: bytes) -> bool:
    return op_desc(node) == operation and is_known(node)


def _token_places(concat: int) -> tuple[bool, bool]:
    """Return whether the class token is the first source of a CONCAT, and whether it is the second."""
    node = GGMLTensor.from_address(concat)
    return _is_token(node.src[0]), _is_token(node.src[1])


def _is_token(address: int) -> bool:
    """Return whether a tensor is the class token, its copy on another device (a longer name), or a repetition of it."""
    tensor = GGMLTensor.from_address(address)
    return CLASS_TOKEN.encode() in (tensor.source(0) if _is(address, b"REPEAT") else tensor).name

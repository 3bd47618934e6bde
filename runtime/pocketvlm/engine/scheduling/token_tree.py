"""The tokens of several possible answers as a tree, and how likely each answer is. Pure.

Answers that begin alike share these tokens, so each is evaluated once. What follows a token is known when the token is
evaluated; what follows the prompt is known already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pocketvlm.errors import EngineError
from pocketvlm.native.context import Logits

MAX_BRANCH_ROWS = 16  # tokens of choices in one evaluation: as many logits are kept
_NEVER = float("-inf")


@dataclass(eq=False)
class TreeNode:
    """A token behind those of its parents, at `depth` from 1. The root has neither a token nor a depth.

    `choices` are the numbers of the choices that end here. `logprob` is that of the way from the root to here.
    """

    token: int
    depth: int
    children: dict[int, TreeNode] = field(default_factory=dict)
    choices: list[int] = field(default_factory=list)
    logprob: float = 0.0


@dataclass(frozen=True)
class Branches:
    """Nodes to evaluate together, parents before their children, and which of the `count` branches each is on."""

    nodes: tuple[tuple[TreeNode, tuple[int, ...]], ...]
    count: int


class TokenTree:
    """The tree of choices that are the `tokens` of each. `ends` are the tokens that end an answer.

    `scores` are the logarithms of the probabilities of the whole choices, complete when `waiting` is empty. A choice
    without tokens cannot be written: its score is minus infinity.
    """

    def __init__(self, tokens: Sequence[Sequence[int]], ends: Sequence[int], *, max_branches: int) -> None:
        self._ends = np.array(ends, np.int64)
        self.root = TreeNode(-1, 0)
        self.scores = [_NEVER] * len(tokens)
        for number, choice in enumerate(tokens):
            node = self.root
            for token in choice:
                node = node.children.setdefault(token, TreeNode(token, node.depth + 1))
            if choice:
                node.choices.append(number)
        self.waiting = list(_branches(self.root, max_branches))

    @property
    def rows(self) -> int:
        """The most tokens that are evaluated together."""
        return max((len(branches.nodes) for branches in self.waiting), default=0)

    def score(self, node: TreeNode, logits: Logits) -> None:
        """Note what follows a node: `logits` [n_vocab] of the next token. A parent must come before its children.

        Raises EngineError for logits that are not numbers.
        """
        with np.errstate(invalid="ignore"):
            shifted = logits - logits.max()
            total = np.log(np.exp(shifted).sum(dtype=np.float64))
        if not np.isfinite(total):  # min() below would take it for certainty
            raise EngineError("the model computed values that are not numbers, so answers cannot be compared")
        for child in node.children.values():
            child.logprob = node.logprob + min(0.0, float(shifted[child.token] - total))
        if node.choices:
            ending = np.exp(shifted[self._ends]).sum(dtype=np.float64)
            score = node.logprob + min(0.0, float(np.log(ending) - total)) if ending else _NEVER
            for number in node.choices:
                self.scores[number] = score


def _branches(root: TreeNode, max_branches: int) -> Iterator[Branches]:
    """Divide a tree so that each part has at most `max_branches` leaves, and rows for one evaluation if they suffice.

    Parts have the beginnings in common that their leaves share.
    """
    paths = list(_paths(root))
    while paths:
        nodes: dict[TreeNode, list[int]] = {}
        count = 0
        for path in paths[:max_branches]:
            if count and len({*nodes, *path}) > MAX_BRANCH_ROWS:
                break
            for node in path:
                nodes.setdefault(node, []).append(count)
            count += 1
        del paths[:count]
        yield Branches(tuple((node, tuple(on)) for node, on in nodes.items()), count)


def _paths(root: TreeNode) -> Iterator[tuple[TreeNode, ...]]:
    """Yield the nodes from below the root to each leaf, neighbours one after another."""
    path: list[TreeNode] = []
    stack = [*reversed(root.children.values())]
    while stack:
        node = stack.pop()
        del path[node.depth - 1 :]
        path.append(node)
        if not node.children:
            yield tuple(path)
        stack += reversed(node.children.values())

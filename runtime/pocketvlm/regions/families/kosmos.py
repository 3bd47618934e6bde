"""Kosmos-2 and models like it: tokens of two of 1024 patches, which only their own grid gives a meaning."""

import re

from pocketvlm.regions.notation import Notation

NOTATION = Notation(
    "kosmos",
    lambda _: [],
    scale=None,
    question="",
    names=re.compile(r"kosmos"),
    mark="<patch_index_0000>",
    refusal="models like Kosmos name places by patches of a grid of their own, which is not supported",
)

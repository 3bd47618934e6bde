"""Write video_positions.json: positions of prompts with clips as transformers computed them when the models came out.

A record of how the file was made, not run by the tests:

    python tests/golden/video_positions.py        # needs torch and transformers; it was run with transformers 4.49.0

4.49.0 is the first version with Qwen2.5-VL. Later ones compute other positions of some clips: those of 4.53 to 5.2
count only whole seconds of a tile, and from 5.3 on the text after a long clip begins among its tiles.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

FILE = Path(__file__).with_name("video_positions.json")
KINDS = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
}
TEXT, START, VIDEO = 7, 10, 9  # tokens
BEFORE, AFTER = 20, 17  # tokens of text
CLIPS = [  # family, frames, frames in a second, rows and columns of a tile
    ("qwen2_vl", 9, 2, (2, 3)),
    ("qwen2_vl", 10, 2, (2, 3)),
    ("qwen2_vl", 13, 2, (2, 3)),
    ("qwen2_vl", 3, 2, (3, 14)),
    ("qwen2_5_vl", 3, 2, (2, 3)),
    ("qwen2_5_vl", 9, 2, (2, 3)),
    ("qwen2_5_vl", 10, 2, (2, 3)),
    ("qwen2_5_vl", 13, 2, (2, 3)),
    ("qwen2_5_vl", 9, 4, (2, 3)),
    ("qwen2_5_vl", 10, 0.8, (2, 3)),
    ("qwen2_5_vl", 10, 1, (3, 14)),
    ("qwen2_5_vl", 3, 2, (3, 14)),
]


def model(family: str) -> object:
    """Return a small model; positions follow from its configuration alone."""
    config, kind = KINDS[family]
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    tokens = {"image_token_id": 8, "video_token_id": VIDEO, "vision_start_token_id": START}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 1, "out_hidden_size": 16}
    return kind(config(**small, **heads, **tokens, vision_config=vision))


def positions(family: str, frames: int, rate: float, grid: tuple[int, int]) -> list[list[int]]:
    """Return positions in time, row and column of each token."""
    tiles = (frames + 1) // 2
    video = [VIDEO] * (tiles * grid[0] * grid[1])
    tokens = torch.tensor([[TEXT] * (BEFORE - 1) + [START] + video + [TEXT] * AFTER])
    seconds = {"second_per_grid_ts": torch.tensor([2 / rate])} if family == "qwen2_5_vl" else {}
    sizes = torch.tensor([[tiles, 2 * grid[0], 2 * grid[1]]])
    return model(family).get_rope_index(tokens, video_grid_thw=sizes, **seconds)[0][:, 0].tolist()


if __name__ == "__main__":
    lines = []
    for family, frames, rate, grid in CLIPS:
        known = {"family": family, "frames": frames, "rate": rate, "grid": grid, "text": [BEFORE, AFTER]}
        lines.append(json.dumps({**known, "positions": positions(family, frames, rate, grid)}))
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", "utf-8")

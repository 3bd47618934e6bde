"""Write adapters.safetensors: adapters of a toy model as PEFT saves them, and the weights that PEFT merges them into.

A record of how the file was made, not run by the tests:

    python tests/golden/adapt.py        # needs peft and transformers; it was run with peft 0.21.2

It has `base/NAME`, and for each case `CASE/adapter/NAME` as in adapter_model.safetensors and `CASE/merged/NAME`, only
where these differ from the base. The file's metadata has each case's adapter_config.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

FILE = Path(__file__).with_name("adapters.safetensors")
WIDTH, INNER, TOKENS = 12, 16, 20
LINEAR = ["q_proj", "down_proj"]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 6, "target_modules": [*LINEAR, "patches", "frames", "embed_tokens"]},
    "patterns": {
        "r": 4,
        "use_rslora": True,
        "target_modules": LINEAR,
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"layers.0.down_proj": 5, r"layers\.\d\.q_proj": 3, "q_proj": 100},
    },
    "dora": {"r": 4, "use_dora": True, "target_modules": [*LINEAR, "patches", "embed_tokens"]},
    "transposed": {"r": 4, "fan_in_fan_out": True, "target_modules": ["fused"]},
    "transposed-dora": {"r": 4, "fan_in_fan_out": True, "use_dora": True, "target_modules": ["fused"]},
    "biases": {"r": 4, "bias": "all", "target_modules": LINEAR},
    "own-biases": {"r": 4, "bias": "lora_only", "target_modules": LINEAR},
    "shifted": {"r": 4, "lora_bias": True, "target_modules": ["q_proj"]},
    "saved": {"r": 4, "target_modules": LINEAR, "modules_to_save": ["lm_head", "norm"]},
    "tokens": {"r": 4, "target_modules": LINEAR, "trainable_token_indices": [3, 17]},
}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, INNER)
        self.down_proj = nn.Linear(INNER, WIDTH)
        self.fused = Conv1D(INNER, WIDTH)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(TOKENS, WIDTH)
        self.patches = nn.Conv2d(3, WIDTH, 2)
        self.frames = nn.Conv3d(3, WIDTH, (2, 2, 2), bias=False)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.norm = nn.LayerNorm(WIDTH)


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Inner()
        self.lm_head = nn.Linear(WIDTH, TOKENS, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


def main() -> None:
    torch.manual_seed(0)
    base = {name: tensor.clone() for name, tensor in Toy().state_dict().items()}
    tensors, configs = {f"base/{name}": tensor for name, tensor in base.items()}, {}
    for case, options in CASES.items():
        toy = Toy()
        toy.load_state_dict(base)
        toy.name_or_path = "some/toy"
        model = get_peft_model(toy, LoraConfig(**options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) / 4)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            configs[case] = (Path(folder) / "adapter_config.json").read_text()
            adapter = load_file(Path(folder) / "adapter_model.safetensors")
        merged = model.merge_and_unload().state_dict()
        assert merged.keys() == base.keys()
        changed = {name: tensor for name, tensor in merged.items() if not torch.equal(tensor, base[name])}
        print(case, *adapter, *changed, sep="\n  ")
        tensors |= {f"{case}/adapter/{name}": tensor for name, tensor in adapter.items()}
        tensors |= {f"{case}/merged/{name}": tensor.clone() for name, tensor in changed.items()}
    save_file(tensors, FILE, {case: json.dumps(json.loads(text)) for case, text in configs.items()})


if __name__ == "__main__":
    main()

"""Train iota from scratch: `python -m iota.train` (or `make train`). It can stop and resume at any step.

The optimizer is AdamW for vectors and embeddings, Muon (muon.py) for matrices. Only answers are learned, with several
turns per picture and an auxiliary loss for the encoder (hints.py). There are four phases: one picture of one tile,
which is cheap and trains the encoder; every layout; mostly pairs of pictures; and then boxes, records, pages of text
and things that are not there, in many styles. `--further FOLDER` begins with the fourth.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset
from transformers import Idefics3Config, Idefics3ForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pocketvlm.system.machine import allowed_cpus
from pocketvlm.vision.families.smolvlm import SmolVLM
from pocketvlm.vision.family import RGB

from .hints import Hints, box_targets, targets
from .muon import Muon
from .samples import Phase, Sample, Sampler, batches, phase_at
from .scenes import Scene
from .tokenizer import extend, save_processor, train_tokenizer

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoint"
TILE, PATCH, SHUFFLE = 96, 8, 3
FAMILY = SmolVLM(tile=TILE, longest_edge=2 * TILE, tokens_per_side=TILE // PATCH // SHUFFLE)
TOKENS_PER_TILE = FAMILY.tokens_per_side**2
HINTS_WEIGHT = 1.0
BFLOAT16 = torch.backends.cpu.get_cpu_capability() != "AVX2"
VALIDATION_SEED = 7  # training uses seed 1, iota.evaluate another
PHASES = (
    Phase(until=3000, pairs=0.0, text=0.6, low=1.0, high=0.0),
    Phase(until=5000, pairs=0.25, text=0.6, low=0.35, high=0.2),
    Phase(until=5500, pairs=0.6, text=0.45, low=0.5, high=0.15),
    Phase(
        until=10000,
        pairs=0.25,
        text=0.5,
        low=0.86,
        high=0.05,
        pages=0.05,
        styles=0.5,
        more=0.7,
        turns=(3, 5, 7),
        shares={
            "boxes": 9,
            "place": 2.5,
            "yesno": 3,
            "absent": 1.5,
            "record": 2,
            "read": 10,
            "page": 12,
            "describe": 0.7,
            "shape": 1,
            "colour": 1,
            "size": 0.8,
            "count": 3,
        },
    ),
)
# The learning rate: (step, share of the peak), linearly interpolated.
RATE = (
    (0, 0.0),
    (100, 1.0),
    (3400, 1.0),
    (4999, 0.0),
    (5000, 0.26),
    (5499, 0.0),
    (5500, 0.05),
    (5550, 0.6),
    (6150, 0.6),
    (6650, 0.0),
)


def build_model(tokenizer: Any) -> Idefics3ForConditionalGeneration:
    """Return a new model of 4 M weights: SigLIP encoder 128 x 4, pixel shuffle 3, Llama 256 x 4 with a tied head."""
    token = tokenizer.token_to_id
    config = Idefics3Config(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": TILE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "architectures": ["VLlama3ForCausalLM"],
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "vocab_size": tokenizer.get_vocab_size(),
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": token("<|im_start|>"),
            "eos_token_id": token("<end_of_utterance>"),
            "pad_token_id": token("<|im_end|>"),
        },
        scale_factor=SHUFFLE,
        image_token_id=token("<image>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(1)
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config.bos_token_id = token("<|im_start|>")
    model.generation_config.eos_token_id = token("<end_of_utterance>")
    model.generation_config.pad_token_id = token("<|im_end|>")
    return model


def fast_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    """Compute attention with bfloat16 products: on CPUs with bf16 units, a step takes 0.6 of the time with torch's own.

    Without such units, torch's own is faster. This is for training only: it ignores padding masks, and is causal if
    `module.is_causal`.
    """
    if not BFLOAT16:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=module.is_causal)
        return mixed.transpose(1, 2).contiguous(), None
    batch, heads, length, width = query.shape
    groups, dtype = heads // key.shape[1], query.dtype
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = (query * width**-0.5, key, value)
    query, key, value = (x.to(torch.bfloat16).reshape(batch * heads, length, width) for x in parts)
    with torch.autocast("cpu", enabled=False):
        scores = torch.bmm(query, key.transpose(-1, -2))
        if module.is_causal:
            scores = scores + torch.full((length, length), float("-inf"), dtype=scores.dtype).triu(1)
        mixed = torch.bmm(torch.softmax(scores, -1), value)
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous().to(dtype), None


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer at `path`; train and save it if there is none, so that a resumed run has the same."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        extend(train_tokenizer()).save(str(path))
    return Tokenizer.from_file(str(path))


def continue_from(model: torch.nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    """Load a checkpoint whose tokenizer `tokenizer` extends. A new token begins as the mean of the old ones in it.

    That of a word is the one of the word after a space, so that it has not to be learned what it names.
    """
    weights = load_file(folder / "model.safetensors")
    old = Tokenizer.from_file(str(folder / "tokenizer.json"))
    key = "model.text_model.embed_tokens.weight"
    rows = [*weights[key]]
    for token in range(len(rows), tokenizer.get_vocab_size()):
        text = tokenizer.decode([token], skip_special_tokens=False)
        parts = old.encode(f" {text}" if text.isalpha() else text, add_special_tokens=False).ids
        rows.append(weights[key][parts].mean(0))
    weights[key] = torch.stack(rows)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert missing in ([], ["lm_head.weight"]), missing  # which is the embedding


class _Batches(IterableDataset[dict[str, Any]]):
    def __init__(self, sampler: Sampler, start: int, size: int) -> None:
        self._arguments = (sampler, start, size, PHASES)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        torch.set_num_threads(1)
        sampler, step, size, phases = self._arguments
        for samples in batches(*self._arguments):
            phase = phase_at(step, phases)
            more = range(step * size, step * size + round(size * phase.more))
            yield collate(samples, [sampler.picture(index, phase) for index in more])
            step += 1


def collate(samples: list[Sample], more: Sequence[tuple[RGB, Scene]] = ()) -> dict[str, Any]:
    """Return a batch as tensors, padded on the right, where a causal mask makes a padding mask unnecessary.

    With bfloat16, lengths are multiples of 64, because oneDNN compiles kernels for each length.
    """
    unit = 64 if BFLOAT16 else 8
    length = -(-max(len(s.ids) for s in samples) // unit) * unit
    ids = np.zeros((len(samples), length), np.int64)
    owner = np.full((len(samples), length), -1, np.int64)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = sample.ids
        owner[row, : len(sample.ids)] = sample.kinds
    *bases, count = np.cumsum([0, *(len(s.tiles) for s in samples)])
    overviews = [base + o for s, base in zip(samples, bases, strict=True) for o in s.overviews]
    tiles = [*(s.tiles for s in samples), *(tile[None] for tile, _ in more)]
    scenes = [*(scene for s in samples for scene in s.scenes), *(scene for _, scene in more)]
    return {
        "ids": torch.from_numpy(ids),
        "owner": torch.from_numpy(owner),
        "tiles": torch.from_numpy(np.concatenate(tiles)),
        "overviews": torch.tensor([*overviews, *range(count, count + len(more))]).long(),
        "hints": torch.tensor([targets(scene) for scene in scenes]).long(),
        "boxes": torch.tensor([box_targets(scene, FAMILY.tokens_per_side) for scene in scenes]),
        "kinds": [[turn.kind for turn in s.turns] for s in samples],
    }


def forward(
    model: Any, batch: dict[str, Any], hints: Hints | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits [learned tokens, vocabulary], targets, places in the batch [learned tokens, 2], loss of hints."""
    ids, owner = batch["ids"], batch["owner"]
    core = model.model
    embeds = core.text_model.embed_tokens(ids)
    hints_loss = torch.zeros(())
    if len(batch["tiles"]):
        pixels = batch["tiles"].permute(0, 3, 1, 2).float() / 127.5 - 1.0
        vision = core.vision_model
        hidden = vision.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        hidden = hidden + vision.embeddings.position_embedding.weight
        for layer in vision.encoder.layers:
            hidden = layer(hidden, None)
        features = core.connector(vision.post_layernorm(hidden))
        if hints is not None:
            hints_loss = hints(features[batch["overviews"]], batch["hints"], batch["boxes"])
        features = features.flatten(0, 1)  # of more tiles than are shown: the last ones are for hints
        embeds = embeds.masked_scatter((ids == model.config.image_token_id)[..., None], features.to(embeds.dtype))
    out = core.text_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    places = (owner[:, 1:] >= 0).nonzero()
    logits = model.lm_head(out[places[:, 0], places[:, 1]])
    wanted = ids[places[:, 0], places[:, 1] + 1]
    places = places + torch.tensor([0, 1])
    return logits.float(), wanted, places, hints_loss


def optimizers(model: torch.nn.Module, hints: Hints, rate: float) -> list[torch.optim.Optimizer]:
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        (matrices if weight.ndim == 2 and "embed" not in name else others).append(weight)
    others += list(hints.parameters())
    return [
        Muon(matrices, lr=rate, weight_decay=0.05),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_at(step: int, peak: float) -> float:
    steps, shares = zip(*RATE, strict=True)
    return peak * float(np.interp(step + 1, steps, shares))


@torch.no_grad()
def exactness(model: Any, held_out: list[dict[str, Any]]) -> dict[str, float]:
    """Return the share of answers in which each token is the most likely one, by kind of question."""
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in held_out:
        logits, wanted, places, _ = forward(model, batch)
        hits = (logits.argmax(-1) == wanted).tolist()
        answers: dict[tuple[int, int], bool] = {}
        for (row, column), hit in zip(places.tolist(), hits, strict=True):
            turn = (row, int(batch["owner"][row, column]))
            answers[turn] = answers.get(turn, True) and hit
        for (row, number), exact in answers.items():
            right[batch["kinds"][row][number]].append(exact)
    every = [x for values in right.values() for x in values]
    return {"all": sum(every) / len(every)} | {k: sum(v) / len(v) for k, v in sorted(right.items())}


def add_by_kind(
    by_kind: dict[str, tuple[float, int]], batch: dict[str, Any], places: torch.Tensor, losses: torch.Tensor
) -> None:
    """Add the losses of tokens [learned tokens] and their number to the kinds of question that they answer."""
    for (row, column), loss in zip(places.tolist(), losses.tolist(), strict=True):
        kind = batch["kinds"][row][int(batch["owner"][row, column])]
        total, count = by_kind.get(kind, (0.0, 0))
        by_kind[kind] = (total + loss, count + 1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=PHASES[-1].until, help="stop at this step")
    options.add_argument("--batch", type=int, default=24)
    options.add_argument("--rate", type=float, default=2e-3)
    options.add_argument("--threads", type=int, default=allowed_cpus())
    options.add_argument("--state", type=Path, default=HERE / ".train" / "state.pt")
    options.add_argument("--further", type=Path, metavar="FOLDER", help="begin with its weights, in phase four")
    options.add_argument("--output", type=Path, default=CHECKPOINT)
    arguments = options.parse_args()

    torch.set_num_threads(arguments.threads)
    known = arguments.state.with_name("tokenizer.json")
    if arguments.further and not known.exists():
        known.parent.mkdir(parents=True, exist_ok=True)
        extend(Tokenizer.from_file(str(arguments.further / "tokenizer.json"))).save(str(known))
    tokenizer = load_tokenizer(known)
    model = build_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M weights", flush=True)
    ALL_ATTENTION_FUNCTIONS.register("fast", fast_attention)
    for part in (model.model.text_model, model.model.vision_model):
        part.config._attn_implementation = "fast"
    hints = Hints(TOKENS_PER_TILE, model.config.text_config.hidden_size)
    steppers = optimizers(model, hints, arguments.rate)
    step = 0
    if arguments.further and not arguments.state.exists():
        step = PHASES[2].until
        continue_from(model, tokenizer, arguments.further)
        print(f"continues {arguments.further} at step {step}", flush=True)
    if arguments.state.exists():
        state = torch.load(arguments.state, weights_only=True)
        step = state["step"]
        model.load_state_dict(state["model"])
        hints.load_state_dict(state["hints"])
        for stepper, saved in zip(steppers, state["optimizers"], strict=True):
            stepper.load_state_dict(saved)
        print(f"resumed at step {step}", flush=True)
    validation = Sampler(tokenizer, FAMILY, VALIDATION_SEED)
    held_out = [collate(chunk) for _, chunk in zip(range(4), batches(validation, 0, 32, PHASES[-1:]), strict=False)]
    loader = iter(
        DataLoader(
            _Batches(Sampler(tokenizer, FAMILY, 1), step, arguments.batch),
            batch_size=None,
            num_workers=1,
            prefetch_factor=16,
        )
    )

    def save() -> None:
        arguments.state.parent.mkdir(parents=True, exist_ok=True)
        new = arguments.state.with_suffix(".new")
        contents = {
            "step": step,
            "model": model.state_dict(),
            "hints": hints.state_dict(),
            "optimizers": [s.state_dict() for s in steppers],
        }
        torch.save(contents, new)
        new.replace(arguments.state)

    began = time.time()
    by_kind: dict[str, tuple[float, int]] = {}
    losses: list[float] = []
    hints_losses: list[float] = []
    for batch in loader:
        if step >= arguments.steps:
            break
        for stepper in steppers:
            for group in stepper.param_groups:
                group["lr"] = rate_at(step, arguments.rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16):
            logits, wanted, places, hints_loss = forward(model, batch, hints)
        each = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        loss = each.mean()
        add_by_kind(by_kind, batch, places, each.detach())
        (loss + HINTS_WEIGHT * hints_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        losses.append(loss.item())
        hints_losses.append(hints_loss.item())
        step += 1
        if step % 10 == 0:
            seconds = (time.time() - began) / len(losses)
            losses_text = f"loss {np.mean(losses[-10:]):.4f}  hints {np.mean(hints_losses[-10:]):.4f}"
            print(f"step {step}  {losses_text}  {seconds:.2f} s per step", flush=True)
            print(
                "  ".join(f"{kind} {total / count:.3f}" for kind, (total, count) in sorted(by_kind.items())), flush=True
            )
            by_kind.clear()
        if step % 50 == 0:
            save()
        if step % 250 == 0:
            shares = exactness(model, held_out)
            print("exact: " + "  ".join(f"{k} {v:.3f}" for k, v in shares.items()), flush=True)
    save()
    for part in (model.model.text_model, model.model.vision_model):
        part.config._attn_implementation = "sdpa"
    model.save_pretrained(arguments.output)
    save_processor(tokenizer, arguments.output, TILE, FAMILY.longest_edge, TOKENS_PER_TILE)
    print(f"wrote {arguments.output}", flush=True)


if __name__ == "__main__":
    main()

"""Every family, converted in float32: same tokens, same embeddings, same logits, same answers as transformers.

Both encoders on every picture. The conversations run over the shapes and sizes that layouts go wrong with.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from engine_seam import generate, last_logits, model_of, units_of
from integration.asking import generation
from pocketvlm import VLM
from pocketvlm.engine.interface import Token
from pocketvlm.vision.encoder import EmbeddingSpan
from store import Store
from tiers import slow_but
from tiny import Tiny, families

pytestmark = pytest.mark.oracle

Array = npt.NDArray[Any]
FIRST = [(name, next(iter(tiny.VARIANTS))) for name, tiny in families().items()]  # as people have it
CASES = slow_but([(name, variant) for name, tiny in families().items() for variant in tiny.VARIANTS], *FIRST)
ANSWER = 16  # tokens
TIE = 5e-3  # logits, within the divergence allowed: two tokens that are closer may come in either order
NEXT = "And what else?"


def noise(width: int, height: int) -> Image.Image:
    """Coarse and fine noise: neither a resize nor a shifted patch goes unnoticed."""
    rng = np.random.default_rng(width * 10000 + height)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    fine = rng.integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse, dtype=np.int64) + fine, 0, 255).astype(np.uint8))


def turn(text: str, *pictures: Image.Image) -> dict[str, Any]:
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one picture": [turn("What is in the picture?", noise(90, 70))],
    "three pictures": [turn("Compare them.", noise(64, 64), noise(120, 50), noise(33, 71))],
    "wide": [turn("Read the line.", noise(300, 60))],
    "tall": [turn("Read the column.", noise(60, 300))],
    "tiny": [turn("What is it?", noise(7, 5))],
    "large": [turn("Count.", noise(1100, 800))],
    "text only": [turn("Say the numbers from one to nine, please: 1, 2, 3")],
    "two turns": [turn("What is it?", noise(90, 70)), answer("A red circle."), turn(NEXT, noise(50, 80)), ],
}  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """What transformers makes of a conversation: `logits` of the answer's first token and `scores` of all of them."""

    ids: list[int]
    embeddings: Array | None
    logits: Array
    answer: list[int]
    scores: Any


@dataclass
class Pair:
    """A checkpoint in transformers, and the bundle made of it."""

    reference: Any
    processor: Any
    bundle: Path
    known: dict[str, Expected] = field(default_factory=dict)  # both encoders are compared with the same

    def expected(self, name: str) -> Expected:
        if name not in self.known:
            self.known[name] = self._ask(CONVERSATIONS[name])
        return self.known[name]

    def _ask(self, messages: list[dict[str, Any]]) -> Expected:
        inputs = self.processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            enable_thinking=False,  # as a request that does not ask for thoughts
        )
        ids = inputs["input_ids"][0].tolist()
        seen = any(part["type"] == "image" for message in messages for part in message["content"])
        with torch.no_grad():
            result = self.reference.generate(
                **inputs, max_new_tokens=ANSWER, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        return Expected(
            ids,
            embeddings(self.reference, inputs) if seen else None,
            result.logits[0][0].double().numpy(),
            result.sequences[0, len(ids) :].tolist(),
            result.logits,
        )


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[1])
def pair(request: pytest.FixtureRequest, store: Store) -> Pair:
    name, variant = request.param
    tiny: Tiny = families()[name]
    changes = tiny.VARIANTS[variant]
    checkpoint = store.checkpoint(name, **changes)
    return Pair(tiny.model(**changes), tiny.processor(checkpoint), store.bundle(checkpoint))


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def vlm(pair: Pair, request: pytest.FixtureRequest) -> Iterator[VLM]:
    with VLM.load(pair.bundle, exact=True, vision=request.param) as loaded:
        yield loaded


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversation(pair: Pair, vlm: VLM, name: str) -> None:
    expected = pair.expected(name)
    asked, seen = in_full_detail(CONVERSATIONS[name]), list[Any]()
    units = units_of(vlm, asked, seen)
    ids = [i for unit in units for i in ([unit] if isinstance(unit, int) else ids_of(unit, pair))]
    assert ids == expected.ids
    wanted = expected.embeddings
    assert (wanted is not None) == bool(seen)

    if wanted is not None:
        slots = [(slot, by.encode(slot)) for _, by in seen for slot in by.pieces if isinstance(slot, EmbeddingSpan)]
        rows = np.concatenate([np.delete(found, list(slot.control), axis=0) for slot, found in slots])
        table = pair.reference.get_input_embeddings().weight.detach().numpy()
        for slot, found in slots:
            for at in slot.control:
                assert np.allclose(found[at], table[ids_of(slot, pair)[at]], atol=1e-6)
        assert rows.shape == wanted.shape
        assert cosines(rows, wanted).min() >= 0.9999
        assert np.abs(rows - wanted).max() <= 0.01 * np.abs(wanted).max()

    assert expected.logits.std() > 0.1, "the model must say something"
    assert list(generate(vlm, generation(vlm, asked, 1)))
    assert divergence(expected.logits, last_logits(vlm).astype(np.float64)) <= 1e-4
    tokens = [event.id for event in generate(vlm, generation(vlm, asked, ANSWER)) if isinstance(event, Token)]
    ends = {token for token in expected.answer if model_of(vlm).is_end(token)}
    wanted_tokens = [token for token in expected.answer if token not in ends]
    if tokens != wanted_tokens:  # only where two tokens are as likely, and processors round differently
        at, (ours, theirs) = next(
            (at, pair) for at, pair in enumerate(zip(tokens, wanted_tokens, strict=False)) if pair[0] != pair[1]
        )
        scores = expected.scores[at][0]
        assert abs(float(scores[ours] - scores[theirs])) <= TIE, f"token {at}: {ours}, not {theirs}"


def ids_of(slot: EmbeddingSpan, pair: Pair) -> list[int]:
    """What transformers has where the embeddings of a tile stand."""
    words, image = pair.processor.tokenizer, pair.reference.config.image_token_id
    known = {at: words.convert_tokens_to_ids(token) for at, token in slot.control.items()}
    return [known.get(at, image) for at in range(slot.tokens)]


def in_full_detail(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`detail` high is the reference's own procedure."""
    return [
        {**m, "content": [{**part, "detail": "high"} if part["type"] == "image" else part for part in m["content"]]}
        for m in messages
    ]


def embeddings(model: Any, inputs: Any) -> Array:
    """Rows of all pictures, float32 [tokens, width], in the order of the prompt; deepstack's beside the main ones."""
    inner = getattr(model, "model", model)
    accepted = inspect.signature(inner.get_image_features).parameters
    with torch.no_grad():
        found = inner.get_image_features(**{key: value for key, value in inputs.items() if key in accepted})
    features = [getattr(found, "pooler_output", found), *(getattr(found, "deepstack_features", None) or ())]
    parts = [torch.cat(list(rows)) if isinstance(rows, list | tuple) else rows for rows in features]
    return torch.cat([rows.reshape(-1, rows.shape[-1]) for rows in parts], dim=-1).float().numpy()


def cosines(one: Array, other: Array) -> Array:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: Array = (one * other).sum(1) / norms
    return found


def divergence(wanted: Array, found: Array) -> float:
    """KL(wanted || found) of two vectors of logits, in nats."""
    p, q = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (wanted, found))
    return float((np.exp(p) * (p - q)).sum())

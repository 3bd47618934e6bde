"""The stages of a proof that do not need the original: one function each, from a bundle to its checks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import PairingError, PocketVLMError
from pocketvlm.files.bundle import Bundle, Check, Role
from pocketvlm.templates.prompt import ImageSpan
from pocketvlm.vision.compatibility import check_files, family_of
from pocketvlm_converters.progress import Progress
from pocketvlm_converters.proof import thresholds
from pocketvlm_converters.proof.distributions import Distributions
from pocketvlm_converters.samples.forward import Loaded, SampleExchange
from pocketvlm_converters.tokenizer import tokens_sha256

ENCODERS: tuple[Role, ...] = ("mmproj", "vision")  # the first that exists encodes the pictures of the prompts
UNKNOWN = "not recorded"
_TOO_LONG = "no sample fits the context"
_WEIGHTS_KEY = "pocketvlm.weights_sha256"
_USER: dict[str, object] = {"role": "user", "content": "What is this?"}
_ANSWER: dict[str, object] = {"role": "assistant", "content": "A boat."}
_SYSTEM: dict[str, object] = {"role": "system", "content": "Be brief."}


def _user_with_pictures(text: str, pictures: int) -> dict[str, object]:
    """Return a user's turn with pictures of one pixel: a template does not depend on their pixels."""
    image = {"type": "image", "image": np.zeros((1, 1, 3), np.uint8)}
    return {"role": "user", "content": [*[image] * pictures, {"type": "text", "text": text}]}


# Name, messages, number of pictures. A template may refuse a system turn, but must accept the other conversations.
_CONVERSATIONS: tuple[tuple[str, list[dict[str, object]], int], ...] = (
    ("user", [_USER], 0),
    ("several turns", [_USER, _ANSWER, _USER], 0),
    ("one picture", [_user_with_pictures("What is this?", 1)], 1),
    ("three pictures", [_user_with_pictures("Compare.", 3)], 3),
    (
        "pictures in two turns",
        [_user_with_pictures("What is this?", 1), _ANSWER, _user_with_pictures("And these?", 2)],
        3,
    ),
    ("system", [_SYSTEM, _user_with_pictures("What is this?", 1)], 1),
)


def files(bundle: Bundle) -> Iterator[Check]:
    """Check that every file exists, with the size and hash of the manifest."""
    try:
        bundle.verify()
        value, passed = f"{len(bundle.manifest.files)} match", True
    except PocketVLMError as error:
        value, passed = str(error), False
    sealed = tuple(entry.sha256 for entry in bundle.manifest.files)
    yield Check(stage="files", measured="size and sha256", value=value, passed=passed, files=sealed)


def pairing(bundle: Bundle) -> Iterator[Check]:
    """Check that the headers match, and that all files were made from the same weights."""
    passed: bool | None = True
    try:
        value = _pair(bundle)
        passed = None if value == UNKNOWN else True
    except PocketVLMError as error:
        value, passed = str(error), False
    yield Check(
        stage="pairing",
        measured="headers, hash of the weights",
        value=value,
        passed=passed,
        files=hashes(bundle, "model", *ENCODERS),
    )


def _pair(bundle: Bundle) -> str:
    """Return the hash of the weights that all files were made from. Raises PairingError if they differ."""
    model = bundle.file("model")
    if model is None:
        raise PairingError("the manifest lists no language model", bundle.path)
    checked = check_files(model, bundle.file("mmproj"), bundle.file("vision"))
    weights = {model.name: checked.model.metadata.get(_WEIGHTS_KEY)}  # hash by file
    layouts = []
    for header in (checked.projector, checked.encoder):
        if header is not None:
            weights[header.path.name] = header.metadata.get(_WEIGHTS_KEY)
            layouts.append(family_of(header.metadata, header.path))
    if len(set(weights.values())) != 1:
        differing = "; ".join(f"{name} from weights {str(sha256)[:12]}" for name, sha256 in weights.items())
        raise PairingError(differing, bundle.path)
    if layouts[1:] and layouts[0] != layouts[1]:
        raise PairingError("its two vision encoders prepare pictures differently", bundle.path)
    sha256 = weights[model.name]
    return str(sha256)[:12] if sha256 else UNKNOWN


def tokenizer(bundle: Bundle, expected: str | None) -> Iterator[Check]:
    """Check that libllama tokenizes the corpus as the original tokenizer did at the conversion."""
    path = bundle.file("model")
    assert path is not None
    yield _same("tokenizer", "token ids of a corpus", tokens_sha256(path), expected, hashes(bundle, "model"))


def template(bundle: Bundle, loaded: Loaded, expected: str | None) -> Iterator[Check]:
    """Check that the chat template accepts turns, places every picture, and renders as at the conversion."""
    sealed = hashes(bundle, "model")
    faults = []
    # Some templates always begin the answer after a question, and have no such variable.
    has_generation_prompt = "add_generation_prompt" in (loaded.model.chat_template or "")
    for name, messages, pictures in _CONVERSATIONS:
        try:
            prompt, transcript = (loaded.render(messages, asking) for asking in (True, False))
        except PocketVLMError as error:
            if name != "system":
                faults.append(f"{name}: {error}")
            continue
        placed = sum(isinstance(span, ImageSpan) for span in prompt)
        if placed != pictures:
            faults.append(f"{name}: {placed} places for {pictures} pictures")
        if has_generation_prompt and prompt == transcript:
            faults.append(f"{name}: add_generation_prompt has no effect")
    if not loaded.model.chat_template:
        faults = ["there is none"]
    value = faults[0] if faults else f"{len(_CONVERSATIONS)} conversations"
    yield Check(stage="template", measured="turns and pictures", value=value, passed=not faults, files=sealed)
    yield _same("template", "rendered prompts", renders_sha256(loaded), expected, sealed)


def renders_sha256(loaded: Loaded) -> str:
    """Return the SHA-256 of the chat template's renderings of all conversations, or of the class of its errors."""
    digest = hashlib.sha256()
    for _, messages, _ in _CONVERSATIONS:
        for asking in (True, False):
            try:
                rendered = repr(loaded.render(messages, asking))
            except PocketVLMError as error:
                rendered = type(error).__name__
            digest.update(rendered.encode())
    return digest.hexdigest()


def encoders(bundle: Bundle, exchanges: Sequence[SampleExchange], progress: Progress) -> Iterator[Check]:
    """Check that both encoders give the same embeddings, for every picture size. `exchanges` has the first one's."""
    paths = [path for role in ENCODERS if (path := bundle.file(role))]
    sealed = hashes(bundle, *ENCODERS)
    if len(paths) < 2 or not exchanges:
        value = _TOO_LONG if paths[1:] else f"{paths[0].name} is the only one" if paths else "there is none"
        yield Check(stage="encoders", measured="libmtmd against onnxruntime", value=value, passed=None, files=sealed)
        return
    model = bundle.file("model")
    assert model is not None
    kinds = [entry.quantization for role in ENCODERS if (entry := bundle.manifest.entry(role))]
    limit = thresholds.encoder_limit(*kinds)
    worst: dict[str, float] = {}
    ratios = []
    with Loaded(model, paths[1]) as other:
        for number, (sample, exchange) in enumerate(exchanges):
            progress("encoders", number, len(exchanges))
            for first, second in zip(exchange.spans, other.exchange(sample).spans, strict=True):
                height, width = sample.pictures[first.picture].shape[:2]
                size = f"{width}x{height}"
                cosines, lengths = compare(first.rows, second.rows)
                worst[size] = float(np.minimum(worst.get(size, 1.0), cosines.min()))  # NaN stays NaN
                ratios.append(lengths)
        progress("encoders", len(exchanges), len(exchanges))
    for size, cosine in worst.items():
        yield at_least("encoders", f"worst cosine, {size}", cosine, limit, sealed)
    deviation = float(np.median(np.abs(np.concatenate(ratios) - 1)))
    yield at_most("encoders", "lengths, median off by", deviation, thresholds.SCALE, sealed)


def language(
    bundle: Bundle, exchanges: Sequence[SampleExchange], at_conversion: float | None, progress: Progress
) -> Iterator[Check]:
    """Check that the quantized language model predicts the answers to questions about pictures as the original does.

    `at_conversion` is the mean KL divergence in nats that the conversion measured.
    """
    path, original, entry = bundle.file("model"), bundle.file("proof"), bundle.manifest.entry("model")
    assert path is not None and entry is not None
    sealed = hashes(bundle, "model", "proof", *ENCODERS)
    measured = f"mean KL, {entry.quantization}"
    if original is None or not exchanges:
        reason = UNKNOWN if exchanges else _TOO_LONG
        yield Check(stage="language", measured=measured, value=reason, passed=None, files=sealed)
        return
    try:
        divergence = Distributions.load(original).divergence(path, [e for _, e in exchanges], progress)
    except PocketVLMError as error:
        yield Check(stage="language", measured=measured, value=str(error), passed=False, files=sealed)
        return
    yield at_most("language", measured, divergence.mean, thresholds.language_limit(entry.quantization), sealed)
    yield at_most("language", "largest KL", divergence.largest, None, sealed)
    exact = thresholds.TOP_FLOAT if entry.quantization in ("F32", "F16") else None
    yield at_least("language", "same likeliest token", divergence.same_top, exact, sealed)
    if at_conversion is not None:
        limit = at_conversion * thresholds.GROWTH + thresholds.SLACK
        yield at_most("language", "mean KL, against that at conversion", divergence.mean, limit, sealed)


def compare(
    one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the cosine and the ratio of lengths of each token's embeddings, float64 [tokens] both."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(a, axis=1), 1e-30), np.maximum(np.linalg.norm(b, axis=1), 1e-30)
    return np.einsum("ij,ij->i", a, b) / (lengths[0] * lengths[1]), lengths[0] / lengths[1]


def at_least(stage: str, measured: str, value: float, limit: float | None, sealed: tuple[str, ...]) -> Check:
    passed = None if limit is None else value >= limit
    return Check(stage=stage, measured=measured, value=_short(value), at_least=limit, passed=passed, files=sealed)


def at_most(stage: str, measured: str, value: float, limit: float | None, sealed: tuple[str, ...]) -> Check:
    passed = None if limit is None else value <= limit
    return Check(stage=stage, measured=measured, value=_short(value), at_most=limit, passed=passed, files=sealed)


def hashes(bundle: Bundle, *roles: Role) -> tuple[str, ...]:
    """Return the SHA-256 of the files in these roles, with the separate weights of an ONNX file."""
    all_roles = {*roles, "data"} if "vision" in roles else set(roles)
    return tuple(entry.sha256 for entry in bundle.manifest.files if entry.role in all_roles)


def _same(stage: str, measured: str, sha256: str, expected: str | None, sealed: tuple[str, ...]) -> Check:
    passed = None if expected is None else sha256 == expected
    value = {None: UNKNOWN, True: "as converted", False: "other than converted"}[passed]
    return Check(stage=stage, measured=measured, value=value, passed=passed, files=sealed)


def _short(value: float) -> float | str:
    """Round to six digits, because more would differ between two runs of the same files. JSON cannot hold NaN."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)

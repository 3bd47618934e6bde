"""The stages of a proof that need no original: each a small function from a bundle to its checks."""

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

ENCODERS: tuple[Role, ...] = ("mmproj", "vision")  # the first that is there looks at the pictures of the prompts
UNKNOWN = "not recorded"
_TOO_LONG = "no sample fits the context"
_SOURCE = "pocketvlm.weights_sha256"
_USER: dict[str, object] = {"role": "user", "content": "What is this?"}
_ANSWER: dict[str, object] = {"role": "assistant", "content": "A boat."}
_SYSTEM: dict[str, object] = {"role": "system", "content": "Be brief."}


def _seen(text: str, pictures: int) -> dict[str, object]:
    """A turn of the user with pictures; their pixels play no part in a template."""
    image = {"type": "image", "image": np.zeros((1, 1, 3), np.uint8)}
    return {"role": "user", "content": [*[image] * pictures, {"type": "text", "text": text}]}


# Name, messages, pictures. A template may refuse a system turn; all else it must take.
_CONVERSATIONS: tuple[tuple[str, list[dict[str, object]], int], ...] = (
    ("user", [_USER], 0),
    ("several turns", [_USER, _ANSWER, _USER], 0),
    ("one picture", [_seen("What is this?", 1)], 1),
    ("three pictures", [_seen("Compare.", 3)], 3),
    ("pictures in two turns", [_seen("What is this?", 1), _ANSWER, _seen("And these?", 2)], 3),
    ("system", [_SYSTEM, _seen("What is this?", 1)], 1),
)


def files(bundle: Bundle) -> Iterator[Check]:
    """Every file is there, as long as the manifest says and of its hash."""
    try:
        bundle.verify()
        value, passed = f"{len(bundle.manifest.files)} match", True
    except PocketVLMError as error:
        value, passed = str(error), False
    sealed = tuple(entry.sha256 for entry in bundle.manifest.files)
    yield Check(stage="files", measured="size and sha256", value=value, passed=passed, files=sealed)


def pairing(bundle: Bundle) -> Iterator[Check]:
    """The headers fit, and all files were made from the same weights."""
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
    """The hash of the weights that all files were made from; raises PairingError where they differ."""
    model = bundle.file("model")
    if model is None:
        raise PairingError("the manifest lists no language model", bundle.path)
    checked = check_files(model, bundle.file("mmproj"), bundle.file("vision"))
    found = {model.name: checked.model.metadata.get(_SOURCE)}
    layouts = []
    for header in (checked.projector, checked.encoder):
        if header is not None:
            found[header.path.name] = header.metadata.get(_SOURCE)
            layouts.append(family_of(header.metadata, header.path))
    if len(set(found.values())) != 1:
        told = "; ".join(f"{name} from weights {str(mark)[:12]}" for name, mark in found.items())
        raise PairingError(told, bundle.path)
    if layouts[1:] and layouts[0] != layouts[1]:
        raise PairingError("its two vision encoders prepare pictures otherwise", bundle.path)
    mark = found[model.name]
    return str(mark)[:12] if mark else UNKNOWN


def tokenizer(bundle: Bundle, wanted: str | None) -> Iterator[Check]:
    """libllama tokenizes the corpus as the original tokenizer did at the conversion."""
    path = bundle.file("model")
    assert path is not None
    found = tokens_sha256(path)
    yield _same("tokenizer", "token ids of a corpus", found, wanted, hashes(bundle, "model"))


def template(bundle: Bundle, loaded: Loaded, wanted: str | None) -> Iterator[Check]:
    """The chat template takes turns and pictures, each picture in its place, and writes what it wrote."""
    sealed = hashes(bundle, "model")
    faults = []
    # Some begin an answer where a question ends, and know no such thing.
    prompts = "add_generation_prompt" in (loaded.model.chat_template or "")
    for name, messages, pictures in _CONVERSATIONS:
        try:
            asked, told = (loaded.render(messages, asking) for asking in (True, False))
        except PocketVLMError as error:
            if name != "system":
                faults.append(f"{name}: {error}")
            continue
        placed = sum(isinstance(span, ImageSpan) for span in asked)
        if placed != pictures:
            faults.append(f"{name}: {placed} places for {pictures} pictures")
        if prompts and asked == told:
            faults.append(f"{name}: add_generation_prompt changes nothing")
    if not loaded.model.chat_template:
        faults = ["there is none"]
    value = faults[0] if faults else f"{len(_CONVERSATIONS)} conversations"
    yield Check(stage="template", measured="turns and pictures", value=value, passed=not faults, files=sealed)
    yield _same("template", "rendered prompts", renders_sha256(loaded), wanted, sealed)


def renders_sha256(loaded: Loaded) -> str:
    """Of what the template makes of some conversations, or of its refusal."""
    digest = hashlib.sha256()
    for _, messages, _ in _CONVERSATIONS:
        for asking in (True, False):
            try:
                told = repr(loaded.render(messages, asking))
            except PocketVLMError as error:
                told = type(error).__name__
            digest.update(told.encode())
    return digest.hexdigest()


def encoders(bundle: Bundle, asked: Sequence[SampleExchange], progress: Progress) -> Iterator[Check]:
    """Both encoders see the same, for every size of picture. `asked` holds what the first one saw."""
    paths = [path for role in ENCODERS if (path := bundle.file(role))]
    sealed = hashes(bundle, *ENCODERS)
    if len(paths) < 2 or not asked:
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
        for number, (sample, exchange) in enumerate(asked):
            progress("encoders", number, len(asked))
            for one, two in zip(exchange.spans, other.exchange(sample).spans, strict=True):
                height, width = sample.pictures[one.picture].shape[:2]
                size = f"{width}x{height}"
                cosines, lengths = compare(one.rows, two.rows)
                worst[size] = float(np.minimum(worst.get(size, 1.0), cosines.min()))  # NaN stays NaN
                ratios.append(lengths)
        progress("encoders", len(asked), len(asked))
    for size, cosine in worst.items():
        yield at_least("encoders", f"worst cosine, {size}", cosine, limit, sealed)
    off = float(np.median(np.abs(np.concatenate(ratios) - 1)))
    yield at_most("encoders", "lengths, median off by", off, thresholds.SCALE, sealed)


def language(
    bundle: Bundle, asked: Sequence[SampleExchange], before: float | None, progress: Progress
) -> Iterator[Check]:
    """The quantized language model expects what the original did, over the answers to questions about pictures."""
    path, original, entry = bundle.file("model"), bundle.file("proof"), bundle.manifest.entry("model")
    assert path is not None and entry is not None
    sealed = hashes(bundle, "model", "proof", *ENCODERS)
    measured = f"mean KL, {entry.quantization}"
    if original is None or not asked:
        told = UNKNOWN if asked else _TOO_LONG
        yield Check(stage="language", measured=measured, value=told, passed=None, files=sealed)
        return
    try:
        found = Distributions.load(original).divergence(path, [e for _, e in asked], progress)
    except PocketVLMError as error:
        yield Check(stage="language", measured=measured, value=str(error), passed=False, files=sealed)
        return
    yield at_most("language", measured, found.mean, thresholds.language_limit(entry.quantization), sealed)
    yield at_most("language", "largest KL", found.largest, None, sealed)
    exact = thresholds.TOP_FLOAT if entry.quantization in ("F32", "F16") else None
    yield at_least("language", "same likeliest token", found.same_top, exact, sealed)
    if before is not None:
        limit = before * thresholds.GROWTH + thresholds.SLACK
        yield at_most("language", "mean KL beside that then", found.mean, limit, sealed)


def compare(
    one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Cosine and ratio of lengths, token by token."""
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
    """SHA-256 of the files in these roles, with the weights that lie beside an ONNX file."""
    wanted = {*roles, "data"} if "vision" in roles else set(roles)
    return tuple(entry.sha256 for entry in bundle.manifest.files if entry.role in wanted)


def _same(stage: str, measured: str, found: str, wanted: str | None, sealed: tuple[str, ...]) -> Check:
    passed = None if wanted is None else found == wanted
    value = {None: UNKNOWN, True: "as converted", False: "other than converted"}[passed]
    return Check(stage=stage, measured=measured, value=value, passed=passed, files=sealed)


def _short(value: float) -> float | str:
    """Six digits: more would tell two runs of the same files apart. JSON has no NaN and no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)

"""Compare a bundle with transformers running its checkpoint in float32: pixels, tokens, embeddings, logits, answers.

This is the only module that imports torch and transformers, and only when it is used. It has no code per family:
transformers chooses its classes by the checkpoint's configuration.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError, NativeLibraryError
from pocketvlm.files.bundle import Bundle, Check, Role
from pocketvlm.native.llama import Model
from pocketvlm.system.extras import install_extra
from pocketvlm.vision.compatibility import check_files, family_of
from pocketvlm.vision.encoder import EmbeddingSpan
from pocketvlm.vision.family import family_for
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.progress import Progress
from pocketvlm_converters.proof import thresholds
from pocketvlm_converters.proof.distributions import Distributions, log_softmax
from pocketvlm_converters.proof.stages import ENCODERS, at_least, at_most, compare, hashes
from pocketvlm_converters.samples.forward import (
    QUESTION,
    Exchange,
    Loaded,
    context_for,
    continuation,
    variables_without_thoughts,
)
from pocketvlm_converters.samples.sets import Sample, proof_samples

_GREEDY_TOKENS = 32
# trust_remote_code must be False: by default, transformers asks the user whether to run a checkpoint's own code.
_LOCAL_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_PARTS = ("processor", "extractor", "tokenizer", "template")  # endings of a processor's arguments for its components
_ENCODER_NAMES: dict[Role, str] = {"mmproj": "libmtmd", "vision": "onnxruntime"}


class Reference:
    """The checkpoint in transformers. Nothing is downloaded, and no code of the checkpoint runs.

    Raises NativeLibraryError if transformers or torch is missing, CheckpointError if it cannot load the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise NativeLibraryError(
                "comparing with the checkpoint needs torch and transformers; "
                f"{error.name} is missing: {install_extra('oracle')}"
            ) from error
        self._torch = torch
        source = Checkpoint(path).source
        self.sha256 = source.sha256
        try:
            auto_model: Any = transformers.AutoModelForImageTextToText
            self.model: Any = auto_model.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, **_LOCAL_ONLY
            ).eval()
            self.processor = _processor(path, self.model.config.model_type)
        except Exception as error:  # from_pretrained raises errors of many kinds
            raise CheckpointError(f"transformers cannot load it: {error}", path) from error
        question = {"role": "user", "content": [{"type": "text", "text": QUESTION}]}
        self._variables = variables_without_thoughts(self._prompt(question))

    def inputs(self, sample: Sample) -> Any:
        """Return the processor's output for the sample's question: token ids, pixels and the model's other inputs."""
        parts = [{"type": "image", "image": self._image(picture)} for picture in sample.pictures]
        user = {"role": "user", "content": [*parts, {"type": "text", "text": sample.question}]}
        return self._prompt(user, tokenize=True, return_dict=True, return_tensors="pt", **self._variables)

    def _prompt(self, message: Mapping[str, Any], **options: Any) -> Any:
        """Return the prompt of a message: its text, or with `tokenize` the processor's output."""
        options = {"tokenize": False, **options}
        return self.processor.apply_chat_template([message], add_generation_prompt=True, **options)

    def pixels(self, tiles: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Return the normalised pixels of tiles of their final size, in the model's order of patches, in one row."""
        processor, rows = self.processor.image_processor, []
        cuts_tiles = hasattr(processor, "image_grid_pinpoints")
        for tile in tiles:
            options = {"image_grid_pinpoints": [list(tile.shape[:2])]} if cuts_tiles else {}
            inputs = processor(images=[self._image(tile)], do_resize=False, return_tensors="np", **options)
            pixels = inputs["pixel_values"]
            # A processor that cuts pictures into tiles returns a tile twice: as overview and as the grid's only tile.
            rows.append(np.asarray(pixels[0][0] if cuts_tiles else pixels, np.float32).ravel())
        return np.concatenate(rows)

    @property
    def grey_level(self) -> float:
        """The difference between two adjacent ones of the 255 grey levels, in normalised pixel values."""
        return 1 / 255 / float(max(getattr(self.processor.image_processor, "image_std", None) or [1.0]))

    @property
    def image_token(self) -> int:
        return int(self.model.config.image_token_id)

    def ids(self, span: EmbeddingSpan) -> list[int]:
        """Return the token ids that the reference's prompt has at the positions of an embedding span."""
        image_token, tokenizer = self.image_token, self.processor.tokenizer
        control = {at: int(tokenizer.convert_tokens_to_ids(token)) for at, token in span.control.items()}
        return [control.get(at, image_token) for at in range(span.tokens)]

    def embeddings(self, inputs: Any) -> npt.NDArray[np.float32]:
        """Return the embeddings of all pictures, float32 [tokens, width], in the order of the prompt."""
        inner = getattr(self.model, "model", self.model)  # the outer model's method names fewer of its arguments
        accepted = inspect.signature(inner.get_image_features).parameters
        with self._torch.no_grad():
            output = inner.get_image_features(**{k: v for k, v in inputs.items() if k in accepted})
        # In deepstack models, the embeddings that the decoder's first layers add follow in each row, as in libllama.
        features = [getattr(output, "pooler_output", output), *(getattr(output, "deepstack_features", None) or ())]
        parts = [self._torch.cat(list(rows)) if isinstance(rows, list | tuple) else rows for rows in features]
        joined = self._torch.cat([rows.reshape(-1, rows.shape[-1]) for rows in parts], dim=-1)
        array: npt.NDArray[np.float32] = joined.float().numpy()
        return array

    def logs(self, inputs: Any, answer: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the log probabilities at each token of the answer, float64 [tokens, n_vocab]."""
        torch, ids = self._torch, inputs["input_ids"]
        extended = dict(inputs)
        for key, value in inputs.items():
            if value.shape == ids.shape:  # attention mask (1 for the answer) and token types (0: text)
                added = torch.full((1, len(answer)), int(key == "attention_mask"), dtype=value.dtype)
                extended[key] = torch.cat([value, added], dim=1)
        extended["input_ids"] = torch.cat([ids, torch.tensor([list(answer)], dtype=ids.dtype)], dim=1)
        with torch.no_grad():
            logits = self.model(**extended, logits_to_keep=len(answer) + 1).logits[0, -len(answer) - 1 : -1]
        return log_softmax(logits.float().numpy())

    def greedy(self, inputs: Any, count: int, ends: set[int]) -> list[int]:
        """Return the most likely tokens after the prompt, regardless of the checkpoint's own generation settings."""
        config = type(self.model.generation_config)(
            do_sample=False, max_new_tokens=count, eos_token_id=sorted(ends), pad_token_id=min(ends)
        )
        with self._torch.no_grad():
            output = self.model.generate(**inputs, generation_config=config)
        return [token for token in output[0, inputs["input_ids"].shape[1] :].tolist() if token not in ends]

    def _image(self, picture: npt.NDArray[np.uint8]) -> Any:
        from PIL import Image

        return Image.fromarray(picture)


def _processor(path: Path, model_type: str) -> Any:
    """Return the processor of a checkpoint.

    It lacks video and sound if their files or torchvision, which only videos need, are missing.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    try:
        return transformers.AutoProcessor.from_pretrained(path, **_LOCAL_ONLY)
    except (ImportError, OSError):
        # As AutoProcessor does: the files name it, because some models share the processor of another.
        files = (Checkpoint(path).json(f"{name}_config.json", optional=True) for name in ("processor", "preprocessor"))
        configured = next((name for file in files if (name := file.text("processor_class", ""))), "")
        known = PROCESSOR_MAPPING_NAMES.values()
        name = configured if configured in known else PROCESSOR_MAPPING_NAMES.get(model_type, "")
        if name not in known:
            raise ValueError(f"it has no processor for {model_type}") from None
        base: Any = getattr(transformers, name)
    if not issubclass(base, transformers.ProcessorMixin):
        base = _with_pillow(base)
    saved, _ = base.get_processor_dict(path, **_LOCAL_ONLY)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, **_LOCAL_ONLY)
    images = transformers.AutoImageProcessor.from_pretrained(path, **_LOCAL_ONLY)
    parts = {"image_processor": images, "tokenizer": tokenizer, "chat_template": tokenizer.chat_template}
    parameters = {key: p for key, p in inspect.signature(base).parameters.items() if p.kind is not p.VAR_KEYWORD}
    settings = {key: saved[key] for key in parameters if key in saved and not key.endswith(_PARTS)}
    missing = {key: None for key, parameter in parameters.items() if parameter.default is parameter.empty}

    class Partial(base):  # type: ignore[misc]  # `base` is known only at run time
        """The processor, which accepts None for a missing component."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return argument and super().check_argument_for_proper_class(argument_name, argument)

    return Partial(**missing | parts | settings)


def _with_pillow(stand_in: Any) -> Any:
    """Return the real processor for a stand-in of transformers.

    The stand-in exists because the processor's module imports another one, which needs torchvision. That has a twin for
    Pillow with the same functions, which replaces it.
    """
    name = stand_in.__module__
    needs_torchvision, pillow = (name.replace(".processing_", f".image_processing_{kind}") for kind in ("", "pil_"))
    sys.modules.setdefault(needs_torchvision, import_module(pillow))
    return getattr(import_module(name), stand_in.__name__)


def checks(bundle: Bundle, reference: Reference, progress: Progress) -> Iterator[Check]:
    """Run every stage on all proof samples, with full detail as transformers prepares pictures."""
    samples = proof_samples()
    model = bundle.file("model")
    assert model is not None
    inputs = []
    for number, sample in enumerate(samples):
        progress("transformers", number, len(samples))
        inputs.append(reference.inputs(sample))
    progress("transformers", len(samples), len(samples))
    exchanges: list[Exchange] = []
    embedding_checks: list[Check] = []  # yielded after the preprocessing stage
    for role in ENCODERS:
        if (path := bundle.file(role)) is None:
            continue
        with Loaded(model, path) as loaded:
            encoded = []
            for number, sample in enumerate(samples):
                progress(f"pictures, {_ENCODER_NAMES[role]}", number, len(samples))
                encoded.append(loaded.exchange(sample, "high"))
            progress(f"pictures, {_ENCODER_NAMES[role]}", len(samples), len(samples))
        if not exchanges:
            exchanges = encoded
            yield from _preprocessing(bundle, reference, inputs, exchanges, samples)
        embedding_checks += _embeddings(bundle, role, reference, inputs, encoded)
    yield from embedding_checks
    yield from _logits(bundle, reference, inputs, exchanges, progress)
    yield from _answers(bundle, reference, inputs, exchanges, progress)


def _preprocessing(
    bundle: Bundle,
    reference: Reference,
    all_inputs: Sequence[Any],
    exchanges: Sequence[Exchange],
    samples: Sequence[Sample],
) -> Iterator[Check]:
    sealed = hashes(bundle, "model", *ENCODERS)
    model = bundle.file("model")
    assert model is not None
    checked = check_files(model, bundle.file("mmproj"), bundle.file("vision"))
    header = checked.projector or checked.encoder
    family = family_of(header.metadata, header.path) if header else None
    assert family is not None
    worst = 0.0
    for inputs, sample in zip(all_inputs, samples, strict=True):
        sees = family_for(family, alone=len(sample.pictures) == 1)
        tiles = [
            tile
            for picture in sample.pictures
            for tile in sees.tiles(picture, sees.plan((picture.shape[1], picture.shape[0]), "high", None))
        ]
        pixels, expected = reference.pixels(tiles), _pixels(inputs)
        same_shape = pixels.shape == expected.shape
        deviation = float(np.abs(pixels - expected).max()) / reference.grey_level if same_shape else 255.0
        worst = float(np.maximum(worst, deviation))  # NaN stays NaN
    yield at_most("preprocessing", "pixels, grey levels off by", worst, thresholds.PIXEL, sealed)
    same = 0
    for inputs, exchange in zip(all_inputs, exchanges, strict=True):
        ids: list[int] = []
        for piece in exchange.prompt:
            ids += [piece] if isinstance(piece, int) else reference.ids(piece.span)
        same += ids == inputs["input_ids"][0].tolist()
    yield at_least("preprocessing", "prompts of the same tokens", same / len(samples), 1.0, sealed)


def _pixels(inputs: Any) -> npt.NDArray[np.float32]:
    """Return all pixels of a prompt in one row, without the padding to the size of the largest picture."""
    pixels, sizes = np.asarray(inputs["pixel_values"], np.float32), inputs.get("image_sizes")
    if pixels.ndim == 5:  # tiles of one size; all zeros is padding, as normalised black is not 0
        return pixels[pixels.any(axis=(2, 3, 4))].ravel()
    if sizes is None or pixels.ndim != 4:
        return pixels.ravel()
    pictures = zip(pixels, np.asarray(sizes), strict=True)
    return np.concatenate([picture[:, :height, :width].ravel() for picture, (height, width) in pictures])


def _embeddings(
    bundle: Bundle, role: Role, reference: Reference, all_inputs: Sequence[Any], exchanges: Sequence[Exchange]
) -> Iterator[Check]:
    entry, sealed = bundle.manifest.entry(role), hashes(bundle, role)
    assert entry is not None
    stage, cosines, lengths = "reference encoders", [], []
    for inputs, exchange in zip(all_inputs, exchanges, strict=True):
        spans = [np.delete(piece.rows, list(piece.span.control), axis=0) for piece in exchange.spans]
        rows, expected = np.concatenate(spans), reference.embeddings(inputs)
        if rows.shape != expected.shape:
            shapes = f"{list(rows.shape)}, transformers has {list(expected.shape)}"
            yield Check(
                stage=stage, measured=f"shape, {_ENCODER_NAMES[role]}", value=shapes, passed=False, files=sealed
            )
            return
        cosine, ratio = compare(rows, expected)
        cosines.append(cosine)
        lengths.append(ratio)
    limit = thresholds.encoder_limit(entry.quantization)
    worst, deviation = float(np.concatenate(cosines).min()), float(np.median(np.abs(np.concatenate(lengths) - 1)))
    yield at_least(stage, f"worst cosine, {_ENCODER_NAMES[role]} {entry.quantization}", worst, limit, sealed)
    yield at_most(stage, f"lengths, {_ENCODER_NAMES[role]}, median off by", deviation, thresholds.SCALE, sealed)


def _logits(
    bundle: Bundle, reference: Reference, all_inputs: Sequence[Any], exchanges: Sequence[Exchange], progress: Progress
) -> Iterator[Check]:
    path, kinds = bundle.file("model"), _kinds(bundle)
    assert path is not None
    logs = (reference.logs(i, e.answer) for i, e in zip(all_inputs, exchanges, strict=True))
    divergence = Distributions.from_log_probabilities(exchanges, logs).divergence(path, exchanges, progress)
    sealed, stage = hashes(bundle, "model", *ENCODERS[:1]), "reference logits"
    limit = thresholds.reference_limit(*kinds)
    yield at_most(stage, f"mean KL, {' and '.join(kinds)}", divergence.mean, limit, sealed)
    yield at_most(stage, "largest KL", divergence.largest, None, sealed)
    yield at_least(stage, "same likeliest token", divergence.same_top, None, sealed)


def _answers(
    bundle: Bundle, reference: Reference, all_inputs: Sequence[Any], exchanges: Sequence[Exchange], progress: Progress
) -> Iterator[Check]:
    path = bundle.file("model")
    assert path is not None
    shares = []
    with Model(path, gpu_layers=0, mapped=True) as model, context_for(model, exchanges) as context:
        ends = {token for token in range(model.n_vocab) if model.is_end(token)}
        for number, (inputs, exchange) in enumerate(zip(all_inputs, exchanges, strict=True)):
            progress("greedy answers", number, len(exchanges))
            tokens = continuation(context, model, exchange, _GREEDY_TOKENS)
            expected = reference.greedy(inputs, _GREEDY_TOKENS, ends)
            pairs = enumerate(zip(tokens, expected, strict=False))
            common = next((number for number, (a, b) in pairs if a != b), min(len(tokens), len(expected)))
            same = tokens == expected or _is_tie(reference, inputs, tokens[: common + 1], expected[: common + 1])
            shares.append(1.0 if same else common / max(len(tokens), len(expected)))
        progress("greedy answers", len(exchanges), len(exchanges))
    exact = 1.0 if thresholds.is_exact(*_kinds(bundle)) else None
    share = sum(shares) / len(shares)
    sealed = hashes(bundle, "model", *ENCODERS[:1])
    yield at_least("reference answers", f"same of {_GREEDY_TOKENS} greedy tokens", share, exact, sealed)


def _is_tie(reference: Reference, inputs: Any, tokens: list[int], expected: list[int]) -> bool:
    """Return whether the last tokens are about equally likely for the reference. Rounding decides between them."""
    if len(tokens) != len(expected) or reference.image_token in expected:  # as text, the model refuses it
        return False
    logs = reference.logs(inputs, expected)[-1]
    return bool(logs[expected[-1]] - logs[tokens[-1]] <= thresholds.TIE)


def _kinds(bundle: Bundle) -> tuple[str, str]:
    """Return the types of the language model and of the encoder that encodes its pictures."""
    model = bundle.manifest.entry("model")
    encoder = next(entry for role in ENCODERS if (entry := bundle.manifest.entry(role)))
    assert model is not None
    return model.quantization, encoder.quantization

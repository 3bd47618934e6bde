"""A bundle beside transformers running its checkpoint in float32: pixels, tokens, embeddings, logits, answers.

The one module that imports torch and transformers, when it is used; nothing else needs them. It knows no family:
transformers finds its classes by the checkpoint's configuration.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.errors import CheckpointError, NativeLibraryError
from pocketvlm.files.bundle import Bundle, Check, Role
from pocketvlm.native.llama import Model
from pocketvlm.vision.compatibility import check_files, family_of
from pocketvlm.vision.encoder import EmbeddingSpan
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.progress import Progress
from pocketvlm_converters.proof import thresholds
from pocketvlm_converters.proof.distributions import Distributions, log_softmax
from pocketvlm_converters.proof.stages import ENCODERS, at_least, at_most, compare, hashes
from pocketvlm_converters.samples.forward import Exchange, Loaded, context_for, continuation
from pocketvlm_converters.samples.sets import Sample, proof_samples

_GREEDY = 32  # tokens
# Else transformers asks the user whether to run code that a checkpoint brings along.
_CLOSED: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_PARTS = ("processor", "extractor", "tokenizer", "template")  # how a processor's arguments for its parts end
_NAMES: dict[Role, str] = {"mmproj": "libmtmd", "vision": "onnxruntime"}


class Reference:
    """The checkpoint in transformers. Raises NativeLibraryError where it or torch is missing, CheckpointError where
    it cannot load the checkpoint. Nothing is downloaded, and no code of the checkpoint runs.
    """

    def __init__(self, path: Path) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise NativeLibraryError(
                f"--reference needs torch and transformers; {error.name} is missing: pip install 'pocketvlm[oracle]'"
            ) from error
        self._torch = torch
        source = Checkpoint(path).source
        self.sha256 = source.sha256
        try:
            automatic: Any = transformers.AutoModelForImageTextToText
            self.model: Any = automatic.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True, **_CLOSED
            ).eval()
            self.processor = _processor(path, self.model.config.model_type)
        except Exception as error:  # it raises whatever its many parts raise
            raise CheckpointError(f"transformers cannot load it: {error}", path) from error

    def inputs(self, sample: Sample) -> Any:
        """What its processor makes of the sample's question: token ids, pixels, and what else the model takes."""
        parts = [{"type": "image", "image": self._image(picture)} for picture in sample.pictures]
        user = {"role": "user", "content": [*parts, {"type": "text", "text": sample.question}]}
        return self.processor.apply_chat_template(
            [user], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def pixels(self, tiles: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        """Tiles at their final size, normalised and cut into patches as the model wants them, in one row."""
        make, found = self.processor.image_processor, []
        divides = hasattr(make, "image_grid_pinpoints")
        for tile in tiles:
            more = {"image_grid_pinpoints": [list(tile.shape[:2])]} if divides else {}
            made = make(images=[self._image(tile)], do_resize=False, return_tensors="np", **more)["pixel_values"]
            # One that cuts pictures into tiles gives a tile twice: as the whole, and as the only one in the grid.
            found.append(np.asarray(made[0][0] if divides else made, np.float32).ravel())
        return np.concatenate(found)

    @property
    def grey(self) -> float:
        """How much of a normalised pixel value is one of 255 grey levels."""
        return 1 / 255 / float(max(getattr(self.processor.image_processor, "image_std", None) or [1.0]))

    def ids(self, span: EmbeddingSpan) -> list[int]:
        """What stands in its prompt where the embeddings of a tile stand in ours."""
        image, words = int(self.model.config.image_token_id), self.processor.tokenizer
        known = {at: int(words.convert_tokens_to_ids(token)) for at, token in span.control.items()}
        return [known.get(at, image) for at in range(span.tokens)]

    def embeddings(self, inputs: Any) -> npt.NDArray[np.float32]:
        """Of all pictures, [tokens, width], in the order of the prompt."""
        inner = getattr(self.model, "model", self.model)  # the outer one names fewer of the arguments
        accepted = inspect.signature(inner.get_image_features).parameters
        with self._torch.no_grad():
            found = inner.get_image_features(**{k: v for k, v in inputs.items() if k in accepted})
        # In deepstack models, what the decoder's first layers add follows in each row, as libllama takes it.
        features = [getattr(found, "pooler_output", found), *(getattr(found, "deepstack_features", None) or ())]
        parts = [self._torch.cat(list(rows)) if isinstance(rows, list | tuple) else rows for rows in features]
        joined = self._torch.cat([rows.reshape(-1, rows.shape[-1]) for rows in parts], dim=-1)
        array: npt.NDArray[np.float32] = joined.float().numpy()
        return array

    def logs(self, inputs: Any, answer: Sequence[int]) -> npt.NDArray[np.float64]:
        """Log probabilities where each token of the answer stands, [tokens, n_vocab]."""
        torch, ids = self._torch, inputs["input_ids"]
        extended = dict(inputs)
        for key, value in inputs.items():
            if value.shape == ids.shape:  # kinds of tokens, masks: the answer is text that is looked at
                more = torch.full((1, len(answer)), int(key == "attention_mask"), dtype=value.dtype)
                extended[key] = torch.cat([value, more], dim=1)
        extended["input_ids"] = torch.cat([ids, torch.tensor([list(answer)], dtype=ids.dtype)], dim=1)
        with torch.no_grad():
            logits = self.model(**extended, logits_to_keep=len(answer) + 1).logits[0, -len(answer) - 1 : -1]
        return log_softmax(logits.float().numpy())

    def greedy(self, inputs: Any, count: int, ends: set[int]) -> list[int]:
        """The likeliest tokens after the prompt, whatever the checkpoint's own generation settings are."""
        config = type(self.model.generation_config)(
            do_sample=False, max_new_tokens=count, eos_token_id=sorted(ends), pad_token_id=min(ends)
        )
        with self._torch.no_grad():
            made = self.model.generate(**inputs, generation_config=config)[0, inputs["input_ids"].shape[1] :].tolist()
        return [token for token in made if token not in ends]

    def _image(self, picture: npt.NDArray[np.uint8]) -> Any:
        from PIL import Image

        return Image.fromarray(picture)


def _processor(path: Path, model_type: str) -> Any:
    """The processor of a checkpoint; without videos and sound where torchvision, which only videos need, or a file is
    missing.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    try:
        return transformers.AutoProcessor.from_pretrained(path, **_CLOSED)
    except (ImportError, OSError):
        # Some models share the processor of another; their files name it.
        files = (Checkpoint(path).json(f"{name}_config.json", optional=True) for name in ("processor", "preprocessor"))
        named = next((name for file in files if (name := file.text("processor_class", ""))), "")
        name = PROCESSOR_MAPPING_NAMES.get(model_type, named)
        if name not in PROCESSOR_MAPPING_NAMES.values():
            raise ValueError(f"it has no processor for {model_type}") from None
        base: Any = getattr(transformers, name)
    if not issubclass(base, transformers.ProcessorMixin):
        base = _with_pillow(base)
    saved, _ = base.get_processor_dict(path, **_CLOSED)
    words = transformers.AutoTokenizer.from_pretrained(path, **_CLOSED)
    images = transformers.AutoImageProcessor.from_pretrained(path, **_CLOSED)
    given = {"image_processor": images, "tokenizer": words, "chat_template": words.chat_template}
    wanted = {key: one for key, one in inspect.signature(base).parameters.items() if one.kind is not one.VAR_KEYWORD}
    settings = {key: saved[key] for key in wanted if key in saved and not key.endswith(_PARTS)}
    lacking = {key: None for key, one in wanted.items() if one.default is one.empty}

    class Lacking(base):  # type: ignore[misc]  # a class that is known when it runs
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return argument and super().check_argument_for_proper_class(argument_name, argument)

    return Lacking(**lacking | given | settings)


def _with_pillow(stand_in: Any) -> Any:
    """The processor of which transformers has only a stand-in, because its module names one that needs torchvision.

    That module has a twin for Pillow with the same functions.
    """
    name = stand_in.__module__
    needed, twin = (name.replace(".processing_", f".image_processing_{kind}") for kind in ("", "pil_"))
    sys.modules.setdefault(needed, import_module(twin))
    return getattr(import_module(name), stand_in.__name__)


def checks(bundle: Bundle, reference: Reference, progress: Progress) -> Iterator[Check]:
    """Every stage, on the whole set of proof samples in full detail, which is the reference's own procedure."""
    samples = proof_samples()
    model, entry = bundle.file("model"), bundle.manifest.entry("model")
    assert model is not None and entry is not None
    prepared = []
    for number, sample in enumerate(samples):
        progress("transformers", number, len(samples))
        prepared.append(reference.inputs(sample))
    progress("transformers", len(samples), len(samples))
    exchanges: list[Exchange] = []
    late: list[Check] = []
    for role in ENCODERS:
        if (path := bundle.file(role)) is None:
            continue
        with Loaded(model, path) as loaded:
            found = []
            for number, sample in enumerate(samples):
                progress(f"pictures, {_NAMES[role]}", number, len(samples))
                found.append(loaded.exchange(sample, "high"))
            progress(f"pictures, {_NAMES[role]}", len(samples), len(samples))
        if not exchanges:
            exchanges = found
            yield from _preprocessing(bundle, reference, prepared, exchanges, samples)
        late += _embeddings(bundle, role, reference, prepared, found)
    yield from late
    yield from _logits(bundle, reference, prepared, exchanges, progress)
    yield from _answers(bundle, reference, prepared, exchanges, progress)


def _preprocessing(
    bundle: Bundle,
    reference: Reference,
    prepared: Sequence[Any],
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
    for inputs, sample in zip(prepared, samples, strict=True):
        tiles = [
            tile
            for picture in sample.pictures
            for tile in family.tiles(picture, family.plan((picture.shape[1], picture.shape[0]), "high", None))
        ]
        mine, wanted = reference.pixels(tiles), _pixels(inputs)
        off = float(np.abs(mine - wanted).max()) / reference.grey if mine.shape == wanted.shape else 255.0
        worst = float(np.maximum(worst, off))  # NaN stays NaN
    yield at_most("preprocessing", "pixels, grey levels off by", worst, thresholds.PIXEL, sealed)
    same = 0
    for inputs, exchange in zip(prepared, exchanges, strict=True):
        ids: list[int] = []
        for piece in exchange.prompt:
            ids += [piece] if isinstance(piece, int) else reference.ids(piece.span)
        same += ids == inputs["input_ids"][0].tolist()
    yield at_least("preprocessing", "prompts of the same tokens", same / len(samples), 1.0, sealed)


def _pixels(inputs: Any) -> npt.NDArray[np.float32]:
    """All pixels of a prompt in one row, without those that only fill pictures up to the size of the largest."""
    pixels, sizes = np.asarray(inputs["pixel_values"], np.float32), inputs.get("image_sizes")
    if pixels.ndim == 5:  # tiles, of one size each; black ones are not 0 here
        return pixels[pixels.any(axis=(2, 3, 4))].ravel()
    if sizes is None or pixels.ndim != 4:
        return pixels.ravel()
    return np.concatenate([one[:, :h, :w].ravel() for one, (h, w) in zip(pixels, np.asarray(sizes), strict=True)])


def _embeddings(
    bundle: Bundle, role: Role, reference: Reference, prepared: Sequence[Any], found: Sequence[Exchange]
) -> Iterator[Check]:
    entry, sealed = bundle.manifest.entry(role), hashes(bundle, role)
    assert entry is not None
    stage, cosines, lengths = "reference encoders", [], []
    for inputs, exchange in zip(prepared, found, strict=True):
        seen = [np.delete(piece.rows, list(piece.span.control), axis=0) for piece in exchange.spans]
        mine, wanted = np.concatenate(seen), reference.embeddings(inputs)
        if mine.shape != wanted.shape:
            told = f"{list(mine.shape)}, transformers has {list(wanted.shape)}"
            yield Check(stage=stage, measured=f"shape, {_NAMES[role]}", value=told, passed=False, files=sealed)
            return
        cosine, ratio = compare(mine, wanted)
        cosines.append(cosine)
        lengths.append(ratio)
    limit = thresholds.encoder_limit(entry.quantization)
    worst, off = float(np.concatenate(cosines).min()), float(np.median(np.abs(np.concatenate(lengths) - 1)))
    yield at_least(stage, f"worst cosine, {_NAMES[role]} {entry.quantization}", worst, limit, sealed)
    yield at_most(stage, f"lengths, {_NAMES[role]}, median off by", off, thresholds.SCALE, sealed)


def _logits(
    bundle: Bundle, reference: Reference, prepared: Sequence[Any], exchanges: Sequence[Exchange], progress: Progress
) -> Iterator[Check]:
    path, kinds = bundle.file("model"), _kinds(bundle)
    assert path is not None
    logs = (reference.logs(i, e.answer) for i, e in zip(prepared, exchanges, strict=True))
    found = Distributions.made_of(exchanges, logs).divergence(path, exchanges, progress)
    sealed, stage = hashes(bundle, "model", *ENCODERS[:1]), "reference logits"
    yield at_most(stage, f"mean KL, {' and '.join(kinds)}", found.mean, thresholds.reference_limit(*kinds), sealed)
    yield at_most(stage, "largest KL", found.largest, None, sealed)
    yield at_least(stage, "same likeliest token", found.same_top, None, sealed)


def _answers(
    bundle: Bundle, reference: Reference, prepared: Sequence[Any], exchanges: Sequence[Exchange], progress: Progress
) -> Iterator[Check]:
    path = bundle.file("model")
    assert path is not None
    shares = []
    with Model(path, gpu_layers=0, mapped=True) as model, context_for(model, exchanges) as context:
        ends = {token for token in range(model.n_vocab) if model.is_end(token)}
        for number, (inputs, exchange) in enumerate(zip(prepared, exchanges, strict=True)):
            progress("greedy answers", number, len(exchanges))
            mine, wanted = continuation(context, model, exchange, _GREEDY), reference.greedy(inputs, _GREEDY, ends)
            same = next((i for i, (a, b) in enumerate(zip(mine, wanted, strict=False)) if a != b), None)
            whole = max(len(mine), len(wanted), 1)
            shares.append(1.0 if mine == wanted else (min(len(mine), len(wanted)) if same is None else same) / whole)
        progress("greedy answers", len(exchanges), len(exchanges))
    exact = 1.0 if thresholds.is_exact(*_kinds(bundle)) else None
    share = sum(shares) / len(shares)
    sealed = hashes(bundle, "model", *ENCODERS[:1])
    yield at_least("reference answers", f"same of {_GREEDY} greedy tokens", share, exact, sealed)


def _kinds(bundle: Bundle) -> tuple[str, str]:
    """Types of the language model and of the encoder that looks for it."""
    model = bundle.manifest.entry("model")
    encoder = next(entry for role in ENCODERS if (entry := bundle.manifest.entry(role)))
    assert model is not None
    return model.quantization, encoder.quantization

"""Predict memory and times of each way to run a model, from a probe and the headers of the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketvlm.chat.load_options import LoadOptions
from pocketvlm.engine.loading.device_placement import check_name
from pocketvlm.engine.loading.loader import BATCH_ROWS, context_size
from pocketvlm.errors import MemoryBudgetError, RequestError
from pocketvlm.files.cache_type import CacheType, allows, require_cache_type
from pocketvlm.files.footprint import encoder_bytes, encoder_mapped, encoder_scratch, weights_of
from pocketvlm.files.locate import Located
from pocketvlm.messages import Detail
from pocketvlm.plan import probe_cache
from pocketvlm.plan.probe import ProbeRequest, ProbeResult
from pocketvlm.system.machine import memory, physical_cores
from pocketvlm.vision.compatibility import CheckedFiles, EncoderChoice, check_files, family_of
from pocketvlm.vision.dynamic_size import DynamicSize
from pocketvlm.vision.family import Family, PicturePlan
from pocketvlm.vision.onnx import CONCURRENT_TILES
from pocketvlm.vision.providers import DEVICES
from pocketvlm.vision.select_encoder import measured_tile, tile_patches

SERVER = "process of the server"  # the name of a part of a prediction
QUESTION = 48  # tokens of a question and of the template around it
ANSWER = 208  # tokens that must be left for an answer
PIXEL = 10  # bytes per pixel while a picture is read: decoded, and twice on its way to an array
_ARRAY, _PILLOW = 3, 4  # bytes per pixel in an array and in Pillow
_TILE_OVERHEAD = 2e-3  # seconds per tile besides encoding: encoder and decoder take turns
_TOKEN_OVERHEAD = 1e-4  # seconds per token besides evaluation: sampling, and its way to the reader
_ATTENTION_COST = 3  # a multiplication in attention takes this many times as long as in a matrix product
_F32 = 4  # bytes per number
_MIN_TOKENS = 64  # of a picture; fewer show too little


@dataclass(frozen=True)
class RunConfiguration:
    """A way to run a model. `max_tokens` caps the tokens of a picture, unless it is None."""

    encoder: EncoderChoice
    context: int
    detail: Detail
    max_tokens: int | None = None
    cache_type: CacheType = "f16"


@dataclass(frozen=True)
class Prediction:
    """Predicted memory in bytes and times in seconds; None where a time is not known.

    Mapped memory is counted apart, because the system can reclaim it at a loss of speed. `parts` add up to
    `memory_bytes`.
    """

    configuration: RunConfiguration
    anonymous_bytes: int
    mapped_bytes: int
    parts: dict[str, int]
    picture_tokens: int | None  # None where libmtmd sizes pictures itself
    picture_tiles: int
    picture_size: tuple[int, int]
    first_token_s: float | None
    tokens_per_s: float | None

    @property
    def memory_bytes(self) -> int:
        return self.anonymous_bytes + self.mapped_bytes


@dataclass(frozen=True)
class Encoder:
    """A vision encoder file of the model."""

    kind: EncoderChoice
    path: Path
    metadata: dict[str, object]
    size: int
    type: str


class Planner:
    """Predicts for one model and one size of picture, (width, height) in pixels."""

    def __init__(
        self,
        located: Located,
        options: LoadOptions | None = None,
        *,
        picture: tuple[int, int],
        timed: bool = True,
    ) -> None:
        options = options or LoadOptions()
        check_name(options.device, DEVICES)
        self.located, self.picture = located, picture
        self._checked = checked = check_files(located.model, located.mmproj, located.onnx, options.vision)
        self.encoders = tuple(_encoders(checked))
        self.family = self._family()
        self.requested_context = context_size(checked.model, options.context_size)
        self.contexts = tuple(sorted({self.requested_context, *_smaller(self.requested_context)}, reverse=True))
        require_cache_type(checked.model, options.kv_type)
        self.cache_types: tuple[CacheType, ...] = (options.kv_type,)
        if options.cache_type == "auto" and not options.exact and allows(checked.model, "q8_0"):
            self.cache_types = ("f16", "q8_0")
        tile = self.family.tile_tokens if self.family else 0
        self.probe: ProbeResult = probe_cache.cached_probe(
            ProbeRequest(
                str(located.model),
                str(checked.projector.path) if checked.projector else None,
                str(checked.encoder.path) if checked.encoder else None,
                contexts=self.contexts,
                batch=max(BATCH_ROWS, tile if self.family and self.family.non_causal else 0),
                rows=max(16, min(tile or 256, 256)),
                parallel=options.parallel,
                cache_types=self.cache_types,
                threads=options.threads or physical_cores(),
                device=options.device,
                timed=timed,
                opened=timed and self._can_open(),
            )
        )
        self._parallel, self._supervised = options.parallel, options.supervised

    @property
    def type(self) -> str:
        """The type of most of the language model's weights."""
        sizes: Counter[str] = Counter()
        for tensor in self._checked.model.tensors:
            sizes[tensor.type_name] += tensor.n_bytes
        return sizes.most_common(1)[0][0]

    def predict(self, configuration: RunConfiguration) -> Prediction:
        probe, index = self.probe, self.contexts.index(configuration.context)
        model = sum(path.stat().st_size for path in self._checked.model.files)
        cache, scratch = probe.caches[configuration.cache_type][index], probe.scratch[configuration.cache_type][index]
        plan = self._plan(configuration)
        parts = {
            "process": probe.anonymous + probe.mapped,
            "language model, mapped": model,
            "language model, reordered": probe.reordered,
            "KV cache": cache,
            "scratch": scratch,
        }
        if self._parallel > 1:  # background prefill has a context of its own, as large as one request's
            parts["context for prompts"] = cache // self._parallel + scratch
        if self._supervised:
            parts[SERVER] = probe.anonymous
        encoder = self._encoder(configuration.encoder)
        if encoder is not None:
            onnx = encoder.kind == "onnx"
            parts["vision encoder"] = encoder_bytes(encoder.metadata, encoder.size, onnx=onnx)
            patches = tile_patches(self.family, plan, encoder.metadata)
            tiles = min(CONCURRENT_TILES, plan.tiles if plan else 1) if onnx and self._parallel > 1 else 1
            parts["vision scratch"] = tiles * encoder_scratch(encoder.metadata, patches, onnx=onnx)
            parts["vision libraries, mapped"] = encoder_mapped(onnx=onnx)
            parts["picture"] = self._parallel * _picture_bytes(self.picture, plan)
            parts["embeddings"] = self._parallel * _F32 * probe.width * (plan.tokens if plan else 0)
        mapped = probe.mapped + model + parts.get("vision libraries, mapped", 0)
        first = self._first_token(plan, encoder)
        return Prediction(
            configuration=configuration,
            anonymous_bytes=sum(parts.values()) - mapped,
            mapped_bytes=mapped,
            parts=parts,
            picture_tokens=plan.tokens if plan else None if encoder else 0,
            picture_tiles=plan.tiles if plan else 0,
            picture_size=plan.used if plan else self.picture,
            first_token_s=first,
            tokens_per_s=1 / (probe.answer + _TOKEN_OVERHEAD) if probe.answer else None,
        )

    def usual(self, detail: Detail = "auto") -> RunConfiguration:
        """Return the configuration without a budget: the fastest encoder and the whole context."""
        return RunConfiguration(self._fastest()[0], self.requested_context, detail, cache_type=self.cache_types[0])

    def within(self, budget: int, detail: Detail = "auto") -> Prediction:
        """Return the first prediction that fits.

        First the cache gets a smaller type, then the context is smaller, then come the other encoder, less detail, and
        a cap for pictures.

        Raises MemoryBudgetError with the memory that the model needs.
        """
        smallest: Prediction | None = None
        for configuration in self._configurations(detail):
            prediction = self.predict(configuration)
            if (prediction.picture_tokens or 0) + QUESTION + ANSWER > configuration.context:
                continue
            if prediction.memory_bytes <= budget:
                return prediction
            if smallest is None or prediction.memory_bytes < smallest.memory_bytes:
                smallest = prediction
        if smallest is None:
            tokens = self.predict(self.usual("low")).picture_tokens
            raise RequestError(
                f"a picture's {tokens} tokens and a question do not fit {self.requested_context}", "--ctx-size"
            )
        parts = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in smallest.parts.items())
        raise MemoryBudgetError(
            f"{budget / 1e6:,.0f} MB is too little: {self.located.name} needs at least "
            f"{smallest.memory_bytes / 1e6:,.0f} MB ({parts}); {self._advice(budget, smallest)}",
            "--memory",
            smallest.memory_bytes,
        )

    def _configurations(self, detail: Detail) -> Iterator[RunConfiguration]:
        details: tuple[Detail, ...] = ("high", "auto", "low")
        kinds = self._fastest()
        for view in details[details.index(detail) :]:
            for kind in kinds:
                for context in self.contexts:
                    for cache_type in self.cache_types:
                        yield RunConfiguration(kind, context, view, cache_type=cache_type)
        if isinstance(self.family, DynamicSize):
            tokens = self.family.plan(self.picture, "low", None).tokens // 2
            while tokens >= _MIN_TOKENS:
                for kind in kinds:
                    yield RunConfiguration(kind, self.contexts[-1], "low", tokens, self.cache_types[-1])
                tokens //= 2

    def _advice(self, budget: int, smallest: Prediction) -> str:
        """Say which smaller type would fit. The bits per weight are llama.cpp's, embeddings included."""
        weights = sum(_elements(tensor.shape) for tensor in self._checked.model.tensors)
        size = weights_of(self._checked.model).total
        for name, bits in (("Q6_K", 6.6), ("Q4_K_M", 4.9), ("Q3_K_M", 4.0), ("Q2_K", 3.2)):
            smaller = int(weights * bits / 8)
            if smaller < 0.95 * size and smallest.memory_bytes - size + smaller <= budget:
                return f"the language model as {name} would fit (pocketvlm convert --quantize {name})"
        return "no type of the language model would fit"

    def _family(self) -> Family | None:
        for encoder in self.encoders:
            return family_of(dict(encoder.metadata), encoder.path)
        return None

    def _can_open(self) -> bool:
        """Return whether this machine has room to open the largest encoder, to time it."""
        sizes = memory()
        largest = max((encoder_bytes(e.metadata, e.size, onnx=e.kind == "onnx") for e in self.encoders), default=0)
        return sizes is None or 2 * largest < sizes[1]

    def _fastest(self) -> tuple[EncoderChoice, ...]:
        """Return the kinds of the model's encoders, the fastest first; "auto" where it has none."""
        seconds = self.probe.tiles
        order = sorted(self.encoders, key=lambda e: seconds.get(e.path.name, float("inf")))
        return tuple(encoder.kind for encoder in order) or ("auto",)

    def _encoder(self, kind: EncoderChoice) -> Encoder | None:
        return next((encoder for encoder in self.encoders if encoder.kind == kind), None)

    def _plan(self, configuration: RunConfiguration) -> PicturePlan | None:
        return self.family.plan(self.picture, configuration.detail, configuration.max_tokens) if self.family else None

    def _first_token(self, plan: PicturePlan | None, encoder: Encoder | None) -> float | None:
        """Return the seconds to the first token, for a picture in no cache and a question."""
        probe = self.probe
        if probe.prompt is None or probe.answer is None:
            return None
        seconds = QUESTION * probe.prompt
        if plan is None or encoder is None:
            return seconds
        if encoder.path.name not in probe.tiles or self.family is None:
            return None
        seconds += plan.tokens * probe.prompt + self.picture[0] * self.picture[1] * probe.pixel
        measured = self._cost(tile_patches(self.family, measured_tile(self.family), encoder.metadata), encoder)
        planned = self._cost(tile_patches(self.family, plan, encoder.metadata), encoder)
        return seconds + plan.tiles * (_TILE_OVERHEAD + probe.tiles[encoder.path.name] * planned / measured)

    def _cost(self, patches: int, encoder: Encoder) -> float:
        """Return the multiplications of a tile: its layers and attention, windowed in all but every n-th layer."""
        data = encoder.metadata
        width, inner = (data.get(f"clip.vision.{key}") for key in ("embedding_length", "feed_forward_length"))
        if not isinstance(width, int) or not isinstance(inner, int):
            return patches or 1
        period = data.get("clip.vision.n_wa_pattern")
        share = 1 / period if isinstance(period, int) and period else 1.0
        matrices = 4 * width**2 + (3 if data.get("clip.use_silu") else 2) * width * inner
        return max(1.0, patches * (matrices + _ATTENTION_COST * share * 2 * patches * width))


def _picture_bytes(size: tuple[int, int], plan: PicturePlan | None) -> int:
    """Return the peak while a picture is read, resized (first its width, then its height) or cut into tiles."""
    (width, height), used = size, plan.used if plan else size
    whole, target = width * height, used[0] * used[1]
    cutting = (_ARRAY + _PILLOW) * whole + _PILLOW * target + max(_PILLOW * used[0] * height, _ARRAY * target)
    return max(PIXEL * whole, cutting)


def _encoders(checked: CheckedFiles) -> Iterator[Encoder]:
    if (encoder := checked.encoder) is not None:
        size = sum(path.stat().st_size for path in {encoder.path, *encoder.data_files})
        kind = str(encoder.metadata.get("pocketvlm.type", ""))
        yield Encoder("onnx", encoder.path, dict(encoder.metadata), size, kind)
    if (projector := checked.projector) is not None:
        kinds = [tensor.type_name for tensor in projector.tensors if len(tensor.shape) > 1]
        common = max(set(kinds), key=kinds.count) if kinds else ""
        yield Encoder("gguf", projector.path, dict(projector.metadata), projector.path.stat().st_size, common.lower())


def _smaller(context: int) -> Iterator[int]:
    size = 8192
    while size >= 512:
        if size < context:
            yield size
        size //= 2


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count

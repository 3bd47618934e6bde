"""Check the hyperparameters of a GGUF language model before libllama reads them.

libllama reports most contradictions itself: missing keys, values of a wrong type, tensors of a wrong shape. Here are
those at which it ends the process, by an assertion, a division by zero or a read out of bounds. Sources:
`load_hparams` and `create_memory` in llama-model.cpp, and the graphs in src/models, of the version in `library.WANTED`.
"""

from __future__ import annotations

import math
import re

from pocketvlm.errors import ModelFormatError, quoted
from pocketvlm.files.gguf_header import GGUFHeader

_MAX_LAYERS, _MAX_EXPERTS = 512, 1024  # LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS
_MAX_WIDTH, _MAX_HEAD_WIDTH, _MAX_WINDOW = 1 << 20, 1 << 16, 1 << 24  # values and tokens, far above what models have
_SCALINGS = ("none", "linear", "yarn", "longrope")  # of rotary positions
_INTERVAL = 4  # libllama's default: every fourth layer of a model with delta nets attends to all positions
_CONVOLUTIONS = (".shortconv.conv.weight", ".ssm_conv1d.weight")
_DELTA_SIZES = ("group_count", "state_size", "inner_size")
_ATTENTION = re.compile(r"blk\.(\d{1,9})\.attn_(q|k|v|qkv|output)\.weight")


def check_decoder(header: GGUFHeader) -> None:
    """Raise ModelFormatError for hyperparameters at which libllama would end the process, whatever the architecture."""
    _Decoder(header).check()


def check_known_decoder(header: GGUFHeader) -> None:
    """Raise ModelFormatError for what is unusual in a checked model of an architecture that the converters write."""
    _Decoder(header).check_known()


class _Decoder:
    def __init__(self, header: GGUFHeader) -> None:
        self._header = header
        self._layers = self._integer("block_count", 1, _MAX_LAYERS)

    def check(self) -> None:
        self._integer("nextn_predict_layers", 0, self._layers - 1, default=0)
        self._check_heads()
        self._check_positions()
        self._check_experts()
        self._check_windows()
        self._check_states()
        for key in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "final_logit_softcapping"):
            self._number(key)

    def check_known(self) -> None:
        """Check that heads of queries, keys and values are equally wide, and that their matrices fit them.

        Heads are rotated as a whole, or as far as the sections of positions reach, except beside delta nets, where
        queries have gates.
        """
        heads, whole = self._by_layer("attention.head_count", 1), self._integer("embedding_length", 1, _MAX_WIDTH)
        if not heads:
            raise self._wrong("attention.head_count", "expected an integer")
        key_width, window_width = self._widths("key", whole // heads[0])
        if self._widths("value", whole // heads[0]) != (key_width, window_width):
            raise self._wrong("attention.value_length", "expected the width of keys")
        nets = self._delta_nets()
        rotated = 2 * sum(self._header.array(f"{self._header.architecture}.rope.dimension_sections"))
        for key, width in (("rope.dimension_count", key_width), ("rope.dimension_count_swa", window_width)):
            if not nets and self._value(key) not in (None, width, rotated or width):
                raise self._wrong(key, f"expected {width}, the width of a head")
        kv_heads = self._by_layer("attention.head_count_kv", 0) or heads
        windows = self._header.array(f"{self._header.architecture}.attention.sliding_window_pattern")
        if windows and not any(windows):
            raise self._wrong("attention.sliding_window_pattern", "expected at least one layer with a window")
        for tensor in self._header.tensors:
            self._header.check_type(tensor, exact=tensor.name.endswith(_CONVOLUTIONS))
            match = _ATTENTION.fullmatch(tensor.name)
            if match is None or (layer := int(match[1])) >= min(len(heads), len(kv_heads)):
                continue
            width = window_width if layer < len(windows) and windows[layer] else key_width
            queries, keys = heads[layer] * width, kv_heads[layer] * width
            asked = 2 * queries if nets else queries
            sizes = {"q": asked, "k": keys, "v": keys, "qkv": asked + 2 * keys, "output": queries}
            if layer < len(nets) and nets[layer]:
                sizes["qkv"] = self._delta_width
            extent, expected = tensor.shape[0 if match[2] == "output" else -1], sizes[match[2]]
            if extent != expected:
                raise ModelFormatError(
                    f"tensor {tensor.name} is for {extent} values, the heads of its layer have {expected}",
                    self._header.path,
                )

    def _delta_nets(self) -> list[bool]:
        """Check the sizes of gated delta nets. Return which layers are such; nothing if the model has none."""
        if self._value("ssm.group_count") is None:
            return []
        groups, heads = (self._integer(f"ssm.{key}", 1, _MAX_WIDTH) for key in ("group_count", "time_step_rank"))
        width = self._integer("ssm.state_size", 1, _MAX_HEAD_WIDTH)
        self._integer("ssm.conv_kernel", 2, _MAX_HEAD_WIDTH)
        if heads % groups:
            raise self._wrong("ssm.time_step_rank", f"it is not a multiple of ssm.group_count, {groups}")
        if self._integer("ssm.inner_size", 1, _MAX_WIDTH) != heads * width:
            raise self._wrong("ssm.inner_size", f"expected {heads * width}, ssm.time_step_rank times ssm.state_size")
        interval = self._integer("full_attention_interval", 1, _MAX_LAYERS, default=_INTERVAL)
        given = self._header.array(f"{self._header.architecture}.attention.recurrent_layers")
        nets = [bool(flag) for flag in given] or [(layer + 1) % interval > 0 for layer in range(self._layers)]
        if len(set(nets)) < 2:
            raise self._wrong("attention.recurrent_layers", "expected layers with attention and layers without")
        return nets

    @property
    def _delta_width(self) -> int:
        """The values of a delta net's queries, keys and values together."""
        groups, width, values = (self._integer(f"ssm.{key}", 1, _MAX_WIDTH) for key in _DELTA_SIZES)
        return 2 * groups * width + values

    def _widths(self, kind: str, default: int) -> tuple[int, int]:
        """Return the width of a head's keys or values in layers without and with a window."""
        width = self._integer(f"attention.{kind}_length", 0, _MAX_HEAD_WIDTH, default=default)
        return width, self._integer(f"attention.{kind}_length_swa", 0, _MAX_HEAD_WIDTH, default=width)

    def _check_heads(self) -> None:
        width = self._integer("embedding_length", 1, _MAX_WIDTH)
        heads = self._by_layer("attention.head_count", 0)
        kv_heads = self._by_layer("attention.head_count_kv", 0) or heads
        for count, kv_count in zip(heads, kv_heads, strict=False):
            if kv_count and count % kv_count:
                raise self._wrong("attention.head_count_kv", f"head_count {count} is not a multiple of {kv_count}")
        if heads and heads[0] and self._value("attention.key_length") is None and width % heads[0]:
            raise self._wrong("attention.head_count", f"embedding_length {width} is not a multiple of {heads[0]}")
        self._widths("value", 1)
        for suffix, key_width in zip(("", "_swa"), self._widths("key", self._key_width()), strict=True):
            rotated = self._integer(f"rope.dimension_count{suffix}", 0, key_width, default=0)
            if rotated % 2:
                raise self._wrong(f"rope.dimension_count{suffix}", "values are rotated in pairs, so it must be even")

    def _key_width(self) -> int:
        """Return the width of a head's keys, or the largest one where the header does not say it."""
        heads = self._by_layer("attention.head_count", 0)
        width = self._integer("embedding_length", 1, _MAX_WIDTH)
        return self._widths("key", width // heads[0] if heads and heads[0] else _MAX_HEAD_WIDTH)[0]

    def _check_positions(self) -> None:
        scaling = self._value("rope.scaling.type")
        if isinstance(scaling, str) and scaling not in _SCALINGS:
            raise self._wrong("rope.scaling.type", f"expected one of {', '.join(_SCALINGS)}")
        for key in ("rope.freq_base", "rope.freq_base_swa", "rope.scaling.factor"):
            self._number(key)
        sections = self._header.array(f"{self._header.architecture}.rope.dimension_sections")
        if not sections:
            return
        if not (all(isinstance(size, int) and size >= 0 for size in sections) and any(sections)):
            raise self._wrong("rope.dimension_sections", "expected sizes, not all of them 0")
        if sum(sections) > (width := self._key_width()):
            raise self._wrong("rope.dimension_sections", f"together more than {width}, the width of a head")

    def _check_experts(self) -> None:
        experts = self._integer("expert_count", 0, _MAX_EXPERTS, default=0)
        used = max(self._by_layer("expert_used_count", 0), default=0)
        groups = self._integer("expert_group_count", 0, max(0, experts - 1), default=0)
        if experts == 1:  # some architectures write 1 for none
            return
        if used > experts or (experts and not used):
            raise self._wrong(
                "expert_used_count", f"expected 1 to expert_count, {experts}" if experts else "no experts"
            )
        if groups > 1:
            if experts % groups:
                raise self._wrong("expert_group_count", f"expert_count {experts} is not a multiple of it")
            self._integer("expert_group_used_count", 1, groups - 1, default=0)

    def _check_windows(self) -> None:
        """Layers may have windows, and the last layers may share keys and values with the two before the first such."""
        self._integer("attention.sliding_window", 0, _MAX_WINDOW, default=0)
        windows = self._value("attention.sliding_window_pattern")
        shared = self._integer("attention.shared_kv_layers", 0, self._layers - 1, default=0)
        first = self._layers - shared
        if (
            isinstance(windows, list)
            and shared
            and (first < 2 or [bool(window) for window in windows[first - 2 : first]] != [True, False])
        ):
            raise self._wrong(
                "attention.shared_kv_layers", "the two layers before the shared ones must be with and without a window"
            )

    def _check_states(self) -> None:
        """Check what keeps a state, and that a model with deepstack has layers left for its output."""
        self._integer("shortconv.l_cache", 2, _MAX_HEAD_WIDTH, default=2)
        self._integer("full_attention_interval", 1, _MAX_LAYERS, default=_INTERVAL)
        deep = self._value("n_deepstack_layers")
        if isinstance(deep, int) and deep >= self._layers:
            # libllama asserts this: its last layer computes some tokens only, deepstack adds rows of whole pictures.
            raise ModelFormatError(
                f"has {deep} deepstack layers of {self._layers}, at least one too many", self._header.path
            )

    def _value(self, key: str) -> object:
        return self._header.metadata.get(f"{self._header.architecture}.{key}")

    def _integer(self, key: str, least: int, most: int, *, default: int | None = None) -> int:
        """Return an integer within the limits. A value of another type is left to libllama, which reports it."""
        value = self._value(key)
        if value is None and default is not None:
            return default
        if isinstance(value, int) and not least <= value <= most:
            raise self._wrong(key, f"expected {least} to {most:,}")
        if not isinstance(value, int):
            if default is None:
                raise self._wrong(key, "expected an integer")
            return default
        return value

    def _by_layer(self, key: str, least: int) -> list[int]:
        """Return a value for each layer; none where the key is missing or has another type, which libllama reports."""
        full = f"{self._header.architecture}.{key}"
        value: object = self._header.metadata.get(full)
        values = [value] * self._layers if type(value) is int else self._header.array(full)
        if not all(type(number) is int for number in values):
            return []
        if any(number < least for number in values):
            raise self._wrong(key, f"expected at least {least}")
        return values

    def _number(self, key: str) -> None:
        value = self._value(key)
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            raise self._wrong(key, "expected a positive number")

    def _wrong(self, key: str, why: str) -> ModelFormatError:
        value = self._value(key)
        return ModelFormatError(f"{self._header.architecture}.{key} is {quoted(value)}: {why}", self._header.path)

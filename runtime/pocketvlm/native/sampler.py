"""Sample tokens with libllama's sampler chain: one native call samples and accepts a token."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pocketvlm.errors import EngineError
from pocketvlm.native import library
from pocketvlm.native.context import Context, Logits
from pocketvlm.native.handle import Handle
from pocketvlm.native.llama import Model

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
_PENALTY_WINDOW = 64  # llama.cpp's default penalty_last_n
_RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: libllama replaces it by a random one
_MIN_TEMPERATURE = 1e-30  # logits divided by less overflow, and then libllama samples the last token


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters in llama.cpp's terms. Temperature 0 is greedy: the most likely token."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the temperature chooses the likeliest token, after bias and penalties."""
        return self.temperature < _MIN_TEMPERATURE

    @property
    def penalized(self) -> bool:
        penalties = self.repeat_penalty, self.frequency_penalty, self.presence_penalty
        return penalties != (1.0, 0.0, 0.0)

    @property
    def only_argmax(self) -> bool:
        """Whether every token is the likeliest in the model's own distribution."""
        return self.greedy and not self.logit_bias and not self.penalized


class Sampler(Handle):
    """A chain in the order of llama.cpp's own tools: bias, penalties, top-k, top-p, min-p, temperature, sample."""

    def __init__(self, model: Model, sampling: Sampling) -> None:
        self._lib = lib = library.llama()
        raw = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        super().__init__(raw, lib.llama_sampler_free, parent=model)
        if sampling.logit_bias:
            biases = (lib.llama_logit_bias * len(sampling.logit_bias))(*sampling.logit_bias.items())
            self._add(lib.llama_sampler_init_logit_bias(model.n_vocab, len(biases), biases))
        repeat, frequency, presence = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        if sampling.penalized:
            penalties = lib.llama_sampler_init_penalties(model.n_vocab, _PENALTY_WINDOW, repeat, frequency, presence)
            self._add(penalties)
        # A chain first lists every token of the vocabulary, ten times the work of finding the largest logit.
        self._only_argmax = sampling.only_argmax
        if sampling.greedy:
            self._add(lib.llama_sampler_init_greedy())
            return
        if sampling.top_k > 0:
            self._add(lib.llama_sampler_init_top_k(min(sampling.top_k, model.n_vocab)))
        if sampling.top_p < 1.0:
            self._add(lib.llama_sampler_init_top_p(sampling.top_p, 1))
        if sampling.min_p > 0.0:
            self._add(lib.llama_sampler_init_min_p(sampling.min_p, 1))
        self._add(lib.llama_sampler_init_temp(sampling.temperature))
        self._add(lib.llama_sampler_init_dist(sampling.seed % _RANDOM_SEED))

    def sample(self, context: Context, index: int = -1) -> int:
        """Sample from the logits of one token of the last batch, and record the result for the penalties."""
        if self._only_argmax:
            return int(context.logits(index, copy=False).argmax())
        return int(self._lib.llama_sampler_sample(self.raw, context.raw, index))

    def choose(self, logits: Logits) -> int:
        """Do the same as `sample` with copied logits. Raises EngineError where libllama samples no token."""
        if self._only_argmax:
            return int(logits.argmax())
        lib, count = self._lib, len(logits)
        candidates = np.zeros(count, _CANDIDATE)
        candidates["id"], candidates["logit"] = np.arange(count), logits
        pointer = candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(data=pointer, size=count, selected=-1, sorted=False)
        lib.llama_sampler_apply(self.raw, ctypes.byref(array))
        if not 0 <= array.selected < array.size:
            raise EngineError("libllama sampled no token")
        token = int(array.data[array.selected].id)  # a sampler may have sorted or moved the candidates
        lib.llama_sampler_accept(self.raw, token)
        return token

    def _add(self, part: object) -> None:
        if not part:
            raise EngineError("libllama cannot create a sampler")
        self._lib.llama_sampler_chain_add(self._raw, part)

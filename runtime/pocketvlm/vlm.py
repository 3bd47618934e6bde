"""Deprecated: import VLM from `pocketvlm`. This module goes away in 0.3."""

import warnings

from pocketvlm.chat.vlm import VLM as VLM

warnings.warn("pocketvlm.vlm is now private; use `from pocketvlm import VLM`", DeprecationWarning, stacklevel=2)

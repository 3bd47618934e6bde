"""Load libllama and libmtmd, and check once that they have every function that this folder calls."""

from __future__ import annotations

import ctypes
import importlib
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from pocketvlm.errors import NativeLibraryError
from pocketvlm.native import accelerator as accelerators
from pocketvlm.native import backends, structures
from pocketvlm.native.accelerator import Accelerator
from pocketvlm.native.backends import Backend
from pocketvlm.native.build import LLAMA_CPP_PYTHON, Build, choose, library_paths, version
from pocketvlm.native.ggml import GGML
from pocketvlm.native.instructions import missing_instructions
from pocketvlm.system.machine import other_libc

_REGISTERING = Lock()  # ggml takes a backend once
_FIRST, _BEFORE = (0, 3, 36), (0, 3, 37)  # versions of llama-cpp-python that were tried
WANTED = ">={}.{}.{},<{}.{}.{}".format(*_FIRST, *_BEFORE)
_GGML_VERSION = "0.25.3"  # of these versions

_LLAMA = (
    "llama_backend_init llama_log_set llama_model_default_params llama_model_load_from_file llama_model_free "
    "llama_model_get_vocab llama_model_n_embd_inp llama_model_n_ctx_train llama_model_rope_type llama_model_desc "
    "llama_model_chat_template llama_model_is_recurrent llama_model_is_hybrid llama_model_n_swa llama_model_size "
    "llama_model_n_params llama_model_meta_val_str llama_vocab_n_tokens llama_vocab_get_attr llama_vocab_is_eog "
    "llama_vocab_bos llama_vocab_eos llama_vocab_get_text llama_vocab_get_add_bos llama_tokenize llama_token_to_piece "
    "llama_context_default_params llama_init_from_model llama_free llama_n_ctx llama_n_batch llama_decode "
    "llama_get_memory llama_memory_clear llama_memory_seq_rm llama_memory_seq_cp llama_memory_seq_pos_min "
    "llama_state_seq_get_size_ext llama_state_seq_get_data_ext llama_state_seq_set_data_ext llama_get_logits_ith "
    "llama_set_n_threads llama_set_causal_attn llama_sampler_chain_init llama_sampler_chain_add llama_sampler_sample "
    "llama_sampler_free llama_print_system_info llama_supports_gpu_offload llama_vocab_type"
).split()
_MTMD = (
    "mtmd_context_params_default mtmd_init_from_file mtmd_free mtmd_support_vision mtmd_decode_use_non_causal "
    "mtmd_decode_use_mrope mtmd_bitmap_init mtmd_bitmap_free mtmd_input_chunks_init mtmd_input_chunks_free "
    "mtmd_input_chunks_size mtmd_input_chunks_get mtmd_input_chunk_get_type mtmd_input_chunk_get_n_tokens "
    "mtmd_input_chunk_get_n_pos mtmd_input_chunk_get_tokens_text mtmd_input_chunk_get_tokens_image "
    "mtmd_image_tokens_get_decoder_pos mtmd_image_tokens_get_nx mtmd_image_tokens_get_ny mtmd_tokenize_from_parts "
    "mtmd_encode_chunk mtmd_get_output_embd mtmd_log_set"
).split()


@cache
def llama() -> ModuleType:
    """Return the ctypes module of libllama, with its logs sent to `logging`. Raises NativeLibraryError."""
    module = _load("llama_cpp.llama_cpp", _LLAMA)
    from pocketvlm.native.log import send_to_logging

    send_to_logging(module.llama_log_set)
    functions = _ggml(module)
    _check_version(functions)
    _check_structures(module, structures.LLAMA)
    _check_instructions(functions)
    backends.load(functions, _folder(module))
    module.llama_backend_init()
    return module


@cache
def mtmd() -> ModuleType:
    """Return the ctypes module of libmtmd, with its logs sent to `logging`. Raises NativeLibraryError."""
    llama()
    module = _load("llama_cpp.mtmd_cpp", _MTMD)
    _check_structures(module, structures.MTMD)
    from pocketvlm.native.log import send_to_logging

    send_to_logging(module.mtmd_log_set)
    return module


def ggml() -> GGML:
    """Return the functions of libggml. Raises NativeLibraryError."""
    return _ggml(llama())


@cache
def build() -> Build:
    """Return the build to load; chosen once in a process."""
    return choose()


def features() -> str:
    """Return llama_print_system_info: what this build of llama.cpp was compiled for."""
    llama()
    mtmd()
    text: bytes = llama().llama_print_system_info()
    return text.decode().strip().rstrip("|").strip()


@cache
def reorders() -> bool:
    """Return whether libllama may copy weights into an order of its own.

    Not where it has AMX kernels: as GCC 12 compiles them, the first product ends the process.
    """
    return b"AMX_INT8 = 1" not in llama().llama_print_system_info()


def offloads() -> bool:
    """Return whether the loaded build can use a GPU."""
    return bool(llama().llama_supports_gpu_offload())


def accelerator() -> Accelerator:
    """Return the accelerator of prompts. Raises NativeLibraryError where the named one is not available."""
    with _REGISTERING:
        return _accelerator()


@cache
def _accelerator() -> Accelerator:
    module, chosen = llama(), build()
    # A build without a stamp may have another ggml than the one for which the library in this package was compiled.
    matching = chosen.folder is None or chosen.stamped
    return accelerators.load(module._lib, _folder(module), packaged=matching)


def devices() -> tuple[Backend, ...]:
    """Return the devices that the loaded build can compute on, CPUs included."""
    return backends.list_devices(ggml())


def cpu_code() -> str | None:
    """Return the generation of CPUs whose code the loaded build uses here; None where it has code for one only."""
    return backends.cpu_code(ggml())


def device(number: int) -> int:
    """Return the address of one of `devices`, for the other modules of this folder."""
    return backends.device_address(ggml(), number)


def _load(name: str, functions: list[str]) -> ModuleType:
    folder = build().folder
    _check_bindings()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would start a debugger and print hundreds of lines
    try:
        with library_paths(build()):
            module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        place = f"{LLAMA_CPP_PYTHON} ({version()})" + (f" with the libraries in {folder}" if folder else "")
        raise NativeLibraryError(f"cannot load {place}: {error}; pocketvlm needs {WANTED}{other_libc()}") from error
    missing = [function for function in functions if not hasattr(module, function)]
    if missing:
        raise NativeLibraryError(
            f"{LLAMA_CPP_PYTHON} {version()} lacks {', '.join(missing)}; pocketvlm is tested with {WANTED}: "
            f'pip install "{LLAMA_CPP_PYTHON}{WANTED}"'
        )
    return module


@cache
def _ggml(module: ModuleType) -> GGML:
    return GGML(module._lib, _folder(module))


def _check_bindings() -> None:
    """Raise NativeLibraryError where another llama-cpp-python is installed than those that were tried."""
    number = re.match(r"(\d+)\.(\d+)\.(\d+)", version())  # a build may add +cu124
    if number and not _FIRST <= tuple(map(int, number.groups())) < _BEFORE:
        raise NativeLibraryError(
            f"{LLAMA_CPP_PYTHON} {version()} is installed, and pocketvlm needs {WANTED}: its functions and structures "
            f'change between versions; pip install "{LLAMA_CPP_PYTHON}{WANTED}"'
        )


def _check_version(functions: GGML) -> None:
    """Raise NativeLibraryError where the libraries are of another llama.cpp than the bindings."""
    try:
        functions.ggml_version.restype = ctypes.c_char_p
    except AttributeError:  # before version 0.9
        message = f"{_libraries()} do not state ggml's version, {_other_libraries(_GGML_VERSION)}"
        raise NativeLibraryError(message) from None
    number = (functions.ggml_version() or b"").decode("utf-8", "replace")
    if number != _GGML_VERSION:
        raise NativeLibraryError(f"{_libraries()} have ggml {number}, {_other_libraries(_GGML_VERSION)}")


def _check_structures(module: ModuleType, expected: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise NativeLibraryError where bindings and libraries disagree on a structure."""
    if difference := structures.first_difference(module, expected):
        raise NativeLibraryError(f"{_libraries()} differ from it ({difference}), {_other_libraries(_GGML_VERSION)}")


def _check_instructions(functions: GGML) -> None:
    """Raise NativeLibraryError where llama.cpp was compiled for another processor, as in a copied environment."""
    if missing := missing_instructions(functions):
        raise NativeLibraryError(
            f"{_libraries()} were compiled for a processor with {', '.join(missing)}, which this one lacks; install "
            f"{LLAMA_CPP_PYTHON} again on this machine, or build the preset cpu, which is for any (docs/native.md)"
        )


def _libraries() -> str:
    folder = build().folder
    return f"the libraries {f'in {folder}' if folder else 'of its package'} for {LLAMA_CPP_PYTHON} {version()}"


def _other_libraries(ggml_version: str) -> str:
    """Say what to do about libraries that do not fit."""
    own = build().folder is None
    step = f'pip install --force-reinstall "{LLAMA_CPP_PYTHON}{WANTED}"' if own else "build them again (docs/native.md)"
    return f"and pocketvlm needs ggml {ggml_version} of {LLAMA_CPP_PYTHON} {WANTED}: {step}"


def _folder(module: ModuleType) -> Path:
    """Return the folder of libllama. Raises NativeLibraryError where it is not the chosen build's."""
    folder = Path(module._lib._name).parent
    chosen = build().folder
    if chosen and not folder.samefile(chosen):
        raise NativeLibraryError(
            f"llama_cpp was already imported, from {folder}, so {chosen} cannot be loaded; import pocketvlm first"
        )
    return folder

"""Peak anonymous memory and time of converting a checkpoint of 4 GB in shards: Qwen2.5-VL-3B's shapes.

The limit is twice the largest tensor + 400 MB, for the converting process and its children together. Mapped files are
not counted (RssAnon of /proc/PID/status), because the system can drop their pages at any time. Linux only.

    bench_convert_large.py [--upstream LLAMA_CPP] [--verify] [--source plain lora fp8 gptq] [--onnx int8]

A source is the checkpoint as it is, with an adapter to merge, or with the decoder's layers quantized.
With the sources of llama.cpp, its convert_hf_to_gguf.py (which needs torch and transformers) and libllama's own
quantization run as well, for the same language model and mmproj. About 12 GB of disk.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_convert_memory import anonymous_kb
from large_checkpoint import QUANTIZATIONS, write_adapter, write_checkpoint

OURS = """
import sys
from pathlib import Path
from pocketvlm_converters.convert import convert
folder = Path(sys.argv[1])
onnx, verify, *lora = sys.argv[2:]
convert(
    folder / "checkpoint", folder / "bundle", quantize="Q4_K_M", mmproj="q8_0", onnx=onnx, verify=verify == "yes",
    lora=lora,
)
assert not {"torch", "transformers"} & set(sys.modules)
"""
# Its list of known tokenizers (by hash) cannot contain a generated one, and that there is no file of
# SentencePiece it would notice only with that package.
UPSTREAM = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import conversion.base as base
def missing(self): raise FileNotFoundError
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
base.TextModel._set_vocab_sentencepiece = missing
import convert_hf_to_gguf as upstream
folder = sys.argv[2]
for more in (["--outtype", "bf16", "--outfile", folder + "/bf16.gguf"],
             ["--outtype", "q8_0", "--mmproj", "--outfile", folder + "/mmproj.gguf"]):
    sys.argv = ["convert_hf_to_gguf.py", folder + "/checkpoint", *more]
    upstream.main()
"""
QUANTIZE = """
import sys
from llama_cpp import llama_cpp as lib
params = lib.llama_model_quantize_default_params()
params.ftype = lib.LLAMA_FTYPE_MOSTLY_Q4_K_M
folder = sys.argv[1].encode()
sys.exit(lib.llama_model_quantize(folder + b"/bf16.gguf", folder + b"/q4.gguf", params))
"""


def watched(code: str, *arguments: str) -> tuple[float, float]:
    """Return the seconds and the peak of anonymous memory in MB. The log is printed only if the process fails."""
    began, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as log:
        with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=log, stderr=log) as process:
            while process.poll() is None:
                peak = max(peak, anonymous_kb(process.pid))
                time.sleep(0.02)
        if process.returncode:
            log.seek(0)
            sys.exit(log.read()[-2000:])
    return time.perf_counter() - began, peak * 1024 / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", type=Path, help="the sources of llama.cpp")
    parser.add_argument("--verify", action="store_true", help="include the proof at the end, which takes minutes")
    parser.add_argument("--source", nargs="*", default=["plain"], choices=("plain", "lora", "fp8", "gptq"))
    parser.add_argument("--onnx", nargs="*", default=["none", "int8"], help="types of the ONNX encoder, one by one")
    arguments = parser.parse_args()
    over = [measure(source, arguments) for source in arguments.source]
    return int(any(over))


def measure(source: str, arguments: argparse.Namespace) -> bool:
    """Return whether a conversion took more than the limit."""
    with tempfile.TemporaryDirectory(prefix="pocketvlm-bench-") as name:
        (Path(name) / "checkpoint").mkdir()
        size, largest = write_checkpoint(Path(name) / "checkpoint", source if source in QUANTIZATIONS else "none")
        adapters = []
        if source == "lora":
            (Path(name) / "adapter").mkdir()
            write_adapter(Path(name) / "adapter")
            adapters = [str(Path(name) / "adapter")]
        limit = 2 * largest / 1e6 + 400
        print(
            f"{source}: checkpoint {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB, limit {limit:.0f} MB",
            flush=True,
        )
        worst = ours = 0.0
        for onnx in arguments.onnx:
            seconds, peak = watched(OURS, name, onnx, "yes" if arguments.verify else "no", *adapters)
            worst = max(worst, peak)
            print(f"ours, ONNX {onnx}: {seconds:.0f} s, peak {peak:.0f} MB, ratio {peak / limit:.2f}", flush=True)
            ours = ours or seconds
            shutil.rmtree(Path(name) / "bundle")
        if arguments.upstream and source == "plain":
            converted, peak = watched(UPSTREAM, str(arguments.upstream), name)
            print(f"upstream's converter: {converted:.0f} s, peak {peak:.0f} MB", flush=True)
            quantized, peak = watched(QUANTIZE, name)
            print(f"upstream's quantization: {quantized:.0f} s, peak {peak:.0f} MB", flush=True)
            print(f"time, ours without ONNX to upstream's: {ours / (converted + quantized):.2f}")
    return worst >= limit


if __name__ == "__main__":
    sys.exit(main())

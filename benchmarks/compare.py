"""One chat about a photo, in one run: pocketvlm, llama-cpp-python's stock handler, llama-server, ik_llama.cpp.

    python benchmarks/compare.py [BUNDLE | --entry ID] [--llama-server BIN [--server-options '--ctx-checkpoints 8']]
        [--ik [PYTHON]]

BUNDLE needs an mmproj, for the peers; without one, random weights are made on the spot, with the shapes of an entry of
the catalogue or SmolVLM-256M's (language model Q8_0, mmproj f16, ONNX int8). All have the same threads, context and
PNGs in data URIs, and a process each. With SmolVLM-256M's shapes, for which the aims are, the peers always enlarge a
photo to their full 13 tiles, as `detail: high` does here; auto and low do less on purpose. pocketvlm uses the encoder
that it measured as fastest.

A round, in which all take turns: a new photo; the next question about it; another question about it in
a new chat; the photo after other text; a long answer about the photo, and one to a text; a new text. Times are those
of whole requests for one token; decoding is what more tokens take longer. A ratio is ours by theirs within a round.

The peak is what onnxruntime's int8 product reaches on as many threads. Prefill is a new text; the encoder's time is our
own measurement of the photo's tiles.
"""

from __future__ import annotations

import argparse
import base64
import io
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from checkpoint import random_weights
from int8_peak import encoder_operations, int8_peak, prompt_operations
from peers import Peer, ik_llama, llama_cpp_python, llama_server, pocketvlm, pocketvlm_serve
from PIL import Image

from pocketvlm.bench.measure import fresh, photo
from pocketvlm.engine.speculative.draft_length import MODES
from pocketvlm.files.bundle import Bundle
from pocketvlm.files.gguf_header import read_header
from pocketvlm.system.machine import physical_cores, processor
from pocketvlm.vision.compatibility import family_of
from pocketvlm.vision.dynamic_size import DynamicSize
from pocketvlm.vision.select_encoder import measured_tile, tile_patches

SIZE = (640, 480)
CONTEXT = 4096
STORY = "Write a long story about a small dog that finds a map."
TEXTS = 3  # a round: they are short, and their differences small
PREFILL = 450  # numbers in a text, a token or two each
STEPS = ("first", "encoder", "second", "again", "moved", "decode", "text", "prefill")
# Of ours by llama-server's: at most, and for speeds at least.
AIMS = {("first", "auto"): 1 / 7, ("first", "low"): 1 / 15, ("first", "high"): 0.7, "second": 1.0, "again": 1.0}
AIMS |= {"moved": 1 / 20, "decode": 1.0, "text": 1.0}
SPEEDS = {"decode", "text", "prefill"}  # in tokens/s; `encoder` is seconds of a tile
MORE_MEMORY = 60e6  # bytes, at most

Results = dict[tuple[str, str], list[float]]  # (contender, step) -> a value a round


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundle", type=Path, nargs="?")
    options.add_argument("--entry", metavar="ID", help="the shapes of this model of the catalogue, with random weights")
    options.add_argument("--llama-server", type=Path, action="append", default=[], help="a binary; may be repeated")
    options.add_argument(
        "--ik", metavar="PYTHON", nargs="?", const=sys.executable, help="a Python that has ik-llama-cpp-python"
    )
    options.add_argument("--server-options", default="", help="more options of llama-server, in one argument")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--tokens", type=int, default=128, help="tokens of an answer whose speed is measured")
    options.add_argument("--detail", nargs="*", default=["high", "auto", "low"], help="detail levels of pocketvlm")
    options.add_argument("--vision", default="auto", choices=("auto", "onnx", "gguf"), help="encoder of pocketvlm")
    options.add_argument("--speculate", default="auto", choices=MODES, help="drafts of pocketvlm")
    options.add_argument("--steps", nargs="*", default=STEPS, choices=STEPS)
    options.add_argument("--no-handler", action="store_true", help="leave out llama-cpp-python, which takes minutes")
    options.add_argument("--serve", action="store_true", help="also measure pocketvlm serve")
    options.add_argument("--threads", type=int, default=physical_cores())
    arguments = options.parse_args()
    with ExitStack() as stack:
        bundle = Bundle(arguments.bundle) if arguments.bundle else stack.enter_context(random_weights(arguments.entry))
        if bundle.file("mmproj") is None:
            raise SystemExit(f"{bundle.path} has no mmproj for the peers")
        same = (arguments.threads, CONTEXT)
        peers: list[Peer] = [pocketvlm(bundle.path, *same, arguments.vision, arguments.speculate)]
        stack.callback(peers[0].close)
        if arguments.serve:
            peers.append(pocketvlm_serve(bundle, *same))
            stack.callback(peers[-1].close)
        ours = len(peers)
        if not arguments.no_handler:
            peers.append(llama_cpp_python(bundle.path, *same))
            stack.callback(peers[-1].close)
        for number, binary in enumerate(arguments.llama_server, 1):
            name = "llama-server" if number == 1 else f"llama-server {number}"
            peers.append(llama_server(name, binary, bundle, *same, shlex.split(arguments.server_options)))
            stack.callback(peers[-1].close)
        if arguments.ik:
            peers.append(ik_llama(arguments.ik, bundle, *same))
            stack.callback(peers[-1].close)
        results = measure(peers, ours, arguments)
        peak = int8_peak(arguments.threads)
        print(
            f"{processor()}, {arguments.threads} threads, {arguments.rounds} rounds, a photo of {SIZE[0]}x{SIZE[1]}\n"
        )
        show(results, peers, ours, arguments)
        show_shares(results, bundle, peak)


def measure(peers: list[Peer], ours: int, arguments: argparse.Namespace) -> Results:
    results: Results = defaultdict(list)
    for peer in peers:
        peer.ask([said("Hello.")], 1)
    turns = [(peer, detail) for n, peer in enumerate(peers) for detail in (arguments.detail if n < ours else [""])]
    about = set(arguments.steps) - {"text", "prefill"}

    def note(name: str, step: str, value: float) -> None:
        results[name, step].append(value)
        print(f"  {name}, {step}: {value:.3f}", file=sys.stderr, flush=True)

    with suppress(KeyboardInterrupt):  # show what was measured so far
        for _ in range(arguments.rounds):
            for peer, detail in turns:
                name = f"{peer.name}, {detail}" if detail else peer.name
                for step, value in about_a_photo(peer, detail, arguments) if about and peer.sees else ():
                    note(name, step, value)
            for _ in range(TEXTS if "text" in arguments.steps else 0):
                for peer in peers:
                    for step, value in speed("text", peer, [said(STORY)], arguments.tokens):
                        note(peer.name, step, value)
            for _ in range(TEXTS if "prefill" in arguments.steps else 0):
                for peer in peers:
                    read = peer.ask([said(new_text())], 1)
                    note(peer.name, "prefill", read.prompt_tokens / read.seconds)
    return results


def about_a_photo(peer: Peer, detail: str, arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    steps = arguments.steps
    picture = image(detail)
    talk = [said(picture, "What is in the picture?")]
    first = peer.ask(talk, 1)
    yield "first", first.seconds
    if "encoder" in steps and first.encoder is not None:
        yield "encoder", first.encoder
    if "second" in steps:
        answer = {"role": "assistant", "content": "A pattern of waves."}
        yield "second", peer.ask([*talk, answer, said("What colour is it?")], 1).seconds
    new = [said(picture, "Describe it in one sentence.")]
    if "again" in steps:
        yield "again", peer.ask(new, 1).seconds
    if "decode" in steps and peer.caches:
        yield from speed("decode", peer, new, arguments.tokens)
    if "moved" in steps:
        yield "moved", peer.ask([said("Here is what I saw on my way home today.", picture, "What is it?")], 1).seconds


def speed(step: str, peer: Peer, messages: list[dict[str, Any]], more: int) -> Iterator[tuple[str, float]]:
    """Tokens per second, unless the answer ends early. The prompt is known by then, or quickly read."""
    peer.ask(messages, 1)
    one, whole = peer.ask(messages, 1), peer.ask(messages, 1 + more)
    if whole.tokens > more / 4:
        yield step, (whole.tokens - 1) / (whole.seconds - one.seconds)


def new_text() -> str:
    """Return a text that no cache knows, not even its beginning."""
    return " ".join(str(Random().randrange(10)) for _ in range(PREFILL))


def said(*parts: str | dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def image(detail: str) -> dict[str, Any]:
    """Return a new photo, which is not in any cache."""
    file = io.BytesIO()
    Image.fromarray(fresh(photo(*SIZE))).save(file, "PNG")
    url = {"url": "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()}
    return {"type": "image_url", "image_url": url | ({"detail": detail} if detail else {})}


def show(results: Results, peers: list[Peer], ours: int, arguments: argparse.Namespace) -> None:
    others = [peer.name for peer in peers[ours:]]
    by = "".join(f" by {other} | spread |" for other in others)
    print(f"| step | program | s, tokens/s for decode, text and prefill | spread |{by} aim |")
    print("|---|---|---|---|" + "---|---|" * len(others) + "---|")
    for step in arguments.steps:
        for name, of_step in results:
            if of_step != step:
                continue
            values = results[name, step]
            cells = [step, name, f"{median(values):.3g}", f"{min(values):.3g}-{max(values):.3g}"]
            for other in others:
                ratios = [a / b for a, b in zip(values, results.get((other, step), []), strict=False)]
                is_ours = name not in others and ratios
                cells += [f"{median(ratios):.3f}", f"{min(ratios):.3f}-{max(ratios):.3f}"] if is_ours else ["", ""]
            with_aims = name not in others and not arguments.entry
            aim = AIMS.get((step, name.rpartition(", ")[2]), AIMS.get(step)) if with_aims else None
            cells.append("" if aim is None else f"{'at least' if step in SPEEDS else 'at most'} {aim:.3f}")
            print("| " + " | ".join(cells) + " |")
    print("\nPeak memory, MB: of their own (RssAnon), and with mapped files (RSS)")
    for peer in peers:
        print(f"  {peer.name}: {peer.anonymous / 1e6:.0f}, {peer.resident / 1e6:.0f}")
    for other in peers[ours:]:
        own = (peers[0].anonymous - other.anonymous) / 1e6
        mapped = (peers[0].resident - other.resident) / 1e6
        print(f"  pocketvlm minus {other.name}: {own:+.0f}, {mapped:+.0f} (aim {MORE_MEMORY / 1e6:+.0f})")


def show_shares(results: Results, bundle: Bundle, peak: float) -> None:
    """Print which share of the processor's int8 peak prompts and our encoder reach."""
    print(f"\nint8 peak: {peak / 1e9:.0f} Gop/s (MatMulInteger, 512x1536x8960). Of it:")
    model = bundle.file("model")
    assert model is not None
    prompt = prompt_operations(read_header(model))
    tile = tile_operations(bundle)
    for (name, step), values in results.items():
        if step == "prefill":
            print(f"  {name}, prefill: {median(values) * prompt / peak:.0%}")
        elif step == "encoder" and tile:
            print(f"  {name}, encoder: {tile / median(values) / peak:.0%}")


def tile_operations(bundle: Bundle) -> int | None:
    """Return the operations of the vision encoder for a tile of one size; None where tiles have different sizes."""
    mmproj = bundle.file("mmproj")
    assert mmproj is not None
    metadata = read_header(mmproj).metadata
    family = family_of(metadata, mmproj)
    if family is None or isinstance(family, DynamicSize):
        return None
    return encoder_operations(metadata, tile_patches(family, measured_tile(family), metadata))


if __name__ == "__main__":
    main()

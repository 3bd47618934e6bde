"""The programs that compare.py compares. Each has its own process, so that memory can be measured.

    python benchmarks/peers.py ours|handler BUNDLE THREADS CONTEXT ENCODER DRAFTS

is such a process: a request a line on standard input ({"messages", "max_tokens"}, or what the other side adds), a line
with the usage and timings of the answer back. `ik_peer.py` is another.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.files.bundle import Bundle
from pocketvlm.system.machine import process_memory

START = 120  # seconds; limit for loading a peer
EVERY = 0.05  # seconds between two measurements of memory


@dataclass(frozen=True)
class Answered:
    """Seconds of a whole request, and tokens of prompt and answer. `encoder` has those of each new tile, if known."""

    seconds: float
    tokens: int
    prompt_tokens: int
    encoder: float | None


class Peer(ABC):
    """A process, and the peak memory of it and its children."""

    def __init__(self, name: str, command: list[str], **options: Any) -> None:
        self.name = name
        self.sees = True  # whether it takes pictures
        self.caches = True  # whether a repeated question is fast
        self.fields: dict[str, Any] = {"temperature": 0, "ignore_eos": True}
        self.process = subprocess.Popen(command, **options)
        self.anonymous = self.resident = 0  # bytes
        threading.Thread(target=self._watch, daemon=True).start()

    def ask(self, messages: list[dict[str, Any]], max_tokens: int) -> Answered:
        began = time.perf_counter()
        answer = self._answer({"messages": messages, "max_tokens": max_tokens, **self.fields})
        seconds, usage = time.perf_counter() - began, answer["usage"]
        images = answer.get("timings", {}).get("images", [])
        tiles = sum(image["encoded"] for image in images)
        encoder = sum(image["encode_ms"] for image in images) / 1000 / tiles if tiles else None
        return Answered(seconds, usage["completion_tokens"], usage["prompt_tokens"], encoder)

    @abstractmethod
    def _answer(self, body: dict[str, Any]) -> dict[str, Any]: ...

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _watch(self) -> None:
        while self.process.poll() is None:
            memories = [
                memory for pid in (self.process.pid, *children(self.process.pid)) if (memory := process_memory(pid))
            ]
            self.anonymous = max(self.anonymous, sum(memory.anonymous for memory in memories))
            self.resident = max(self.resident, sum(memory.resident for memory in memories))
            time.sleep(EVERY)


class Piped(Peer):
    """A program with a request and an answer a line."""

    def __init__(self, name: str, command: list[str]) -> None:
        super().__init__(name, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(body) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Served(Peer):
    """A server that speaks OpenAI's chat completions."""

    def __init__(self, name: str, command: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        super().__init__(name, [*command, "--port", port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + START
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > end:
                self.close()
                raise SystemExit(f"{command[0]} does not serve: {self.process.returncode}")
            time.sleep(0.1)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health") as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                reply: dict[str, Any] = json.load(answer)
                return reply
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{self.name}: {error.read().decode()}") from None


def own_program(kind: str, bundle: Path, threads: int, context: int, *chosen: str) -> list[str]:
    """Return the command that runs this file."""
    return [sys.executable, __file__, kind, str(bundle), str(threads), str(context), *chosen]


def pocketvlm(bundle: Path, threads: int, context: int, vision: str = "auto", speculate: str = "auto") -> Piped:
    return Piped("pocketvlm", own_program("ours", bundle, threads, context, vision, speculate))


def llama_cpp_python(bundle: Path, threads: int, context: int) -> Piped:
    peer = Piped("llama-cpp-python", own_program("handler", bundle, threads, context))
    peer.caches, peer.fields = False, {"temperature": 0, "repeat_penalty": 1.0}  # it has no ignore_eos
    return peer


def ik_llama(python: str, bundle: Bundle, threads: int, context: int) -> Piped:
    """ik_llama.cpp by ik-llama-cpp-python of the environment of `python`. It reads text."""
    program = Path(__file__).with_name("ik_peer.py")
    peer = Piped("ik_llama.cpp", [python, str(program), str(bundle.file("model")), str(threads), str(context)])
    peer.sees = peer.caches = False
    return peer


def llama_server(
    name: str, binary: Path, bundle: Bundle, threads: int, context: int, more: Sequence[str] = ()
) -> Served:
    """With its defaults but for threads, context and `more` options."""
    files = ["-m", str(bundle.file("model")), "-mm", str(bundle.file("mmproj"))]
    return Served(name, [str(binary), *files, "-t", str(threads), "-c", str(context), *more])


def pocketvlm_serve(bundle: Bundle, threads: int, context: int) -> Served:
    run = [sys.executable, "-c", "from pocketvlm.cli import main; main()", "serve"]
    return Served(
        "pocketvlm serve", [*run, "-m", str(bundle.path), "--threads", str(threads), "--ctx-size", str(context)]
    )


def children(pid: int) -> list[int]:
    try:
        processes = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return processes + [below for child in processes for below in children(child)]


# --- within a process of its own


def ours(bundle: Path, threads: int, context: int, vision: str, speculate: str) -> Callable[[dict[str, Any]], Any]:
    from pocketvlm import VLM

    chosen: dict[str, Any] = {"vision": vision, "speculate": speculate}
    vlm = VLM.load(bundle, threads=threads, context_size=context, **chosen)
    print(f"  pocketvlm: {vlm.info.vision}", file=sys.stderr)
    return lambda body: vlm.chat(**body).model_dump(mode="json")


def handler(bundle: Path, threads: int, context: int, *_: str) -> Callable[[dict[str, Any]], Any]:
    """llama-cpp-python as its readme says."""
    import llama_cpp
    from llama_cpp.llama_chat_format import MTMDChatHandler

    files = Bundle(bundle)
    llama = llama_cpp.Llama(
        str(files.file("model")),
        chat_handler=MTMDChatHandler(clip_model_path=str(files.file("mmproj")), verbose=False),
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "w") as nothing:  # noqa: PTH123 - libmtmd prints a line for every tile
        os.dup2(nothing.fileno(), 2)
    return lambda body: llama.create_chat_completion(**body)


def main() -> None:
    kind, bundle, threads, context, *chosen = sys.argv[1:]
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    answer = {"ours": ours, "handler": handler}[kind](Path(bundle), int(threads), int(context), *chosen)
    for line in sys.stdin:
        full = answer(json.loads(line))
        replies.write(json.dumps({key: full[key] for key in ("usage", "timings") if key in full}) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()

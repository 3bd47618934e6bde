"""Ask a server all the time while systemd restarts it, and require every answer: for scripts/test_wheels.sh."""

import json
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from typing import Any

PORT = 8080
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def ask(connection: HTTPConnection, **fields: Any) -> bytes:
    connection.request("POST", "/v1/chat/completions", json.dumps({**BODY, **fields}))
    reply = connection.getresponse()
    text = reply.read()
    if reply.status != 200:
        sys.exit(f"{reply.status}: {text[:200]!r}")
    return text


def main() -> None:
    done = threading.Event()
    counts: dict[str, int] = {}
    failures: list[str] = []

    def again(kind: str) -> None:
        connection = HTTPConnection("127.0.0.1", PORT, timeout=300)
        try:
            while not done.is_set():
                ask(connection)
                counts[kind] = counts.get(kind, 0) + 1
                if kind == "new":
                    connection.close()
        except BaseException as error:  # a thread's exit would be lost
            failures.append(f"{kind}: {error!r}")

    def long() -> None:
        try:
            text = ask(HTTPConnection("127.0.0.1", PORT, timeout=300), max_tokens=600, ignore_eos=True)
            counts["tokens of the long answer"] = json.loads(text)["usage"]["completion_tokens"]
        except BaseException as error:
            failures.append(f"long: {error!r}")

    threads = [threading.Thread(target=again, args=(kind,)) for kind in ("new", "kept")]
    threads.append(threading.Thread(target=long))
    for thread in threads:
        thread.start()
    time.sleep(2)
    before = main_process()
    began = time.monotonic()
    subprocess.run(["systemctl", "restart", "pocketvlm"], check=True)
    took = time.monotonic() - began
    time.sleep(2)
    done.set()
    for thread in threads:
        thread.join()
    after = main_process()
    print(f"restarted in {took:.1f} s, process {before}, then {after}; answers: {counts}")
    if failures or before == after or len(counts) < len(threads):
        sys.exit(f"failed: {failures}")


def main_process() -> str:
    shown = ["systemctl", "show", "--value", "--property", "MainPID", "pocketvlm"]
    return subprocess.run(shown, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()

"""Iota's answers with one build of the native libraries, and whether they are those of another.

    answers.py write FOLDER                           draw scenes, ask about them, keep pictures and answers
    answers.py compare FOLDER [--gpu] [--first N]     ask the same with the libraries that this process loads

`compare` needs the runtime alone. It fails where fewer than 95 % of the answers are the same words, and with --gpu
where not all layers and the vision encoder are on a GPU. The encoder is libmtmd's: the libraries are what is tested.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
from pathlib import Path
from typing import Any

from pocketvlm import VLM
from pocketvlm.native import library

SCENES = 40
SAME = 0.95  # kernels round differently, which may turn a close choice


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=("write", "compare"))
    options.add_argument("folder", type=Path)
    options.add_argument("--gpu", action="store_true")
    options.add_argument("--first", type=int, help="compare so many answers only")
    arguments = options.parse_args()
    if arguments.what == "write":
        write(arguments.folder)
    else:
        sys.exit(compare(arguments.folder, arguments.gpu, arguments.first))


def write(folder: Path) -> None:
    from iota.evaluate import trials

    folder.mkdir(parents=True, exist_ok=True)
    asked: list[dict[str, Any]] = []
    pictures = 0
    for trial in trials(SCENES):
        for part in (part for message in trial.messages for part in message["content"] if isinstance(part, dict)):
            if part["type"] == "image":
                picture, part["image"] = part["image"], f"{pictures}.png"
                picture.save(folder / part["image"])
                pictures += 1
        asked.append({"messages": trial.messages, "expected": trial.expected})
    answers, _, _ = ask(folder, asked)
    for question, answer in zip(asked, answers, strict=True):
        question["answer"] = answer
    (folder / "asked.json").write_text(json.dumps(asked, indent=1), encoding="utf-8")
    print(f"{label()}: {len(asked)} questions about {pictures} pictures, {right(asked, answers)} right")


def compare(folder: Path, gpu: bool, first: int | None) -> int:
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))[:first]
    answers, log, seconds = ask(folder, asked)
    for device in library.devices():
        print(f"device {device.name}: {device.description} ({device.kind})")
    told = re.findall(r"offloaded \d+/\d+ layers to GPU|CLIP using \S+ backend", log)
    print("\n".join(dict.fromkeys(told)))
    same = sum(question["answer"] == answer for question, answer in zip(asked, answers, strict=True))
    for question, answer in zip(asked, answers, strict=True):
        if question["answer"] != answer:
            print(f"other: {answer!r}, not {question['answer']!r}; right is {question['expected']!r}")
    before = right(asked, [question["answer"] for question in asked])
    print(f"{label()}: {same} of {len(asked)} answers are the same; right: {right(asked, answers)}, before {before}")
    print(f"{seconds:.1f} s")
    if gpu and not all_offloaded(told):
        print("FAILED: not everything is on the GPU")
        return 1
    return 0 if same >= SAME * len(asked) else 1


def ask(folder: Path, asked: list[dict[str, Any]]) -> tuple[list[str], str, float]:
    """The answers, llama.cpp's log and the seconds that it took without loading."""
    lines: list[str] = []
    logger = logging.getLogger("pocketvlm.native")
    logger.setLevel(logging.DEBUG)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    with VLM.load(vision="gguf") as vlm:
        logger.setLevel(logging.WARNING)
        began = time.monotonic()
        answers = [vlm.chat(with_pictures(question["messages"], folder), max_tokens=96).text for question in asked]
    return answers, "\n".join(lines), time.monotonic() - began


def with_pictures(messages: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    def part(given: dict[str, Any]) -> dict[str, Any]:
        return {"type": "image", "image": folder / given["image"]} if given["type"] == "image" else given

    return [
        {**message, "content": text if isinstance(text := message["content"], str) else [part(p) for p in text]}
        for message in messages
    ]


def all_offloaded(told: list[str]) -> bool:
    layers = [line.split()[1].split("/") for line in told if line.startswith("offloaded")]
    clip = [line for line in told if line.startswith("CLIP")]
    return bool(layers and clip) and all(a == b for a, b in layers) and not any("CPU" in line for line in clip)


def right(asked: list[dict[str, Any]], answers: list[str]) -> int:
    return sum(question["expected"] == answer for question, answer in zip(asked, answers, strict=True))


def label() -> str:
    build = library.build()
    return f"{build.label}, {build.folder}" if build.folder else build.label


if __name__ == "__main__":
    main()

"""Choose the layout of a model's weights on the CPU: the one that measures fastest here, once for a file and device.

`python -m pocketvlm.engine.loading.choose_layout '[PATH, THREADS, [LAYOUT, ...]]'` measures, and prints a line of JSON
to standard error: native code may end that process, and its threads compete with nothing afterwards.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pocketvlm.engine.loading.layer_benchmark import LayerSpeed, compare_layouts
from pocketvlm.errors import EngineError, ModelError
from pocketvlm.files.footprint import weights_of
from pocketvlm.files.gguf_header import GGUFHeader, read_header
from pocketvlm.native import library, memory_estimate
from pocketvlm.native.weight_layout import WeightLayout
from pocketvlm.system import subprocess
from pocketvlm.system.json_cache import JSONCache, file_hash
from pocketvlm.system.machine import processor

Measure = Literal["never", "once", "until steady"]
_log = logging.getLogger(__name__)
_REVISION = 2  # part of keys; raise it when kernels become faster
CACHE = JSONCache("layouts.json", "layouts", most=256)
_SMALLEST = 32 << 20  # bytes of layers: below, prompts are fast in any layout
_ROWS = 128  # of a timed prompt
_PROMPT, _ANSWER = 512, 128  # tokens of the request whose time decides
_SLOWER = 1.05  # times the shortest time of a token of an answer: a layout that needs longer is not chosen
_TRIES = 3  # measurements at loads, while other programs disturb them
_PREFIX = "layouts: "  # of the line that holds the result


def choose_layout(header: GGUFHeader, *, threads: int, exact: bool = False, measure: Measure = "once") -> WeightLayout:
    """Return the layout for a file whose layers all run on the CPU.

    `exact` results must not depend on times, so they always have libllama's default. Where nothing is remembered,
    `measure` "never" returns it, too. What other programs disturbed is measured again, a few times with "once".
    """
    if exact or sum(weights_of(header).layers) < _SMALLEST:
        return WeightLayout.REORDERED
    layouts = candidates(header)
    if len(layouts) == 1:
        return layouts[0]
    key = _key(header, threads, layouts)
    entry = CACHE.read().get(key, {})
    remembered = _parse(entry, layouts)
    tries = entry["tries"] if remembered is not None else 0
    if remembered is not None and (entry["steady"] or measure == "never" or (measure == "once" and tries >= _TRIES)):
        return remembered
    if measure == "never" or not subprocess.can_start():
        return layouts[0]
    _log.info("measuring %d layouts of weights, once on this device", len(layouts))
    try:
        speeds = _measure(header, layouts, threads)
    except OSError as error:
        _log.info("no process can be started to measure them: %s", error)
        return layouts[0]
    if speeds is None:
        return layouts[0]
    layout = fastest(speeds) if speeds else layouts[0]
    times = {each.value: [round(1e3 * speed.prompt, 4), round(1e3 * speed.answer, 4)] for each, speed in speeds.items()}
    _log.info("milliseconds of a token of a prompt and of an answer: %s", times)
    steady = all(speed.steady for speed in speeds.values())
    result = {"layout": layout.value, "milliseconds": times, "steady": steady, "tries": tries + 1}
    CACHE.add(key, {"file": header.path.name, **result})
    return layout


def candidates(header: GGUFHeader) -> list[WeightLayout]:
    """Return the layouts that differ for this file, libllama's default first."""
    types = {tensor.type for tensor in header.tensors if len(tensor.shape) > 1 and tensor.name.startswith("blk.")}
    reordered = any(memory_estimate.reordered(number) for number in types)
    layouts = [WeightLayout.REORDERED, *([WeightLayout.PLAIN] if reordered else [])]
    if library.accelerator().computes(types):
        layouts.append(WeightLayout.ACCELERATED)
    if library.accelerator().reads_reordered(types):
        layouts.append(WeightLayout.REORDERED_ACCELERATED)
    return layouts


def fastest(speeds: Mapping[WeightLayout, LayerSpeed]) -> WeightLayout:
    """Return the layout with the shortest time of a request, of those with about the shortest time of an answer.

    Where times are not steady, only layouts with the answers of the first are eligible: a wrong choice of others would
    cost more.
    """
    limit = _SLOWER * min(speed.answer for speed in speeds.values())
    if all(speed.steady for speed in speeds.values()):
        eligible = [layout for layout, speed in speeds.items() if speed.answer <= limit]
    else:
        eligible = [layout for layout in speeds if not layout.mapped or WeightLayout.PLAIN not in speeds]
    return min(eligible, key=lambda layout: _PROMPT * speeds[layout].prompt + _ANSWER * speeds[layout].answer)


def recall_all() -> list[Mapping[str, Any]]:
    """Return what was measured: `file`, `layout`, and by layout the `milliseconds` of a prompt's and an answer's token.

    There are none where libllama cannot run the layers alone. `steady`: no other programs disturbed it.
    """
    return [entry for entry in CACHE.read().values() if _parse(entry, list(WeightLayout)) is not None]


def _measure(header: GGUFHeader, layouts: list[WeightLayout], threads: int) -> dict[WeightLayout, LayerSpeed] | None:
    """Return the speeds of the layouts; none where libllama cannot run the layers alone.

    None stands for a measurement that was stopped, for example because memory was full. Raises OSError.
    """
    results = subprocess.PrefixedLines(_PREFIX)
    request = json.dumps([str(header.path), threads, [layout.value for layout in layouts]])
    process = subprocess.run(__name__, request, take=results)
    if not results.lines:
        _log.info("the layouts of weights cannot be compared: %s%s", process.signal, " ".join(process.lines))
        return None if process.code in (subprocess.KILLED, *subprocess.REQUESTED_ENDS) else {}
    return {WeightLayout(name): LayerSpeed(**speed) for name, speed in json.loads(results.lines[-1]).items()}


def _parse(entry: Any, layouts: list[WeightLayout]) -> WeightLayout | None:
    try:
        layout = WeightLayout(entry["layout"])
        valid = all(len([*map(float, pair)]) == 2 for pair in entry["milliseconds"].values())
        valid = valid and isinstance(entry["file"], str) and isinstance(entry["steady"], bool)
        valid = valid and isinstance(entry["tries"], int)
        return layout if valid and layout in layouts else None
    except (TypeError, KeyError, ValueError, AttributeError):
        return None  # none yet, or written by another version


def _key(header: GGUFHeader, threads: int, layouts: list[WeightLayout]) -> str:
    files = [file_hash(path) for path in header.files]
    names = [layout.value for layout in layouts]
    device = [processor(), threads, library.build().label, library.accelerator().kernel]
    return hashlib.sha256(repr([_REVISION, device, files, names]).encode()).hexdigest()


def main() -> None:
    path, threads, names = json.loads(sys.argv[1])
    layouts = [WeightLayout(name) for name in names]
    try:
        speeds = compare_layouts(read_header(Path(path)), layouts, rows=_ROWS, threads=threads)
    except (ModelError, EngineError, KeyError, StopIteration) as error:
        sys.exit(f"{error!r}")
    values = {layout.value: asdict(speed) for layout, speed in speeds.items()}
    print(_PREFIX + json.dumps(values), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

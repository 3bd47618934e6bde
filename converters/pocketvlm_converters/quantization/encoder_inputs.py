"""Sample what goes into the matrices of a vision encoder, with the calibration's pictures, to quantize it to int8.

The encoder is written in float32 to a temporary folder and mapped from there, as the samples are, so that the memory
needed is that of its activations.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketvlm.system.machine import physical_cores
from pocketvlm.vision import families
from pocketvlm.vision.onnx import INPUT, input_of, runtime
from pocketvlm.vision.providers import CPU, providers_of
from pocketvlm_converters.export_parts import weight_count
from pocketvlm_converters.family import Family
from pocketvlm_converters.onnx.graph import SAMPLES_OF, Graph, Samples
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.samples.drawing import RGB
from pocketvlm_converters.samples.sets import calibration_samples
from pocketvlm_converters.weights import Part

_STEP = "encoder inputs"
_TOKENS = 256  # embeddings of a picture
_PIXELS = 1 << 20  # of all tiles together; bounds the time
_FATAL = 4  # log level: errors are raised as exceptions


@contextmanager
def sampled_inputs(family: Family, part: Part, folder: Path, progress: Progress = silent) -> Iterator[Samples]:
    """Return samples of the inputs of the encoder's matrices, from temporary files in `folder`."""
    tiles = list(_tiles(part))
    progress(_STEP, 0, len(tiles))
    # Errors are ignored because Windows does not delete files that are still mapped.
    with tempfile.TemporaryDirectory(prefix="inputs-", dir=folder, ignore_cleanup_errors=True) as name:
        with Graph(Path(name) / "encoder.onnx", "fp32", weight_count(part)) as graph:
            graph.finish(family.vision_graph(graph), {}, observed=True)
        values = sorted(set(graph.inputs.values()))
        session = _session(graph.path)
        samples: dict[str, npt.NDArray[np.float32]] = {}
        for number, tile in enumerate(tiles, 1):
            pixels = input_of(tile, session.get_inputs()[0].shape[-1] // 3)
            outputs = session.run([f"{SAMPLES_OF}{value}" for value in values], {INPUT: pixels})
            for at, (value, rows) in enumerate(zip(values, outputs, strict=True)):
                path = Path(name) / f"{at}.inputs"
                with path.open("ab") as file:
                    file.write(rows.data)
                samples[value] = np.memmap(path, np.float32, "r").reshape(-1, rows.shape[1])
            progress(_STEP, number, len(tiles))
        del session
        inputs: dict[str, npt.NDArray[np.float32]] = {label: samples[value] for label, value in graph.inputs.items()}
        samples.clear()
        try:
            yield inputs
        finally:
            inputs.clear()
            gc.collect()  # unmaps the files, also those in cycles


def _session(path: Path) -> Any:
    ort = runtime()
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = physical_cores()
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")  # packed weights would not be mapped
    return ort.InferenceSession(str(path), options, providers=providers_of(CPU))


def _tiles(part: Part) -> Iterator[RGB]:
    """Yield a tile of each picture until there are enough pixels."""
    match = families.find(dict(part.metadata))
    assert match is not None
    pixels = 0
    for picture in (picture for sample in calibration_samples() for picture in sample.pictures):
        plan = match[1].plan((picture.shape[1], picture.shape[0]), "low", _TOKENS)
        tile = match[1].tiles(picture, plan)[-1]
        yield tile
        pixels += tile.shape[0] * tile.shape[1]
        if pixels >= _PIXELS:
            return

"""An importance matrix of our own: the calibration samples, pictures in the prompt, through the unquantized model.

`python -m pocketvlm_converters.quantization.calibrate MODEL ENCODER TARGET` is a process of its own: it can be
stopped, and an abort in native code ends nothing else.
"""

from __future__ import annotations

from pathlib import Path

from pocketvlm.errors import QuantizationError
from pocketvlm.native.imatrix import Collector
from pocketvlm.native.llama import Model
from pocketvlm_converters import subprocess_task
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.quantization.imatrix import Matrix, read_matrix, write_matrix
from pocketvlm_converters.samples.forward import Loaded, answers, context_for
from pocketvlm_converters.samples.sets import calibration_samples

AUTO = "auto"  # what asks for such a matrix
_STEP = "importance matrix"
_DATASET = "pocketvlm calibration samples"


def compute_matrix(model: Path, encoder: Path, target: Path, progress: Progress = silent) -> Matrix:
    """Of `model`, a GGUF file, with pictures encoded by `encoder`; `target` is written in GGUF form.

    Raises QuantizationError with the reason where it cannot be computed.
    """
    progress(_STEP, 0, 2 * len(calibration_samples()))
    reason = subprocess_task.run(__name__, model, encoder, target, progress=progress)
    if reason is not None:
        raise QuantizationError(f"no importance matrix: {reason}", model)
    return read_matrix(target)


def compute_here(model: Path, encoder: Path, target: Path, progress: Progress = silent) -> None:
    """The same in this process, without reading what was written."""
    samples = calibration_samples()
    total = 2 * len(samples)
    with Loaded(model, encoder) as loaded:
        asked = loaded.asked(samples, lambda _step, done, _total: progress(_STEP, done, total))
    if not asked:
        raise QuantizationError("no importance matrix: no calibration sample fits its context", model)
    exchanges = [exchange for _, exchange in asked]
    collector = Collector()
    with Model(model, gpu_layers=0, mapped=True) as language, context_for(language, exchanges, collector) as context:
        for number, exchange in enumerate(exchanges, len(samples) + 1):
            for _ in answers(context, exchange):
                pass
            collector.check()
            progress(_STEP, number, total)
    write_matrix(target, collector.sums, collector.counts, _DATASET, len(exchanges))


if __name__ == "__main__":
    subprocess_task.main(compute_here)

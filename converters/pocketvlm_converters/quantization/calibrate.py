"""Compute an importance matrix by running the calibration samples, with their pictures, through the unquantized model.

`python -m pocketvlm_converters.quantization.calibrate MODEL ENCODER TARGET` does so in its own process, which can be
stopped, and whose abort in native code does not end the conversion.
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

AUTO = "auto"  # the value of --imatrix that computes such a matrix
_STEP = "importance matrix"
_DATASET = "pocketvlm calibration samples"


def compute_matrix(model: Path, encoder: Path, target: Path, progress: Progress = silent) -> Matrix:
    """Compute the matrix of `model`, a GGUF file, with pictures encoded by `encoder`, and write it to `target` as GGUF.

    Raises QuantizationError with the reason if that fails.
    """
    progress(_STEP, 0, 2 * len(calibration_samples()))
    reason = subprocess_task.run(__name__, model, encoder, target, progress=progress)
    if reason is not None:
        raise QuantizationError(f"the importance matrix cannot be computed: {reason}", model)
    return read_matrix(target)


def compute_in_process(model: Path, encoder: Path, target: Path, progress: Progress = silent) -> None:
    """Compute and write the matrix in this process. Raises QuantizationError."""
    samples = calibration_samples()
    total = 2 * len(samples)
    with Loaded(model, encoder) as loaded:
        fitting = loaded.exchanges(samples, lambda _step, done, _total: progress(_STEP, done, total))
    if not fitting:
        raise QuantizationError("the model's context is too small for every calibration sample", model)
    exchanges = [exchange for _, exchange in fitting]
    collector = Collector()
    with Model(model, gpu_layers=0, mapped=True) as language, context_for(language, exchanges, collector) as context:
        for number, exchange in enumerate(exchanges, len(samples) + 1):
            for _ in answers(context, exchange):
                pass
            collector.check()
            progress(_STEP, number, total)
    write_matrix(target, collector.sums, collector.counts, _DATASET, len(exchanges))


if __name__ == "__main__":
    subprocess_task.main(compute_in_process)

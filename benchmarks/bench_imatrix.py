"""Types with and without an importance matrix of our own: KL to the unquantized model on pictures it has not seen.

On iota, with the proof samples (pictures unlike those that it was trained on) and with new scenes of its own kind; and
on random weights of SmolVLM's structure, 512 wide so that k-quants fit: a floor, because training
has made no weight more important than others. Answers are put in the model's mouth; each of their tokens counts once.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from random import Random

import checkpoint as random_weights
import numpy as np

from pocketvlm_converters.convert import convert
from pocketvlm_converters.proof.distributions import Distributions
from pocketvlm_converters.quantization.calibrate import compute_matrix
from pocketvlm_converters.quantization.quantize import NEED_IMPORTANCE_MATRIX, quantize_language
from pocketvlm_converters.samples.forward import Loaded
from pocketvlm_converters.samples.sets import Sample, proof_samples

ROOT = Path(__file__).parent.parent
TYPES = ("Q4_K_M", "Q4_K_S", "Q3_K_M", "Q2_K", "IQ3_XXS", "IQ2_M", "IQ1_M")
SCENES, SEED = 100, 77_001  # no seed of iota's training or evaluation


def own_scenes() -> list[Sample]:
    """New scenes of iota's kind with their right answers."""
    sys.path.append(str(ROOT / "models"))
    from iota.questions import ask
    from iota.scenes import draw, random_scene

    rng, samples = Random(SEED), []
    while len(samples) < SCENES:
        scene = random_scene(rng)
        turn = ask(scene, rng.choice(("shape", "colour", "place", "count", "describe", "read")), rng)
        if turn:
            samples.append(Sample((np.array(draw(scene, rng).convert("RGB")),), turn.question, turn.answer))
    return samples


def small_random(folder: Path) -> Path:
    sizes = {"HIDDEN": 512, "INNER": 1024, "LAYERS": 8, "KEYS": 128, "VOCABULARY": 4096, "VISION": 256}
    sizes |= {"VISION_INNER": 512, "VISION_LAYERS": 4, "TILE": 128, "PATCH": 16, "SHUFFLE": 2, "HEADS": 8}
    sizes |= {"KV_HEADS": 2, "VISION_HEADS": 4}
    for name, value in sizes.items():
        setattr(random_weights, name, value)
    folder.mkdir()
    random_weights.write_checkpoint(folder)
    return folder


def measure(name: str, source: Path, folder: Path, sets: dict[str, list[Sample]]) -> None:
    bundle = convert(source, folder / name, quantize="F32", mmproj="f32", onnx="none", verify=False).path
    original, encoder = bundle / "model-F32.gguf", bundle / "mmproj-f32.gguf"
    matrix = compute_matrix(original, encoder, folder / f"{name}.imatrix.gguf")
    with Loaded(original, encoder) as loaded:
        exchanges = {what: [loaded.exchange(sample) for sample in samples] for what, samples in sets.items()}
    expected = {what: Distributions.of(original, given) for what, given in exchanges.items()}
    print(f"\n{name}: mean KL in nats, same likeliest token; positions: "
          + ", ".join(f"{what} {len(one.answers)}" for what, one in expected.items()))  # fmt: skip
    for kind in TYPES:
        results = {}
        for how, given in (("plain", None), ("imatrix auto", matrix)):
            if given is None and kind in NEED_IMPORTANCE_MATRIX:
                continue
            path = folder / f"{name}-{kind}.gguf"
            for note in quantize_language(original, path, kind, matrix=given):
                print(f"  note: {note}")
            results[how] = {what: one.divergence(path, exchanges[what]) for what, one in expected.items()}
            shown = "  ".join(f"{what} {one.mean:.5f} {one.same_top:.1%}" for what, one in results[how].items())
            print(f"  {kind:8} {how:13} {path.stat().st_size / 1e6:6.2f} MB  {shown}", flush=True)
        if len(results) == 2:
            ratios = "  ".join(f"{w} {results['imatrix auto'][w].mean / results['plain'][w].mean:.2f}" for w in sets)
            print(f"  {kind:8} ratio of KL: {ratios}")


def main() -> int:
    proof = list(proof_samples())
    with tempfile.TemporaryDirectory(prefix="pocketvlm-bench-") as name:
        folder = Path(name)
        measure("iota", ROOT / "models" / "iota" / "checkpoint", folder, {"proof": proof, "own scenes": own_scenes()})
        measure("random", small_random(folder / "checkpoint"), folder, {"proof": proof})
    return 0


if __name__ == "__main__":
    sys.exit(main())

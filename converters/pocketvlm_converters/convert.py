"""Convert a checkpoint to a bundle. The bundle appears when it is complete, or not at all."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path

from pocketvlm.errors import OutputError, ProofError, QuantizationError
from pocketvlm.files.bundle import Bundle, Check, FileEntry, ImportanceMatrix, Manifest, Role, sha256_of
from pocketvlm.system.allocator import return_free_blocks
from pocketvlm_converters.atomic import check_target, check_writable, new_folder
from pocketvlm_converters.checkpoint.files import utf8_name
from pocketvlm_converters.checkpoint.folder import Checkpoint
from pocketvlm_converters.checkpoint.lora import Lora
from pocketvlm_converters.export_parts import parts_of, write_encoder
from pocketvlm_converters.families import find_family
from pocketvlm_converters.family import Family
from pocketvlm_converters.gguf import ProjectorType, write_language, write_projector
from pocketvlm_converters.onnx.graph import OnnxType
from pocketvlm_converters.progress import Progress, silent
from pocketvlm_converters.proof.conversion import EXPECTED, KEEP_IT, prove_conversion
from pocketvlm_converters.proof.verify import advice
from pocketvlm_converters.quantization.calibrate import AUTO, compute_matrix
from pocketvlm_converters.quantization.encoder_inputs import sampled_inputs
from pocketvlm_converters.quantization.imatrix import Matrix, read_matrix
from pocketvlm_converters.quantization.quantize import FLOAT_TYPES, bundle_types, quantize_language
from pocketvlm_converters.tokenizer import Vocabulary, prove
from pocketvlm_converters.weights import Part

_PACKAGES = ("pocketvlm", "gguf", "llama-cpp-python", "onnx")
_ORIGINAL = "original.gguf"  # temporary: the language model in the checkpoint's own precision


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    quantize: str = "Q4_K_M",
    mmproj: str = "q8_0",
    onnx: str = "int8",
    imatrix: str | Path | None = None,
    lora: Sequence[Lora] = (),
    force: bool = False,
    verify: bool = True,
    keep_unproven: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Convert the checkpoint folder to the new bundle folder `output`, whose name becomes the model's.

    `quantize` is the type of the language model, `mmproj` and `onnx` are those of the vision encoder in either format;
    "none" omits one of them. `imatrix` is a file with an importance matrix for the language model, or "auto" to compute
    one with pocketvlm's calibration texts and pictures. `lora` are folders of LoRA adapters that are merged into the
    weights, each alone or as a pair with a factor for its scale. `force` replaces an existing bundle, as the last step.
    `verify` proves the finished bundle against the checkpoint's own precision and writes the result into the manifest;
    `keep_unproven` keeps a bundle whose proof fails or cannot run.

    Raises a ConversionError: CheckpointError, QuantizationError, TokenizerError (also if the proof of the tokenizer
    fails), ProofError or OutputError. After an error or an interruption, nothing is left behind.
    """
    output = Path(output).absolute()
    language, projector, graph = bundle_types(quantize, mmproj, onnx, with_matrix=imatrix is not None)
    source = Checkpoint(checkpoint, lora)
    family = find_family(source)
    check_target(output, source.path, force)
    with new_folder(output, force) as folder:
        conversion = _Conversion(family, folder, output.name, progress or silent, verify, keep_unproven)
        conversion.write(language, projector, graph, imatrix)
        return_free_blocks()  # the proof is another process and needs the memory
        conversion.seal()
        if conversion.deviation and not keep_unproven:
            raise ProofError(f"{advice(conversion.deviation)}. Nothing was written; {KEEP_IT}", output)
    return Bundle(output)


class _Conversion:
    """One conversion into `folder`. Each step writes its file and adds it to `entries`."""

    def __init__(self, family: Family, folder: Path, name: str, progress: Progress, verify: bool, keep: bool) -> None:
        self.verify = verify
        self.keep = keep  # keep a bundle whose proof fails or cannot run
        self.deviation: Check | None = None
        self.family = family
        self.checkpoint = family.checkpoint
        self.folder = folder
        self.name = name
        self.progress = progress
        self.entries: list[FileEntry] = []
        self.notes: list[str] = []
        self.matrix: Matrix | None = None
        self.imatrix: ImportanceMatrix | None = None  # for the manifest

    def write(
        self,
        language: str,
        projector: ProjectorType | None,
        graph: OnnxType | None,
        imatrix: str | Path | None,
    ) -> None:
        if imatrix is not None and imatrix != AUTO:
            self.matrix = read_matrix(Path(imatrix))
        parts = parts_of(self.family, self.name)
        self.notes += (*self.checkpoint.notes, *self.family.notes, *parts.vocabulary.notes)
        if self.matrix is not None:
            self.matrix.check_fits(parts.language.weights)
            self.imatrix = ImportanceMatrix(name=utf8_name(self.matrix.path), sha256=self.matrix.sha256)
        # The vision encoders come first: computing an importance matrix needs one.
        if projector:
            self._projector(parts.vision, projector)
        if graph:
            self._encoder(parts.vision, graph)
        self._language(parts.language, parts.vocabulary, language, computed=imatrix == AUTO)

    def _language(self, part: Part, vocabulary: Vocabulary, kind: str, computed: bool) -> None:
        path, original = self.folder / f"model-{kind}.gguf", self.folder / _ORIGINAL
        if kind in FLOAT_TYPES:
            write_language(part, path, FLOAT_TYPES[kind], self.progress)
            if self.verify and _rounds(part, kind):
                write_language(part, original, None, self.progress)
        else:
            # First in the checkpoint's own precision, so that the weights are rounded only once.
            write_language(part, original, None, self.progress)
            try:
                if computed:
                    self._compute_matrix(original)
                self.notes += quantize_language(original, path, kind, self.progress, self.matrix)
            except (QuantizationError, OutputError):
                check_writable(self.folder)
                raise
        self.progress("tokenizer", 0, 1)
        prove(path, self.checkpoint.path, vocabulary)
        self.progress("tokenizer", 1, 1)
        self._add(path, "model", kind)

    def _compute_matrix(self, original: Path) -> None:
        """Compute the importance matrix with the bundle's own encoder, as its chats will use it."""
        encoder = next(self.folder / entry.name for entry in self.entries if entry.role in ("mmproj", "vision"))
        path = self.folder / "imatrix.gguf"
        self.matrix = compute_matrix(original, encoder, path, self.progress)
        self.imatrix = ImportanceMatrix(name=AUTO, sha256=self.matrix.sha256)
        path.unlink()

    def _projector(self, part: Part, kind: ProjectorType) -> None:
        path = self.folder / f"mmproj-{kind}.gguf"
        self.notes += write_projector(part, path, kind, self.progress)
        self._add(path, "mmproj", kind)

    def _encoder(self, part: Part, kind: OnnxType) -> None:
        path = self.folder / f"vision-{kind}.onnx"
        if kind == "int8":
            with sampled_inputs(self.family, part, self.folder, self.progress) as samples:
                data = write_encoder(self.family, part, path, kind, self.progress, samples=samples)
        else:
            data = write_encoder(self.family, part, path, kind, self.progress)
        self._add(path, "vision", kind)
        if data:
            self._add(data, "data", kind)

    def seal(self) -> None:
        """Write the manifest, prove the bundle, and sync its files to disk."""
        self.checkpoint.check_unchanged()
        manifest = Manifest(
            name=self.name,
            family=self.family.name,
            architecture=self._architecture(),
            files=tuple(sorted(self.entries, key=lambda entry: entry.role != "model")),
            source=self.checkpoint.source,
            versions={package: importlib.metadata.version(package) for package in _PACKAGES},
            notes=tuple(self.notes),
            imatrix=self.imatrix,
        )
        manifest.write(self.folder)
        original = self.folder / _ORIGINAL
        if self.verify:
            try:
                self.deviation = prove_conversion(self.folder, original, self.progress)
            except ProofError as error:
                check_writable(self.folder)
                if not self.keep:
                    raise
                (self.folder / EXPECTED).unlink(missing_ok=True)
                notes = (*manifest.notes, f"not proven: {error.message}")
                manifest.model_copy(update={"notes": notes}).write(self.folder)
        original.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def _architecture(self) -> str:
        names = self.checkpoint.config.values.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else self.checkpoint.model_type

    def _add(self, path: Path, role: Role, kind: str) -> None:
        entry = FileEntry(
            name=path.name, role=role, quantization=kind, size=path.stat().st_size, sha256=sha256_of(path)
        )
        self.entries.append(entry)


def _rounds(part: Part, kind: str) -> bool:
    """Return whether writing the matrices as `kind` rounds any of them."""
    return kind != "F32" and any(weight.is_matrix and weight.tensor.dtype != kind for weight in part.weights)

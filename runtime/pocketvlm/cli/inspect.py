"""`pocketvlm inspect`: what a bundle, a GGUF or an ONNX file contains, read from the headers alone."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pocketvlm.cli.console import waiting
from pocketvlm.cli.loading import find_bundle
from pocketvlm.cli.typed_path import typed_path
from pocketvlm.errors import ModelFormatError, ModelNotFoundError
from pocketvlm.files.bundle import Bundle, FileEntry, Proof, is_bundle, other_file
from pocketvlm.files.gguf_header import GGUFHeader, LazyArray, projector_type
from pocketvlm.files.gguf_pieces import read_model_header
from pocketvlm.files.onnx_header import OnnxHeader, read_onnx
from pocketvlm.system.printable_console import PrintableConsole
from pocketvlm.system.terminal import Row, print_rows, size_text
from pocketvlm.vision.compatibility import deepstack_projectors, named_family

_GGUF = b"GGUF"
out = PrintableConsole(highlight=False, markup=False)  # a model file may hold anything, brackets too


def inspect(
    path: Annotated[Path, typer.Argument(help="Bundle, name of a pulled model, or .gguf or .onnx file.")],
    template: Annotated[bool, typer.Option(help="Print the whole chat template.")] = False,
    metadata: Annotated[bool, typer.Option(help="Print every metadata key.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare a bundle's files with their hashes.")] = True,
) -> None:
    """Show what is in a model: architecture, types, sizes, picture tokens, template, hashes."""
    path = find_bundle(typed_path(str(path)))
    if not path.exists():
        raise ModelNotFoundError("no such file or bundle", path)
    if not (is_bundle(path) or path.is_dir()):
        if path.suffix.lower() not in (".gguf", ".onnx") and (problem := other_file(path) or _other_kind(path)):
            raise ModelFormatError(problem, path)
        _show_file(path, template, metadata)
        return
    bundle = Bundle(path)
    manifest = bundle.manifest
    if verify:
        with waiting("comparing with the hashes"):
            bundle.verify()
    rows = [
        ("bundle", f"{manifest.name}  ({manifest.family}, {manifest.architecture})"),
        ("source", f"{manifest.source.name}  sha256 {manifest.source.sha256}"),
        ("made with", ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))),
    ]
    if manifest.imatrix:
        rows.append(("importance", f"{manifest.imatrix.name}  sha256 {manifest.imatrix.sha256}"))
    print_rows(out, [*rows, *(("note", note) for note in manifest.notes)])
    _show_proof(manifest.proof)
    for entry in manifest.files:
        out.print()
        _show_entry(entry, verified=verify)
        if entry.role not in ("data", "proof"):
            _show_file(path / entry.name, template, metadata)


def _other_kind(path: Path) -> str:
    """Return what to do with a picture, a PDF or a video; "" for other files."""
    from pocketvlm.messages.file_kinds import HEAD, is_pdf, video_format
    from pocketvlm.pictures.formats import is_picture

    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise ModelFormatError(f"cannot be read: {error.strerror}", path) from None
    kind = "PDF" if is_pdf(head) else "video" if video_format(head) else "picture" if is_picture(path) else None
    if kind is None or head.startswith(_GGUF):
        return ""
    return f'is a {kind}, not a model; ask about it: pocketvlm chat "What is this?" -i {shlex.quote(str(path))}'


def _show_proof(proof: Proof | None) -> None:
    """Print one line per stage of the proof: the check that failed, or the first."""
    if proof is None or not proof.runs:
        out.print("nothing was proven about this bundle; run `pocketvlm verify`", style="yellow")
    for run in proof.runs if proof else ():
        against = "transformers" if run.against == "reference" else "its original"
        used = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        out.print(f"\nproof  against {against}: {run.summary}, with {used}")
        rows = []
        for stage in dict.fromkeys(check.stage for check in run.checks):
            checks = [check for check in run.checks if check.stage == stage]
            check = next((check for check in checks if check.passed is False), checks[0])
            verdict = {True: "ok", False: "FAILED", None: "-"}[check.passed]
            rows.append((f"  {stage}", f"{verdict}  {check.measured}: {check.shown} {check.limit}".rstrip()))
        print_rows(out, rows)


def _show_entry(entry: FileEntry, *, verified: bool) -> None:
    seal = "sha256 matches" if verified else "sha256 not checked"
    out.print(f"{entry.name}  {entry.role}, {entry.quantization}, {size_text(entry.size)}, {seal}", style="bold")
    out.print(f"  sha256 {entry.sha256}", soft_wrap=True)


def _show_file(path: Path, template: bool, metadata: bool) -> None:
    if path.suffix.lower() == ".onnx":
        _show_onnx(read_onnx(path), metadata)
    else:
        _show_gguf(read_model_header(path), template, metadata)


def _show_onnx(header: OnnxHeader, metadata: bool) -> None:
    operators = ", ".join(sorted(domain or "ai.onnx" for domain in header.domains))
    rows = [("graph", f"{header.nodes} nodes, operators of {operators}, made with {header.producer or '-'}")]
    for value in (*header.inputs, *header.outputs):
        rows.append((value.name, " x ".join("any" if extent is None else f"{extent}" for extent in value.shape)))
    if header.data_files:
        rows.append(("weights in", ", ".join(path.name for path in header.data_files)))
    print_rows(out, [*rows, *_picture_rows(header.metadata, header.path)])
    if metadata:
        _print_metadata(header.metadata)


def _show_gguf(header: GGUFHeader, template: bool, metadata: bool) -> None:
    data = header.metadata
    pieces = f", in {len(header.pieces)} files" if header.pieces else ""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type_name] += tensor.n_bytes
    rows = [
        ("architecture", f"{header.architecture}, {'projector' if header.is_projector else 'language model'}"),
        ("name", str(data.get("general.name", "-"))),
        ("weights", f"{_weights(header) / 1e6:,.1f} M in {len(header.tensors)} tensors{pieces}"),
        ("types", ", ".join(f"{name} {size_text(size)}" for name, size in sizes.most_common())),
    ]
    rows += _picture_rows(data, header.path) if header.is_projector else _model_rows(header)
    print_rows(out, rows)
    source = data.get("tokenizer.chat_template")
    if source and template:
        out.print("chat template", style="bold")
        out.print(str(source))
    if metadata:
        _print_metadata(data)


def _print_metadata(data: dict[str, Any]) -> None:
    for key, value in data.items():
        shown = f"[{value.count:,} entries]" if isinstance(value, LazyArray) else repr(value)
        out.print(f"{key} = {shown[:200]}")


def _model_rows(header: GGUFHeader) -> Iterator[Row]:
    data, arch = header.metadata, header.architecture

    def value(key: str) -> Any:
        return data.get(f"{arch}.{key}", "-")

    yield (
        "layers",
        (f"{value('block_count')} of width {value('embedding_length')}, heads {value('attention.head_count')}"),
    )
    yield "context", f"{value('context_length')} tokens"
    tokens = data.get("tokenizer.ggml.tokens")
    count = tokens.count if isinstance(tokens, LazyArray) else len(tokens or ())
    kind = f"{data.get('tokenizer.ggml.model', '-')}, {data.get('tokenizer.ggml.pre', 'no')} pre-tokenizer"
    yield "vocabulary", f"{count:,} tokens ({kind})"
    source = str(data.get("tokenizer.chat_template", ""))
    pictures = "takes picture parts" if "image" in source else "text only"
    yield "chat template", f"{len(source):,} characters, {pictures}" if source else "none"


def _picture_rows(data: dict[str, Any], path: Path) -> Iterator[Row]:
    """Yield rows about a vision encoder of either format, from its metadata."""
    match = named_family(data, path)
    yield "projector", f"{projector_type(data) or '-'}, {f'family {match[0]}' if match else 'no family'}"
    size, patch = data.get("clip.vision.image_size", "-"), data.get("clip.vision.patch_size", "-")
    yield "tile", f"{size}x{size} pixels, patches of {patch}"
    more = deepstack_projectors(data)
    deepstack = f", and {more} more from earlier layers (deepstack)" if more else ""
    yield "embeddings", f"{data.get('clip.vision.projection_dim', '-')} wide{deepstack}"
    if match:
        family = match[1]
        small, photo = family.plan((64, 64), "auto", None), family.plan((4000, 3000), "auto", None)
        yield "picture tokens", f"{small.tokens} for a small picture, {photo.tokens} for a photo of 4000x3000"


def _weights(header: GGUFHeader) -> int:
    total = 0
    for tensor in header.tensors:
        count = 1
        for extent in tensor.shape:
            count *= extent
        total += count
    return total

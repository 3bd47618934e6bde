"""`pocketvlm inspect`: what a bundle, a GGUF or an ONNX file contains, read from the headers alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pocketvlm.cli.console import waiting
from pocketvlm.cli.typed_path import typed_path
from pocketvlm.errors import ModelFormatError, ModelNotFoundError
from pocketvlm.files.bundle import Bundle, FileEntry, Proof, is_bundle, other_file
from pocketvlm.files.gguf_header import GGUFHeader, LazyArray, projector_type
from pocketvlm.files.gguf_pieces import read_model_header
from pocketvlm.files.locate import bundle_path
from pocketvlm.files.onnx_header import OnnxHeader, read_onnx
from pocketvlm.vision.compatibility import deepstack_projectors, named_family

out = Console(highlight=False, markup=False)  # a model file may hold anything, brackets too


def inspect(
    path: Annotated[Path, typer.Argument(help="Bundle, name of a pulled model, or .gguf or .onnx file.")],
    template: Annotated[bool, typer.Option(help="Print the whole chat template.")] = False,
    metadata: Annotated[bool, typer.Option(help="Print every metadata key.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare a bundle's files with their hashes.")] = True,
) -> None:
    """Show what is in a model: architecture, types, sizes, picture tokens, template, hashes."""
    path = bundle_path(typed_path(str(path)))
    if not path.exists():
        raise ModelNotFoundError("no such file or bundle", path)
    if not (is_bundle(path) or path.is_dir()):
        if path.suffix.lower() not in (".gguf", ".onnx") and (problem := other_file(path)):
            raise ModelFormatError(problem, path)
        _show_file(path, template, metadata)
        return
    bundle = Bundle(path)
    manifest = bundle.manifest
    if verify:
        with waiting("comparing with the hashes"):
            bundle.verify()
    table = _rows()
    table.add_row("bundle", f"{manifest.name}  ({manifest.family}, {manifest.architecture})")
    table.add_row("source", f"{manifest.source.name}  sha256 {manifest.source.sha256}")
    table.add_row("made with", ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items())))
    if manifest.imatrix:
        table.add_row("importance", f"{manifest.imatrix.name}  sha256 {manifest.imatrix.sha256}")
    for note in manifest.notes:
        table.add_row("note", note)
    out.print(table)
    _show_proof(manifest.proof)
    for entry in manifest.files:
        out.print()
        _show_entry(entry, verified=verify)
        if entry.role not in ("data", "proof"):
            _show_file(path / entry.name, template, metadata)


def _show_proof(proof: Proof | None) -> None:
    """Print one line per stage of the proof: the check that failed, or the first."""
    if proof is None or not proof.runs:
        out.print("nothing was proven about this bundle; run `pocketvlm verify`", style="yellow")
    for run in proof.runs if proof else ():
        against = "transformers" if run.against == "reference" else "its original"
        used = ", ".join(f"{name} {version}" for name, version in run.versions.items())
        out.print(f"\nproof  against {against}: {run.summary}, with {used}")
        table = _rows()
        for stage in dict.fromkeys(check.stage for check in run.checks):
            checks = [check for check in run.checks if check.stage == stage]
            check = next((check for check in checks if check.passed is False), checks[0])
            verdict = {True: "ok", False: "FAILED", None: "-"}[check.passed]
            table.add_row(f"  {stage}", f"{verdict}  {check.measured}: {check.shown} {check.limit}".rstrip())
        out.print(table)


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
    table = _rows()
    operators = ", ".join(sorted(domain or "ai.onnx" for domain in header.domains))
    table.add_row("graph", f"{header.nodes} nodes, operators of {operators}, made with {header.producer or '-'}")
    for value in (*header.inputs, *header.outputs):
        table.add_row(value.name, " x ".join("any" if extent is None else f"{extent}" for extent in value.shape))
    if header.data_files:
        table.add_row("weights in", ", ".join(path.name for path in header.data_files))
    _picture_rows(table, header.metadata, header.path)
    out.print(table)
    if metadata:
        _print_metadata(header.metadata)


def _show_gguf(header: GGUFHeader, template: bool, metadata: bool) -> None:
    data = header.metadata
    table = _rows()
    table.add_row("architecture", f"{header.architecture}, {'projector' if header.is_projector else 'language model'}")
    table.add_row("name", str(data.get("general.name", "-")))
    pieces = f", in {len(header.pieces)} files" if header.pieces else ""
    table.add_row("weights", f"{_weights(header) / 1e6:,.1f} M in {len(header.tensors)} tensors{pieces}")
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type_name] += tensor.n_bytes
    table.add_row("types", ", ".join(f"{name} {size_text(size)}" for name, size in sizes.most_common()))
    if header.is_projector:
        _picture_rows(table, data, header.path)
    else:
        _model_rows(table, header)
    out.print(table)
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


def _model_rows(table: Table, header: GGUFHeader) -> None:
    data, arch = header.metadata, header.architecture

    def value(key: str) -> Any:
        return data.get(f"{arch}.{key}", "-")

    table.add_row(
        "layers", f"{value('block_count')} of width {value('embedding_length')}, heads {value('attention.head_count')}"
    )
    table.add_row("context", f"{value('context_length')} tokens")
    tokens = data.get("tokenizer.ggml.tokens")
    count = tokens.count if isinstance(tokens, LazyArray) else len(tokens or ())
    kind = f"{data.get('tokenizer.ggml.model', '-')}, {data.get('tokenizer.ggml.pre', 'no')} pre-tokenizer"
    table.add_row("vocabulary", f"{count:,} tokens ({kind})")
    source = str(data.get("tokenizer.chat_template", ""))
    pictures = "takes picture parts" if "image" in source else "text only"
    table.add_row("chat template", f"{len(source):,} characters, {pictures}" if source else "none")


def _picture_rows(table: Table, data: dict[str, Any], path: Path) -> None:
    """Add rows about a vision encoder of either format, from its metadata."""
    match = named_family(data, path)
    table.add_row("projector", f"{projector_type(data) or '-'}, {f'family {match[0]}' if match else 'no family'}")
    size, patch = data.get("clip.vision.image_size", "-"), data.get("clip.vision.patch_size", "-")
    table.add_row("tile", f"{size}x{size} pixels, patches of {patch}")
    more = deepstack_projectors(data)
    deepstack = f", and {more} more from earlier layers (deepstack)" if more else ""
    table.add_row("embeddings", f"{data.get('clip.vision.projection_dim', '-')} wide{deepstack}")
    if match:
        family = match[1]
        small, photo = family.plan((64, 64), "auto", None), family.plan((4000, 3000), "auto", None)
        table.add_row("picture tokens", f"{small.tokens} for a small picture, {photo.tokens} for a photo of 4000x3000")


def _weights(header: GGUFHeader) -> int:
    total = 0
    for tensor in header.tensors:
        count = 1
        for extent in tensor.shape:
            count *= extent
        total += count
    return total


def _rows() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def size_text(size: int) -> str:
    value = float(size)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"

"""ONNX: the fields of its protobuf messages by name, as onnx.proto lists them.

Values of another type than the field's are written with the wire type that fits them, so that any can be.
"""

from __future__ import annotations

import struct
from typing import Any

from fuzz.records import entries, integer, octets, whole

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def decode(data: bytes) -> dict[str, Any]:
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(data)
    return _document(model)


def encode(document: Any) -> bytes:
    import onnx

    return _message(document, onnx.ModelProto.DESCRIPTOR)


def _document(message: Any) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is None:
            document[field.name] = list(value) if _repeated(field) else value
        else:
            document[field.name] = [_document(item) for item in value] if _repeated(field) else _document(value)
    return document


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _message(document: Any, descriptor: Any) -> bytes:
    if not isinstance(document, dict):
        return octets(document)
    data = b""
    for name, value in document.items():
        field = descriptor.fields_by_name.get(name)
        if field is None:  # it was renamed
            data += _field(200, value, None)
        elif field.message_type is None and _repeated(field) and field.has_options and _packed(field):
            data += _delimited(field.number, b"".join(_scalar(item, field)[1] for item in entries(value)))
        elif _repeated(field):
            data += b"".join(_field(field.number, item, field) for item in entries(value))
        else:
            data += _field(field.number, value, field)
    return data


def _packed(field: Any) -> bool:
    return bool(field.GetOptions().packed)


def _field(tag: int, value: Any, field: Any) -> bytes:
    if field is not None and field.message_type is not None:
        return _delimited(tag, _message(value, field.message_type))
    kind, data = _scalar(value, field)
    return _delimited(tag, data) if kind == _BYTES else _varint(tag << 3 | kind) + data


def _delimited(tag: int, data: bytes) -> bytes:
    return _varint(tag << 3 | _BYTES) + _varint(len(data)) + data


def _scalar(value: Any, field: Any) -> tuple[int, bytes]:
    """Return the wire type of a value, and its bytes."""
    double = field is not None and field.type == field.TYPE_DOUBLE
    if isinstance(value, float):
        try:
            return (_FIXED64, struct.pack("<d", value)) if double else (_FIXED32, struct.pack("<f", value))
        except OverflowError:
            return _FIXED32, b"\0\0\x80\x7f"  # infinity
    if isinstance(value, int):
        return _VARINT, _varint(whole(value) % (1 << 64))
    if isinstance(value, list):
        return _BYTES, b"".join(integer(item, 1) for item in value)
    return _BYTES, octets(value)


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)

"""MPEG transport streams: packets of 188 bytes (ISO/IEC 13818-1, 2.4.3)."""

from __future__ import annotations

from typing import Any

from fuzz.records import Record, entries, fields, octets

_SIZE = 188
_HEAD = Record(">", sync=1, stream=2, flags=1)


def decode(data: bytes) -> dict[str, Any]:
    packets = [data[start : start + _SIZE] for start in range(0, len(data), _SIZE)]
    return {"packets": [{**_HEAD.unpack(packet), "data": packet[_HEAD.size :]} for packet in packets]}


def encode(document: Any) -> bytes:
    packets = map(fields, entries(fields(document).get("packets")))
    return b"".join(_HEAD.pack(packet) + octets(packet.get("data", b"")) for packet in packets)

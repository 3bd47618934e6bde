"""Types of values that JSON cannot hold, for dataclasses that pydantic encodes.

Arrays travel next to the JSON: the serialization context is a list to which their bytes are appended, the validation
context is the memory that holds all these bytes.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, SerializationInfo, ValidationInfo

if TYPE_CHECKING:  # numpy is imported with the first array
    import numpy as np
    import numpy.typing as npt


def _array_to_json(array: Any, info: SerializationInfo) -> list[int]:
    """Return the array's offset in the bytes of all arrays, and its shape."""
    import numpy as np

    blobs = cast(list[memoryview], info.context)
    offset = sum(blob.nbytes for blob in blobs)
    blobs.append(np.ascontiguousarray(array).reshape(-1).data)
    return [offset, *array.shape]


def _array_from_json(value: Any, info: ValidationInfo) -> Any:
    """Return a view of the array's bytes. Raises ValueError where they are not all there."""
    import numpy as np

    blob = cast(memoryview, info.context)
    offset, *shape = value
    end = offset + prod(shape)
    if min(value) < 0 or end > len(blob):
        raise ValueError("an array does not lie within the bytes that came with it")
    return np.frombuffer(blob[offset:end], np.uint8).reshape(shape)


def _text_to_json(text: str | Path) -> str:
    return str(text).encode("utf-8", "surrogatepass").decode("latin-1")


def _text_from_json(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "surrogatepass")


if TYPE_CHECKING:
    ByteArray = npt.NDArray[np.uint8]
else:  # of any shape; decoded arrays are read-only
    ByteArray = Annotated[Any, PlainValidator(_array_from_json), PlainSerializer(_array_to_json)]
# From the operating system: half of a surrogate pair stands for a byte that is not UTF-8.
SystemText = Annotated[str, BeforeValidator(_text_from_json), PlainSerializer(_text_to_json)]
SystemPath = Annotated[Path, BeforeValidator(_text_from_json), PlainSerializer(_text_to_json)]

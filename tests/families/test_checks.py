"""The tensors that each family states for its encoders are those of its files, and any other is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pocketvlm.errors import ModelFormatError
from pocketvlm.vision.compatibility import check_files
from pocketvlm.vision.families import check, decoders
from store import Store
from tiers import slow_but
from tiny import families

I32 = 26  # GGML_TYPE_I32


@pytest.mark.parametrize("name", slow_but(families(), "smolvlm"))
def test_tensors_of_an_encoder(name: str, store: Store) -> None:
    """Each is checked: that it is there where libmtmd counts on it, its name, its shape and its type."""
    folder = store.family_bundle(name)
    checked = check_files(*(next(folder.glob(f"{part}-*.gguf")) for part in ("model", "mmproj")), None)
    assert (checked.doubt is None) == (checked.model.architecture in decoders())
    assert checked.projector
    header = checked.projector
    for number, tensor in enumerate(header.tensors):
        longer = (*tensor.shape[:-1], tensor.shape[-1] + 1)
        for wrong in (
            replace(tensor, shape=longer),
            replace(tensor, shape=(2, *tensor.shape)),
            replace(tensor, name=f"x{tensor.name}"),
            replace(tensor, type=I32),
        ):
            with pytest.raises(ModelFormatError, match=r"tensor|rows"):
                check(
                    replace(header, tensors=(*header.tensors[:number], wrong, *header.tensors[number + 1 :])),
                    checked.model,
                )
    sections = f"{checked.model.architecture}.rope.dimension_sections"
    if sections in checked.model.metadata:
        metadata = {key: value for key, value in checked.model.metadata.items() if key != sections}
        with pytest.raises(ModelFormatError, match=r"dimension_sections is \[\]"):
            check(header, replace(checked.model, metadata=metadata))

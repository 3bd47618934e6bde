"""The file of --draw: a picture with what an answer names in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketvlm.cli.answer_report import note
from pocketvlm.cli.typed_path import typed_path
from pocketvlm.errors import RequestError

if TYPE_CHECKING:
    from pocketvlm.messages import ImageTimings, Region
    from pocketvlm.vision.family import RGB

OPTION = "--draw"
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


class Drawing:
    """Writes pictures to `path`; where there are several, to names with their numbers: out-1.png, out-2.png.

    Raises RequestError for a path that is not the name of a picture, or has no folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(typed_path(str(path)))
        if self._path.suffix.lower() not in _FORMATS:
            raise RequestError(f"{path} must end in {', '.join(_FORMATS)}", OPTION)
        if not self._path.parent.is_dir():
            raise RequestError(f"the folder {self._path.parent} does not exist", OPTION)
        if self._path.is_dir():
            raise RequestError(f"{path} is a folder; name a file", OPTION)

    def write(self, pictures: Mapping[int, RGB], regions: Sequence[Region], *, several: bool | None = None) -> None:
        """Draw regions into the pictures with these numbers. Raises RequestError where a file cannot be written.

        `several`: names have numbers, also if one picture is given; None: if several are.
        """
        named = sorted({region.image for region in regions} & pictures.keys())
        if not named:
            note("the answer names no place in a picture, so nothing is drawn")
        for number in named:
            path = self._path
            if several if several is not None else len(pictures) > 1:
                path = path.with_name(f"{path.stem}-{number + 1}{path.suffix}")
            self._write_one(path, pictures[number], [region for region in regions if region.image == number])

    def _write_one(self, path: Path, pixels: RGB, regions: Sequence[Region]) -> None:
        from PIL import Image

        from pocketvlm.regions.draw import draw_regions
        from pocketvlm.system.atomic import new_file

        drawn = Image.fromarray(draw_regions(pixels, regions))
        options: dict[str, Any] = {} if path.suffix.lower() == ".png" else {"quality": 92}
        try:
            with new_file(path) as file:
                drawn.save(file, _FORMATS[path.suffix.lower()], **options)
        except (OSError, ValueError) as error:  # WebP and JPEG have a largest size
            reason = getattr(error, "strerror", None) or error
            raise RequestError(f"{path} cannot be written: {reason}", OPTION) from None


def pictures_of(
    messages: Sequence[Mapping[str, Any]], images: Sequence[ImageTimings], regions: Sequence[Region], max_pixels: int
) -> dict[int, RGB]:
    """Return the pixels of the pictures of `messages` in which regions lie, by their numbers among `images`.

    Pages of documents and frames of videos are left out, with a note.
    """
    from pocketvlm.messages import ImagePart, ImageURLPart
    from pocketvlm.messages.field_errors import validated
    from pocketvlm.pictures.images import read_picture

    kinds: dict[str, type[ImagePart | ImageURLPart]] = {"image": ImagePart, "image_url": ImageURLPart}
    pictures: dict[int, RGB] = {}
    left_out = False
    for number in sorted({region.image for region in regions}):
        _, message, _, part = images[number].part.split(".")[:4]
        shown = messages[int(message)]["content"][int(part)]
        if (kind := kinds.get(shown["type"])) is None:
            left_out = True
            continue
        pictures[number] = read_picture(validated(kind, shown), OPTION, max_pixels=max_pixels).pixels
    if left_out:
        note("places on pages of documents and in videos are not drawn")
    return pictures

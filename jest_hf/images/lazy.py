# Copyright 2026 The jest_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Images that are decoded on first use.

`datasets` decodes an image before a function of the user sees the row, and so decodes every image for a function that
reads captions alone. A [`LazyImage`] stands in the place of the decoded image: the function may use it like one, and
where no function does, the encoded bytes reach the collator as they are.
"""

from __future__ import annotations

from typing import Any

from PIL import ExifTags, Image, ImageOps

from jest_hf.images.decoding import broken_by, open_image
from jest_hf.images.reading import LAZY, read_encoded


ORIENTATION = ExifTags.Base.Orientation


class LazyImage(Image.Image):
    """A PIL image that is decoded at the first use of it, as `datasets.Image` decodes: upright, and in its mode.

    The first use of any attribute makes the object an ordinary PIL image.

    Args:
        encoded (`dict`, path or `bytes`): As in [`~jest_hf.images.reading.read_encoded`].
        mode (`str`, *optional*): The PIL mode to convert to, such as `"L"`.

    Raises:
        BrokenImage: at the first use, if the image cannot be decoded.

    Example:

    ```python
    >>> import io
    >>> from PIL import Image
    >>> from jest_hf.images.lazy import LazyImage
    >>> from jest_hf.images.reading import encoded_of
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (4, 3)).save(file, "PNG")
    >>> image = LazyImage({"bytes": file.getvalue(), "path": None})
    >>> encoded_of(image)["bytes"] == file.getvalue()
    True
    >>> image.size, type(image).__name__, encoded_of(image) is image
    ((4, 3), 'PngImageFile', True)

    ```
    """

    def __init__(self, encoded: Any, mode: str | None = None) -> None:
        # PIL's own __init__ is left out: attributes that are not there are what `__getattr__` is called for.
        self.__dict__[LAZY] = (encoded, mode)

    @property
    def format(self) -> str | None:  # type: ignore[override]  # PIL has a class attribute, which would be found first
        """The format of the file."""
        found: str | None = self.decode().format
        return found

    def decode(self) -> Image.Image:
        """Make this object the decoded image, and return it."""
        encoded, mode = self.__dict__[LAZY]
        image: Image.Image = open_image(read_encoded(encoded))
        try:  # as in `datasets`, and unlike `decode_image`, the orientation leaves the metadata too
            if ORIENTATION in image.getexif():
                image = ImageOps.exif_transpose(image)
            if mode is not None and image.mode != mode:
                image = image.convert(mode)
        except MemoryError:
            raise
        except Exception as error:  # of damaged metadata, or a mode that PIL lacks
            raise broken_by(error) from error
        self.__class__ = type(image)  # type: ignore[assignment]  # from here on it is what PIL has made
        self.__dict__ = image.__dict__
        return self

    def __eq__(self, other: object) -> bool:  # in the base class the classes are compared before the pixels are there
        return isinstance(other, Image.Image) and bool(self.decode() == other)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return LazyImage, self.__dict__[LAZY]

    def __getattr__(self, name: str) -> Any:
        if LAZY not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.decode(), name)


__all__ = ["LazyImage"]

"""Opening image files that nobody vouches for: few formats, and no decompression bombs."""

from __future__ import annotations

import warnings
from typing import BinaryIO

from PIL import Image

from . import launch
from .errors import first_line

LIMIT_VARIABLE = "ED_DPM_MAX_PIXELS"
_LIMIT = 89_478_485  # PIL's own, at which it only warns
_LONGEST = 1000  # times the short side: training scales the short side up, and the long one with it

# What a picture's name promises. PIL knows formats whose decoder starts other programs.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF")


def open_image(file: BinaryIO) -> Image.Image:
    """The image in an open file, its pixels not yet decoded; works as ``Image.open``.

    ValueError for more pixels than ED_DPM_MAX_PIXELS (0: any number), or than a thousand squares in a row; what
    ``Image.open`` raises where the file is no image; InputError when ED_DPM_MAX_PIXELS is no whole number.
    """
    limit = launch.whole_number(LIMIT_VARIABLE, default=_LIMIT)
    Image.MAX_IMAGE_PIXELS = limit or None
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=_FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"{first_line(error)}; {LIMIT_VARIABLE} sets the limit") from error
    if max(image.size) > _LONGEST * min(image.size) and limit:
        raise ValueError(f"found {image.width}x{image.height} pixels, expected no side {_LONGEST} times the other")
    return image

"""Opening untrusted image files: few formats, no decompression bombs, 8 bits of grey or colour."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from guided_diffusion.errors import InputError, first_line
from guided_diffusion.io.reading import decoding
from guided_diffusion.system import launch

LIMIT_VARIABLE = "ED_DPM_MAX_PIXELS"
NO_IMAGE = "cannot be read as an image"
_LIMIT = 89_478_485  # PIL's own, at which it only warns
_LONGEST = 1000  # times the short side: training scales the short side up, and the long one with it

# PIL also knows formats whose decoder starts other programs.
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF")
_DEEP = ("F", "I")  # PIL's modes of 32 bits, whose range is unknown


@cache
def pixel_limit() -> int:
    """Return how many pixels an image may have, 0 for any number; read once from the environment, and set in PIL.

    InputError when ED_DPM_MAX_PIXELS is no whole number.
    """
    limit = launch.whole_number(LIMIT_VARIABLE, default=_LIMIT)
    Image.MAX_IMAGE_PIXELS = limit or None
    return limit


def open_image(file: BinaryIO) -> Image.Image:
    """Return the image in an open file, its pixels not yet decoded, as ``Image.open`` does.

    ValueError for more pixels than ED_DPM_MAX_PIXELS (0: any number), or than a thousand squares in a row, and for
    32 bits a value; what ``Image.open`` raises where the file is no image; InputError when ED_DPM_MAX_PIXELS
    is no whole number.
    """
    limit = pixel_limit()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=_FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"{first_line(error)}; {LIMIT_VARIABLE} sets the limit") from error
    if max(image.size) > _LONGEST * min(image.size) and limit:
        raise ValueError(f"found {image.width}x{image.height} pixels, expected no side {_LONGEST} times the other")
    if image.mode in _DEEP:
        raise ValueError(f"found an image of mode {image.mode}, expected 8 bits of grey or RGB")
    return image


@dataclass(frozen=True)
class Reading:
    """The conversion of pixels to 8 bits of grey or colour; the defaults are upstream's.

    bit_depth: how many of 16 bits a value uses. exif_transpose: turn the image as its EXIF orientation says. alpha: the
    background of transparent pixels, white or black; keep: the hidden colours of the transparent pixels.
    """

    bit_depth: int = 16
    exif_transpose: bool = False
    alpha: str = "keep"


def read_image(name: str, file: BinaryIO, mode: str, reading: Reading | None = None) -> Image.Image:
    """Return the first frame of an image in an open file, in 8 bits of grey (mode "L") or "RGB".

    Converted by PIL, but of 16 bits the upper 8 are taken. InputError that begins with ``name`` for an image that
    ``open_image`` refuses, or a damaged file.

    :param reading: another conversion.
    """
    reading = reading or Reading()
    with decoding(name, NO_IMAGE, InputError), open_image(file) as image:
        if reading.exif_transpose:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # PIL's conversion would clip nearly all to white
            values = np.asarray(image) >> (reading.bit_depth - 8)
            return Image.fromarray(values.clip(max=255).astype(np.uint8)).convert(mode)
        if reading.alpha != "keep" and image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, reading.alpha), image)
        return image.convert(mode)


def has_transparent_pixels(image: Image.Image) -> bool:
    """Return whether an image has transparent pixels; decodes it only where its format allows them."""
    return image.has_transparency_data and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)

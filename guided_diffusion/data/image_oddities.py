"""Counts of images that are easily misread, made before they are used: turned, dark, clipped, transparent."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image

from guided_diffusion.data.image_files import ImageFiles
from guided_diffusion.errors import InputError
from guided_diffusion.io.images import NO_IMAGE, Reading, has_transparent_pixels, open_image
from guided_diffusion.io.reading import decoding

_LOOKING = 10  # seconds; reading a header takes a fraction of a millisecond, decoding a photograph ten
_ORIENTATION = ExifTags.Base.Orientation
_WITH_ORIENTATION = {"exif", "Raw profile type exif", "XML:com.adobe.xmp"}  # where PIL finds it in a PNG file

_ODDITIES = {
    "turned": ("say in EXIF that they are to be turned, and are not", "--exif_transpose True turns them"),
    "dark": (
        "have 16 bits a value and use under a sixteenth of the range of {bits}, and so come out nearly black",
        "--bit_depth says how many bits they use, such as 12",
    ),
    "clipped": ("have values of more than {bits} bits, which come out white", "--bit_depth 16 keeps them"),
    "dark colour": (
        "have 16 bits a colour and use under a sixteenth of the range, and so come out nearly black",
        "scale the files to 8 bits",
    ),
    "deep colour": (
        "have 16 bits a colour, of which the lower 8 are dropped",
        "scale the files to 8 bits to choose otherwise",
    ),
    "transparent": (
        "have transparent pixels, of which the hidden colours are seen",
        "--alpha white or black shows that colour there",
    ),
}


class Oddities:
    """A counter of unusual images; ``describe`` returns a warning for each kind."""

    def __init__(self, reading: Reading | None = None):
        self._reading = reading or Reading()
        self._seen = 0
        self._counts: Counter[str] = Counter()

    def look(self, image: Image.Image) -> None:
        """Count an image opened by ``open_image``; it is decoded only where its header does not suffice."""
        self._seen += 1
        # PIL would decode a whole PNG file to search behind the pixels, where hardly any program writes EXIF.
        may_be_turned = image.format != "PNG" or _WITH_ORIENTATION & image.info.keys()
        if not self._reading.exif_transpose and may_be_turned and image.getexif().get(_ORIENTATION, 1) != 1:
            self._counts["turned"] += 1
        if image.mode.startswith("I;16"):
            used = int(np.asarray(image).max()).bit_length()
            self._counts["dark"] += used <= self._reading.bit_depth - 4
            self._counts["clipped"] += used > self._reading.bit_depth
        elif ";16" in str(image.tile[:1]):  # colour, of which PIL keeps the upper 8 bits
            dark = np.asarray(image.convert("RGB")).max() < 16
            self._counts["dark colour" if dark else "deep colour"] += 1
        if self._reading.alpha == "keep":
            self._counts["transparent"] += has_transparent_pixels(image)

    def describe(self, title: str, total: int | None = None) -> list[str]:
        """Return a line for each kind found, with the flag that remedies it; total: number of images if more."""
        partly = total is not None and total > self._seen
        seen = f"the {self._seen:,} images looked at (of {total:,})" if partly else f"{self._seen:,} images looked at"
        found = []
        for kind, (text, remedy) in _ODDITIES.items():
            if count := self._counts[kind]:
                found.append(f"{title}: {count:,} of {seen} {text.format(bits=self._reading.bit_depth)}; {remedy}")
        return found


def warn_of_oddities(files: ImageFiles, reading: Reading | None, warn: Callable[[str], None]) -> None:
    """Warn of unusual images among all, or among as many, spread out, as ten seconds allow; skip unreadable ones."""
    oddities, end = Oddities(reading), time.monotonic() + _LOOKING
    for index in _spread_out(len(files)):
        path = files.path(files.names[index])
        with (
            suppress(InputError),
            decoding(path, NO_IMAGE, InputError),
            files.open(path) as file,
            open_image(file) as image,
        ):
            oddities.look(image)
        if time.monotonic() > end:
            break
    for line in oddities.describe(files.title, len(files)):
        warn(line)


def _spread_out(count: int) -> Iterator[int]:
    """Yield 0 to count - 1, each once, in steps of the golden section: always about evenly spaced."""
    step = round(count * 0.618)
    while math.gcd(step, count) > 1:
        step += 1
    return (index * step % count for index in range(count))

"""A PNG grid of samples with their classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from guided_diffusion.io.atomic import write_atomically

_CAPTION_WIDTH, _CAPTION_HEIGHT = 32, 12  # pixels: the narrowest image with a caption; a caption's height


def save_grid(images: np.ndarray, path: Path, columns: int = 8, captions: Sequence[str] | None = None) -> None:
    """Write uint8 images [N, H, W, C] as one PNG, row by row; captions stand below images that are wide enough."""
    if captions is not None and images.shape[2] >= _CAPTION_WIDTH:
        images = np.concatenate([images, _caption_strips(captions, *images.shape[2:])], axis=1)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, channels), np.uint8)
    padded[:count] = images
    grid = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    grid = grid.reshape(rows * height, columns * width, channels)
    with write_atomically(path) as file:
        Image.fromarray(grid[..., 0] if channels == 1 else grid).save(file, format="PNG")


def _caption_strips(captions: Sequence[str], width: int, channels: int) -> np.ndarray:
    """Draw captions in white on black, uint8 [N, _CAPTION_HEIGHT, width, channels]; long ones are cut off."""
    strips = []
    for caption in captions:
        strip = Image.new("L", (width, _CAPTION_HEIGHT))
        text = caption.encode("latin-1", "replace").decode("latin-1")  # what every default font has
        ImageDraw.Draw(strip).text((1, 0), text, fill=255, font=ImageFont.load_default())
        strips.append(np.asarray(strip))
    return np.repeat(np.stack(strips)[..., None], channels, axis=3)

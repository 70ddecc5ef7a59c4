"""python data.py FOLDER: the parts of a book's data, 24 grey images of 8x8 pixels each."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

folder = Path(sys.argv[1])
for seed, part in enumerate(("train", "evaluator", "heldout")):
    images = np.random.default_rng(seed).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(24) % 10
    (folder / part).mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image[..., 0]).save(folder / part / f"{label}_{number:04d}.png")
    temporary = folder / f"{part}.{seed}.npz"
    np.savez(temporary, arr_0=images, arr_1=labels)
    temporary.replace(folder / f"{part}.npz")

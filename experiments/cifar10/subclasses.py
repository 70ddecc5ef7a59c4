"""Sub-classes: each class's images in clusters of a network's features.

    python experiments/cifar10/subclasses.py --clusters 5 CHECKPOINT IMAGES.npz NEW.npz

reads images and labels, and writes NEW.npz with labels label * clusters + cluster, and the folder NEW with the images
as <label>-<cluster>_<number>.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.cluster.vq import ClusterError, kmeans2

from evaluations.features.classifier import ClassifierExtractor
from experiments.image_parts import write_part
from guided_diffusion.distributed import shutdown
from guided_diffusion.errors import InputError

SEED = 0
BATCH = 100
_ROUNDS = 50  # of k-means


def sub_labels(features_ND: np.ndarray, labels_N: np.ndarray, clusters: int) -> np.ndarray:
    """int64 [N]: label * clusters + the cluster of its features, 0 to clusters - 1, found class by class (k-means++).

    InputError for a class with fewer images than clusters, or too much alike to be told apart.
    """
    found = np.empty(len(labels_N), np.int64)
    for label in np.unique(labels_N):
        own = labels_N == label
        features = features_ND[own].astype(np.float64)
        if len(np.unique(features, axis=0)) < clusters:
            raise InputError(f"class {label}: found {own.sum()} images too much alike for {clusters} clusters")
        try:
            _, cluster = kmeans2(features, clusters, _ROUNDS, minit="++", missing="raise", seed=SEED)
        except ClusterError as error:
            raise InputError(f"class {label}: {error}") from None
        found[own] = label * clusters + cluster
    return found


def names(labels: np.ndarray, clusters: int) -> Iterator[str]:
    """File names <label>-<cluster>_<number>, which sort as sub-labels do: the order in which training numbers them."""
    width = len(str(labels.max() // clusters)), len(str(clusters - 1))
    for number, label in enumerate(labels):
        yield f"{label // clusters:0{width[0]}d}-{label % clusters:0{width[1]}d}_{number:06d}"


def main() -> None:
    """Read, cluster, write. InputError for files that are missing or do not fit each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=5, help="of each class (5)")
    for argument in ("checkpoint", "images", "new"):
        parser.add_argument(argument, type=Path)
    args = parser.parse_args()
    if args.clusters < 2:
        raise InputError(f"--clusters: found {args.clusters}, expected 2 or more")
    engine = ClassifierExtractor(args.checkpoint, BATCH)
    with np.load(args.images, allow_pickle=False) as file:
        images, labels = file["arr_0"], file["arr_1"]
    engine.check(str(args.images), images.shape)
    batches = [images[begin : begin + BATCH] for begin in range(0, len(images), BATCH)]
    labels = sub_labels(engine.compute_activations(batches).pool, labels, args.clusters)
    write_part(args.new, images, labels, names(labels, args.clusters))
    sizes = np.bincount(labels)
    print(f"{args.new.absolute()}: {len(sizes)} sub-classes of {sizes.min()} to {sizes.max()} images", flush=True)


if __name__ == "__main__":
    shutdown.run_main(main)

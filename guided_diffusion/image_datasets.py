"""Upstream's image_datasets: the code is in data/datasets.py."""

from guided_diffusion.data import datasets
from guided_diffusion.data.datasets import (  # noqa: F401
    ImageDataset,
    _list_image_files_recursively,
    center_crop_arr,
    find_images,
    load_data,
    open_dataset,
    random_crop_arr,
)
from guided_diffusion.moved import forward_assignments

forward_assignments(__name__, datasets)

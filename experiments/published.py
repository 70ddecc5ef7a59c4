"""Published files that the paper's experiments need, by name: where they are and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass

from guided_diffusion.errors import InputError

INCEPTION = "classify_image_graph_def.pb"  # the evaluator's network
ECT_256 = "256x256_classifier+0.1ECT.pt"
_UPSTREAM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
# By folder: checkpoints; the evaluator's network; the evaluator's references (statistics of the whole data set and
# 10,000 images) and 50,000 samples each of the systems that the paper compares with.
_NAMES = {
    "": (
        "64x64_diffusion.pt", "64x64_classifier.pt", "128x128_diffusion.pt", "128x128_classifier.pt",
        "256x256_diffusion.pt", "256x256_classifier.pt", "256x256_diffusion_uncond.pt",
    ),
    "ref_batches/": (INCEPTION,),
    "ref_batches/imagenet/64/": (
        "VIRTUAL_imagenet64_labeled.npz", "admnet_imagenet64.npz", "iddpm_imagenet64.npz", "biggan_deep_imagenet64.npz",
    ),
    "ref_batches/imagenet/128/": (
        "VIRTUAL_imagenet128_labeled.npz", "admnet_imagenet128.npz", "admnet_guided_imagenet128.npz",
        "admnet_guided_25step_imagenet128.npz", "biggan_deep_trunc1_imagenet128.npz",
    ),
    "ref_batches/imagenet/256/": (
        "VIRTUAL_imagenet256_labeled.npz", "admnet_imagenet256.npz", "admnet_guided_imagenet256.npz",
        "admnet_guided_25step_imagenet256.npz", "biggan_deep_trunc1_imagenet256.npz",
    ),
}  # fmt: skip
_KNOWN = {  # size in bytes, sha256
    "256x256_diffusion_uncond.pt": (2_211_383_297, "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1"),
}


@dataclass(frozen=True)
class PublishedFile:
    """A file that somebody else publishes.

    :param name: its file name.
    :param url: direct address; None where there is only a form, then `instruction` says what to do.
    :param size: bytes, where known.
    :param sha256: hexadecimal digest, where known.
    """

    name: str
    url: str | None
    instruction: str | None = None
    size: int | None = None
    sha256: str | None = None


PUBLISHED = {
    name: PublishedFile(name, f"{_UPSTREAM}/{folder}{name}", None, *_KNOWN.get(name, ()))
    for folder, names in _NAMES.items()
    for name in names
} | {
    ECT_256: PublishedFile(
        ECT_256, None, "no direct address: fetch it by hand from the folder that the authors' README links to "
        "(https://github.com/ZGCTroy/ED-DPM, Download pre-trained models), then give its path as --classifier_path",
    )
}  # fmt: skip


def published(name: str) -> PublishedFile:
    """The file of that name. InputError for a name that nobody publishes."""
    if name not in PUBLISHED:
        raise InputError(f"{name}: no such published file, expected one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]

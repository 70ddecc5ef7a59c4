"""Published files that the paper's experiments need, by name: where they are and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass

from guided_diffusion.errors import InputError

_UPSTREAM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
_BATCHES = f"{_UPSTREAM}/ref_batches/imagenet"
INCEPTION = "classify_image_graph_def.pb"  # the evaluator's network


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


def _upstream_checkpoint(name: str, **known) -> PublishedFile:
    return PublishedFile(name, f"{_UPSTREAM}/{name}", **known)


def _batch(image_size: int, name: str) -> PublishedFile:
    return PublishedFile(name, f"{_BATCHES}/{image_size}/{name}")


_FILES = (
    _upstream_checkpoint("64x64_diffusion.pt"),
    _upstream_checkpoint("64x64_classifier.pt"),
    _upstream_checkpoint("128x128_diffusion.pt"),
    _upstream_checkpoint("128x128_classifier.pt"),
    _upstream_checkpoint("256x256_diffusion.pt"),
    _upstream_checkpoint("256x256_classifier.pt"),
    _upstream_checkpoint(
        "256x256_diffusion_uncond.pt",
        size=2_211_383_297,
        sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
    ),
    PublishedFile(
        "256x256_classifier+0.1ECT.pt",
        url=None,
        instruction="no direct address: fetch it by hand from the folder that the authors' README links to "
        "(https://github.com/ZGCTroy/ED-DPM, Download pre-trained models)",
    ),
    PublishedFile(INCEPTION, f"{_UPSTREAM}/ref_batches/{INCEPTION}"),
    # References of the evaluator: statistics of the whole data set and 10,000 images.
    _batch(64, "VIRTUAL_imagenet64_labeled.npz"),
    _batch(128, "VIRTUAL_imagenet128_labeled.npz"),
    _batch(256, "VIRTUAL_imagenet256_labeled.npz"),
    # 50,000 samples each, of the systems that the paper compares with.
    _batch(64, "admnet_imagenet64.npz"),
    _batch(64, "iddpm_imagenet64.npz"),
    _batch(64, "biggan_deep_imagenet64.npz"),
    _batch(128, "admnet_imagenet128.npz"),
    _batch(128, "admnet_guided_imagenet128.npz"),
    _batch(128, "admnet_guided_25step_imagenet128.npz"),
    _batch(128, "biggan_deep_trunc1_imagenet128.npz"),
    _batch(256, "admnet_imagenet256.npz"),
    _batch(256, "admnet_guided_imagenet256.npz"),
    _batch(256, "admnet_guided_25step_imagenet256.npz"),
    _batch(256, "biggan_deep_trunc1_imagenet256.npz"),
)
PUBLISHED = {file.name: file for file in _FILES}


def published(name: str) -> PublishedFile:
    """The file of that name. InputError for a name that nobody publishes."""
    if name not in PUBLISHED:
        raise InputError(f"{name}: no such published file, expected one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name]

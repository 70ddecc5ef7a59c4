"""The flags of the published checkpoints, with the number of their keys and parameters."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    builder: str  # "model", "sr" or "classifier"
    flags: dict
    keys: int
    parameters: int


COMMON = {
    "learn_sigma": True,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "attention_resolutions": "32,16,8",
    "num_res_blocks": 2,
    "use_fp16": True,
}
WIDE = COMMON | {"num_channels": 256, "num_head_channels": 64}
UPSAMPLER = COMMON | {"num_channels": 192, "class_cond": True}

PUBLISHED = {
    "64x64_diffusion": Published(
        "model",
        COMMON
        | {
            "image_size": 64,
            "class_cond": True,
            "noise_schedule": "cosine",
            "num_channels": 192,
            "num_head_channels": 64,
            "num_res_blocks": 3,
            "use_new_attention_order": True,
            "dropout": 0.1,
        },
        541,
        295_904_454,
    ),
    "128x128_diffusion": Published(
        "model",
        COMMON | {"image_size": 128, "class_cond": True, "num_channels": 256, "num_heads": 4},
        493,
        421_529_606,
    ),
    "256x256_diffusion": Published("model", WIDE | {"image_size": 256, "class_cond": True}, 567, 553_838_086),
    "256x256_diffusion_uncond": Published("model", WIDE | {"image_size": 256}, 566, 552_814_086),
    "lsun_bedroom, lsun_cat, lsun_horse": Published(
        "model", WIDE | {"image_size": 256, "dropout": 0.1}, 566, 552_814_086
    ),
    "lsun_horse_nodropout": Published("model", WIDE | {"image_size": 256, "dropout": 0.0}, 566, 552_814_086),
    "512x512_diffusion": Published(
        "model", WIDE | {"image_size": 512, "class_cond": True, "use_fp16": False}, 645, 558_997_638
    ),
    "64_256_upsampler": Published(
        "sr", UPSAMPLER | {"large_size": 256, "small_size": 64, "num_heads": 4}, 567, 311_795_910
    ),
    "128_512_upsampler": Published(
        "sr",
        UPSAMPLER
        | {"large_size": 512, "small_size": 128, "num_head_channels": 64, "attention_resolutions": "32,16"},
        537,
        308_835_270,
    ),
    "64x64_classifier": Published("classifier", {"image_size": 64, "classifier_depth": 4}, 307, 65_438_568),
    "128x128_classifier": Published("classifier", {"image_size": 128}, 221, 42_568_040),
    "256x256_classifier": Published("classifier", {"image_size": 256}, 249, 54_096_360),
    "512x512_classifier": Published("classifier", {"image_size": 512}, 281, 54_448_360),
}

"""UNet, super-resolution and encoder: outputs and gradients on the same state dict."""

from __future__ import annotations

from functools import partial

import torch

from guided_diffusion import unet
from tests.parity.compare import Case, Cases, outcome_of

CASES = Cases()
BITWISE = 0.0

# GroupNorm has 32 groups, so widths are multiples of 32; with one channel a group, the gradients of the
# biases in front of it would be nothing but round-off, so the smallest width is 64.
TINY = {
    "image_size": 8, "in_channels": 3, "model_channels": 64, "out_channels": 6, "num_res_blocks": 1,
    "attention_resolutions": (2,), "channel_mult": (1, 2),
}  # fmt: skip
TRAINED = TINY | {
    "num_classes": 4,
    "num_head_channels": 32,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
UNET_FLAGS = {
    "defaults": {},
    "class_cond": {"num_classes": 5},
    "3 output channels": {"out_channels": 3},
    "1 channel images": {"in_channels": 1, "out_channels": 1},
    "scale shift norm": {"use_scale_shift_norm": True},
    "resblock up and down": {"resblock_updown": True},
    "no conv_resample": {"conv_resample": False},
    "num_heads 4": {"num_heads": 4},
    "num_head_channels 16": {"num_head_channels": 16},
    "num_heads_upsample 2": {"num_heads": 4, "num_heads_upsample": 2},
    "num_heads_upsample with num_head_channels": {"num_head_channels": 32, "num_heads_upsample": 4},
    "new attention order": {"num_heads": 4, "use_new_attention_order": True},
    "new attention order, head channels": {"num_head_channels": 8, "use_new_attention_order": True},
    "channel_mult 1,1,2": {"channel_mult": (1, 1, 2)},
    "channel_mult 1": {"channel_mult": (1,), "attention_resolutions": ()},
    "channel_mult 2,1": {"channel_mult": (2, 1)},
    "2 blocks, attention at 1 and 2": {"num_res_blocks": 2, "attention_resolutions": [1, 2]},
    "no attention levels": {"attention_resolutions": set()},
    "dims 1": {"dims": 1},
    "dims 1, resblock up and down": {"dims": 1, "resblock_updown": True},
    "dims 3": {"dims": 3},
    "dims 3, resblock up and down": {"dims": 3, "resblock_updown": True},
    "dims 3, no conv_resample": {"dims": 3, "conv_resample": False},
    "checkpointing": {"use_checkpoint": True},
    "checkpointing, everything else": {
        "use_checkpoint": True, "num_classes": 5, "use_scale_shift_norm": True, "resblock_updown": True,
        "num_head_channels": 16, "use_new_attention_order": True,
    },
    "as the published 256 model": {
        "num_classes": 5, "use_scale_shift_norm": True, "resblock_updown": True, "num_head_channels": 16,
        "channel_mult": (1, 1, 2, 2), "attention_resolutions": (2, 4), "num_res_blocks": 2,
    },
    "as the published 64 model": {
        "num_classes": 5, "use_scale_shift_norm": True, "resblock_updown": True, "num_head_channels": 16,
        "use_new_attention_order": True, "num_res_blocks": 3, "dropout": 0.1,
    },
}  # fmt: skip
ENCODER_FLAGS = {
    "adaptive": {"pool": "adaptive"},
    "attention": {"pool": "attention", "num_head_channels": 16},
    "attention, image 16": {"pool": "attention", "num_head_channels": 64, "image_size": 16, "num_heads": 3},
    "spatial": {"pool": "spatial"},
    "spatial_v2": {"pool": "spatial_v2"},
    "adaptive, dims 1 construct only": {"pool": "adaptive", "dims": 1},
    "no conv_resample": {"pool": "adaptive", "conv_resample": False},
    "spatial, channel_mult 1,2,2": {"pool": "spatial", "channel_mult": (1, 2, 2)},
    "checkpointing": {
        "pool": "attention", "num_head_channels": 16, "use_checkpoint": True, "num_res_blocks": 2,
    },
    "as the published classifiers": {
        "pool": "attention", "num_head_channels": 32, "use_scale_shift_norm": True, "resblock_updown": True,
        "num_res_blocks": 2, "channel_mult": (1, 1, 2),
    },
    "new attention order": {
        "pool": "attention", "num_head_channels": 16, "use_new_attention_order": True,
        "use_scale_shift_norm": True,
    },
    "unknown pool": {"pool": "max"},
}  # fmt: skip


def twins(ours, theirs, seed: int = 0):
    """Give the two models the same seeded weights, loaded strictly in both directions, and return them.

    Every weight is drawn anew, because zero-initialised layers would hide everything behind them.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in theirs.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:  # biases around zero, the scales of norms around one
                parameter.copy_(noise * 0.1 + float((parameter == 1).all()))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


def value_and_gradients(model, x, *inputs, **keywords):
    """Output, input gradient and parameter gradients of a fixed random projection of the output."""
    model.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    torch.manual_seed(3)  # for dropout
    output = model(x, *inputs, **keywords)
    projection = torch.randn(output.shape, generator=torch.Generator().manual_seed(4))
    (output.float() * projection).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"output": output, "input gradient": x.grad, "parameter gradients": gradients}


def random_inputs(flags: dict, batch: int = 2):
    torch.manual_seed(1)
    dims, size = flags.get("dims", 2), flags["image_size"]
    shape = (batch, flags["in_channels"], *((size,) * dims if dims != 3 else (2, size, size)))
    return torch.randn(shape), torch.tensor([3, 871][:batch])


def compare_unet(peer, flags):
    flags = TINY | flags
    ours, theirs = twins(unet.UNetModel(**flags), peer.unet.UNetModel(**flags))
    x, t = random_inputs(flags)
    keywords = {"y": torch.tensor([4, 1])} if "num_classes" in flags else {}
    yield "state dict", shapes(ours), shapes(theirs)
    yield "train mode", *(value_and_gradients(model, x, t, **keywords) for model in (ours, theirs))
    fractional = t.float() * 0.25
    with torch.no_grad():
        yield "eval mode", *(model.eval()(x, fractional, **keywords) for model in (ours, theirs))


def compare_super_resolution(peer, flags):
    flags = TINY | flags
    ours, theirs = twins(unet.SuperResModel(**flags), peer.unet.SuperResModel(**flags))
    x, t = random_inputs(flags)
    low_res = torch.randn(2, flags["in_channels"], 4, 4)
    keywords = {"y": torch.tensor([4, 1])} if "num_classes" in flags else {}
    yield "state dict", shapes(ours), shapes(theirs)
    yield "train mode", *(value_and_gradients(m, x, t, low_res=low_res, **keywords) for m in (ours, theirs))
    with torch.no_grad():
        yield "eval mode, positional", *(m.eval()(x, t, low_res[..., :3], **keywords) for m in (ours, theirs))


def compare_encoder(peer, flags):
    flags = TINY | {"out_channels": 7} | flags
    if flags["pool"] == "max":
        yield "refused", *(outcome_of(m.EncoderUNetModel, **flags) for m in (unet, peer.unet))
        return
    ours, theirs = twins(unet.EncoderUNetModel(**flags), peer.unet.EncoderUNetModel(**flags))
    x, t = random_inputs(flags)
    yield "state dict", shapes(ours), shapes(theirs)
    if flags.get("dims", 2) == 2:
        yield "train mode", *(value_and_gradients(model, x, t) for model in (ours, theirs))


def shapes(model) -> list:
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


for name, flags in UNET_FLAGS.items():
    CASES.append(Case(f"UNetModel, {name}", partial(compare_unet, flags=flags)))
for name in ("defaults", "class_cond", "as the published 64 model", "checkpointing"):
    CASES.append(Case(f"SuperResModel, {name}", partial(compare_super_resolution, flags=UNET_FLAGS[name])))
for name, flags in ENCODER_FLAGS.items():
    CASES.append(Case(f"EncoderUNetModel, {name}", partial(compare_encoder, flags=flags)))


@CASES.add("models refuse a label that does not fit the flags", BITWISE)
def label_mismatch(peer):
    x, t = random_inputs(TINY)
    for classes, y in ((5, None), (None, torch.tensor([0, 1]))):
        sides = (outcome_of(m.UNetModel(**TINY, num_classes=classes), x, t, y) for m in (unet, peer.unet))
        yield f"num_classes {classes}", *sides


@CASES.add("half precision: dtype of every parameter, there and back", BITWISE)
def half_precision_dtypes(peer):
    published = TINY | UNET_FLAGS["as the published 256 model"]
    makers = {
        "UNetModel": partial(dict, published, use_fp16=True),
        "SuperResModel": partial(dict, published, use_fp16=True),
        **{"EncoderUNetModel": partial(dict, TINY, use_fp16=True, pool="attention", num_head_channels=16)},
    }
    for name, make_flags in makers.items():
        flags = make_flags()
        for method in ("convert_to_fp16", "convert_to_fp32"):
            sides = []
            for module in (unet, peer.unet):
                model = getattr(module, name)(**flags)
                model.convert_to_fp16()
                getattr(model, method)()
                sides.append({key: str(value.dtype) for key, value in model.state_dict().items()})
                sides[-1]["model.dtype"] = str(model.dtype)
            yield f"{name} after {method}", *sides


@CASES.add("half precision: UNetModel and EncoderUNetModel output", required=5e-3)
def half_precision_output(peer):
    """Each implementation rounds in its own places; ours must be no further from float32 than upstream."""
    published = TINY | UNET_FLAGS["as the published 256 model"]
    settings = [("UNetModel", published, {"y": torch.tensor([4, 1])})]
    for pool in ("attention", "adaptive", "spatial", "spatial_v2"):
        settings.append(("EncoderUNetModel", TINY | {"pool": pool, "num_head_channels": 16}, {}))
    for name, flags, labels in settings:
        full, *halves = (
            getattr(module, name)(**flags, use_fp16=fp16)
            for module, fp16 in ((peer.unet, False), (unet, True), (peer.unet, True))
        )
        twins(*halves)
        full.load_state_dict(halves[1].state_dict())
        x, t = random_inputs(flags)
        for half in halves:
            half.convert_to_fp16()
        with torch.no_grad():
            exact, ours, theirs = (model.eval()(x, t, **labels) for model in (full, *halves))
        label = f"{name}, {flags.get('pool', '')}"
        yield label, ours, theirs
        yield f"{label}: as exact", bool((ours - exact).norm() <= 1.5 * (theirs - exact).norm()), True

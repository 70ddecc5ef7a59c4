"""Whole sampling loops, seeded before each implementation so that the noise is identical."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch

from guided_diffusion import unet
from tests.parity.cases_diffusion import SHAPE, VARIANCES, ToyGuide, ToyModel, both, make, model_for
from tests.parity.cases_models import TINY, UNET_FLAGS, twins
from tests.parity.compare import Case, Cases
from tests.parity.sides import Ours

CASES = Cases()
BITWISE = 0.0
RESPACINGS = (None, "ddim5", "10", "5,3")
LABELS = {"y": torch.tensor([1, 2, 3])}


def compare_loop(peer, loop, **options):
    """One loop under every variance type, clipping, respacing and rescaling."""
    guided = options.pop("guided", False)
    for variance, clip, respacing, rescale in product(VARIANCES, (True, False), RESPACINGS, (False, True)):
        model, guide = model_for(variance), ToyGuide() if guided else None

        def call(d, model=model, clip=clip, guide=guide):
            keywords = dict(clip_denoised=clip, cond_fn=guide, model_kwargs=dict(LABELS), **options)
            return getattr(d, loop)(model, SHAPE, **keywords)

        label = f"{variance}, clip {clip}, respacing {respacing}, rescale {rescale}"
        settings = {"variance": variance, "respacing": respacing, "rescale": rescale, "steps": 20}
        yield label, *both(peer, call, **settings)


for guided in (False, True):
    suffix = ", guided" if guided else ""
    CASES.append(Case(f"p_sample_loop{suffix}", partial(compare_loop, loop="p_sample_loop", guided=guided)))
    for eta in (0.0, 0.6, 1.0):
        CASES.append(
            Case(
                f"ddim_sample_loop, eta {eta}{suffix}",
                partial(compare_loop, loop="ddim_sample_loop", eta=eta, guided=guided),
            )
        )


@CASES.add("progressive loops: every yielded dict")
def progressive(peer):
    for name, guided, respacing in product(("p", "ddim"), (False, True), (None, "ddim5")):

        def call(d, name=name, guided=guided):
            loop = getattr(d, f"{name}_sample_loop_progressive")
            guide = ToyGuide() if guided else None
            return list(loop(ToyModel(3), SHAPE, cond_fn=guide, model_kwargs=dict(LABELS)))

        ours, theirs = both(peer, call, respacing=respacing, steps=20)
        if guided and name == "ddim" and peer.is_fork:  # the fork returns the unguided x_0
            for out in (*ours, *theirs):
                del out["pred_xstart"]
        yield f"{name}, guided {guided}, respacing {respacing}", ours, theirs


@CASES.add("loops with noise, device, progress and denoised_fn given")
def loop_options(peer):
    for name in ("p_sample_loop", "ddim_sample_loop"):

        def call(d, name=name):
            loop = getattr(d, name)
            noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
            return {
                "noise": loop(ToyModel(3), SHAPE, noise=noise),
                "positional": loop(ToyModel(3), SHAPE, noise, False, lambda x: 0.5 * x),
                "device": loop(lambda x, t: 0.1 * x, list(SHAPE), device=torch.device("cpu")),
                "progress": loop(ToyModel(3), SHAPE, progress=True),
                "random numbers afterwards": torch.rand(4),
            }

        yield name, *both(peer, call, steps=8)


@CASES.add("random numbers are drawn in the same places", BITWISE)
def random_order(peer):
    """A model and a cond_fn that draw random numbers get the same ones from both implementations."""
    for name, eta in (
        ("p_sample_loop", {}),
        ("ddim_sample_loop", {"eta": 0.0}),
        ("ddim_sample_loop", {"eta": 0.5}),
    ):

        def call(d, name=name, eta=eta):
            draws = []

            def model(x, t, y):
                draws.append(torch.rand(2))
                return 0.1 * x

            def guide(x, t, y):
                draws.append(torch.rand(2))
                return 0.1 * x

            getattr(d, name)(model, SHAPE, cond_fn=guide, model_kwargs=dict(LABELS), device="cpu", **eta)
            return [*draws, torch.rand(2)]

        yield f"{name} {eta}", *both(peer, call, steps=6)


@CASES.add("ddim_reverse_sample: encode a batch, then decode it")
def round_trip(peer):
    for respacing in RESPACINGS:

        def call(d):
            model = ToyModel(3)
            x = torch.randn(SHAPE)
            with torch.no_grad():
                for i in range(d.num_timesteps):
                    x = d.ddim_reverse_sample(model, x, torch.tensor([i] * 3))["sample"]
                return {"code": x, "decoded": d.ddim_sample_loop(model, SHAPE, noise=x)}

        yield f"respacing {respacing}", *both(peer, call, respacing=respacing, steps=20)


@CASES.add("the real networks: UNet guided by an encoder's gradient, DDPM and DDIM")
def real_networks(peer):
    """Each implementation runs its own UNet, classifier and process."""
    unet_flags = TINY | UNET_FLAGS["as the published 256 model"]
    pool_flags = TINY | {"out_channels": 5, "pool": "attention", "num_head_channels": 16}
    models = twins(unet.UNetModel(**unet_flags), peer.unet.UNetModel(**unet_flags))
    classifiers = twins(unet.EncoderUNetModel(**pool_flags), peer.unet.EncoderUNetModel(**pool_flags))
    labels = torch.tensor([4, 1])
    for loop, respacing in (("p_sample_loop", "6"), ("ddim_sample_loop", "ddim5")):
        sides = []
        for side, model, classifier in zip((Ours, peer), models, classifiers, strict=True):

            def guide(x, t, y, classifier=classifier):
                with torch.enable_grad():
                    x = x.detach().requires_grad_()
                    log_p = classifier(x, t).log_softmax(dim=-1)[range(len(y)), y]
                    return torch.autograd.grad(log_p.sum(), x)[0] * 5.0

            diffusion = make(side, variance="LEARNED_RANGE", respacing=respacing, steps=1000)
            torch.manual_seed(0)
            sample = getattr(diffusion, loop)(
                model.eval(), (2, 3, 8, 8), cond_fn=guide, model_kwargs={"y": labels}
            )
            sides.append(sample)
        yield loop, *sides

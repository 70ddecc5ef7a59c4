"""GaussianDiffusion and SpacedDiffusion: q(.), p(.), single steps, guidance, losses and likelihoods."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch

from guided_diffusion import gaussian_diffusion
from tests.parity.compare import Case, Cases, outcome_of
from tests.parity.sides import Ours

CASES = Cases()
BITWISE = 0.0

SHAPE = (3, 3, 8, 8)
MEANS = ("PREVIOUS_X", "START_X", "EPSILON")
VARIANCES = ("LEARNED", "FIXED_SMALL", "FIXED_LARGE", "LEARNED_RANGE")
LOSSES = ("MSE", "RESCALED_MSE", "KL", "RESCALED_KL")
RESPACINGS = (None, "ddim5", "10", "5,3")
STEPS = 40


class ToyModel(torch.nn.Module):
    """A smooth function of x, t and (optionally) y with a given number of output channels.

    Both sides call the very same object, so every difference comes from the diffusion code.
    """

    def __init__(self, out_channels: int):
        super().__init__()
        torch.manual_seed(11)
        self.conv = torch.nn.Conv2d(3, out_channels, 3, padding=1)
        self.label = torch.nn.Parameter(torch.randn(10) * 0.1)
        self.seen: list[tuple[str, list]] = []  # what the callee was given as timesteps

    def forward(self, x, t, y=None):
        self.seen.append((str(t.dtype), t.tolist()))
        out = self.conv(x) + torch.sin(t.float() * 0.01)[:, None, None, None]
        # Beyond [-1, 1], so that clipping and unclamped variances show.
        return 1.5 * torch.tanh(2 * (out if y is None else out + self.label[y][:, None, None, None]))


class ToyGuide:
    """A cond_fn that depends on x, t and y."""

    def __init__(self):
        self.seen: list[tuple[str, list]] = []

    def __call__(self, x, t, y=None):
        self.seen.append((str(t.dtype), t.tolist()))
        return 0.3 * torch.cos(
            3 * x + 0.001 * t.float()[:, None, None, None] + y.float()[:, None, None, None]
        )


def make(
    side, mean="EPSILON", variance="FIXED_LARGE", loss="MSE", rescale=False, respacing=None, steps=STEPS
):
    """The same process of one implementation: `side` has the modules gaussian_diffusion and respace.

    respacing None is a plain GaussianDiffusion, otherwise a SpacedDiffusion.
    """
    module = side.gaussian_diffusion
    arguments = {
        "betas": module.get_named_beta_schedule("cosine", steps),
        "model_mean_type": module.ModelMeanType[mean],
        "model_var_type": module.ModelVarType[variance],
        "loss_type": module.LossType[loss],
        "rescale_timesteps": rescale,
    }
    if respacing is None:
        return module.GaussianDiffusion(**arguments)
    return side.respace.SpacedDiffusion(side.respace.space_timesteps(steps, respacing), **arguments)


def batch(diffusion):
    """x_start, a second image and timesteps that include both ends."""
    torch.manual_seed(5)
    x_start, other = torch.randn(2, *SHAPE).clamp(-1.2, 1.2).unbind()
    return x_start, other, torch.tensor([0, 1, diffusion.num_timesteps - 1])


def model_for(variance: str) -> ToyModel:
    return ToyModel(6 if variance.startswith("LEARNED") else 3)


def both(peer, call, **settings):
    """`call(diffusion)` of both implementations, with the same seed before each."""
    results = []
    for side in (Ours, peer):
        diffusion = make(side, **settings)
        torch.manual_seed(7)
        results.append(call(diffusion))
    return results


@CASES.add("q_sample, q_mean_variance, q_posterior_mean_variance")
def forward_process(peer):
    for respacing in RESPACINGS:

        def call(d):
            x_start, other, t = batch(d)
            return {
                "q_sample": d.q_sample(x_start, t),
                "q_sample, noise given": d.q_sample(x_start, t, noise=other),
                "q_mean_variance": d.q_mean_variance(x_start, t),
                "q_posterior_mean_variance": d.q_posterior_mean_variance(x_start, other, t),
                "q_posterior_mean_variance, keywords": d.q_posterior_mean_variance(
                    x_start=other, x_t=x_start, t=t
                ),
            }

        yield f"respacing {respacing}", *both(peer, call, respacing=respacing)


@CASES.add("private helpers: predictions, scaled timesteps, prior, _extract_into_tensor")
def private_helpers(peer):
    for respacing, rescale in product(RESPACINGS, (False, True)):

        def call(d):
            x_start, other, t = batch(d)
            return {
                "xstart from eps": d._predict_xstart_from_eps(x_t=x_start, t=t, eps=other),
                "xstart from xprev": d._predict_xstart_from_xprev(x_t=x_start, t=t, xprev=other),
                "eps from xstart": d._predict_eps_from_xstart(x_start, t, other),
                "timesteps": d._scale_timesteps(t),
                "prior": d._prior_bpd(x_start),
            }

        yield f"{respacing}, rescale {rescale}", *both(peer, call, respacing=respacing, rescale=rescale)
    table = make(Ours).posterior_variance
    t = torch.tensor([0, 5, 39])
    for shape in ((3,), (3, 4), SHAPE):
        ours = gaussian_diffusion._extract_into_tensor(table, t, shape)
        yield f"table to {shape}", ours, peer.gaussian_diffusion._extract_into_tensor(table, t, shape)


def compare_p_mean_variance(peer, mean):
    functions = {"none": None, "halved": lambda x: 0.5 * x + 0.9}
    for variance, clip, function, respacing in product(VARIANCES, (True, False), functions, (None, "5,3")):
        model = model_for(variance)

        def call(d, model=model, clip=clip, function=function):
            x, _, t = batch(d)
            with torch.no_grad():
                return d.p_mean_variance(
                    model, x, t, clip_denoised=clip, denoised_fn=functions[function],
                    model_kwargs={"y": torch.tensor([1, 2, 3])},
                )  # fmt: skip

        label = f"{variance}, clip {clip}, denoised_fn {function}, respacing {respacing}"
        yield label, *both(peer, call, mean=mean, variance=variance, respacing=respacing)


def compare_single_steps(peer, mean):
    for variance, clip, guided, respacing in product(
        VARIANCES, (True, False), (False, True), (None, "ddim5", "10")
    ):
        model = model_for(variance)
        options = {"clip_denoised": clip, "model_kwargs": {"y": torch.tensor([1, 2, 3])}}
        guide = ToyGuide() if guided else None

        def call(d, model=model, options=options, guide=guide):
            x, _, t = batch(d)
            with torch.no_grad():
                out = {
                    "p_sample": d.p_sample(model, x, t, cond_fn=guide, **options),
                    "ddim_sample": d.ddim_sample(model, x, t, cond_fn=guide, **options),
                    "ddim_sample, eta 0.7": d.ddim_sample(model, x, t, cond_fn=guide, eta=0.7, **options),
                    "ddim_reverse_sample": d.ddim_reverse_sample(model, x, t, **options),
                }
                if guide:
                    p = d.p_mean_variance(model, x, t, **options)
                    kwargs = options["model_kwargs"]
                    out["condition_mean"] = d.condition_mean(guide, p, x, t, model_kwargs=kwargs)
                    out["condition_score"] = d.condition_score(guide, p, x, t, model_kwargs=kwargs)
            return out

        ours, theirs = both(peer, call, mean=mean, variance=variance, respacing=respacing)
        if guided and peer.is_fork:  # the fork returns the unguided x_0 from ddim_sample
            for side, name in product((ours, theirs), ("ddim_sample", "ddim_sample, eta 0.7")):
                del side[name]["pred_xstart"]
        yield f"{variance}, clip {clip}, guided {guided}, respacing {respacing}", ours, theirs


def compare_losses(peer, loss):
    for mean, variance, respacing, rescale in product(MEANS, VARIANCES, (None, "5,3"), (False, True)):
        model = model_for(variance)

        def call(d, model=model):
            x_start, noise, t = batch(d)
            out = {}
            for name, options in {
                "own noise": {},
                "noise and label given": {"noise": noise, "model_kwargs": {"y": torch.tensor([1, 2, 3])}},
            }.items():
                model.zero_grad()
                terms = d.training_losses(model, x_start, t, **options)
                terms["loss"].mean().backward()
                out[name] = dict(sorted(terms.items()))
                out[f"gradient, {name}"] = model.conv.weight.grad.clone()
            return out

        label = f"{mean}, {variance}, respacing {respacing}, rescale {rescale}"
        settings = {
            "mean": mean,
            "variance": variance,
            "loss": loss,
            "respacing": respacing,
            "rescale": rescale,
        }
        yield label, *both(peer, call, **settings)


for name in MEANS:
    CASES.append(Case(f"p_mean_variance, mean type {name}", partial(compare_p_mean_variance, mean=name)))
for name in MEANS:
    CASES.append(
        Case(f"single steps and guidance, mean type {name}", partial(compare_single_steps, mean=name))
    )
for name in LOSSES:
    CASES.append(Case(f"training_losses and gradients, {name}", partial(compare_losses, loss=name)))


@CASES.add("_vb_terms_bpd and calc_bpd_loop")
def likelihoods(peer):
    for mean, variance, respacing, clip in product(
        ("START_X", "EPSILON"), VARIANCES, (None, "5,3"), (True, False)
    ):
        model = model_for(variance)

        def call(d, model=model, clip=clip):
            x_start, x_t, t = batch(d)
            options = {"clip_denoised": clip, "model_kwargs": {"y": torch.tensor([1, 2, 3])}}
            with torch.no_grad():
                return {
                    "_vb_terms_bpd": d._vb_terms_bpd(model, x_start, x_t, t, **options),
                    "calc_bpd_loop": dict(sorted(d.calc_bpd_loop(model, x_start, **options).items())),
                }

        label = f"{mean}, {variance}, respacing {respacing}, clip {clip}"
        yield label, *both(peer, call, mean=mean, variance=variance, respacing=respacing, steps=12)


@CASES.add("timesteps as the model and the guide see them: values and dtype", BITWISE)
def seen_timesteps(peer):
    for respacing, rescale in product(RESPACINGS, (False, True)):

        def call(d):
            model, guide = ToyModel(3), ToyGuide()
            x, other, t = batch(d)
            kwargs = {"y": torch.tensor([1, 2, 3])}
            with torch.no_grad():
                d.p_sample(model, x, t, cond_fn=guide, model_kwargs=kwargs)
                d.ddim_sample(model, x, t, cond_fn=guide, model_kwargs=kwargs)
                d.training_losses(model, x, t, model_kwargs=kwargs)
                d.calc_bpd_loop(model, x, model_kwargs=kwargs)
            return [model.seen, guide.seen]

        yield f"{respacing}, rescale {rescale}", *both(peer, call, respacing=respacing, rescale=rescale)


@CASES.add("_WrappedModel: built directly, and wrapped only once", BITWISE)
def wrapped_model(peer):
    for rescale in (False, True):
        sides = []
        for side in (Ours, peer):
            model = ToyModel(3)
            wrapped = side.respace._WrappedModel(model, [0, 4, 9], rescale, 10)
            x, t = torch.zeros(2, 3, 8, 8), torch.tensor([2, 1])
            wrapped(x, t, y=torch.tensor([0, 1]))
            diffusion = make(side, respacing="10", rescale=rescale)
            diffusion.p_mean_variance(wrapped, x, t)
            sides.append(model.seen)
        yield f"rescale {rescale}", *sides


@CASES.add("what the methods refuse", BITWISE)
def refusals(peer):
    """Wrong shapes and eta > 0 in ddim_reverse_sample raise in both (each its own type)."""

    def call(d):
        x, other, t = batch(d)
        model = ToyModel(3)
        attempts = (
            lambda: d.q_sample(x, t, noise=other[:, :1]),
            lambda: d.q_posterior_mean_variance(x, other[:, :1], t),
            lambda: d.ddim_reverse_sample(model, x, t, eta=0.5),
            lambda: d.p_mean_variance(ToyModel(6), x, t),
            lambda: d.p_mean_variance(model, x, t[:2]),
            lambda: d.p_sample_loop(model, 3),
        )
        return [outcome_of(attempt) for attempt in attempts]

    yield "refused", *both(peer, call)

"""fp16_util: master parameters and the mixed-precision trainer."""

from __future__ import annotations

import tempfile
from functools import partial

import torch

from guided_diffusion import fp16_util, unet
from tests.parity.cases_models import TRAINED, twins
from tests.parity.compare import Case, Cases
from tests.parity.sides import Ours, quiet_log

CASES = Cases()
BITWISE = 0.0


class ToyNet(torch.nn.Module):
    """Scalars, vectors and matrices to be trained, with the two methods the trainer calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.first = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.GroupNorm(2, 4)
        self.second = torch.nn.Conv2d(4, 2, 1, bias=False)
        self.mix = torch.nn.Parameter(torch.randn(2, 2))  # stays in float32

    def forward(self, x):
        h = self.first(x.type(self.first.weight.dtype)).float() * self.scale
        h = self.second(self.norm(h).type(self.second.weight.dtype)).float()
        return torch.einsum("bchw,cd->bdhw", h, self.mix)

    def convert(self, function):
        self.first.apply(function)
        self.second.apply(function)


@CASES.add("fp16_util: groups, master parameters, gradients, state dicts", BITWISE)
def master_parameters(peer):
    sides = []
    for side in (fp16_util, peer.fp16_util):
        model = ToyNet()
        model.convert(side.convert_module_to_f16)
        groups = side.get_param_groups_and_shapes(model.named_parameters())
        masters = side.make_master_params(groups)
        x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
        model(x).square().mean().backward()
        model.norm.bias.grad = None
        side.model_grads_to_master_grads(groups, masters)
        found = {
            "groups": [[name for name, _ in group] + [shape] for group, shape in groups],
            "masters": [m.detach().clone() for m in masters],
            "are parameters": [(type(m).__name__, m.requires_grad) for m in masters],
            "gradients": [m.grad.clone() for m in masters],
            "missing gradient": side.param_grad_or_zeros(model.norm.bias),
            "overflow": [
                bool(side.check_overflow(v)) for v in (1.0, float("inf"), float("-inf"), float("nan"))
            ],
        }
        with torch.no_grad():
            for master in masters:
                master.mul_(1.0009765625)
        found["unflattened"] = [
            list(side.unflatten_master_params(g, m.view(-1)))
            for (g, _), m in zip(groups, masters, strict=True)
        ]
        side.master_params_to_model_params(groups, masters)
        found["model"] = {name: p.detach().clone() for name, p in model.named_parameters()}
        for fp16, given in ((True, masters), (False, list(model.parameters()))):
            state = side.master_params_to_state_dict(model, groups, given, fp16)
            found[f"state dict, fp16 {fp16}"] = dict(state)
            back = side.state_dict_to_master_params(model, state, fp16)
            found[f"and back, fp16 {fp16}"] = list(back)
        side.zero_master_grads(masters)
        side.zero_grad(model.parameters())
        found["zeroed"] = [m.grad is None for m in masters] + [
            p.grad for p in model.parameters() if p.grad is not None
        ]
        sides.append(found)
    yield "fp16_util", *sides


def compare_trainer(peer, fp16: bool):
    """Five steps of a real model; in half precision the first two overflow on purpose.

    The half-precision run takes plain gradient steps and compares the whole change of every weight: Adam
    would turn the round-off of half-precision gradients near zero into steps of full size. Either side
    rounds in its own places (eps is 1e-3) in every layer, forward and backward: 0.5 % are seen, 1 % allowed.
    """
    flags = TRAINED | {"num_classes": None, "use_fp16": fp16}
    models = twins(unet.UNetModel(**flags), peer.unet.UNetModel(**flags))
    sides = []
    for side, model in zip((Ours, peer), models, strict=True):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer = side.fp16_util.MixedPrecisionTrainer(
            model=model, use_fp16=fp16, fp16_scale_growth=0.25, initial_lg_loss_scale=10.0
        )
        optimizer = (
            torch.optim.SGD(trainer.master_params, lr=0.1)
            if fp16
            else torch.optim.AdamW(trainer.master_params, lr=1e-3, weight_decay=0.1)
        )
        generator = torch.Generator().manual_seed(0)
        seen = []
        with tempfile.TemporaryDirectory() as folder, quiet_log(side, folder):
            for step in range(5):
                trainer.zero_grad()
                x = torch.randn(2, 3, 8, 8, generator=generator)
                loss = model(x, torch.tensor([1, 700])).square().mean()
                trainer.backward(loss * (float("inf") if fp16 and step < 2 else 1.0))
                took_step = trainer.optimize(optimizer)
                logged = {key: float(value) for key, value in side.logger.getkvs().items()}
                if fp16 and step < 2:  # nothing but the scale is defined on a skipped step
                    logged = {"lg_loss_scale": logged["lg_loss_scale"]}
                seen.append([bool(took_step), float(trainer.lg_loss_scale), logged])
                side.logger.dumpkvs()
        state = trainer.master_params_to_state_dict(trainer.master_params)
        sides.append(
            {
                "log": seen,
                "change": {name: state[name].detach() - value for name, value in before.items()},
                "saved dtypes": {name: str(value.dtype) for name, value in state.items()},
                "model dtypes": [str(p.dtype) for p in model.parameters()],
                "master shapes": [tuple(p.shape) for p in trainer.master_params],
                "and back": [tuple(p.shape) for p in trainer.state_dict_to_master_params(state)],
            }
        )
    yield "trainer", *sides


CASES.append(Case("MixedPrecisionTrainer in float32, five steps", partial(compare_trainer, fp16=False)))
CASES.append(
    Case("MixedPrecisionTrainer in half precision, five steps", partial(compare_trainer, fp16=True), 1e-2)
)

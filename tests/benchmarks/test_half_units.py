"""benchmarks.half_units: products of half-precision numbers against float64, forward and backward."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import half_units
from benchmarks.half_units import HalfUnits

# Half of the distance of 1 from the next number.
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-11}


def products(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A convolution, its gradient, and a matrix product, of numbers that are in x's dtype already."""
    x = x.detach().requires_grad_(True)
    out = F.conv2d(x, weight, padding=1)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out))
    return out.detach(), gradient, x.detach().flatten(1) @ x.detach().flatten(1).T


@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_product_is_the_exact_one_rounded_once(dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, 8, 8).to(dtype), torch.randn(32, 16, 3, 3).to(dtype)
    exact = products(x.double(), weight.double())
    with HalfUnits():
        found = products(x, weight)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype and one.shape == other.shape
        bound = 1.01 * ROUNDING[dtype] * other.abs() + 1e-5 * other.abs().max()  # the sum itself is in float32
        assert ((one.double() - other).abs() <= bound).all()


def test_other_numbers_are_left_alone():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, 8, 8), torch.randn(32, 16, 3, 3)
    with HalfUnits():
        found = products(x, weight)
    assert all(torch.equal(*pair) for pair in zip(found, products(x, weight), strict=True))


def test_a_network_under_autocast():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(288, 5)), torch.randn(4, 3, 8, 8)
    with HalfUnits(), torch.autocast("cpu", torch.bfloat16):
        found = network(x)
    assert found.dtype == torch.bfloat16
    assert 0 < (found - network(x)).abs().max() < 0.02


def test_a_program_is_run_with_its_flags(monkeypatch, tmp_path, capsys):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch\nprint(__name__, sys.argv[1:], torch.ones(1, 2).bfloat16().mm(torch.ones(2, 1).bfloat16()))"
    )
    monkeypatch.setattr(sys, "argv", ["half_units", str(program), "--flag", "1"])
    half_units.main()
    assert capsys.readouterr().out == "__main__ ['--flag', '1'] tensor([[2.]], dtype=torch.bfloat16)\n"
    monkeypatch.setattr(sys, "argv", ["half_units", "nowhere.py"])
    with pytest.raises(SystemExit):
        half_units.main()
    assert "nowhere.py: no such file, expected a program" in capsys.readouterr().err


def test_auto_takes_what_the_units_compute(monkeypatch, tmp_path, capsys):
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\nfrom guided_diffusion.models.mixed_precision import fastest_amp\n"
        "print(fastest_amp(torch.device('cpu')))"
    )
    monkeypatch.setattr(sys, "argv", ["half_units", str(program)])
    half_units.main()
    assert capsys.readouterr().out == "bf16\n"

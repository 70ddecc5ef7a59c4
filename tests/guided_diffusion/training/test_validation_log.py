"""Values of validation that are no means: the calibration error."""

from __future__ import annotations

import pytest
import torch

from guided_diffusion import logger
from guided_diffusion.training.validation_log import ValidationLog, calibration_error


def values(*pairs: tuple[float, float]) -> dict[str, torch.Tensor]:
    return dict(zip(("confidence", "acc@1"), torch.tensor(pairs).T, strict=True))


def test_calibration_error():
    assert calibration_error(values((1.0, 1.0), (1.0, 1.0))) == 0
    assert calibration_error(values((0.9, 1.0), (0.9, 0.0))) == pytest.approx(0.4)
    # Within a bin the differences cancel (0.61 and 0.65 are in one of 15), between bins they add.
    assert calibration_error(values((0.61, 1.0), (0.65, 0.0))) == pytest.approx(0.13)
    assert calibration_error(values((0.3, 1.0), (0.9, 0.0))) == pytest.approx(0.8)

    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=generator)
    hits = (torch.rand(200_000, generator=generator) < confidence**2).float()
    # The integral of p - p^2 over 0 to 1.
    assert calibration_error({"confidence": confidence, "acc@1": hits}) == pytest.approx(1 / 6, abs=0.005)


def test_quartiles_since_the_last_entry(tmp_path):
    log = ValidationLog({"ece": calibration_error, "never": lambda found: float("nan")}, num_timesteps=20)
    with logger.scoped_configure(dir=tmp_path, format_strs=[]):
        log.log()
        log.add(torch.tensor([0, 4]), values((0.9, 1.0), (0.9, 1.0)))
        log.add(torch.tensor([19]), values((0.5, 0.0)))
        log.log()
        found = logger.dumpkvs()
        log.log()
        assert not logger.dumpkvs()
    assert found == pytest.approx({"val_ece": 0.7 / 3, "val_ece_q0": 0.1, "val_ece_q3": 0.5})

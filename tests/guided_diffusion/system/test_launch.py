"""Which launcher the environment describes."""

import os
import subprocess
import sys
from unittest import mock

import pytest

from guided_diffusion.errors import InputError
from guided_diffusion.system import launch
from guided_diffusion.system.launch import Launch
from tests.support.helpers import ROOT

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_SIZE": "6",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "PMIX_RANK": "5",
}
SRUN = {"SLURM_PROCID": "7", "SLURM_LOCALID": "3", "SLURM_STEP_NUM_TASKS": "8"}
SBATCH = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "17"}
SRUN_PMI = {"PMI_RANK": "7", "PMI_SIZE": "8"}

SINGLE = Launch("single", 0, 0, 1)


@pytest.fixture
def environment():
    """Replaces the environment by the given variables for the length of a test."""

    def replace(*parts: dict[str, str]) -> None:
        os.environ.clear()
        for part in parts:
            os.environ.update(part)

    with mock.patch.dict(os.environ):
        yield replace


@pytest.mark.parametrize(
    "parts, expected",
    [
        ((), SINGLE),
        ((TORCHRUN,), Launch("torchrun", 3, 1, 4)),
        ((MPICH,), Launch("mpi", 1, 1, 2)),
        ((OPEN_MPI,), Launch("mpi", 5, 2, 6)),
        (({"PMIX_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},), Launch("mpi", 1, 1, 2)),
        (({"PMI_RANK": "1", "PMI_SIZE": "2"},), Launch("mpi", 1, 1, 2)),
        ((SRUN,), Launch("slurm", 7, 3, 8)),
        ((SRUN, SRUN_PMI), Launch("slurm", 7, 3, 8)),
        ((SBATCH,), SINGLE),
        ((SBATCH, MPICH), Launch("mpi", 1, 1, 2)),
        # mpiexec inside a Slurm job starts its daemons with srun, whose variables the ranks inherit
        (({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, MPICH), Launch("mpi", 1, 1, 2)),
        ((SRUN, OPEN_MPI), Launch("mpi", 5, 2, 6)),
        ((TORCHRUN, SRUN, MPICH), Launch("torchrun", 3, 1, 4)),
        (({"RANK": "1"},), SINGLE),
        (({"PMI_RANK": "2"},), SINGLE),
    ],
)
def test_each_launcher_is_recognised(environment, parts, expected):
    environment(*parts)
    assert launch.detect() == expected


@pytest.mark.parametrize(
    "part, change, named",
    [
        (TORCHRUN, {"RANK": "one"}, "RANK"),
        (TORCHRUN, {"RANK": "-1"}, "RANK"),
        (TORCHRUN, {"RANK": "4"}, "RANK"),
        (TORCHRUN, {"WORLD_SIZE": "0"}, "WORLD_SIZE"),
        (TORCHRUN, {"WORLD_SIZE": ""}, "WORLD_SIZE"),
        (TORCHRUN, {"LOCAL_RANK": "²"}, "LOCAL_RANK"),
        (MPICH, {"PMI_SIZE": "2.0"}, "PMI_SIZE"),
        (MPICH, {"MPI_LOCALRANKID": "x"}, "MPI_LOCALRANKID"),
        (OPEN_MPI, {"OMPI_COMM_WORLD_SIZE": "six"}, "OMPI_COMM_WORLD_SIZE"),
        (SRUN, {"SLURM_PROCID": "1_0"}, "SLURM_PROCID"),
        (SRUN, {"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS"),
    ],
)
def test_malformed_values_name_the_variable(environment, part, change, named):
    environment(part, change)
    with pytest.raises(InputError, match=rf"environment variable {named}: expected .* found"):
        launch.detect()


def test_a_missing_companion_is_named(environment):
    environment({"OMPI_COMM_WORLD_SIZE": "2"})
    with pytest.raises(InputError, match="PMIX_RANK is missing"):
        launch.detect()


def test_exported_variables_do_not_pass_for_torchrun(environment):
    environment(MPICH)
    before = launch.detect()
    launch.export(before, "10.0.0.1", 1234)
    assert os.environ["RANK"] == "1" and os.environ["MASTER_PORT"] == "1234"
    assert launch.detect() == before

    # A child that torchrun starts inherits our mark, but has torchrun's values.
    environment(dict(os.environ), TORCHRUN, {"MASTER_PORT": "29500"})
    assert launch.detect() == Launch("torchrun", 3, 1, 4)

    # A child started plainly, by a parent that was itself started plainly.
    environment()
    launch.export(SINGLE, "127.0.0.1", 0)
    inherited = dict(os.environ)
    environment(inherited, MPICH)
    assert launch.detect() == Launch("mpi", 1, 1, 2)


def test_asking_loads_neither_torch_nor_mpi():
    code = (
        "import sys; from guided_diffusion.system import launch; launch.detect(); "
        "print([name for name in ('torch', 'mpi4py', 'socket') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"

"""The evaluator on two ranks: the figures of one process, and one line where something is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.frozen_graphs import write_inception_like_graph
from tests.support.evaluations import make_images, write_classifier
from tests.support.helpers import ROOT

PROGRAM = ROOT / "evaluations" / "evaluator.py"


@pytest.fixture
def place(tmp_path):
    write_classifier(tmp_path)
    np.savez(tmp_path / "ref.npz", make_images(0, 24, 16))
    np.savez(tmp_path / "s.npz", make_images(1, 21, 16), np.arange(21) % 5)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("network", "batch_size"), [("graph", "5"), ("classifier", "64")])
def test_figures_of_one_process(place, run, network, batch_size):
    """With an odd batch at the end, and with fewer batches than ranks."""
    if network == "graph":
        pytest.importorskip("tensorflow")  # makes the graph, and is not needed to run it
        write_inception_like_graph(place / "graph.pb")
        flags = ["--inception", "graph.pb", "--engine", "torch"]
    else:
        flags = ["--features", "model000010.pt"]
    flags = ["ref.npz", "s.npz", *flags, "--batch_size", batch_size, "--json"]
    alone = run(PROGRAM, [*flags, "one.json"])
    both = run(PROGRAM, [*flags, "two.json"], launcher="fork2")
    assert both.stdout == alone.stdout and len(both.stdout.splitlines()) >= 5
    one, two = (json.loads((place / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert both.stderr.count("wrote") == 1


@pytest.mark.slow
def test_what_is_cached_needs_no_ranks(place, run):
    flags = ["ref.npz", "s.npz", "--features", "model000010.pt", "--cache", "cache"]
    first = run(PROGRAM, flags, launcher="fork2")
    assert "activations from" not in first.stderr
    second = run(PROGRAM, flags, launcher="fork2")
    assert "activations from" in second.stderr and second.stdout == first.stdout


@pytest.mark.slow
def test_a_damaged_file_ends_all_ranks(place, run):
    content = bytearray((place / "s.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (place / "s.npz").write_bytes(content)
    done = run(PROGRAM, ["ref.npz", "s.npz", "--features", "model000010.pt"], launcher="mpiexec", fails=True)
    assert len(done.error_lines) == 1 and "s.npz: array arr_0: damaged" in done.error_lines[0]
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.slow
def test_a_rank_without_a_network_ends_all(place, run):
    """Rank 1 alone lacks the classifier; what it says is what the user reads."""
    program = place / "program.py"
    program.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(PROGRAM.parents[1])!r})\n"
        "from evaluations import evaluator\n"
        "from guided_diffusion import dist_util\n"
        "if dist_util.get_rank() == 1:\n"
        "    sys.argv[sys.argv.index('model000010.pt')] = 'absent.pt'\n"
        "dist_util.run_main(evaluator.main)\n"
    )
    done = run(program, ["ref.npz", "s.npz", "--features", "model000010.pt"], launcher="mpiexec", fails=True)
    assert done.error_lines == ["error: --features absent.pt: no such file"]

"""The evaluator's tests under several versions of NumPy and SciPy: `make evaluator-matrix`.

    python -m tests.evaluator_matrix [--upstream CHECKOUT] [--folder FOLDER] [--cell NUMPY,SCIPY] [PYTEST ARGUMENTS]

Each cell is a virtual environment of its own with two packages, NumPy and SciPy; everything else is this
environment's. The table, as Markdown, says how many tests passed, and with CHECKOUT (of openai/guided-diffusion;
default: the environment variable GUIDED_DIFFUSION_PEER) what became of upstream's own metrics there.
"""

from __future__ import annotations

import argparse
import os
import site
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Both sides of NumPy 2; sqrtm before and after it was rewritten and its `disp` deprecated (SciPy 1.16).
CELLS = ("1.26.4,1.11.4", "1.26.4,1.17.1", "2.0.2,1.13.1", "2.2.6,1.15.3", "2.4.6,1.17.1")
# Those that are slow and know nothing of arrays.
IGNORED = ("test_parallel.py",)

UPSTREAM = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from benchmarks.evaluation import load_upstream_evaluator
module, tf = load_upstream_evaluator(sys.argv[1])
x, y = np.random.RandomState(0).randn(2, 50, 4).astype(np.float32)
found = {}
def of(name, work):
    try:
        work()
        found[name] = "runs"
    except Exception as error:
        found[name] = f"{type(error).__name__}"
compute = module.Evaluator.compute_statistics
of("FID", lambda: compute(None, x).frechet_distance(compute(None, y)))
estimator = module.ManifoldEstimator(tf.Session())
of("precision, recall", lambda: estimator.evaluate_pr(x, estimator.manifold_radii(x), y, estimator.manifold_radii(y)))
print("; ".join(f"{name}: {what}" for name, what in found.items()))
"""


def main() -> None:
    args, pytest_args = parse()
    rows = [("NumPy", "SciPy", "our tests", *(("upstream",) if args.upstream else ()))]
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for cell in args.cell or CELLS:
            versions = cell.split(",")
            python = make_environment(Path(args.folder or scratch) / cell.replace(",", "-"), *versions)
            passed, outcome = run_tests(python, pytest_args)
            failed |= not passed
            upstream = (run_upstream(python, args.upstream),) if args.upstream else ()
            rows.append((*versions, outcome, *upstream))
            print(f"{cell}: {' | '.join(rows[-1][2:])}", file=sys.stderr, flush=True)
    rows.insert(1, ("---",) * len(rows[0]))
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    sys.exit(failed)


def make_environment(folder: Path, numpy: str, scipy: str) -> Path:
    """Its Python, seen to import these versions. What this environment has installed is behind them on its path."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, "--upgrade", "--target", packages, f"numpy=={numpy}", f"scipy=={scipy}"], check=True)
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    code = "import numpy, scipy; print(numpy.__version__, scipy.__version__)"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    if found != [numpy, scipy]:
        raise SystemExit(f"{folder}: found NumPy and SciPy {' and '.join(found)}, expected {numpy} and {scipy}")
    return python


def run_tests(python: Path, arguments: list[str]) -> tuple[bool, str]:
    """Whether all passed, and pytest's last line."""
    files = sorted((ROOT / "tests" / "evaluations").rglob("test_*.py"))
    tests = [str(path) for path in files if path.name not in IGNORED]
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *arguments, *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-3000:], file=sys.stderr)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    return done.returncode == 0, last.strip("= ").partition(" in ")[0]


def run_upstream(python: Path, checkout: str) -> str:
    """What its metrics do: run, or raise what."""
    path = Path(checkout, "evaluations", "evaluator.py")
    done = subprocess.run([python, "-c", UPSTREAM, path], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or f"does not import: {(done.stderr.strip().splitlines() or ['?'])[-1][:80]}"


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checkout = os.environ.get("GUIDED_DIFFUSION_PEER")
    parser.add_argument("--upstream", metavar="CHECKOUT", default=checkout)
    parser.add_argument("--folder", help="keeps the environments there for the next time")
    parser.add_argument("--cell", action="append", metavar="NUMPY,SCIPY", help=f"default: {' '.join(CELLS)}")
    return parser.parse_known_args()


if __name__ == "__main__":
    main()

"""The former name of `ed-dpm rerun`: `python -m ablation.again --protocol reduced --pick 7`."""

from __future__ import annotations

import warnings
from pathlib import Path

from experiments.cifar10.__main__ import PROTOCOLS, RESULTS
from experiments.cli import Parser
from experiments.rerun import pick, rerun
from guided_diffusion.distributed import shutdown


def main() -> None:
    parser = Parser(prog="python -m ablation.again", description=__doc__)
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    parser.add_argument("--pick", type=int, default=0, metavar="N", help="which run, at random (0)")
    parser.add_argument("--run", metavar="NAME", help="this one")
    parser.add_argument("--seed", default="1", help="of --run (1)")
    parser.add_argument("--out", type=Path, default=Path("runs/again"), metavar="DIR", help="(runs/again)")
    args = parser.parse_args()
    warnings.warn("ablation.again will go: `ed-dpm rerun ROW` does the same", DeprecationWarning, stacklevel=1)
    report = RESULTS / args.protocol
    print(rerun(report, *pick(report, args.run, args.seed if args.run else None, args.pick), args.out))


if __name__ == "__main__":
    shutdown.run_main(main)

"""The trained networks of a protocol as small files for others: NAME/model.safetensors with its config.json.

    python -m ablation.models --protocol reduced

copies what is trained; `classifier_sample.py --classifier_path results/cifar10/models/reduced/plain/model.safetensors`
reads the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ed_dpm_patches.reproduce.book import ROOT, Book
from ed_dpm_patches.reproduce.book_files import load
from ed_dpm_patches.reproduce.cli import Parser
from ed_dpm_patches.reproduce.commands import Commands, Options
from guided_diffusion import checkpoint, dist_util
from guided_diffusion.errors import InputError

from .__main__ import PROTOCOLS, RECIPES, RESULTS

FILE = "model.safetensors"
LARGEST = 15_000_000  # bytes; larger ones do not belong into a repository


def copy_models(book: Book, out: Path, folder: Path) -> list[Path]:
    """Write every network of a book that is trained or derived below `out`; returns the files.

    InputError for a file that is too large to be kept with the code.
    """
    commands, made = Commands(book, Options(out=out)), []
    for network in book.networks.values():
        source = ROOT / commands.checkpoint(network)
        if not (network.is_made and source.is_file()):
            continue
        weights = checkpoint.read_state_dict(source)
        size = sum(value.nbytes for value in weights.values())
        if size > LARGEST:
            raise InputError(f"{source}: found {size:,} bytes of weights, expected {LARGEST:,} at most")
        target = folder / network.name / FILE
        target.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_config(target.parent, checkpoint.read_config(source) or dict(network.flags))
        checkpoint.save(weights, target)
        made.append(target)
    return made


def main() -> None:
    """Copy what is there. InputError if nothing is."""
    as_written = argparse.RawTextHelpFormatter
    parser = Parser(prog="python -m ablation.models", description=__doc__, formatter_class=as_written)
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where it was trained (runs/cifar10-16 or -32)")
    args = parser.parse_args()
    out = args.out or Path("runs") / PROTOCOLS[args.protocol].out
    made = copy_models(load(RECIPES / args.protocol), out, RESULTS / "models" / args.protocol)
    if not made:
        raise InputError(f"{ROOT / out}: no trained networks in it, `python -m ablation` trains them")
    for path in made:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    dist_util.run_main(main)

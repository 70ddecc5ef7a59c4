"""Flags of the authors' release: accepted if only the name differs here, else refused with the name of ours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

ALIASES = {
    "specified_class": "classes",
    "classifier_out_channel": "num_classes",
    "save_imgs_for_visualization": "save_images",
}
_DATASETS = {"imagenet1000": "folder", "cifar10": "filename"}  # the release's names of the two label rules


def add_to(parser: argparse.ArgumentParser, known: Mapping[str, Any]) -> None:
    """Add them to a parser, but not to its --help. known: its own flags, without dashes."""

    def add(*names: str, **options: Any) -> None:
        parser.add_argument(*names, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)

    by_name = {name: action for action in parser._actions for name in action.option_strings}
    for name, ours in ALIASES.items():
        if ours in known:
            action = by_name[f"--{ours}"]
            add(f"--{name}", dest=ours, type=action.type, nargs=action.nargs, const=action.const)
    add("--local_rank", "--local-rank", action=_Ignored, type=int)  # the launcher sets LOCAL_RANK too
    add("--fix_seed", action=_Ignored, type=_always_seeded, nargs="?", const="True")
    if "data_dir" in known:
        add("--dataset_type", dest="labels", type=_label_rule("labels" in known))


def as_positions(argv: Sequence[str], positions: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Return a command line with positional values instead of the flags `positions`, and other flags renamed."""
    found, rest = {}, []
    words = iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in positions:
            found[name] = value if equals else next(words, "")
        elif word.startswith("--") and name in renamed:
            rest.append(f"--{renamed[name]}{equals}{value}")
        else:
            rest.append(word)
    return [*(found[name] for name in positions if name in found), *rest]


class _Ignored(argparse.Action):
    def __call__(self, *_: Any) -> None:
        """Ignore the value."""


def _always_seeded(text: str) -> str:
    if text.lower() not in ("yes", "true", "t", "y", "1"):
        raise argparse.ArgumentTypeError(f"found {text}, but every run has a fixed seed; for other draws give --seed N")
    return text


def _label_rule(has_labels: bool):
    def rule(text: str) -> str:
        if has_labels and text in _DATASETS:
            return _DATASETS[text]
        ours = "--labels folder or --labels filename" if has_labels else "file names whose part before _ is the class"
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {ours} in its place")

    return rule

"""Initial weights of a training from another network, which may have fewer, other or no classes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from guided_diffusion.config.class_labels import Classes
from guided_diffusion.io import checkpoint
from guided_diffusion.io.checkpoint_flags import class_tensors, num_classes
from guided_diffusion.runs import logger


def init_weights(model: nn.Module, path: str, names: Sequence[str] | None) -> None:
    """Load a checkpoint's weights into a model; the rows of classes that it does not have keep their values.

    Rows are matched by the classes' names where both are known, else by number. All other weights must fit; InputError
    as of `checkpoint.load_weights`, and for an invalid config.json.

    :param names: of the model's classes, by number.
    """
    told = []

    def adapt(found: checkpoint.State, expected: checkpoint.State) -> checkpoint.State:
        ours = class_tensors({key: values.shape for key, values in expected.items()})
        before = class_tensors({key: values.shape for key, values in found.items()})
        rows = num_classes({key: values.shape for key, values in found.items()})
        theirs = Classes.of_checkpoint(path, rows).names if rows else ()
        taken = {key: values for key, values in found.items() if key not in before or key in ours}
        kept = []
        for key in ours:
            values = expected[key].detach().clone()
            if key in found and found[key].ndim and found[key].shape[1:] == values.shape[1:]:
                kept = _pairs(len(found[key]), len(values), theirs, names or [])
                for old, new in kept:
                    values[new] = found[key][old]
                taken[key] = values
            elif key not in found:
                taken[key] = values
        if ours:
            classes = Classes(len(expected[ours[0]]), tuple(names or ()))
            new = sorted(set(range(classes.count)) - {number for _, number in kept})
            known = sorted(number for _, number in kept)
            told.append(f"rows of {', '.join(ours)}: kept {classes.listed(known) or 'none'}")
            told.append(f"newly initialised {classes.listed(new) or 'none'}")
        elif before:
            told.append(f"without {', '.join(before)}")
        return taken

    checkpoint.load_weights(model, path, adapt)
    logger.log("; ".join([f"beginning with the weights of {path}", *told]))


def _pairs(old_count: int, new_count: int, old_names: Sequence[str], new_names: Sequence[str]) -> list[tuple[int, int]]:
    """Return (old number, new number) of the classes that two networks have in common."""
    if old_names and new_names:
        numbers = {name: number for number, name in enumerate(old_names[:old_count])}
        return [(numbers[name], new) for new, name in enumerate(new_names[:new_count]) if name in numbers]
    return [(number, number) for number in range(min(old_count, new_count))]

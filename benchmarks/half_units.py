"""Run a program as a machine with units for half precision computes it, on a CPU that has none.

    python -m benchmarks.half_units scripts/classifier_sample.py --use_fp16 True --amp_dtype bf16 ...

Convolutions and matrix products of half-precision numbers are computed in float32 and rounded once, which is what
AVX512_BF16, AMX and tensor cores do: for samples to compare, not for time. All else is PyTorch's own.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_HALF = (torch.bfloat16, torch.float16)
_PRODUCTS = tuple(
    getattr(torch.ops.aten, name)
    for name in ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm", "linear")
)


class HalfUnits(TorchDispatchMode):
    """A block, backward passes included, in which half-precision products are sums in float32, rounded once."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation of PyTorch's."""
        given = (args, kwargs or {})
        halves = {leaf.dtype for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)} & {*_HALF}
        if func.overloadpacket not in _PRODUCTS or not halves:
            return func(*args, **given[1])
        (dtype,) = halves
        args, kwargs = _cast(given, torch.Tensor.float)
        return _cast(func(*args, **kwargs), lambda out: out.to(dtype))


def _cast(tree: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return tree_map_only(torch.Tensor, lambda x: change(x) if x.is_floating_point() else x, tree)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="a Python file")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="its own")
    args = parser.parse_args()
    if not args.program.is_file():
        parser.error(f"{args.program}: no such file, expected a program such as scripts/classifier_sample.py")
    sys.argv = [str(args.program), *args.flags]
    units = dict.fromkeys(("avx512_bf16", "avx512_fp16"), True)
    with HalfUnits(), patch("torch.cpu.get_capabilities", lambda: units, create=True):
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

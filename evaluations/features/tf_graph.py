"""A frozen TensorFlow graph, evaluated in torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluations.features.graphdef import Node
from evaluations.features.tf_ops import HOST_INPUTS, OPS, lay_out_filter
from guided_diffusion.errors import InputError, first_line


class TorchGraph:
    """The part of a graph that computes ``fetches`` from ``feeds``, in inference mode.

    ``nodes`` come from ``graphdef.read_graph``; fetches and feeds are names such as ``pool_3:0``. Constants are
    copied to ``device`` once. ``source`` is the file that errors name.

    Raises ``InputError`` if a node or an operation is missing or the graph has a cycle.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        fetches: Sequence[str],
        feeds: Sequence[str] = (),
        device: torch.device | str = "cpu",
        source: str = "graph",
    ):
        self.source = source
        self._nodes = nodes
        self._fetches = [self._target(name) for name in fetches]
        order = self._order({self._target(name) for name in feeds})
        self._constants = {
            node.name: _copy_constant(self._constant(node), device) for node in order if node.op == "Const"
        }
        readers = Counter([*self._fetches, *(name for node in order for name in self._inputs(node))])
        self._steps: list[tuple[Node, list[Any], list[str]]] = []  # with arguments and results without a later reader
        for node in (node for node in order if node.op != "Const"):
            inputs = self._inputs(node)
            readers.subtract(inputs)
            unneeded = [name for name in dict.fromkeys([*inputs, node.name]) if not readers[name]]
            self._steps.append((node, self._read_host_input(node, inputs), unneeded))

    @torch.inference_mode()
    def run(self, feeds: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the fetches, in their order and in TensorFlow's layout (images [B, H, W, C]), on the device.

        Results are freed after their last use. Raises ``InputError`` naming the node that failed.
        """
        values = dict(self._constants)
        values |= {self._target(name): value for name, value in feeds.items()}
        for node, inputs, unneeded in self._steps:
            arguments = [values[part] if isinstance(part, str) else part for part in inputs]
            try:
                values[node.name] = OPS[node.op](node, *arguments)
            except torch.OutOfMemoryError:
                raise  # not the graph's fault
            except Exception as error:  # a damaged graph makes torch fail in any way
                raise self._error(f"node {node.name} ({node.op}): {first_line(error)}") from error
            del arguments
            for name in unneeded:
                del values[name]
        return [values[name] for name in self._fetches]

    def _error(self, reason: str) -> InputError:
        return InputError(f"{self.source}: {reason}")

    def _target(self, name: str) -> str:
        """Return the name of a tensor's node; none of these operations has a second output."""
        node, _, output = name.partition(":")
        if output not in ("", "0"):
            raise self._error(f"found {name}, expected operations of one output")
        if node not in self._nodes:
            raise self._error(f"it has no node {node}")
        return node

    def _inputs(self, node: Node) -> list[str]:
        """Return the names of the nodes whose results ``node`` reads."""
        return [self._target(name) for name in node.inputs if not name.startswith("^")]

    def _order(self, fed: set[str]) -> list[Node]:
        """Return the nodes that the fetches need, each after those that it needs."""
        needs: dict[str, list[str]] = {}
        waiting = list(self._fetches)
        while waiting:
            name = waiting.pop()
            if name in needs or name in fed:
                continue
            node = self._nodes[name]
            if node.op not in OPS and node.op != "Const":
                raise self._error(f"node {name} is a {node.op}, an operation that --engine torch does not know")
            needs[name] = [self._target(source.removeprefix("^")) for source in node.inputs]
            waiting += needs[name]
        try:
            return [self._nodes[name] for name in TopologicalSorter(needs).static_order() if name in needs]
        except CycleError as error:
            raise self._error(f"its node {error.args[1][0]} needs its own result") from error

    def _read_host_input(self, node: Node, inputs: list[str]) -> list[Any]:
        """Replace the name of a shape or an axis by its value, so that it need not be copied from the device."""
        if node.op not in HOST_INPUTS:
            return inputs
        if len(inputs) < 2:
            raise self._error(f"node {node.name} ({node.op}): found {len(inputs)} inputs, expected more")
        position = HOST_INPUTS[node.op]
        value = self._constant(self._nodes[inputs[position]])
        if value.dtype.kind != "i":
            raise self._error(f"node {node.name} ({node.op}): found a shape or an axis of type {value.dtype}")
        arguments: list[Any] = list(inputs)
        arguments[position] = value.tolist()
        return arguments

    def _constant(self, node: Node) -> np.ndarray:
        value = node.attributes.get("value")
        if node.op != "Const" or not isinstance(value, np.ndarray):
            raise self._error(f"node {node.name} is a {node.op}, expected a constant number or array")
        return value


def _copy_constant(array: np.ndarray, device: torch.device | str) -> Tensor:
    constant = torch.tensor(array).to(device)
    return lay_out_filter(constant) if constant.ndim == 4 else constant

"""What a ride leaves to the next one on the same module: how to read its graph, what to look at, memory for copies.

The graphs of most steps of a run differ in nothing but their numbers. One look at every node shows that, and then what
was read of the first such graph holds for this one too, node by node.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from torch import Tensor, nn
from torch.autograd.graph import Node

from relu_diag.capture._nodes import is_layout
from relu_diag.capture._norm import NORMS
from relu_diag.capture._reading import Kept, Reading, read
from relu_diag.capture.local import local_part

# Forms of graphs that are remembered.
_FORMS = 16
_LEAF = "torch::autograd::AccumulateGrad"


class Memory:
    """Remembers what saves work in the next step.

    Example:
        >>> import torch
        >>> from relu_diag.capture import Ride
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> memory = Memory()
        >>> for _ in range(2):  # the second graph is not read again
        ...     ride = Ride(net, memory)
        ...     ride.begin()
        ...     loss = net(torch.eye(3)).square().mean()
        ...     ride.board(loss)
        ...     loss.backward()
        ...     print(*[seen.name for seen in ride.end()])
        0 -> 2
        0 -> 2
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, Kept] = {}
        # Copies of parameters, by their identities: those of the last sightings, and memory for the next ones.
        self._copies: dict[int, Tensor] = {}
        self._free: dict[int, Tensor] = {}
        # Layers that begin a block, those among them whose outputs are overwritten, and those with an activation behind
        # a block, by their identities.
        self.hidden: set[int] = set()
        self.overwritten: set[int] = set()
        self.kinked: set[int] = set()
        # Layers behind which numbers have shown that nothing ReLU-like stands, by the identities of their weights.
        self.refuted: dict[int, str] = {}
        # First layers whose outputs tell all about silent neurons, by name.
        self.telling: dict[str, nn.Linear] = {}

    def copy(self, parameter: nn.Parameter) -> Tensor:
        """A copy of a parameter, in the memory of an old one: fresh pages cost more than copying.

        Args:
            parameter: The parameter.

        Returns:
            The copy.
        """
        value = local_part(parameter.detach())
        free = self._free.pop(id(parameter), None)
        if free is None or (free.shape, free.dtype, free.device) != (value.shape, value.dtype, value.device):
            return value.clone()
        return free.copy_(value)

    def keep(self, copies: Mapping[int, Tensor]) -> None:
        """Take note that sightings have copies, and that nobody reads those of the sightings before.

        Args:
            copies: What `copy` returned, by identities of the parameters.
        """
        for key, copy in copies.items():
            if key in self._copies:
                self._free[key] = self._copies[key]
            self._copies[key] = copy

    def read(
        self, root: Node, module: nn.Module, layers: Mapping[Node, nn.Linear], gathered: Mapping[int, str]
    ) -> Reading:
        """Read a graph.

        Args:
            root: Its last node.
            module: The module whose parameters make products.
            layers: Linear layers that ran, by the nodes of their products.
            gathered: Names of parameters that were the module's while their layer ran, by identity.

        Returns:
            What it says.
        """
        nodes, form = _walk(root)
        known = self._known.get(form)
        if known is not None:
            return known.at(nodes)
        reading, lasting = read(nodes, module, layers, gathered)
        if lasting:
            if len(self._known) >= _FORMS:
                self._known.clear()
            self._known[form] = Kept.of(reading, nodes)
        return reading


def _walk(root: Node) -> tuple[list[Node], Hashable]:
    """All nodes of a graph, each once, and its form: operations, what they are computed from, and the parameters."""
    nodes = [root]
    places = {root: 0}
    form: list[Hashable] = []
    for node in nodes:  # which grows on the way
        name = node.name()
        form.append(name)
        for below, output in node.next_functions:
            if below is None:
                form.append(None)
                continue
            place = places.get(below)
            if place is None:
                place = places[below] = len(nodes)
                nodes.append(below)
            form.append(place)
            form.append(output)
        if name == _LEAF:
            form.append(id(node.variable))  # type: ignore[attr-defined]
        elif name == "PermuteBackward0":
            form.append(is_layout(node))
        elif name in NORMS:
            form.append(node._saved_training)  # type: ignore[attr-defined]
    return nodes, tuple(form)

"""Ride along on a training step: what the loss tells a block, read while the user's own backward pass runs.

Nothing of the user's runs twice. Before the backward pass the graph of the loss says which products with parameters
make a block; hooks on its nodes note the gradients that pass by; hooks on Linear layers note inputs and
pre-activations, which saves computing them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from relu_diag.capture._catcher import WeightCatcher
from relu_diag.capture._graph import Product, adds_untrained, product_of, slopes_of
from relu_diag.capture._hooks import LayerHook
from relu_diag.capture._kinks import Inputs, LaterKink
from relu_diag.capture._nodes import below_layout, nodes_below
from relu_diag.capture._reading import DERIVATIVES, Candidate, Use
from relu_diag.capture._ridden import finite
from relu_diag.capture._shards import OTHERWISE, Shards
from relu_diag.capture._sighting import Block, Noted, Reader
from relu_diag.capture._slopes import ROWS, first_rows, slopes_seen
from relu_diag.capture._together import joined
from relu_diag.capture.glance import extremes_of
from relu_diag.capture.local import local_part
from relu_diag.capture.memory import Memory
from relu_diag.capture.sighting import Sighting

_ADDED = (
    "something that is not trained is added to its outputs, as LoRA adds to a frozen layer: merge it, or add it to the "
    "weight by nn.utils.parametrize"
)


class Ride:
    """Watches the blocks of a module during training steps that somebody else makes.

    Args:
        module: The module.
        memory: What earlier rides on the module have left; None: nothing.
        lent: Whether sightings are read at once, before anything else touches the gradients of parameters, which then
            need not be copied; and not after the next ones of the same blocks, which take their memory.

    Attributes:
        reasons: For a layer that reads another one and makes no block with it, what stands between.
        moved: Whether the last loss was of weights that an optimizer had moved since the step has seen them.
        ran: Whether a Linear layer ran with a gradient in the step that has ended.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> ride = Ride(net)
        >>> ride.begin()
        >>> loss = net(torch.eye(2)).square().mean()
        >>> ride.board(loss)
        >>> loss.backward()
        >>> (seen,) = ride.end()
        >>> seen.name, seen.signal.X.shape
        ('0 -> 2', torch.Size([2, 3]))
    """

    def __init__(self, module: nn.Module, memory: Memory | None = None, lent: bool = False) -> None:
        self.reasons: dict[str, str] = {}
        self.moved = False
        self.ran = False
        self._module = module
        self._memory = Memory() if memory is None else memory
        self._lent = lent
        self._passed: dict[Node, _Passed] = {}
        self._layers: dict[Node, nn.Linear] = {}
        # Layers that ran without a gradient.
        self._quiet: set[int] = set()
        self._shards = Shards()
        self._inputs = Inputs()
        self._kinks: dict[Node, LaterKink] = {}
        self._blocks: dict[Node, Block] = {}
        self._noted: dict[Node, Noted] = {}
        self._copies: dict[int, Tensor] = {}
        # How often each was written to when it was copied.
        self._versions: dict[int, int] = {}
        self._handles: list[LayerHook | RemovableHandle] = []
        self._board_outputs = False
        self._error: Exception | None = None

    def begin(self, board_outputs: bool = False) -> None:
        """Note what goes through the Linear layers from now on; call it before the forward pass.

        Args:
            board_outputs: Whether to board the output of every Linear layer that makes a block, for losses that nobody
                hands to `board`. What is behind the blocks is then not known, raw parameters are not found.
        """
        self._board_outputs = board_outputs
        self._handles += self._shards.listen(self._module, self._copied, self._guarded)
        note_activation = partial(self._guarded, self._note_activation)
        note_plain = partial(self._guarded, self._note_forward, None)
        for layer in self._module.modules():
            if isinstance(layer, nn.ReLU):
                self._handles.append(LayerHook(layer, note_activation, before=True))
            elif isinstance(layer, nn.Linear):
                note = note_plain
                if "weight" not in layer._parameters or type(layer).forward is not nn.Linear.forward:
                    catch = WeightCatcher()
                    self._handles.append(LayerHook(layer, catch.enter, before=True))
                    self._handles.append(LayerHook(layer, catch.leave, always=True))
                    note = partial(self._guarded, self._note_forward, catch)
                self._handles.append(LayerHook(layer, note))

    def board(self, loss: Tensor, factor: float = 1.0) -> None:
        """Get on, after a forward pass and before its backward; once for every loss of the step.

        Args:
            loss: The tensor whose ``backward`` is about to run.
            factor: What gradients are to be multiplied by: the reciprocal of a loss scale, the number of batches that
                share an optimizer step.
        """
        self.moved = loss.grad_fn is not None and not self._board(loss, factor, to_the_loss=True)

    def _board(self, root: Tensor, factor: float, to_the_loss: bool) -> bool:
        """Put hooks on the blocks below a loss, or below the output of a layer; False where one of them has moved."""
        assert root.grad_fn is not None
        reading = self._memory.read(root.grad_fn, self._module, self._layers, self._shards.names)
        self.reasons.update(reading.reasons)
        if to_the_loss and self._board_outputs:
            self._begin_loss(root.grad_fn, DERIVATIVES in reading.reasons)
        at_first = True
        for candidate in reading.candidates:
            if self._has_moved(candidate):
                at_first = False
                continue
            node, uses = candidate.hidden.node, candidate.uses
            known = self._blocks.get(node)
            if known is not None:
                known.kinks.update(self._kinks_behind(uses))
                known.to_the_loss |= to_the_loss
                known.factor = factor if to_the_loss else known.factor
                uses = tuple([use for use in uses if not known.has(use.product)])
            block = self._block(candidate, uses) if uses else None
            if isinstance(block, str):
                self.reasons[candidate.hidden.layer] = block
            elif block is not None:
                block.factor = factor
                block.to_the_loss = to_the_loss
                if known is not None:
                    known.take_in(block.readers)
                else:
                    self._handles.append(block.listen(self._guarded))
                    self._blocks[node] = block
        return at_first

    def _begin_loss(self, root: Node, derivatives: bool) -> None:
        """Forget what the blocks below a loss have noted of derivatives that the step took of something else."""
        lasting = {id(noted) for block in self._blocks.values() if block.to_the_loss for noted in block.noted}
        for node in nodes_below(root):
            block = self._blocks.get(node)
            if block is not None and (derivatives or not block.to_the_loss):
                block.forget(but=lasting)
            if block is not None and derivatives:
                del self._blocks[node]

    def end(self) -> list[Sighting]:
        """Take the hooks off, and tell what was seen.

        Returns:
            One sighting a block, in the order in which they ran; rows of repeated applications below each other.
            A value that is NaN or infinite raises `NotFiniteError`; what went wrong in a hook is raised here, and not
            in the step.
        """
        if self._error is not None:
            raise self._error
        # A layer to which nothing was routed ran on no rows.
        blocks = [block for block in self._blocks.values() if block.complete and len(block.X)]
        behind: dict[int, dict[Node, LaterKink]] = {}
        for block in blocks:  # what is behind several applications of the same weights counts once
            together = behind.setdefault(id(block.hidden.product.weight.parameter), {})
            together.update(block.kinks)
            block.kinks = together
        copies, shards = dict(self._copies), self._shards
        self.ran = bool(self._layers)
        self._note_other_runs(blocks)
        if self._lent:
            self._memory.telling = self._telling(blocks)
        self.leave()
        seen = list(self._sightings(blocks, shards))
        if not finite(part for one in seen for part in one.ridden.applications):
            for one in seen:
                _ = one.signal  # which names what is not finite
        if self._lent:
            self._memory.keep(copies)
        return [joined(alike) for alike in self._alike(seen)]

    def _note_other_runs(self, blocks: Sequence[Block]) -> None:
        """Note which first layers ran beside their blocks as well."""
        own = {block.hidden.product.node for block in blocks}
        beside = {id(layer) for node, layer in self._layers.items() if node not in own}
        for block in blocks:
            layer = id(self._layers.get(block.hidden.product.node))
            block.elsewhere = layer in beside
            block.reruns = block.elsewhere or layer in self._quiet

    def _sightings(self, blocks: Sequence[Block], shards: Shards) -> Iterator[Sighting]:
        """What blocks make, with the neurons of all processes."""
        for block in blocks:
            seen = shards.whole(block, block.sighting())
            if isinstance(seen, Sighting):
                yield seen
            else:
                self.reasons[block.hidden.product.layer] = seen

    def _telling(self, blocks: Sequence[Block]) -> dict[str, nn.Linear]:
        """First layers all of whose passes were passes through their block, by name: a glance at them tells enough."""
        beside = {node: layer for node, layer in self._layers.items() if node in self._passed}
        telling = {}
        for block in blocks:
            layer = beside.pop(block.hidden.product.node, None)
            if layer is not None and block.passage.fold is None:
                telling[block.hidden.product.layer] = layer
        others = {id(layer) for layer in beside.values()}
        return {name: layer for name, layer in telling.items() if id(layer) not in others}

    def _alike(self, seen: Sequence[Sighting]) -> Iterator[list[Sighting]]:
        """The applications of each first layer."""
        for hidden in dict.fromkeys(one.hidden for one in seen):
            alike = [one for one in seen if one.hidden == hidden]
            if len({one.ridden.weights.slopes for one in alike}) == 1:
                yield alike
            else:
                self.reasons[hidden] = "several activations stand behind it, of different slopes"

    def leave(self) -> None:
        """Take the hooks off, and forget the step."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._passed.clear()
        self._layers.clear()
        self._quiet.clear()
        self._shards = Shards()
        self._inputs.clear()
        self._kinks.clear()
        self._blocks.clear()
        self._noted.clear()
        self._copies.clear()
        self._versions.clear()

    def _guarded(self, hook: Callable[..., None], *args: Any) -> None:
        """Run a hook inside the user's step, which goes on whatever becomes of it."""
        try:
            hook(*args)
        except Exception as error:
            self._error = error

    def _note_forward(self, catch: WeightCatcher | None, layer: nn.Linear, args: tuple[Tensor, ...], Z: Tensor) -> None:
        """Keep inputs, pre-activations and effective weight; a recomputation during backward is no forward pass."""
        if torch._C._current_graph_task_id() != -1:
            return
        node = product_of(Z) if isinstance(Z, Tensor) and Z.numel() else None
        if node is None:
            self._quiet.add(id(layer))
            return
        self._inputs.keep(Z, look=id(layer) in self._memory.kinked)
        if catch is None or catch.weight is not None:
            self._layers[node] = layer
        if args:  # not where the inputs were given by keyword
            weight = None if catch is None else catch.weight
            kept = local_part(Z.detach())
            kept = kept.clone() if id(layer) in self._memory.overwritten else kept
            extremes = extremes_of(kept) if id(layer) in self._memory.hidden else None
            self._passed[node] = _Passed(local_part(args[0].detach()), kept, kept._version, weight, extremes)
        if self._board_outputs:
            self._board(Z, 1.0, to_the_loss=False)

    def _note_activation(self, layer: nn.ReLU, args: tuple[Tensor, ...]) -> None:
        """Keep what goes into a ReLU."""
        if args and torch._C._current_graph_task_id() == -1:
            self._inputs.keep(args[0], overwritten=layer.inplace)

    def _block(self, candidate: Candidate, uses: Sequence[Use]) -> Block | str:
        """A block, or why a candidate is none."""
        if candidate.obstacle:
            return candidate.obstacle
        hidden, passage, fold = candidate.hidden, candidate.passage, candidate.passage.fold
        weights = [self._weight(product) for product in (hidden, *(use.product for use in uses))]
        if any(weight is None for weight in weights):
            return "its weight is computed from others, and the graph does not keep it"
        W, *heads = (weight for weight in weights if weight is not None)
        if any(head.shape[1] != len(W) for head in heads):
            sharded = id(hidden.weight.parameter) in self._shards.names
            return OTHERWISE if sharded else "its outputs are regrouped before they are read"
        X, Z = self._rows(hidden)
        passed, layer = self._passed.get(hidden.node), self._layers.get(hidden.node)
        if X is None:
            return "its inputs are not kept (activation checkpointing)"
        bias = None if passage.bias is None else self._copied(passage.bias)
        if fold is not None:
            W, bias = fold.weights(W, bias)
        slopes = slopes_of(passage)
        if slopes is None and not passage.dropout:
            seen = first_rows(X, W, bias) if Z is None or fold is not None else Z[:ROWS]
            slopes = self._slopes_by_numbers(hidden, seen, uses[0].product.X())
        if slopes is None:
            return _ADDED if adds_untrained(passage) else "what stands behind it is not ReLU-like"
        if isinstance(slopes, Tensor):
            return (
                f"its PReLU has a slope for each of {len(slopes)} neurons, and a block one pair for all: no states, "
                "slopes or verdicts of it; nn.PReLU() has one slope"
            )
        if layer is not None:
            self._memory.hidden.add(id(layer))
            if Z is None and passed is not None:
                self._memory.overwritten.add(id(layer))
        tells = Z is None and slopes == (0.0, 1.0) and not passage.dropout
        return Block(
            hidden=self._note(hidden),
            passage=passage,
            readers=[self._reader(use, head) for use, head in zip(uses, heads, strict=True)],
            W=W,
            bias=bias,
            slopes=slopes,
            X=X,
            Z=Z if Z is None or fold is None else fold.pre_activations(Z),
            A=uses[0].product.X() if tells else None,
            kinks=self._kinks_behind(uses),
            facts=candidate.facts if uses is candidate.uses else {},
            extremes=None if passed is None or fold is not None else passed.extremes,
        )

    def _slopes_by_numbers(self, hidden: Product, Z: Tensor, A: Tensor | None) -> tuple[float, float] | None:
        """The slopes of an activation without a name, off its numbers; once they fit none, no later step is asked."""
        refuted = self._memory.refuted
        weight = id(hidden.weight.parameter)
        slopes = None if weight in refuted else slopes_seen(Z, A)
        if slopes is not None and slopes[0] == slopes[1]:
            refuted[weight] = hidden.layer
            return None
        return slopes

    def _reader(self, use: Use, H: Tensor) -> Reader:
        bias = None if use.bias is None else self._copied(use.bias)
        return Reader(self._note(use.product), H, bias, use.bias)

    def _note(self, product: Product) -> Noted:
        """What a hook on a product notes, which other blocks may ask for too."""
        noted = self._noted.get(product.node)
        if noted is None:
            noted = self._noted[product.node] = Noted(product, self._lent)
            self._handles.append(noted.listen(self._guarded))
        return noted

    def _kinks_behind(self, uses: Sequence[Use]) -> dict[Node, LaterKink]:
        """The kinks between readers and the loss, with a hook on each."""
        nodes = dict.fromkeys([node for use in uses for node in use.kinks])
        for node in nodes:
            if node not in self._kinks:
                self._kinks[node] = LaterKink(node, self._inputs)
                self._handles.append(self._kinks[node].listen(self._guarded))
                below = below_layout(node.next_functions[0][0])
                if below in self._layers:
                    self._memory.kinked.add(id(self._layers[below]))
        return {node: self._kinks[node] for node in nodes}

    def _has_moved(self, candidate: Candidate) -> bool:
        """Whether an optimizer has moved a block since the step has seen it: it is seen at its first weights."""
        parameters = [candidate.hidden.weight.parameter, candidate.passage.bias]
        for use in candidate.uses:
            parameters += [use.product.weight.parameter, use.bias]
        known = [one for one in parameters if one is not None]
        return any(self._versions.get(id(one), one._version) != one._version for one in known)

    def _rows(self, hidden: Product) -> tuple[Tensor | None, Tensor | None]:
        """Inputs, and pre-activations unless an activation in place has overwritten them."""
        passed = self._passed.get(hidden.node)
        if passed is None:
            return hidden.X(), None
        Z = passed.Z.reshape(-1, passed.Z.shape[-1]) if passed.Z._version == passed.version else None
        return passed.X.reshape(-1, passed.X.shape[-1]), Z

    def _weight(self, product: Product) -> Tensor | None:
        """A copy of the weight that took part, shape ``(outputs, inputs)``: the optimizer will have moved it."""
        if not product.weight.derived:
            value = self._copied(product.weight.parameter)
            return value if product.weight.turned else value.mT
        weight = product.W()
        passed = self._passed.get(product.node)
        weight = passed.weight if weight is None and passed is not None else weight
        return None if weight is None else weight.clone()

    def _copied(self, parameter: nn.Parameter) -> Tensor:
        """A parameter as it is now, copied once a step: a layer may end one block and begin the next."""
        key = id(parameter)
        if key not in self._copies:
            self._versions[key] = parameter._version
            self._copies[key] = self._memory.copy(parameter) if self._lent else local_part(parameter.detach()).clone()
        return self._copies[key]


@contextmanager
def riding(module: nn.Module) -> Iterator[Ride]:
    """Ride along on a step of your own training loop.

    Args:
        module: The module whose blocks to watch.

    Yields:
        The ride: `Ride.board` it between the loss and its ``backward``, and ask it for the sightings by `Ride.end`.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> with riding(net) as ride:
        ...     loss = net(torch.eye(3)).square().mean()
        ...     ride.board(loss)
        ...     loss.backward()
        ...     (seen,) = ride.end()
        >>> print(seen.name, tuple(seen.signal.C.shape))
        0 -> 2 (3, 8)
    """
    ride = Ride(module)
    ride.begin()
    try:
        yield ride
    finally:
        ride.leave()


@dataclass(frozen=True, slots=True, eq=False)
class _Passed:
    """What went through a Linear layer: inputs, outputs with their version, a weight that is computed, extremes."""

    X: Tensor
    Z: Tensor
    version: int
    weight: Tensor | None
    extremes: tuple[Tensor, Tensor] | None

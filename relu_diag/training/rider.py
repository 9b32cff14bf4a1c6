"""Riding along on a Trainer's steps: which losses to board, what to multiply gradients by, which blocks to keep."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from relu_diag.capture import NOTHING_BETWEEN, Glance, Glimpse, Memory, Ride, Sighting
from relu_diag.functional import NotFiniteError
from relu_diag.training.careful import Careful
from relu_diag.training.lightning_internals import loss_scale
from relu_diag.training.story import first_few


class Rider:
    """Watches the blocks of a module during training steps that the Trainer makes.

    Args:
        blocks: Name or pattern of the blocks to watch, by their first layer, or several of them; None: all.
        careful: Runs what happens inside the user's step.
        at_once: Whether `end` is asked as soon as a step is `taken`, before the optimizer moves: copies are then saved.

    Attributes:
        loss: Sum of the losses of the last step that was ridden, at its first weights; None where there was none.
        reasons: For a layer that makes no block with the one before it, what stands between.
        finite: Whether all numbers of the last step were finite.

    Example:
        >>> rider = Rider("encoder*", Careful("LandscapeMonitor"))
        >>> rider.riding, rider.patterns
        (False, ['encoder*'])
    """

    def __init__(self, blocks: str | Sequence[str] | None, careful: Careful, at_once: bool = False) -> None:
        self.patterns = ["*"] if blocks is None else [blocks] if isinstance(blocks, str) else list(blocks)
        self._careful = careful
        self._at_once = at_once
        self._memory = Memory()
        self.loss: float | None = None
        self.reasons: dict[str, str] = {}
        self.finite = True
        self._ride: Ride | None = None
        self._glance: Glance | None = None
        self._seen: list[Sighting] | None = None
        self._losses: list[Tensor] = []
        self._automatic = True
        self._module: LightningModule | None = None
        self._missing = ""
        self._told: set[str] = set()

    @property
    def riding(self) -> bool:
        """Whether the present step is being ridden, or glanced at."""
        return self._ride is not None or self._glance is not None

    @property
    def glancing(self) -> bool:
        """Whether the present step is only glanced at."""
        return self._glance is not None

    @property
    def taken(self) -> bool:
        """Whether all of the present step that will be seen was seen."""
        return self._seen is not None

    def watching(self, seen: Sequence[Sighting]) -> str:
        """What is watched, and what is not and why, unless a line before has said so.

        Args:
            seen: Blocks of a step.

        Returns:
            A line.
        """
        if not seen:
            return self.nothing
        watched = first_few([f"{one.name}, {one.neurons} neuron{'s' * (one.neurons > 1)}" for one in seen])
        refused = [words for words in self._refused() if words not in self._told]
        self._told.update(refused)
        return f"watching {watched}" + (f"; not {first_few(refused)}" if refused else "")

    @property
    def nothing(self) -> str:
        """That no block was found, and what stands between the layers that make none."""
        return f"found no Linear -> ReLU-like -> Linear block to watch: {first_few(self._refused() or [self._missing])}"

    @property
    def refuted(self) -> set[str]:
        """First layers behind which a step has shown that nothing ReLU-like stands, though others looked so."""
        return set(self._memory.refuted.values())

    @property
    def refused(self) -> dict[str, str]:
        """Why layers make no block, by their names."""
        return {layers or "module": reason for layers, reason in self.reasons.items() if reason != NOTHING_BETWEEN}

    def _refused(self) -> list[str]:
        """Layers that make no block, and why."""
        return [f"{layers}: {reason}" for layers, reason in self.refused.items()]

    def begin(self, module: LightningModule) -> None:
        """Ride along on the step that is about to begin. The step before may have been left in the middle.

        Args:
            module: The module in training.
        """
        self.leave()
        self._automatic = module.automatic_optimization
        self._module = module
        self._losses = []
        with self._careful:
            self._ride = Ride(module, self._memory, self._is_lent(module))
            self._ride.begin(board_outputs=not self._automatic)

    def glance(self, module: LightningModule, blocks: Collection[str]) -> bool:
        """Glance at the step that is about to begin, if that is enough.

        Args:
            module: The module in training.
            blocks: First layers of the blocks.

        Returns:
            Whether it is: a step before has shown that the outputs of these layers tell all of their silent neurons.
        """
        layers = {name: layer for name, layer in self._memory.telling.items() if name in blocks}
        if len(layers) < len(blocks) or not self._is_lent(module):
            return False
        self.leave()
        self._automatic = True
        self._losses = []
        with self._careful:
            self._glance = Glance(layers)
        return True

    def _is_lent(self, module: LightningModule) -> bool:
        """Whether gradients stand still until they are read: several processes, or optimizers, change them before."""
        return self._at_once and module.automatic_optimization and module.trainer.world_size == 1

    def board(self, trainer: Trainer, loss: Tensor) -> None:
        """Get on a backward pass. An optimizer that evaluates the loss again, LBFGS say, is seen at its first one.

        Args:
            trainer: The trainer.
            loss: The loss whose backward pass is about to run.
        """
        if not self.riding or self.taken or self._careful.off:
            return
        with self._careful:
            factor = 1.0 / loss_scale(trainer)
            if self._automatic:
                factor *= trainer.accumulate_grad_batches
            if self._ride is not None:
                self._ride.board(loss, factor)
            if self._ride is None or not self._ride.moved:
                self._losses.append(factor * loss.detach())

    def after_backward(self) -> None:
        """Let go of the graph, where no other backward pass will follow in the step: a network may be about to grow."""
        if self._automatic:
            self.let_go()

    def let_go(self) -> None:
        """Let go of the graph of a step all of whose backward passes are over."""
        if self.riding and not self.taken and not self._careful.off:
            with self._careful:
                self._seen = [] if self._ride is None else self._take(self._ride)

    def end(self) -> list[Sighting]:
        """What was seen of the step; from now on nothing is watched.

        Returns:
            The blocks asked for, in the order in which they ran. None where a number was not finite.
        """
        if self._ride is None:
            return []
        seen = self._take(self._ride) if self._seen is None else self._seen
        if not seen and self._module is not None:
            self._missing = _missing(self._module, self._ride.ran)
        self._sum_up()
        return [one for one in seen if any(fnmatchcase(one.hidden, pattern) for pattern in self.patterns)]

    def glimpses(self) -> list[Glimpse]:
        """What a glance at the step has shown; from now on nothing is watched.

        Returns:
            The blocks asked for; an empty list where a number was not finite, or one of them did not take part.
        """
        assert self._glance is not None
        seen = self._glance.end()
        self.finite = True
        if not seen:
            self._memory.telling = {}
        self._sum_up()
        return seen

    def _sum_up(self) -> None:
        """Add up the losses of the step, and leave it."""
        self.loss = float(torch.stack(self._losses).sum()) if self._losses else None
        self.leave()

    def _take(self, ride: Ride) -> list[Sighting]:
        """What a ride saw, without its hooks and graph."""
        self.finite = True
        seen: list[Sighting] = []
        try:
            seen = ride.end()
        except NotFiniteError:
            self.finite = False
        finally:
            ride.leave()
        self.reasons.update(ride.reasons)
        return seen

    def leave(self) -> None:
        """Take all hooks off, whatever happened."""
        if self._ride is not None:
            self._ride.leave()
        if self._glance is not None:
            self._glance.leave()
        self._ride = None
        self._glance = None
        self._seen = None
        self._module = None


def _missing(module: LightningModule, ran: bool) -> str:
    """What a module lacks of which nothing else is known."""
    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    frozen = [layer for layer in linear if not any(one.requires_grad for one in layer.parameters())]
    if not linear:
        return "there are no Linear layers"
    if frozen:
        return f"{len(frozen)} of {len(linear)} Linear layers are frozen"
    if not ran:
        return "no Linear layer ran with a gradient: copies, and functions of their weights, are not followed"
    return "no two Linear layers that are trained have something ReLU-like between them"

"""EscapeOnPlateau: leave a saddle at once, along the direction that proves that it is one."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from relu_diag.callbacks._passenger import BeginsAnew
from relu_diag.callbacks.plateau import PlateauMonitor
from relu_diag.capture import read_block, write_block
from relu_diag.functional import WeightDecay, classify
from relu_diag.training import (
    Escape,
    Examination,
    Plateau,
    PlateauEvent,
    PlateauListener,
    Report,
    check_block,
    lowest_along,
    penalty_of,
    tell,
    trained_loss,
)


class EscapeOnPlateau(BeginsAnew, PlateauListener):
    """Moves the weights off a certified saddle, once on every plateau, along the direction of its verdict.

    It evaluates the loss along the direction at the current weights, on the data of the verdict, and moves to the
    lowest point. If no point is lower, or if the loss over samples that the monitor leaves out would rise, it does not
    move: the loss never rises. Weight decay that the optimizer adds to the gradient, as SGD and Adam do, is part of
    that loss; AdamW's is part of none, and there a saddle is one of the loss alone. The optimizer keeps its parameters
    and its state. It needs a `PlateauMonitor` of the same block among the trainer's callbacks.

    It logs ``escape/loss_change`` at a move and, if there was a forecast, ``escape/steps_saved`` at the end of the
    plateau, both also as the text ``escape/moves``; the prefix is ``escape/<block>/`` if a block is named.

    Args:
        block: The ``block`` of the monitor.

    Attributes:
        escapes: The moves so far, `Escape`.

    Raises:
        MisconfigurationException: If, at the start of training, no monitor watches the block.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PlateauMonitor(), EscapeOnPlateau()], logger=False)
    """

    def __init__(self, block: str | None = None) -> None:
        check_block(block, one=True)
        self.block = block
        # Lightning asks for it at every hook of every step.
        self._state_key = self._generate_state_key(block=block)
        self.escapes: list[Escape] = []
        self._report = Report(f"escape/{block}/" if block else "escape/")

    @property
    def state_key(self) -> str:
        """Key of this callback's state in checkpoints, different for every block.

        Returns:
            The key.
        """
        return self._state_key

    @property
    def marks(self) -> list[tuple[int, str]]:
        """The moves, for the figure of the loss.

        Returns:
            Pairs of a gradient step and "moved".
        """
        return [(escape.step, "moved") for escape in self.escapes]

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            The moves, as plain numbers.
        """
        return {"escapes": [asdict(one) for one in self.escapes]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state of a checkpoint.

        Args:
            state_dict: Result of `state_dict`.
        """
        self.escapes = [Escape(**one) for one in state_dict["escapes"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that a monitor of the block will report its plateaus.

        Args:
            trainer: The trainer.
            pl_module: Unused.

        Raises:
            MisconfigurationException: If there is none.
        """
        monitors = [one for one in trainer.callbacks if isinstance(one, PlateauMonitor)]  # type: ignore[attr-defined]
        if not any(monitor.block == self.block for monitor in monitors):
            raise MisconfigurationException(
                f"EscapeOnPlateau(block={self.block!r}) acts on what a PlateauMonitor of the same block reports, and "
                f"the trainer has none: Trainer(callbacks=[PlateauMonitor(block={self.block!r}), ...])."
            )

    def on_plateau(self, trainer: Trainer, pl_module: LightningModule, event: PlateauEvent) -> None:
        """Move off a saddle; at the end of the plateau, count the steps saved.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            event: The event.
        """
        if event.block != self.block:
            return
        moved = bool(self.escapes) and self.escapes[-1].plateau == event.plateau.start
        if event.kind == "end" and moved:
            self._count(trainer, event.plateau)
        elif event.examination is not None and not moved and event.plateau.end is None:
            self._move(trainer, pl_module, event, event.examination)

    def _move(self, trainer: Trainer, module: LightningModule, event: PlateauEvent, examination: Examination) -> None:
        """Move the weights if they are at a saddle, none is frozen, and the move lowers the loss."""
        saddle, data, location = examination.saddle, examination.data, examination.location
        if saddle is None or saddle.direction is None or data is None or location is None:
            return
        if not all(parameter.requires_grad for parameter in examination.parameters):
            return
        start = examination.block
        penalty = penalty_of(trainer, location)
        lowest = lowest_along(start, saddle.direction, data, penalty)
        if lowest is None:  # The witness is one of the point nearby; here there may be another way down.
            here = classify(start, data.X, data.loss, weight_decay=penalty or WeightDecay())
            lowest = None if here.direction is None else lowest_along(start, here.direction, data, penalty)
        if lowest is None:
            return
        look = examination.look
        # Samples that were not looked at must not lose by it; without a pass nobody can say.
        if not data.complete and look is None:
            return
        sampled = look is not None and look.sampled
        whole = look.mean_loss(trainer, module) if look is not None and sampled else math.inf
        if penalty is not None:
            whole += float(penalty.cost(start) - penalty.cost(lowest))
        write_block(module, location, lowest)
        _share(trainer, list(module.parameters()))
        # The loss must fall with the weights as rounded to the dtype of the module.
        before = trained_loss(start, data, penalty)
        after = trained_loss(read_block(module, location), data, penalty)
        if not after < before or (look is not None and sampled and not look.mean_loss(trainer, module) < whole):
            write_block(module, location, start)
            return
        forecast = event.plateau.forecast
        end = forecast.end if forecast is not None and math.isfinite(forecast.end) else None
        self.escapes.append(Escape(event.step, event.plateau.start, before, after, end))
        self._report.log_scalars(trainer, event.step, {"loss_change": after - before})
        self._say(trainer)

    def _count(self, trainer: Trainer, plateau: Plateau) -> None:
        """Note the end of a plateau after a move, and log the steps saved."""
        self.escapes[-1] = replace(self.escapes[-1], end=plateau.end)
        if self.escapes[-1].saved is not None:
            self._report.log_scalars(trainer, trainer.global_step, {"steps_saved": self.escapes[-1].saved})
            self._say(trainer)

    def _say(self, trainer: Trainer) -> None:
        """Print the last move, and log it as text."""
        line = str(self.escapes[-1])
        tell(trainer, line)
        self._report.log_text(trainer, trainer.global_step, "moves", line)


def _share(trainer: Trainer, parameters: list[nn.Parameter]) -> None:
    """Give every rank the weights of the first one, to the last bit."""
    if trainer.world_size > 1:
        for parameter in parameters:
            shared: Tensor = trainer.strategy.broadcast(parameter.data)
            parameter.data.copy_(shared)

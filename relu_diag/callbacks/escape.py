"""EscapeOnPlateau: leave a saddle at once, along the direction that proves it one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from relu_diag.callbacks.plateau import PlateauMonitor
from relu_diag.capture import read_block, write_block
from relu_diag.functional.problem import squared_problem
from relu_diag.training import Examination, Plateau, PlateauEvent, PlateauListener, Report

# Halvings of the step of the verdict that are tried.
_HALVINGS = 20


@dataclass(frozen=True, slots=True)
class Escape:
    """A move off a saddle.

    Attributes:
        step: Gradient steps done.
        plateau: First step of the plateau.
        before: Loss before the move.
        after: Loss after it, lower.
        forecast: Step at which the plateau was forecast to end by itself, or None.
        end: Step at which it has ended, or None until then.
    """

    step: int
    plateau: int
    before: float
    after: float
    forecast: float | None
    end: int | None = None

    @property
    def saved(self) -> float | None:
        """Steps saved against the forecast; None without one, and until the plateau has ended."""
        return None if self.forecast is None or self.end is None else self.forecast - self.end

    def __str__(self) -> str:
        gain = "" if self.saved is None else f", {self.saved:,.0f} steps before the forecast"
        return f"step {self.step:,} moved off a saddle: loss {self.before:.6g} to {self.after:.6g}{gain}"


class EscapeOnPlateau(PlateauListener):
    """Moves the weights off a certified saddle, once on every plateau, along the direction of its verdict.

    The loss along the direction is evaluated at the present weights, on the data of the verdict, and the lowest point
    is taken; where no point is lower, or the loss over the samples that the monitor leaves out rises with it, nothing
    moves: the loss never rises. The parameters stay the ones their optimizer knows, and its
    state stays as it is. Needs a `PlateauMonitor` of the same block among the trainer's callbacks.

    Logged: ``escape/loss_change`` at the move; ``escape/steps_saved`` at the end of the plateau, against the forecast;
    both as text.

    Args:
        block: Name of the block, as the monitor has it.

    Attributes:
        escapes: The moves so far, `Escape`.

    Raises:
        MisconfigurationException: If (at the start of training) no monitor watches the block.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[PlateauMonitor(), EscapeOnPlateau()], logger=False)
    """

    def __init__(self, block: str | None = None) -> None:
        self.block = block
        self.escapes: list[Escape] = []
        self._report = Report(f"escape/{block}/" if block else "escape/")

    @property
    def state_key(self) -> str:
        """Told apart by their block.

        Returns:
            Key of this callback's state in checkpoints.
        """
        return self._generate_state_key(block=self.block)

    @property
    def marks(self) -> list[tuple[int, str]]:
        """The moves, for the figure of the loss.

        Returns:
            Gradient steps, and "moved" for each.
        """
        return [(escape.step, "moved") for escape in self.escapes]

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint.

        Returns:
            The moves, as plain numbers.
        """
        return {"escapes": [asdict(one) for one in self.escapes]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint.

        Args:
            state_dict: What `state_dict` returned.
        """
        self.escapes = [Escape(**one) for one in state_dict["escapes"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to wait for events that nobody sends.

        Args:
            trainer: The trainer.
            pl_module: Unused.

        Raises:
            MisconfigurationException: If there is no monitor of the block.
        """
        monitors = [one for one in trainer.callbacks if isinstance(one, PlateauMonitor)]  # type: ignore[attr-defined]
        if not any(monitor.block == self.block for monitor in monitors):
            raise MisconfigurationException(
                f"EscapeOnPlateau(block={self.block!r}) acts on what a PlateauMonitor of the same block reports, and "
                f"the trainer has none: Trainer(callbacks=[PlateauMonitor(block={self.block!r}), ...])."
            )

    def on_plateau(self, trainer: Trainer, pl_module: LightningModule, event: PlateauEvent) -> None:
        """Move, or count what a move has saved.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            event: What the monitor saw.
        """
        if event.block != self.block:
            return
        moved = bool(self.escapes) and self.escapes[-1].plateau == event.plateau.start
        if event.kind == "end" and moved:
            self._count(trainer, event.plateau)
        elif event.examination is not None and not moved and event.plateau.end is None:
            self._move(trainer, pl_module, event, event.examination)

    def _move(self, trainer: Trainer, module: LightningModule, event: PlateauEvent, found: Examination) -> None:
        direction = found.verdict.direction
        if found.verdict.kind != "saddle" or direction is None or found.data is None:
            return
        start, data = found.block, found.data
        before = float(squared_problem(start, data.X, data.Y, data.reduction).loss)
        points = [direction.applied_to(start, direction.step / 2**k) for k in range(_HALVINGS)]
        losses = [float(squared_problem(point, data.X, data.Y, data.reduction).loss) for point in points]
        lowest = min(range(_HALVINGS), key=losses.__getitem__)
        if not losses[lowest] < before:
            return
        sampled = found.look.sampled
        whole = found.look.mean_loss(trainer, module) if sampled else math.inf
        write_block(module, found.location, points[lowest])
        _share(trainer, list(module.parameters()))
        # What the module makes of the numbers in its own dtype is what counts; and of the samples not looked at.
        after = float(squared_problem(read_block(module, found.location), data.X, data.Y, data.reduction).loss)
        if not after < before or (sampled and not found.look.mean_loss(trainer, module) < whole):
            write_block(module, found.location, start)
            return
        forecast = event.plateau.forecast
        end = forecast.end if forecast is not None and math.isfinite(forecast.end) else None
        self.escapes.append(Escape(event.step, event.plateau.start, before, after, end))
        self._report.log_scalars(trainer, event.step, {"loss_change": after - before})
        self._say(trainer)

    def _count(self, trainer: Trainer, plateau: Plateau) -> None:
        self.escapes[-1] = replace(self.escapes[-1], end=plateau.end)
        if self.escapes[-1].saved is not None:
            self._report.log_scalars(trainer, trainer.global_step, {"steps_saved": self.escapes[-1].saved})
            self._say(trainer)

    def _say(self, trainer: Trainer) -> None:
        line = str(self.escapes[-1])
        rank_zero_info(line)
        self._report.log_text(trainer, trainer.global_step, "moves", line)


def _share(trainer: Trainer, parameters: list[nn.Parameter]) -> None:
    """The weights of the first rank, to the last bit, on every rank."""
    if trainer.world_size > 1:
        for parameter in parameters:
            shared: Tensor = trainer.strategy.broadcast(parameter.data)
            parameter.data.copy_(shared)

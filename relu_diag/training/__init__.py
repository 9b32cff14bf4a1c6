"""What callbacks are made of: how a block in training is looked at, judged and reported. Never a decision to act.

The only place that reads Lightning's private names (`lightning_internals`), that says what the optimizer is (`pace`)
and that gives verdicts in training (`judge`).
"""

from relu_diag.training.detector import PlateauChange, PlateauDetector
from relu_diag.training.examination import MINIMA, Examination, examine
from relu_diag.training.history import HistoryRecorder, LossCurve
from relu_diag.training.judge import VERDICT_CODES, Judge, SquaredData
from relu_diag.training.lightning_internals import epochs_completed, progress_bar_texts, steps_logged
from relu_diag.training.look import Look, LossFunction, targets_of
from relu_diag.training.pace import NoForecast, Pace, Schedule, Stretch, is_plain_descent, schedule_of
from relu_diag.training.plateaus import (
    Plateau,
    PlateauEvent,
    PlateauForecast,
    PlateauListener,
    listeners,
    looked_at_again,
    plateau_from_state,
)
from relu_diag.training.report import Report
from relu_diag.training.stream import LossStream
from relu_diag.training.widening import NoWidening, choose_widening

__all__ = [
    "MINIMA",
    "VERDICT_CODES",
    "Examination",
    "HistoryRecorder",
    "Judge",
    "Look",
    "LossCurve",
    "LossFunction",
    "LossStream",
    "NoForecast",
    "NoWidening",
    "Pace",
    "Plateau",
    "PlateauChange",
    "PlateauDetector",
    "PlateauEvent",
    "PlateauForecast",
    "PlateauListener",
    "Report",
    "Schedule",
    "SquaredData",
    "Stretch",
    "choose_widening",
    "epochs_completed",
    "examine",
    "is_plain_descent",
    "listeners",
    "looked_at_again",
    "plateau_from_state",
    "progress_bar_texts",
    "schedule_of",
    "steps_logged",
    "targets_of",
]

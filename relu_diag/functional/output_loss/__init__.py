"""Losses as functions of a block's outputs: value, derivatives, conjugate, and which one a training step uses.

Never looks at a network: outputs in, numbers out.
"""

from relu_diag.functional.output_loss.binary_cross_entropy import BinaryCrossEntropy
from relu_diag.functional.output_loss.cross_entropy import CrossEntropy
from relu_diag.functional.output_loss.custom import OutputLoss
from relu_diag.functional.output_loss.loss import Loss, LossAt, LossByPoint, joined
from relu_diag.functional.output_loss.recognition import Recognition, recognise
from relu_diag.functional.output_loss.regression import AbsoluteError, Huber, Poisson, SquaredError, as_loss

__all__ = [
    "AbsoluteError",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Huber",
    "Loss",
    "LossAt",
    "LossByPoint",
    "OutputLoss",
    "Poisson",
    "Recognition",
    "SquaredError",
    "as_loss",
    "joined",
    "recognise",
]

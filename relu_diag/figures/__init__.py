"""Draw results with matplotlib's object interface: no pyplot, so no global state and no window."""

from relu_diag.figures.cells import cell_figure
from relu_diag.figures.convergence import certificate_figure, toy_figure
from relu_diag.figures.descent import direction_figure, neuron_figure, perturbation_figure
from relu_diag.figures.function import function_figure
from relu_diag.figures.interval import interval_figure, ladder_figure
from relu_diag.figures.plateaus import PlateauBand, plateau_figure
from relu_diag.figures.training import TrainingHistory, training_figure

__all__ = [
    "PlateauBand",
    "TrainingHistory",
    "cell_figure",
    "certificate_figure",
    "direction_figure",
    "function_figure",
    "interval_figure",
    "ladder_figure",
    "neuron_figure",
    "perturbation_figure",
    "plateau_figure",
    "toy_figure",
    "training_figure",
]

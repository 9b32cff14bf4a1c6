"""Draw results with matplotlib's object interface: no pyplot, so no global state and no window."""

from relu_diag.figures.canvas import png_of
from relu_diag.figures.cells import cell_figure
from relu_diag.figures.convergence import certificate_figure, toy_figure
from relu_diag.figures.descent import direction_figure, neuron_figure, perturbation_figure
from relu_diag.figures.function import function_figure
from relu_diag.figures.interval import interval_figure, ladder_figure
from relu_diag.figures.palette import verdict_style
from relu_diag.figures.story import forecast_error, percent, plateau_words, story_figure, told_forecast
from relu_diag.figures.training import TrainingHistory, training_figure

__all__ = [
    "TrainingHistory",
    "cell_figure",
    "certificate_figure",
    "direction_figure",
    "forecast_error",
    "function_figure",
    "interval_figure",
    "ladder_figure",
    "neuron_figure",
    "percent",
    "perturbation_figure",
    "plateau_words",
    "png_of",
    "story_figure",
    "told_forecast",
    "toy_figure",
    "training_figure",
    "verdict_style",
]

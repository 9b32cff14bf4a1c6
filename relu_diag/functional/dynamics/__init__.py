"""How small neurons turn and grow while the residuals stand still, and when a plateau ends.

Never evaluates a move: forecasts follow gradient descent, not the loss along a line.
"""

from relu_diag.functional.dynamics.extremal import ExtremalDirections, climbed_directions, extremal_directions
from relu_diag.functional.dynamics.forecast import EscapeForecast, forecast_escape

__all__ = ["EscapeForecast", "ExtremalDirections", "climbed_directions", "extremal_directions", "forecast_escape"]

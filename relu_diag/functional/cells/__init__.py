"""What is reached at fixed signs: the minima and saddles of activation cells, and the stationary point near an iterate.

Never lets a sample change sides; where the loss would fall by it, the answer says so.
"""

from relu_diag.functional.cells.arrangement import cell_directions
from relu_diag.functional.cells.minima import CellMinimum, all_cell_minima, boundary_minimum, cell_minimum, cell_pattern
from relu_diag.functional.cells.nearby import NearbyStationaryPoint, nearby_stationary_point
from relu_diag.functional.cells.saddles import CellSaddle, cell_saddles

__all__ = [
    "CellMinimum",
    "CellSaddle",
    "NearbyStationaryPoint",
    "all_cell_minima",
    "boundary_minimum",
    "cell_directions",
    "cell_minimum",
    "cell_pattern",
    "cell_saddles",
    "nearby_stationary_point",
]

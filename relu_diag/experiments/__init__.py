"""The reference problems of Wu et al. for a Trainer: plain gradient descent, many small steps in one batch."""

from relu_diag.experiments.descent import gradient_descent_
from relu_diag.experiments.problems import PointsDataModule, ProblemName, ReferenceProblem, reference_problem
from relu_diag.experiments.regression import ReferenceRegression

__all__ = [
    "PointsDataModule",
    "ProblemName",
    "ReferenceProblem",
    "ReferenceRegression",
    "gradient_descent_",
    "reference_problem",
]

"""The reference problems of Wu et al. and training against a function, for a Trainer."""

from relu_diag.experiments.descent import gradient_descent_
from relu_diag.experiments.population import PopulationNodes, PopulationRegression
from relu_diag.experiments.problems import PointsDataModule, ProblemName, ReferenceProblem, reference_problem
from relu_diag.experiments.regression import ReferenceRegression
from relu_diag.experiments.targets import Affine, Sine, Teacher

__all__ = [
    "Affine",
    "PointsDataModule",
    "PopulationNodes",
    "PopulationRegression",
    "ProblemName",
    "ReferenceProblem",
    "ReferenceRegression",
    "Sine",
    "Teacher",
    "gradient_descent_",
    "reference_problem",
]

"""The end of a plateau: leaps over the time in which only small neurons grow, and the flow of the whole network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional.block import BlockSignal, ShallowBlock, rho
from relu_diag.functional.dynamics._course import Course, Moment
from relu_diag.functional.dynamics._frozen import Growth, small_growth
from relu_diag.functional.dynamics._splitting import splitting_growth
from relu_diag.functional.local import neuron_states, target_scale
from relu_diag.functional.problem import SquaredProblem
from relu_diag.functional.tolerances import BUDGETS, FLOAT64


@dataclass(frozen=True, slots=True, eq=False)
class Escape:
    """Whose growth ends a plateau, and when; or how far the loss falls where no growth does.

    Attributes:
        time: Time of gradient flow until the loss has dropped, inf where it does not.
        drop: Drop of the loss that is reached.
        growth: The growth, its amplitude as it is now.
    """

    time: float
    drop: float
    growth: Growth


@dataclass(frozen=True, slots=True, eq=False)
class Plateau:
    """What a forecast is about.

    Attributes:
        problem: The squared loss of the network.
        targets: Targets, for what counts as small, shape ``(N, J)``.
        drop: Drop of the loss that ends the plateau.
        small: Largest contribution of a small group of neurons, as a fraction of the target scale.
        lr: Learning rate of descent, or 0 where it is not known.
    """

    problem: SquaredProblem
    targets: Tensor
    drop: float
    small: float
    lr: float

    def first_growth(self, at: ShallowBlock, drop: float) -> Growth | None:
        """The growth that first lowers the loss by a drop to first order, with the residuals there held fixed."""
        X = self.problem.signal.X
        signal = BlockSignal(X, self.problem.factor * (at(X) - self._wanted()))
        # A slope that an optimizer leaves where it has converged is no growth rate.
        loud = max(FLOAT64.derivative, self.problem.kink_tol) * float(signal.G.norm(dim=1) @ X.norm(dim=1))
        states = neuron_states(at, X, self.targets, small=self.small)
        small = states.small_living
        if len(at.H) > 1:
            # What little members of a grown group grow by is more than they are: each goes its own way.
            largest = rho(X @ at.W.T, at.slopes).abs().amax(dim=0) * at.H.norm(dim=0)
            small = small | (~states.dead & (largest <= self.small * target_scale(self.targets)))
        found = [small_growth(at, signal, small, drop, loud)]
        for group in range(len(states.group_amplitude)):
            members = ((states.group == group) & ~small).nonzero().squeeze(1)
            found.append(splitting_growth(at, signal, members, drop, loud))
        return min((one for one in found if one is not None), key=lambda one: one.time, default=None)

    def _wanted(self) -> Tensor:
        """The targets as the residuals say: what an output bias adds is in both."""
        return self.problem.outputs - self.problem.signal.G


def escape(plateau: Plateau) -> Escape | None:
    """When gradient flow lowers the loss by a drop.

    Where the residuals stand still all the while and the growth lowers the loss as it does to first order, growth is
    exponential and that is all. Else the flow of the whole network is followed: it may settle before anything grows;
    and from where the loss notices the growth, which may end before the drop is reached, and be followed by another.

    Args:
        plateau: The plateau.

    Returns:
        The end of the plateau; None where nothing grows.
    """
    block = plateau.problem.block
    growth = plateau.first_growth(block, plateau.drop)
    if growth is None:
        return None
    # What grows has lowered the loss a little already: the plateau is as high as without that.
    dropped = growth.gain * growth.amplitude if growth.time > 0 else 0.0
    course = Course(plateau.problem, dropped)
    now = Moment(block.W.cpu().numpy(), block.H.cpu().numpy(), 0.0, dropped, False, BUDGETS.course)
    if growth.time > 0 and _still(course, now, growth) and _reaches(course, now, growth, plateau.drop):
        return Escape(growth.time, plateau.drop, growth)
    stiffness = course.stiffness(now)
    if plateau.lr * stiffness > FLOAT64.edge:
        return Escape(growth.time, plateau.drop, growth)
    longest = max(FLOAT64.calm / stiffness, BUDGETS.calm_steps * plateau.lr)
    calm = course.calmed(now, min(longest, FLOAT64.stride / growth.gain))
    found = _followed(plateau, course, calm, growth)
    # No sooner than what is not looked at, a growth that to first order is there has ended.
    return replace(found, time=0.0) if growth.time == 0 and found.time <= 2 * calm.time else found


def _followed(plateau: Plateau, course: Course, at: Moment, first: Growth) -> Escape:
    """The same along the flow of the whole network, but for leaps while its residuals stand still."""
    growth: Growth | None
    last = first
    for _ in range(BUDGETS.rounds_of_growth):
        at, growth = _settled(plateau, course, at)
        if at.ended:
            return Escape(at.time, at.drop, last)
        if growth is None:
            at = course.follow(at, plateau.drop, FLOAT64.patience * course.linear_time(at, plateau.drop))
            return Escape(at.time if at.ended else math.inf, at.drop, last)
        last = replace(growth, amplitude=growth.amplitude * math.exp(-2 * growth.gain * at.time))
        there = _leapt(course, at, growth)
        if there.drop < at.drop - plateau.drop:
            return Escape(math.inf, at.drop, last)
        at = there
        # Exponential growth takes this long from being noticed to the drop, and as long again if it slows down.
        at = course.follow(at, plateau.drop, -math.log(FLOAT64.noticed) / growth.gain)
        if at.ended:
            return Escape(at.time, at.drop, last)
        if at.evaluations <= 0:
            return Escape(at.time + _rest(plateau, at, growth), plateau.drop, last)
    return Escape(math.inf, at.drop, last)


def _rest(plateau: Plateau, at: Moment, growth: Growth) -> float:
    """The time that the rest of a growth takes if it stays exponential."""
    if at.drop > FLOAT64.noticed * plateau.drop:
        return math.log(plateau.drop / at.drop) / (2 * growth.gain)
    rest = plateau.first_growth(_network(plateau.problem.block, at), plateau.drop)
    return rest.time if rest else math.inf


def _settled(plateau: Plateau, course: Course, at: Moment) -> tuple[Moment, Growth | None]:
    """The moment from which the residuals stand still until the next growth is noticed, and that growth."""
    while True:
        block = _network(plateau.problem.block, at)
        growth = plateau.first_growth(block, FLOAT64.noticed * plateau.drop)
        if growth is None or at.ended or at.evaluations <= 0 or _still(course, at, growth):
            return at, growth
        at = course.follow(at, plateau.drop, max(growth.time / BUDGETS.settlings, 1 / growth.gain))


def _still(course: Course, at: Moment, growth: Growth) -> bool:
    """Whether the residuals hardly move until a growth ends, but for what grows."""
    others = np.ones(len(at.W))
    others[growth.moved.cpu().numpy()] = 0.0
    return course.residual_speed(at, others) * growth.time <= FLOAT64.still


def _reaches(course: Course, at: Moment, growth: Growth, drop: float) -> bool:
    """Whether the loss falls as far as to first order when a growth ends."""
    there = _leapt(course, at, growth)
    return there.drop >= FLOAT64.first_order * drop


def _leapt(course: Course, at: Moment, growth: Growth) -> Moment:
    """The moment a growth ends, all else standing still."""
    if growth.time == 0:
        return at
    W, H = at.W.copy(), at.H.copy()
    moved = growth.moved.cpu().numpy()
    W[moved] = growth.W.cpu().numpy()
    H[:, moved] = growth.H.cpu().numpy()
    return replace(at, W=W, H=H, time=at.time + growth.time, drop=course.drop(W, H))


def _network(block: ShallowBlock, at: Moment) -> ShallowBlock:
    """The block at a moment."""
    return replace(block, W=torch.as_tensor(at.W).to(block.W), H=torch.as_tensor(at.H).to(block.H))

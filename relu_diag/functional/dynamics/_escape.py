"""The end of a plateau: by descent or flow of the whole network, or by small neurons alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from relu_diag.functional._arrays import Array
from relu_diag.functional.block import BlockSignal, ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.dynamics._course import Course
from relu_diag.functional.dynamics._descent import descended
from relu_diag.functional.dynamics._frozen import Growth, small_growth
from relu_diag.functional.dynamics._leaps import Leaps
from relu_diag.functional.dynamics._splitting import splitting_growth
from relu_diag.functional.dynamics._system import Moment, System
from relu_diag.functional.local import neuron_sums, states_from_sums
from relu_diag.functional.tolerances import FLOAT64

# Keeps divisions apart from zero.
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True, eq=False)
class Escape:
    """Whose growth ends a plateau, and when; or how far the loss falls where no growth does.

    Attributes:
        time: Learning rate times steps, or time of gradient flow, until the loss has dropped, inf where it does not.
        drop: Drop of the loss that is reached.
        growth: The growth, its amplitude as it is now.
        decided: False where the budget ran out before the drop was reached.
    """

    time: float
    drop: float
    growth: Growth
    decided: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Plateau:
    """What a forecast is about.

    Attributes:
        block: The network, float64.
        X: Inputs, shape ``(N, d)``.
        scale: What a contribution is small against, in units of the output.
        system: The same network and its loss.
        drop: Drop of the loss that ends the plateau.
        small: Largest contribution of a small group of neurons, as a fraction of the scale.
        lr: Learning rate of descent, or 0 where it is not known.
        loud: Slope over its terms that counts as zero.
    """

    block: ShallowBlock
    X: Tensor
    scale: float
    system: System
    drop: float
    small: float
    lr: float
    loud: float

    def first_growth(
        self, at: ShallowBlock, drop: float, strides: int = BUDGETS.strides, known: Growth | None = None
    ) -> Growth | None:
        """The growth that first lowers the loss by a drop to first order, with the loss gradients held fixed."""
        X = self.X
        signal = BlockSignal(X, torch.as_tensor(self.system.objective.gradient(at(X).cpu().numpy())).to(X))
        # A slope that an optimizer leaves where it has converged is no growth rate.
        loud = self.loud * float(signal.G.norm(dim=1) @ X.norm(dim=1))
        silent = BlockSignal(X, X.new_zeros(len(X), len(at.H)))
        states = states_from_sums(at, neuron_sums(at, silent), self.scale, small=self.small)
        small = states.small_living
        if len(at.H) > 1:
            # What little members of a grown group grow by is more than they are: each goes its own way.
            largest = rho(X @ at.W.T, at.slopes).abs().amax(dim=0) * at.H.norm(dim=0)
            small = small | (~states.dead & (largest <= self.small * self.scale))
        extremal = known.extremal_for(signal) if known else None
        found = [small_growth(at, signal, small, drop, loud, self.system.slowing, strides, extremal)]
        for group in range(len(states.group_amplitude)):
            members = ((states.group == group) & ~small).nonzero().squeeze(1)
            found.append(splitting_growth(at, signal, members, drop, loud, self.system.slowing))
        return min((one for one in found if one is not None), key=lambda one: one.time, default=None)

    def now(self, budget: int) -> Moment:
        """The present."""
        W, H = self.block.W.cpu().numpy(), self.block.H.cpu().numpy()
        bias = np.zeros(len(H)) if self.block.output_bias is None else self.block.output_bias.cpu().numpy()
        return Moment(W, H, bias, 0.0, 0.0, False, budget)

    def network(self, at: Moment) -> ShallowBlock:
        """The block at a moment."""
        like = self.block.W
        bias = None if self.block.output_bias is None else torch.as_tensor(at.bias).to(like)
        return replace(self.block, W=torch.as_tensor(at.W).to(like), H=torch.as_tensor(at.H).to(like), output_bias=bias)

    def descent_time(self, time: float, gain: float) -> float:
        """The time that descent takes for what grows like ``exp(gain t)`` in flow: a step multiplies by 1 + lr gain."""
        push = self.lr * gain
        return time * push / math.log1p(push) if push > 0 else time


def escape(plateau: Plateau) -> Escape | None:
    """When descent lowers the loss by a drop.

    Where the loss gradients stand still all the while and the growth lowers the loss as it does to first order, growth
    is exponential and that is all. Else the whole network is followed: it may settle before anything grows, and from
    where the loss notices the growth, that may end before the drop is reached, and be followed by another.

    Args:
        plateau: The plateau.

    Returns:
        The end of the plateau; None where nothing grows.
    """
    now, begun = plateau.now(0), _first_steps(plateau)
    drop = plateau.system.loss(now.W, now.H, now.bias) - plateau.system.loss(begun.W, begun.H, begun.bias)
    if begun.time > 0 and abs(drop) < plateau.drop:  # steps that overshoot leave no plateau
        found = _escape(replace(plateau, block=plateau.network(begun), drop=plateau.drop - drop))
        return found and replace(found, time=found.time + begun.time, drop=found.drop + drop)
    return _escape(plateau)


def _first_steps(plateau: Plateau) -> Moment:
    """The moment after the steps of descent that are longer than the input weights they move: flow goes elsewhere.

    Input weights of the length of the output weights are moved by as much only where the rate is too high.
    """
    system, at = plateau.system, plateau.now(0)
    for _ in range(BUDGETS.calm_steps):
        Z = system.X @ at.W.T
        slopes = np.where(Z > 0, system.slopes[1], system.slopes[0])
        G = system.objective.gradient((slopes * Z) @ at.H.T + at.bias)
        steps = plateau.lr * (slopes * (G @ at.H)).T @ system.X
        lengths = np.linalg.norm(at.W, axis=1)
        short = lengths < FLOAT64.unbalanced * np.linalg.norm(at.H, axis=0)
        if not (short & (np.linalg.norm(steps, axis=1) > lengths)).any():
            break
        at = descended(system, at, math.inf, plateau.lr, 1)[-1]
    return at


def _escape(plateau: Plateau) -> Escape | None:
    """The same from where flow is a guide."""
    now = plateau.now(BUDGETS.course)
    few = _few(plateau, now)
    growth = plateau.first_growth(plateau.block, plateau.drop, 0 if few else BUDGETS.strides)
    if growth is None:
        return None
    # What grows has lowered the loss a little already: the plateau is as high as without that.
    dropped = (growth.dropped if few else growth.gain * growth.amplitude) if growth.time > 0 else 0.0
    now = replace(now, drop=dropped)
    course = Course(plateau.system, plateau.system.loss(now.W, now.H, now.bias) + dropped)
    if growth.time > 0 and not plateau.system.slowing and (growth.arrived or not few):
        still = _moves(course, now, growth) <= (FLOAT64.frozen if few else FLOAT64.still)
        if still and _leapt(course, now, growth).drop >= FLOAT64.first_order * plateau.drop:
            return _exponential(plateau, growth)
    if few:
        soon = min(growth.time, course.linear_time(now, plateau.drop)) < plateau.lr * BUDGETS.descent
        # Where the loss slides, what grows did not begin at nothing: the drop is one from now.
        if _moves(course, now, growth) > FLOAT64.still:
            now = replace(now, drop=0.0)
        return _followed_closely(plateau, replace(now, budget=BUDGETS.leaps), growth, soon)
    stiffness = course.stiffness(now)
    if plateau.lr * stiffness > FLOAT64.edge:
        return _exponential(plateau, growth)
    longest = max(FLOAT64.calm / stiffness, BUDGETS.calm_steps * plateau.lr)
    calm = course.calmed(now, min(longest, FLOAT64.stride / growth.gain))
    found = _followed(plateau, course, calm, growth)
    # No sooner than what is not looked at, a growth that to first order is there has ended.
    if growth.time == 0 and found.time <= 2 * calm.time:
        return replace(found, time=0.0)
    return replace(found, time=plateau.descent_time(found.time, found.growth.gain))


def _few(plateau: Plateau, now: Moment) -> bool:
    """Whether a network is so small that all of it is followed from kink to kink."""
    X = plateau.system.X
    numbers = now.W.size + now.H.size
    return len(X) <= BUDGETS.few_samples and numbers <= BUDGETS.leap_numbers


def _exponential(plateau: Plateau, growth: Growth) -> Escape:
    """A growth that is exponential to its end."""
    return Escape(plateau.descent_time(growth.time, growth.gain), plateau.drop, growth)


def _followed_closely(plateau: Plateau, now: Moment, first: Growth, soon: bool) -> Escape | None:
    """The descent of a small network, by steps where the end may be soon, then in leaps; None where nothing grows."""
    history = [now]
    if soon:
        history += descended(plateau.system, now, plateau.drop, plateau.lr, BUDGETS.descent)
    if _goes_on(history[-1]) and not _leapt_to_the_end(plateau, history, first):
        if plateau.lr > 0:
            history += descended(plateau.system, history[-1], plateau.drop, plateau.lr, BUDGETS.long_descent)
        if _goes_on(history[-1]) and not _leapt_to_the_end(plateau, history, first):
            history.append(replace(history[-1], budget=0))
    end = history[-1]
    if not _is_finite(end):
        return Escape(math.inf, now.drop, first, decided=False)
    if end.ended:
        return Escape(end.time, end.drop, _ending(plateau, history, first))
    grown = _amplitudes(end) > FLOAT64.grown * _amplitudes(now)
    decided = end.budget > 0
    return Escape(math.inf, end.drop, first, decided) if grown[first.moved.cpu().numpy()].any() or not decided else None


def _leapt_to_the_end(plateau: Plateau, history: list[Moment], first: Growth) -> bool:
    """Go on in leaps; False from where descent leaps to and fro too far for that, or across an origin."""
    leaps, rough = _calmed(plateau, history[-1], first)
    if rough:
        return False
    at_origin = leaps.collapsed.copy()
    leaps.follow(plateau.drop, FLOAT64.forever / max(leaps.stiffness(), _TINY))
    history += leaps.history
    crosses = plateau.lr > 0 and bool((leaps.collapsed & ~at_origin).any())
    return leaps.history[-1].ended or not (crosses or leaps.is_rough(plateau.drop))


def _goes_on(at: Moment) -> bool:
    """Whether a forecast is to be followed beyond a moment."""
    return not at.ended and at.budget > 0 and _is_finite(at)


def _is_finite(moment: Moment) -> bool:
    """Whether weights and drop are numbers: a descent at too high a rate diverges."""
    return bool(np.isfinite(moment.W).all() and np.isfinite(moment.H).all() and math.isfinite(moment.drop))


def _calmed(plateau: Plateau, at: Moment, first: Growth) -> tuple[Leaps, bool]:
    """Leaps from where neurons leap across kinks no more, and whether descent does so too far for that."""
    leaps = Leaps(plateau.system, at, plateau.lr)
    if plateau.lr > 0:
        excess = leaps.settle(BUDGETS.settle_steps * plateau.lr)
        rough = excess > FLOAT64.rough * plateau.drop or leaps.is_rough(plateau.drop)
        rough = rough or _misses_descent(plateau, leaps, at)
    else:
        leaps.calm(min(FLOAT64.calm / max(leaps.stiffness(), _TINY), FLOAT64.stride / first.gain))
        rough = False
    # An escape that is under way is not rough.
    return (leaps if leaps.history[-1].drop < plateau.drop else Leaps(plateau.system, at, plateau.lr)), rough


def _misses_descent(plateau: Plateau, leaps: Leaps, at: Moment) -> bool:
    """Go on for some steps; whether the loss falls otherwise in leaps than in these steps."""
    steps = descended(plateau.system, at, math.inf, plateau.lr, BUDGETS.settle_steps)
    flow = leaps.follow(math.inf, at.time + BUDGETS.settle_steps * plateau.lr)
    return bool(abs(flow.drop - steps[-1].drop) > FLOAT64.rough * plateau.drop)


def _amplitudes(at: Moment) -> Array:
    """Lengths of input weights times those of output weights, shape ``(I,)``."""
    return np.asarray(np.linalg.norm(at.W, axis=1) * np.linalg.norm(at.H, axis=0))


def _ending(plateau: Plateau, history: list[Moment], first: Growth) -> Growth:
    """The growth that ends a plateau: the one that is under way shortly before."""
    end = history[-1]
    # Residuals that it has moved itself are no longer those of the plateau.
    before = [moment for moment in history if moment.time <= end.time - FLOAT64.beforehand / first.gain] or history[:1]
    if first.arrived and _is_under_way(history[0], before[-1], first):
        return first
    growth = plateau.first_growth(plateau.network(before[-1]), plateau.drop - before[-1].drop, strides=0, known=first)
    return first if growth is None else _as_now(growth, before[-1].time)


def _is_under_way(now: Moment, at: Moment, growth: Growth) -> bool:
    """Whether by some moment the neurons of a growth have grown, and by more than all others that were looked at."""
    gained = _amplitudes(at) - _amplitudes(now)
    its = growth.neurons.cpu().numpy()
    others = np.setdiff1d(growth.moved.cpu().numpy(), its)
    return bool(gained[its].sum() > np.abs(gained[others]).sum())


def _as_now(growth: Growth, time: float) -> Growth:
    """A growth that is seen at a time, with the amplitude that it has now."""
    return replace(growth, amplitude=growth.amplitude * math.exp(-2 * growth.gain * time))


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
        last = _as_now(growth, at.time)
        there = _leapt(course, at, growth)
        if there.drop < at.drop - plateau.drop:
            return Escape(math.inf, at.drop, last)
        at = there
        # Exponential growth takes this long from being noticed to the drop, and as long again if it slows down.
        at = course.follow(at, plateau.drop, -math.log(FLOAT64.noticed) / growth.gain)
        if at.ended:
            return Escape(at.time, at.drop, last)
        if at.budget <= 0:
            return Escape(at.time + _rest(plateau, at, growth), plateau.drop, last)
    return Escape(math.inf, at.drop, last)


def _rest(plateau: Plateau, at: Moment, growth: Growth) -> float:
    """The time that the rest of a growth takes if it stays exponential."""
    if at.drop > FLOAT64.noticed * plateau.drop:
        return math.log(plateau.drop / at.drop) / (2 * growth.gain)
    rest = plateau.first_growth(plateau.network(at), plateau.drop)
    return rest.time if rest else math.inf


def _settled(plateau: Plateau, course: Course, at: Moment) -> tuple[Moment, Growth | None]:
    """The moment from which the residuals stand still until the next growth is noticed, and that growth."""
    while True:
        block = plateau.network(at)
        growth = plateau.first_growth(block, FLOAT64.noticed * plateau.drop)
        if growth is None or at.ended or at.budget <= 0 or _moves(course, at, growth) <= FLOAT64.still:
            return at, growth
        at = course.follow(at, plateau.drop, max(growth.time / BUDGETS.settlings, 1 / growth.gain))


def _moves(course: Course, at: Moment, growth: Growth) -> float:
    """How far the loss gradients move until a growth ends, but for what grows, over their length."""
    others = np.ones(len(at.W))
    # A group that comes apart grows by its differences; as one it moves like all others.
    if growth.extremal is not None:
        others[growth.moved.cpu().numpy()] = 0.0
    return course.signal_speed(at, others) * growth.time


def _leapt(course: Course, at: Moment, growth: Growth) -> Moment:
    """The moment a growth ends, all else standing still."""
    if growth.time == 0:
        return at
    W, H = at.W.copy(), at.H.copy()
    moved = growth.moved.cpu().numpy()
    W[moved] = growth.W.cpu().numpy()
    H[:, moved] = growth.H.cpu().numpy()
    there = replace(at, W=W, H=H, time=at.time + growth.time)
    return replace(there, drop=course.drop(there))

"""What is asked of the package on every problem; a complaint is a kind and what was seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from relu_diag import functional as F

from .changes import CHANGES
from .descent import largest_fall, lower_network
from .first_order import Neuron, Point, bias_violation, first_order, lowest_by_programs, point_of
from .line import change, profile, rounding_of_change
from .problem import Array, Problem, loss, outputs, rho

Rng = np.random.Generator

# Refusals that the documentation announces.
_REFUSALS = ("`slopes`", "Gram matrix", "one output", "at most 12 neurons", "hidden neurons", "smooth")
# Weights that moved by no more than this, relative to each neuron, are the same.
_SAME = 1e-6
# Changes after which numbers are multiplied or added up in another order.
_ROUNDS = ("rotated", "permuted", "a sample is quartered")
# A fall this many times the rounding of the loss can be seen in float64.
_VISIBLE = 1000


@dataclass
class Record:
    """What happened on one problem: complaints as (kind, text), exceptions, the verdict, and seconds by call.

    ``clear``: the oracle knows the answer where the package does not. ``missed``: what was not found, and not denied.
    """

    complaints: list[tuple[str, str]] = field(default_factory=list)
    exceptions: list[tuple[str, str]] = field(default_factory=list)
    kind: str = ""
    reason: str = ""
    clear: bool = False
    missed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def wrong(self, kind: str, text: str) -> None:
        self.complaints.append((kind, text))

    def call(self, name: str, function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return function(*values, **options)
        except Exception as error:
            if not (isinstance(error, ValueError) and any(word in str(error) for word in _REFUSALS)):
                self.exceptions.append((name, f"{type(error).__name__}: {error}"))
            return None
        finally:
            self.seconds[name] = max(self.seconds.get(name, 0.0), time.process_time() - start)


@dataclass(frozen=True)
class Truth:
    """What the oracle says to first and second order; None where it cannot say."""

    point: Point
    neurons: list[Neuron]
    bias: float

    @property
    def rounding(self) -> float:
        """What float64 may get wrong of a loss change."""
        error = np.linalg.norm(self.point.E.astype(float), axis=1) + self.point.noise
        return float(error @ self.point.noise) / self.point.problem.factor

    def visible(self, fall: float) -> bool:
        """Whether a fall stands out of that."""
        return fall > _VISIBLE * self.rounding

    def violates(self, one: Neuron) -> bool:
        """Whether a neuron violates its conditions by more than the tolerance, and the loss can be seen to fall."""
        return one.least > 100 * self.point.tol and self.visible(one.descent)

    @property
    def stationary(self) -> bool | None:
        tol = self.point.tol
        if self.bias > 100 * tol or any(self.violates(one) for one in self.neurons):
            return False
        return True if self.certain and max([one.most for one in self.neurons] + [self.bias]) < tol / 100 else None

    @property
    def exact(self) -> bool:
        """Whether the derivatives vanish even where rounding would excuse them, and no slope leads far enough down."""
        return max(one.raw for one in self.neurons) < self.point.tol / 100 and not self.slides

    @property
    def slides(self) -> bool:
        """Whether the loss can be seen to fall along a slope that is no rounding, however small it is."""
        return any(self.visible(one.descent) for one in self.neurons)

    @property
    def blurred(self) -> bool:
        """Whether some derivative is within the tolerance's band, or what a pull is worth below the loss's rounding."""
        tol = self.point.tol
        banded = any(tol / 100 <= one.raw <= 100 * tol for one in self.neurons)
        slides = self.slides and not any(self.violates(one) for one in self.neurons)
        return banded or slides or any(one.fall > 0 and not self.visible(one.fall) for one in self.neurons)

    @property
    def certain(self) -> bool:
        return all(one.certain for one in self.neurons)

    @property
    def clear(self) -> bool:
        """Whether the answer is known: a descent that can be seen, or stationary with or without a saddle's pull."""
        return self.stationary is False or (self.stationary is True and self.escapes is not None)

    @property
    def pulled(self) -> list[bool]:
        """Which neurons are escape neurons for sure."""
        return [one.pull > 1000 * self.point.tol and self.visible(one.fall) for one in self.neurons]

    @property
    def escapes(self) -> bool | None:
        """Whether some neuron pulls that makes it a saddle for sure; None where outputs or rounding leave it open."""
        silent = ~self.point.problem.H.any(axis=0)
        if (np.array(self.pulled) & silent).any():
            return True
        if not self.certain or any(one.pull > 1e-13 or one.hidden for one in self.neurons):
            return None
        return False


def truth_of(problem: Problem) -> Truth:
    point = point_of(problem)
    clear = float(np.abs(point.E.sum(0)).max()) > 100 * float(point.noise.sum())
    neurons = [first_order(point, i) for i in range(len(problem.W))]
    return Truth(point, neurons, bias_violation(point) if clear else 0.0)


def attack(problem: Problem, rng: Rng, deep: bool = False) -> Record:
    """All checks on one problem; the costly ones on a share of them, all of them where ``deep``."""
    record = Record()
    truth = truth_of(problem)
    verdict = record.call("classify", F.classify, problem.block(), *problem.data(), problem.reduction)
    check_first_order(record, truth)
    if verdict is None:
        return record
    record.kind, record.reason = verdict.kind, verdict.reason
    record.clear = verdict.kind == "undecided" and truth.clear
    check_verdict(record, truth, verdict, rng, deep)
    names = list(CHANGES) if deep else list(rng.choice(list(CHANGES), 2, replace=False))
    check_changes(record, truth, verdict, rng, names)
    if deep or rng.random() < 0.4:
        check_nearby(record, truth, verdict)
    if deep or rng.random() < 0.03:  # a hundred times as long as the others
        check_growth(record, truth, rng)
    if deep or rng.random() < 0.2:
        check_cells(record, problem)
    return record


def check_first_order(record: Record, truth: Truth) -> None:
    """`stationarity` neuron by neuron."""
    problem = truth.point.problem
    signal = F.squared_error_signal(problem.block(), *problem.data(), problem.reduction)
    found = record.call("stationarity", F.stationarity, problem.block(), signal)
    if found is None:
        return
    tol, bias, raw_bias = truth.point.tol, truth.bias, bias_violation(truth.point)
    for i, one in enumerate(truth.neurons):
        if not bool(found.decided[i]) or problem.float32:  # a signal in float32 is rounded on its own
            continue
        says = bool(found.stationary[i])
        if says and (truth.violates(one) or bias > 100 * tol):
            record.wrong("stationarity says yes", f"neuron {i}: violation at least {one.least:.3g}, bias {bias:.3g}")
        if not says and one.certain and max(one.raw, raw_bias) < tol / 100:
            lowest = lowest_by_programs(truth.point, i)
            text = f"neuron {i}: violation at most {one.raw:.3g}, bias {bias:.3g}, programs {lowest}"
            agree = lowest is None or lowest > -1e-8
            record.wrong("stationarity says no" if agree else "(the oracle contradicts itself)", text)


def check_verdict(record: Record, truth: Truth, verdict: F.Verdict, rng: Rng, deep: bool) -> None:
    """That the kind is true, and that what it shows is there."""
    kind = verdict.kind
    worst = max([one.least for one in truth.neurons] + [truth.bias])
    if kind in {"saddle", "local minimum", "type-2 candidate"} and truth.stationary is False:
        record.wrong(f"{kind} where not stationary", f"violation at least {worst:.3g}; {verdict}")
    if kind == "not stationary" and truth.stationary is True and truth.exact and not _slides(truth, verdict):
        record.wrong("not stationary where stationary", str(verdict))
    if kind == "local minimum" and truth.stationary and any(truth.pulled):
        record.wrong("local minimum with escape neuron", f"pulls {[one.pull for one in truth.neurons]}; {verdict}")
    # Kinks that nearly coincide may hold a minimum in a neighbourhood too small to search.
    if kind == "local minimum" and truth.certain:
        fall = largest_fall(truth.point, rng, *(1024, 100) if deep else (96, 15))
        if fall.excess > 1 and truth.visible(-fall.change):
            record.wrong("local minimum left downhill", f"by {fall.change:.3g}, excess {fall.excess:.3g}; {fall.text}")
    if kind == "type-2 candidate" and truth.certain:
        fall = largest_fall(truth.point, rng)
        if fall.excess > 1 and truth.visible(-fall.change):
            record.missed.append("type-2 candidate left downhill")
    if kind == "global minimum":
        check_global(record, truth, verdict, rng, deep)
    if kind in {"not stationary", "saddle"}:
        if verdict.direction is None:
            record.wrong(f"{kind} without direction", str(verdict))
        else:
            check_witness(record, truth, verdict)


def _slides(truth: Truth, verdict: F.Verdict) -> bool:
    """Whether the loss can be seen to fall along the witness, and falls in proportion from the start."""
    if verdict.direction is None:
        return False
    direction = verdict.direction
    db = np.zeros(len(direction.dH)) if direction.db is None else direction.db.double().numpy()
    parts = direction.dW.double().numpy(), direction.dH.double().numpy(), db
    begun, fall = (change(truth.point.problem, *parts, share * direction.step) for share in (1e-3, 1.0))
    return truth.visible(-fall) and begun < 1e-4 * fall


def check_global(record: Record, truth: Truth, verdict: F.Verdict, rng: Rng, deep: bool) -> None:
    problem = truth.point.problem
    if float(loss(problem)) <= rounding_of_loss(truth.point):
        return
    lower = lower_network(problem, rng, 60 if deep else 8)
    zero_loss = verdict.theorem != "convexity in the outputs"
    # Weights of 1e16 fit whatever the last digits of the inputs are, which span what the inputs do not.
    if lower is not None and rounding_of_loss(point_of(lower)) > 0.01 * float(loss(problem)):
        return
    if lower is not None and (zero_loss or _pulled(truth.point, lower.W)):
        text = f"loss {float(loss(problem)):.6g}, another network of this width has {float(loss(lower)):.6g}; {verdict}"
        record.wrong("global minimum beaten", text)


def _pulled(point: Point, W: Array) -> bool:
    """Whether a neuron with one of these input weights would lower the loss by more than any tolerance explains.

    Where the samples it sees are all but met it may pull as it likes: next to nothing is to be gained there.
    """
    problem = point.problem
    A, E = rho(problem.X @ W.T, problem.slopes), point.E.astype(float)
    error = np.linalg.norm(E, axis=1) * 100 * point.tol + 100 * point.noise
    pull, size = np.linalg.norm(E.T @ A, axis=0), np.linalg.norm(A, axis=0)
    fall = np.square(pull / np.where(size > 0, size, 1.0)) / (2 * problem.factor)
    return bool(((pull > error @ np.abs(A)) & (fall > 1e-6 * float(loss(problem)))).any())


def rounding_of_loss(point: Point) -> float:
    """What the loss may be where every residual is rounding."""
    size = max(float(np.linalg.norm(point.problem.Y)), float(np.linalg.norm(outputs(point.problem))))
    residual = 10 * float(np.linalg.norm(point.noise)) / point.problem.factor + point.tol * size
    return float(point.problem.factor / 2 * residual**2)


def check_witness(record: Record, truth: Truth, verdict: F.Verdict) -> None:
    """It falls, falls from the start, and never rises on the way."""
    problem, direction = truth.point.problem, verdict.direction
    assert direction is not None
    db = np.zeros(len(problem.H)) if direction.db is None else direction.db.double().numpy()
    parts = direction.dW.double().numpy(), direction.dH.double().numpy(), db
    seen = profile(problem, *parts, direction.step, truth.point.kink)
    # The fall is that of the loss itself; on the way, samples within the kink's tolerance count as on it.
    rounding, fall = truth.rounding, change(problem, *parts, direction.step)
    text = f"step {direction.step:.3g}, change {fall:.3g} (said {direction.loss_change:.3g}), rise {seen.rise:.3g}"
    if not fall < 0:
        record.wrong("witness does not fall", f"{text}; {verdict.kind}")
        return
    if seen.rise > max(1e-6 * abs(fall), rounding):
        record.wrong("witness rises on the way", f"{text}; {verdict.kind}")
    if seen.start > rounding or (seen.start >= 0 and seen.first > 1e-3 * direction.step):
        record.wrong("witness does not begin downhill", f"{text}, first piece {seen.start:.3g}; {verdict.kind}")
    unknown = rounding + rounding_of_change(problem, *parts[:2], direction.step)
    if abs(fall - direction.loss_change) > 0.01 * abs(fall) + 10 * unknown:
        record.wrong("witness misstates its fall", f"{text}; {verdict.kind}")


def check_changes(record: Record, truth: Truth, verdict: F.Verdict, rng: Rng, names: list[str]) -> None:
    """The verdict of the same landscape written differently."""
    problem = truth.point.problem
    if truth.stationary is None or problem.float32 or truth.blurred or _near_tolerance(truth.point):
        return
    for name in names:
        if name == "repeated" and problem.reduction == "mean":
            continue
        if name in _ROUNDS and _is_met(problem):  # other rounding, other answer
            continue
        changed = CHANGES[name](rng, problem)
        other = record.call("classify", F.classify, changed.block(), *changed.data(), changed.reduction)
        if other is None or other.kind == verdict.kind:
            continue
        # Copies of a neuron may open a way out that was not found before.
        found = {verdict.kind, other.kind}
        if not (name == "a neuron is halved" and found & {"type-2 candidate", "undecided"}):
            record.wrong(f"changes when {name}", f"{verdict} -> {other}")


def _is_met(problem: Problem) -> bool:
    """Whether all that weights can reach is met up to rounding."""
    reached = problem.X.any(axis=1) if problem.b is None else np.ones(len(problem.X), dtype=bool)
    within = replace(problem, X=problem.X[reached], Y=problem.Y[reached])
    return not reached.any() or float(loss(within)) <= rounding_of_loss(point_of(within))


def _near_tolerance(point: Point) -> bool:
    """Whether rounding may put a sample on a kink, or off it."""
    W, X = point.problem.W, point.problem.X
    reach = np.linalg.norm(X, axis=1)[:, None] * np.linalg.norm(W, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.abs(np.asarray(X @ W.T)) / reach
    return bool(((distance > 1e-12) & (distance < 1e-8)).any())


def check_nearby(record: Record, truth: Truth, verdict: F.Verdict) -> None:
    """At an exact stationary point it returns that point; anywhere what it calls genuine is stationary."""
    problem = truth.point.problem
    there = record.call(
        "nearby_stationary_point", F.nearby_stationary_point, problem.block(), *problem.data(), problem.reduction
    )
    if there is None:
        return
    W, H = there.block.W.double().numpy(), there.block.H.double().numpy()
    if truth.stationary and verdict.kind in {"local minimum", "saddle", "global minimum"} and not problem.float32:
        moved = max(_moved(W, problem.W), _moved(H.T, problem.H.T))
        if moved > _SAME or not there.genuine or there.verdict.kind != verdict.kind:
            record.wrong("nearby is elsewhere", f"moved {moved:.3g}, genuine {there.genuine}; {verdict} -> {there}")
    if there.genuine and there.verdict.kind in {"local minimum", "saddle"} and not problem.float32:
        b = None if problem.b is None else there.block.output_bias.double().numpy()
        found = truth_of(Problem(W, H, problem.X, problem.Y, problem.slopes, b, problem.reduction))
        if found.stationary is False:
            record.wrong("nearby is not stationary", f"{max(one.least for one in found.neurons):.3g}; {there}")


def _moved(after: Array, before: Array) -> float:
    size = np.linalg.norm(before, axis=1)
    distance = np.linalg.norm(after - before, axis=1)
    return float(np.where(size > 0, distance / np.where(size > 0, size, 1.0), distance > 0).max())


def check_growth(record: Record, truth: Truth, rng: Rng) -> None:
    """Extremal directions are as said and none is steeper; proposals lower the loss as said; forecasts are numbers."""
    problem = truth.point.problem
    X, Y = problem.data()
    G = problem.tensor(np.asarray(truth.point.E, dtype=float))
    found = record.call("extremal_directions", F.extremal_directions, X, G, problem.slopes)
    if found is not None:
        best = float(found.gain[0]) if len(found.gain) else 0.0
        steeper, size = _steepest_pull(problem.X, G.double().numpy(), problem.slopes, rng)
        if steeper > best * 1.001 + (1e-4 if problem.float32 else 1e-6) * size:
            record.wrong("extremal direction missed", f"{steeper:.6g} against {best:.6g}, terms {size:.3g}")
        v = found.v.double().numpy()
        gain = np.linalg.norm(G.double().numpy().T @ rho(problem.X @ v.T, problem.slopes), axis=0)
        if len(gain) and (np.abs(gain - found.gain.numpy()) > 1e-6 * gain + 1e-9 * size).any():
            record.wrong("extremal gain misstated", f"{gain.tolist()} against {found.gain.tolist()}")
    proposals = record.call("growth_proposals", F.growth_proposals, problem.block(), X, Y, problem.reduction)
    for one in proposals or []:
        wider = one.new_block
        b = None if problem.b is None else wider.output_bias.double().numpy()
        grown = Problem(
            wider.W.double().numpy(),
            wider.H.double().numpy(),
            problem.X,
            problem.Y,
            problem.slopes,
            b,
            problem.reduction,
        )
        drop = float(loss(problem) - loss(grown))
        allowed = 1e-3 * abs(drop) + 1e-9 * float(loss(problem)) + 10 * truth.rounding + rounding_of_loss(truth.point)
        if not problem.float32 and not abs(drop - one.measured_drop) <= allowed:
            record.wrong("proposal misstates its drop", f"{drop:.6g} against {one.measured_drop:.6g}; {one}")
    record.call("forecast_escape", F.forecast_escape, problem.block(), X, Y, 1e-2, reduction=problem.reduction)


def _steepest_pull(X: Array, G: Array, slopes: tuple[float, float], rng: Rng) -> tuple[float, float]:
    """Largest ``||D(v)||`` that a plain ascent from samples and random directions finds, and its terms."""
    length = np.linalg.norm(X, axis=1)
    V = np.concatenate([X[length > 0], -X[length > 0], rng.standard_normal((24, X.shape[1]))])
    V /= np.linalg.norm(V, axis=1, keepdims=True)
    best = 0.0
    for _ in range(12):
        Z = V @ X.T
        D = rho(Z, slopes) @ G
        size = np.linalg.norm(D, axis=1)
        best = max(best, float(size.max(initial=0.0)))
        ahead = (np.where(Z > 0, slopes[1], slopes[0]) * (D @ G.T)) @ X
        norm = np.linalg.norm(ahead, axis=1, keepdims=True)
        V = np.where(norm > 0, ahead / np.where(norm > 0, norm, 1.0), V)
    return best, float(max(map(abs, slopes)) * (length @ np.linalg.norm(G, axis=1)))


def check_cells(record: Record, problem: Problem) -> None:
    """Cell minima are no higher than the point and have the loss they say; certificates raise nothing."""
    block, (X, Y) = problem.block(), problem.data()
    if len(problem.H) == 1:
        found = record.call("cell_minimum", F.cell_minimum, block, X, Y, problem.reduction)
        now, size = float(loss(problem)), problem.factor / 2 * float(np.square(problem.Y).sum())
        amplitude = float(np.linalg.norm(problem.W, axis=1) @ np.linalg.norm(problem.H, axis=0))
        size += 1e-11 * problem.factor * float(np.square(amplitude * problem.X).sum())
        if found is not None and not problem.float32:
            if found.loss > now * (1 + 1e-6) + 1e-9 * size:
                record.wrong("cell minimum above the point", f"{found.loss:.6g} against {now:.6g}")
            if found.genuine and found.block is not None:
                there = float(F.squared_loss(found.block, X, Y, problem.reduction))
                if not problem.Y.any():  # nothing but the weights has a size
                    size += problem.factor * float(found.block.W.norm() * found.block.H.norm() * X.norm()) ** 2
                if abs(there - found.loss) > 1e-6 * found.loss + 1e-9 * size:
                    record.wrong("cell minimum misstated", f"{there:.6g} against {found.loss:.6g}")
    record.call("convergence_certificate", F.convergence_certificate, block, X, Y, problem.reduction)
    if 0 < problem.slopes[0] < 1 and problem.slopes[1] == 1:
        record.call("smooth_certificate", F.smooth_convergence_certificate, block, X, Y, problem.reduction)

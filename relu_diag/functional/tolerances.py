"""Every threshold of the kernel, with its reason and unit; how much is enumerated stands apart (`budgets`).

A tolerance says what counts as zero, as equal or as on a kink, and follows from rounding or from what training can
resolve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from relu_diag.functional._checks import is_number


@dataclass(frozen=True, slots=True)
class Tolerances:
    """Thresholds for one dtype. All are relative: to lengths, to the terms of a sum, or angles in rad.

    Attributes:
        eps: Distance from 1 to the next number.
        roundings: Unit roundoffs that products, sums and the difference to a target add to a residual, of its terms.
        kink: ``|z_ki| / (||w_i|| ||x_k||)`` that counts as on the kink: a margin over the rounding of one inner
            product (16-bit numbers are multiplied and added up in float32).
        derivative: A derivative over the sum of the absolute terms it is made of that counts as zero: what is left
            where an optimizer has converged in this dtype.
        same_line: Sine of the angle between two kink samples that cut space along one hyperplane.
        all_but_one: The same, of hyperplanes that are looked at as one besides, where their rays are nearly one line.
        rank: Singular value over the largest that counts as zero: vectors apart by `same_line` must be independent.
        alike: Difference of two small problems, over their size, at which the answer to one serves the other.
        same_side: Sine of the angle between a ray and a hyperplane within which the ray lies in it: the rounding of
            `same_line`, amplified by solving for the ray.
        same_angle: Angles that are one direction on a circle, rad.
        cancelled: What is left of a sum of terms that cancel, over the largest of them.
        no_descent: Slope over its terms at which a search for a descent has found none.
        gap: Slope attained minus its lower bound, over the coefficients, that counts as closed.
        short: Length of a difference over its parts, below which its square has lost half the digits.
        radial: Length of a tangential part over the vector's, below which it is projected a second time.
        arc: Excess over a half turn that an open arc must have, rad.
        cosine: Rounding of the inner product of two unit vectors.
        float32_cosine: The same in float32, for each of its terms.
        flat: Curvature, or slope along a cell's boundary, over its terms that counts as none.
        level: Rise over the height it starts from that an ascent counts as none.
        curved: Second-order rise over the height that an ascent counts as one.
        even_lengths: Difference of lengths, over one of them, at which all were made the same.
        whisper: Length of new input weights, over the usual, whose neuron changes next to nothing.
        likeness: Share of its own size that a sample must have along another one to count as like it.
        worth_another: Drop of the loss by one more batch of neurons, over that of all before, that is worth looking.
        worth_before_rest: The same where neurons that are left are placed in any case: more batches only cost time.
        settled_fit: Drop of the loss by a step to the best amplitudes, over the whole drop, that ends the steps.
        off_centre: Share of the squares of gradients in their mean, from which on an output bias is far off.
        overlap: Cosine of what two neurons add to the outputs from which on one of them is enough.
        wide_overlap: The same where each is placed against all of the loss.
        agreement: Gain on samples held out over the one on those it was chosen by, from which it is no accident.
        sure: Standard errors above which a sum over samples is no accident.
        accidents: Share of accidents among sums over samples, of many that were looked at, that are taken for none.
        faint: Contribution when active, over the usual one, of a neuron that is not worth a price on activity.
        same_neuron: Angle between the input weights of two neurons that do the same, rad.
        held: Neurons of one direction beside one kink from which they are there for a reason, not by accident.
        wider: Distance to a kink, over the one that training leaves, at which a sample is tried on the kink by itself.
        near: Square of its relative distance plus relative change of the loss, of a stationary point that is near.
        as_near: Score over the lowest up to which a point without the small neurons is preferred: they move little.
        longest_turn: Newton step on an angle, rad, at most: roots of a polynomial are close to where they belong.
        same_maximum: Chord between two maxima on the unit sphere that are one.
        seen_as_one: The same where kinks are dense and maxima are approached only.
        smallest_damping: Damping at which an ascent among dense kinks ends.
        settled: Gradient over its scale, or amplitude over what it was, that counts as zero where a search ends.
        landed: Gradient over its terms at which a descent has found a stationary point, up to its last digits.
        residual: Residual over the targets that is rounding.
        inside: Distance from the boundary of a cell, over the length of the weight, that counts as inside.
        near_lengths: Coordinate of a solution, over the length of the least one, that leaves its outputs their digits.
        program: Feasibility of a linear program, absolute, for problems scaled to 1.
        dependent: Singular value of a least squares over the largest, below which its columns are dependent: rounding.
        step: Accuracy of a step of damped least squares: one that changes nothing any more in a few of them.
        damping: Damping of a Newton step at the start of a search, over the curvature; it scales with the gradient.
        least_damping: The same at least: below it nothing changes any more.
        most_damping: Damping at which a search gives up: steps are then below rounding.
        taken: Gain over the one promised from which a step is taken.
        fitted: Residual over the targets that is a fit.
        noise: Default width of random perturbations, over the size of each neuron's weights.
        left_to_fall: Fall of the loss over the loss, in squares of the tolerance on derivatives, that a point at which
            training has converged may still have.
        even: Smallest variance of the inputs over the largest above which sums over them scale all directions.
        hump: Rise of the loss at the start of a move over its fall, that a slope within the tolerance explains.
        behind_hump: Share of a move at which such a rise is over: one made by a slope and a curvature ends sooner.
        blurred: Rounding of the loss along a move over its fall so far, beyond which a rise would be hidden.
        unseen: Violation of a first-order condition, in tolerances, that counts as none where no fall is seen.
        curvature: Curvature over the largest of a second-order form that is its rounding.
        short_of_kink: Share of the way to the nearest kink up to which noise moves.
        power: Accuracy of the smallest eigenvalues of a second-order form, over the largest.
        one: Deviation of a sum of factors from 1 that is rounding.
        affine: Miss of a function at the probes, over its size, at which it still counts as affine.
        decades: Powers of ten whose squares, and sums of them, are far from overflow and underflow.
        unresolved: Rounding of a derivative over its terms, from which on nothing is claimed of it.
        touching: Value of a neuron at an end of the interval, over its largest there, that counts as zero.
        clear_fall: Fall over the loss at which no other direction is tried for a larger one.
        below_levels: Part of the lowest critical level's error that no tolerance takes for zero.
        level_match: Widest miss of a critical arrangement's positions, over the interval.
        still_worth: Rise of a drop by doubling the step over the drop, from which on the step is long enough.
        arrived: Cosine of the angle to an extremal direction at which a neuron has arrived there.
        stride: Progress of the fastest small neuron in one stride, in units of its growth time.
        slowest: Growth rate over the largest at which strides are longest.
        dense_stride: The same where kinks are dense and a stride crosses some of them late.
        near_kink: Distance from a kink, over the sizes of neuron and sample, within which flow averages its sides.
        calm: Time in which the fastest motion of a network dies out, over what it changes by its own size in.
        edge: Learning rate times curvature from which on descent leaps to and fro and flow says nothing of it.
        standstill: Growth rate that is none, for a motion that would divide by it.
        flow: Error of a step of gradient flow over the size of a neuron, or over the drop asked for.
        still: Motion of the residuals until the end of a forecast, over their length, that counts as none.
        first_order: Drop of the loss over the one to first order, above which growth counts as exponential to its end.
        frozen: The same, where a network is so small that it is followed instead.
        series: Exponent below which a function of it is a short series, to half the digits and more.
        leap: Correction of a leap of the flow over the size of a neuron that is allowed.
        first_leap: Length of the first leap that is tried, over the shortest time in which anything changes.
        leap_growth: Logarithm of the growth within one leap that is allowed.
        collapsed: Length of shrinking input weights over the output weights that counts as zero.
        lets_go: Force off a kink beyond what the kink holds, over that, at which it lets a neuron go: so much that of
            the neurons on it that share a residual one goes and the others stay.
        rough: Loss above that of the flow, over the drop asked for, at which descent is followed longer.
        unsteady: Time between the first and the last meeting of a loss with a level, over it, at which it leaps too far
            to and fro to say when it is there.
        shrunk: Length of a neuron over the one it had that counts as zero.
        unbalanced: Length of input weights over the output weights below which a step may leap over the origin.
        forever: Time beyond which nothing comes, over the shortest in which anything changes.
        beforehand: Growth times before the end of a plateau at which it is seen who ends it.
        unmoved: Motion of loss gradients over their length up to which extremal directions stay what they are.
        grown: Amplitude over an earlier one that counts as growth.
        patience: How much longer than at its present speed a loss that slides may take.
        noticed: Drop of the loss, over the one asked for, below which residuals do not notice small neurons.
        novel: Square of a feature that others leave over its own, below which it is theirs in other words.
        worth_a_neuron: Drop of the loss over the loss from which on a neuron is added where nobody said how many.
        certain: Change of a logit, or of the logarithm of a rate, by which a sample becomes certain.
        rival: Drop of the loss by a set of new neurons, over the largest, from which on it may turn out to be better.
        explained: Part of a gradient that the loss recognised in it may leave open, however coarse its numbers are.
        telling: Smallest residual over the middle one that still tells the absolute error from Huber's.
        gain: Gain of a widening, or drop of the loss by one, over its terms that counts as none.
        enclosed: Bound of a maximum over the largest value found, less 1, at which the two are one.
        balanced: Sum of numbers over the sum of their sizes that counts as zero where it has been solved for.
        scaled_up: Factor up to which a gradient is tried as a dual variable: it is best as it is, but for neurons that
            decay away.
        pulled: Slope of an objective over the cost of a neuron at which amplitudes are fitted.
        no_gap: Gap between the loss and a lower bound over that bound, at which a minimum counts as global.
        beside: Distance from a kink, over the sizes of neuron and sample, within which samples show how dense they are.
        chance: Probability of so many samples on a kink by chance, below which the neuron counts as on it.
        enough: Samples from which on their density, or the spread of their slopes, says something.
        standard_errors: Slope over its standard error, up to which it is noise.

    Example:
        >>> tolerances(torch.float64).kink < tolerances(torch.float32).kink
        True
    """

    eps: float
    kink: float
    derivative: float
    roundings: float = 4.0
    same_line: float = 1e-10
    all_but_one: float = 1e-6
    rank: float = 1e-12
    alike: float = 1e-12
    same_side: float = 1e-9
    same_angle: float = 1e-9
    cancelled: float = 1e-15
    no_descent: float = 1e-14
    gap: float = 1e-10
    short: float = 1e-3
    radial: float = 1e-2
    arc: float = 1e-12
    cosine: float = 1e-15
    float32_cosine: float = 2e-7
    flat: float = 1e-10
    level: float = 1e-9
    curved: float = 1e-7
    even_lengths: float = 0.02
    whisper: float = 1e-4
    likeness: float = 0.3
    worth_another: float = 0.03
    worth_before_rest: float = 0.15
    settled_fit: float = 1e-3
    off_centre: float = 0.01
    overlap: float = 0.5
    wide_overlap: float = 0.95
    agreement: float = 0.02
    sure: float = 0.5
    accidents: float = 0.3
    faint: float = 0.5
    same_neuron: float = 1e-2
    held: int = 4
    wider: float = 10.0
    near: float = 0.1
    as_near: float = 1.1
    longest_turn: float = 1e-2
    same_maximum: float = 1e-6
    seen_as_one: float = 0.05
    smallest_damping: float = 1e-3
    settled: float = 1e-9
    landed: float = 1e-7
    residual: float = 1e-13
    inside: float = 1e-9
    near_lengths: float = 10.0
    program: float = 1e-10
    dependent: float = 1e-13
    step: float = 1e-6
    damping: float = 1e-2
    least_damping: float = 1e-8
    most_damping: float = 1e8
    taken: float = 1e-4
    fitted: float = 1e-9
    noise: float = 1e-3
    left_to_fall: float = 1e4
    even: float = 1e-6
    hump: float = 1e-9
    behind_hump: float = 1e-3
    blurred: float = 1e-7
    unseen: float = 100.0
    curvature: float = 1e-12
    short_of_kink: float = 0.99
    power: float = 1e-2
    one: float = 1e-6
    affine: float = 1e-6
    decades: int = 140
    unresolved: float = 1e-4
    touching: float = 1e-10
    clear_fall: float = 1e-6
    below_levels: float = 0.1
    level_match: float = 1e-2
    still_worth: float = 1e-2
    arrived: float = math.cos(0.1)
    stride: float = 0.5
    slowest: float = 1e-4
    dense_stride: float = 0.2
    near_kink: float = 1e-3
    calm: float = 4.0
    edge: float = 2.0
    standstill: float = 1e-100
    flow: float = 2e-3
    still: float = 1e-2
    first_order: float = 0.95
    frozen: float = 1e-4
    series: float = 0.1
    leap: float = 1e-2
    first_leap: float = 50.0
    leap_growth: float = 30.0
    collapsed: float = 1e-9
    lets_go: float = 1e-3
    rough: float = 0.05
    unsteady: float = 0.1
    shrunk: float = 1e-6
    unbalanced: float = 0.1
    forever: float = 1e9
    beforehand: float = 3.0
    unmoved: float = 1e-2
    grown: float = 10.0
    patience: float = 10.0
    noticed: float = 1e-2
    novel: float = 1e-2
    worth_a_neuron: float = 1e-2
    certain: float = 8.0
    rival: float = 0.8
    explained: float = 0.05
    telling: float = 0.05
    gain: float = 1e-12
    enclosed: float = 1e-5
    balanced: float = 1e-12
    scaled_up: float = 2.0
    pulled: float = 1e-7
    no_gap: float = 1e-6
    beside: float = 1e-2
    chance: float = 1e-3
    enough: int = 16
    standard_errors: float = 2.0


FLOAT64 = Tolerances(eps=torch.finfo(torch.float64).eps, kink=1e-10, derivative=1e-9)
FLOAT32 = replace(FLOAT64, eps=torch.finfo(torch.float32).eps, kink=1e-6, derivative=1e-5)

_WIDEST_KINK = 1e-2


def tolerances(dtype: torch.dtype) -> Tolerances:
    """The thresholds for weights of a dtype.

    Args:
        dtype: A floating-point dtype.

    Returns:
        Its thresholds.

    Example:
        >>> tolerances(torch.float32).kink
        1e-06
    """
    known = {torch.float64: FLOAT64, torch.float32: FLOAT32}
    return known.get(dtype) or replace(FLOAT32, eps=torch.finfo(dtype).eps, derivative=1e-2)


def kink_tolerance(kink_tol: float | None, dtype: torch.dtype) -> float:
    """The relative distance below which a pair (sample, neuron) counts as on the kink.

    Args:
        kink_tol: The user's choice, or None for 1e-10 in float64 and 1e-6 below.
        dtype: The dtype of the block.

    Returns:
        Tolerance on ``|z_ki| / (||w_i|| ||x_k||)``.

    Raises:
        ValueError: If the tolerance is not in [0, 1).

    Example:
        >>> kink_tolerance(None, torch.float64)
        1e-10
    """
    if kink_tol is None:
        return tolerances(dtype).kink
    if not (is_number(kink_tol) and 0.0 <= kink_tol < 1.0):
        raise ValueError(f"`kink_tol` is relative to ||w|| ||x|| and must lie in [0, 1); got {kink_tol!r}.")
    return float(kink_tol)


def derivative_tolerance(tol: float | None, kink_tol: float | None, dtype: torch.dtype) -> float:
    """The relative size below which a derivative counts as zero.

    Args:
        tol: The user's choice, or None for 1e-9 in float64, 1e-5 in float32 and 1e-2 below.
        kink_tol: The user's tolerance for kinks, or None.
        dtype: The dtype of the weights.

    Returns:
        Tolerance relative to the natural scale of the derivative.

    Raises:
        ValueError: If the tolerance is not in [0, 1), or far finer than the one for kinks.

    Example:
        >>> derivative_tolerance(None, None, torch.float32)
        1e-05
    """
    if tol is None:
        return tolerances(dtype).derivative
    if not (is_number(tol) and 0.0 <= tol < 1.0):
        raise ValueError(f"`tol` is relative to the natural scale of a derivative, in [0, 1); got {tol!r}.")
    if kink_tol is not None and kink_tolerance(kink_tol, dtype) ** 2 > tol:
        raise ValueError(
            f"`kink_tol` {kink_tol!r} contradicts `tol` {tol!r}: putting a neuron on a kink that far away changes the "
            "loss by about kink_tol^2 of its scale. Choose kink_tol <= sqrt(tol)."
        )
    return float(tol)


def training_kink_tolerance(samples: int, inputs: int) -> float:
    """How close to a kink training leaves a neuron that is held there.

    Gradient descent oscillates around the kink, or comes to rest beside it: 2e-3 to 6e-3 rad away on problems of a few
    points. The more samples there are, the closer a neuron is to some of them by accident; the tolerance is small
    enough that this happens to about one in twenty.

    Args:
        samples: Number of samples.
        inputs: Number of inputs ``d``.

    Returns:
        Tolerance on ``|z_ki| / (||w_i|| ||x_k||)``: 0.01 for a few samples, ``1 / (16 N sqrt(d - 1))`` for many.

    Example:
        >>> training_kink_tolerance(samples=5, inputs=2), training_kink_tolerance(samples=1000, inputs=2)
        (0.01, 6.25e-05)
    """
    return min(_WIDEST_KINK, 1 / (16 * samples * math.sqrt(max(inputs - 1, 1))))

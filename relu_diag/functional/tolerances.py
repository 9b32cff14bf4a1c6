"""Every threshold of the kernel, with its reason and unit; how much is enumerated (`Budgets`) stands apart.

A tolerance says what counts as zero, as equal or as on a kink, and follows from rounding or from what training can
resolve. A budget says how much work is done before a search gives up; it never decides what is true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch


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
        overlap: Cosine of what two neurons add to the outputs from which on one of them is enough.
        wide_overlap: The same where each is placed against all of the loss.
        agreement: Gain on samples held out over the one on those it was chosen by, from which it is no accident.
        sure: Standard errors above which a sum over samples is no accident.
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
        blurred: Rounding of the loss along a move over its fall so far, beyond which a rise would be hidden.
        unseen: Violation of a first-order condition, in tolerances, that counts as none where no fall is seen.
        same_root: Imaginary part of a root of a polynomial over its size that is the rounding of a double root.
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
        leap_growth: Logarithm of the growth within one leap that is allowed.
        collapsed: Length of shrinking input weights over the output weights that counts as zero.
        lets_go: Force off a kink beyond what the kink holds, over that, at which it lets a neuron go: so much that of
            the neurons on it that share a residual one goes and the others stay.
        rough: Loss above that of the flow, over the drop asked for, at which descent is followed longer.
        shrunk: Length of a neuron over the one it had that counts as zero.
        forever: Time beyond which nothing comes, over the shortest in which anything changes.
        beforehand: Growth times before the end of a plateau at which it is seen who ends it.
        unmoved: Motion of loss gradients over their length up to which extremal directions stay what they are.
        grown: Amplitude over an earlier one that counts as growth.
        patience: How much longer than at its present speed a loss that slides may take.
        noticed: Drop of the loss, over the one asked for, below which residuals do not notice small neurons.
        novel: Square of a feature that others leave over its own, below which it is theirs in other words.
        worth_a_neuron: Drop of the loss over the loss from which on a neuron is added where nobody said how many.
        explained: Part of a gradient that the loss recognised in it may leave open, however coarse its numbers are.
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
    """

    eps: float
    kink: float
    derivative: float
    roundings: float = 4.0
    same_line: float = 1e-10
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
    overlap: float = 0.5
    wide_overlap: float = 0.95
    agreement: float = 0.4
    sure: float = 1.5
    same_neuron: float = 1e-2
    held: int = 3
    wider: float = 10.0
    near: float = 0.1
    as_near: float = 1.1
    longest_turn: float = 1e-2
    same_maximum: float = 1e-6
    seen_as_one: float = 0.05
    smallest_damping: float = 1e-3
    settled: float = 1e-9
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
    blurred: float = 1e-7
    unseen: float = 100.0
    same_root: float = 1e-6
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
    leap_growth: float = 30.0
    collapsed: float = 1e-9
    lets_go: float = 1e-3
    rough: float = 0.05
    shrunk: float = 1e-6
    forever: float = 1e9
    beforehand: float = 3.0
    unmoved: float = 1e-2
    grown: float = 10.0
    patience: float = 10.0
    noticed: float = 1e-2
    novel: float = 1e-2
    worth_a_neuron: float = 1e-2
    explained: float = 0.05
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


@dataclass(frozen=True, slots=True)
class Budgets:
    """How much is enumerated or iterated before an answer is "undecided", approximate, or a clear refusal.

    Attributes:
        chunk: Numbers in a piece of the data: few enough for the cache, enough for fast products.
        cached: Numbers that stay in the fastest memory from one operation to the next.
        kinks: Kink samples kept of one neuron.
        kink_numbers: Numbers in all kink samples kept.
        vertex_kinks: Kinks of a neuron whose vertices are looked at together with those of other neurons.
        subsets: Subsets of the kinks searched for rays of a fan.
        all_subsets: The same in all fans of one point together: about 1 s on one core.
        patterns: Sign patterns of concave kinks, each a bounded least squares.
        all_patterns: The same of all neurons together, each counted once for so many `columns`.
        columns: Columns of a least squares that cost as much as the rest of it.
        few_patterns: Sign patterns so few that finding those of cones is not worth it.
        starts: Directions of each kind that a search without enumeration starts from.
        quick_starts: The same where many neurons are searched.
        rounds: Steps of such a search.
        polished: How many of its best directions are followed to their end.
        ascents: Steps of the search for a loud direction, which is over where one is found.
        pairs: Pairs of neurons compared at once.
        pairs_a_neuron: Pairs over neurons that a look at a few coordinates may leave to be compared one by one.
        coordinates: How many these coordinates are.
        cells: Activation cells of one neuron that are listed.
        bent_neurons: Neurons among whose parameters a Hessian is diagonalised.
        nodes: Nodes of an integral in a piece: a CPU wants them in its cache.
        nodes_on_gpu: The same on a GPU, which wants few launches.
        grid_numbers: Numbers in a tensor grid of nodes.
        gram_rows: Rows of a Gram matrix whose eigenvalues are computed.
        combinations: Sets of cells, one a neuron, whose minima are listed.
        saddle_neurons: Neurons whose subsets are searched for saddles.
        cell_entries: Entries of a matrix decomposed for the minimum of a cell.
        program_entries: Matrix entries of all linear programs together in a search for signs: about 20 s on one core.
        smallest_program: Entries that a program counts as at least, for the cost of setting it up.
        signs: Pairs (sample, neuron) whose signs are kept.
        fit_entries: Entries of a matrix decomposed for the stationary point of a stratum.
        strata: Strata looked at for the stationary point nearby, at most.
        few_strata: The same at least, however large the problem is.
        stratum_numbers: Numbers ``N I d J^4`` in all of them together; several outputs take many steps.
        products: Products with a Hessian in the search in one stratum.
        few_products: The same in strata beside the present and the usual one.
        multiplications: Multiplications in these products.
        neurons_at_once: Neurons whose parts per output are held together.
        neuron_numbers: Numbers in those parts.
        flat_rays: Rays of zero slope in one second-order form.
        dense_form: Size up to which a second-order form is diagonalised; larger ones are searched by iteration.
        form_steps: Steps of an iteration on a second-order form.
        form_powers: Steps of a power iteration for its largest eigenvalue.
        shifts: Least curvatures looked for in a large form, strongest first.
        dense_shifts: The same in a form that is diagonalised.
        cones: Random cones of rays tried.
        cone_steps: Descent steps in each.
        moves: Moves of a second-order form that are evaluated.
        neurons_tried: Neurons whose own move is evaluated before a descent counts as not seen.
        crossings: Kinks crossed on the way along a move that are followed one by one.
        draw_numbers: Numbers in the activations of perturbations evaluated together.
        draw_rows: Samples in them.
        faces: Faces of the arrangement of kinks, some of them listed twice, among which all maxima are looked for.
        few_samples: Samples beyond which kinks are dense: maxima are approached only.
        climbs: Climbs of an exact ascent from kink to kink.
        bisections: Halvings of an arc in search of its highest point.
        damped_steps: Damped steps of an ascent among dense kinks.
        program_samples: Samples a linear program starts with, and samples added where its answer fails.
        kinks_in_reach: Samples within reach of a neuron beyond which the reach is more than its cell.
        strides: Strides of small neurons on their way to extremal directions.
        events: Kinks that a neuron may meet in one stride.
        fastest_turn: How much faster than it grows a neuron may turn before strides become shorter.
        newton: Newton steps on the time at which drops add up to one.
        course: Gradients of the whole network that one forecast may take.
        stages: Stages of one step of gradient flow.
        descent: Steps of descent that a forecast for a small network begins with.
        long_descent: The same where descent leaps to and fro, and is not what flow is.
        seen: Steps of descent from one that is remembered to the next.
        leap_numbers: Weights of a network whose flow is followed in leaps.
        leaps: Such leaps.
        looks: Points of a leap, and of each closer look, at which kinks are looked for.
        bracketings: Looks at a kink, each closer.
        leap_halvings: Halvings of a leap to the time at which the drop is met.
        calm_steps: Steps of descent in which it is seen whether it only leaps to and fro.
        derivatives: Derivatives beyond the second that the motion of small neurons is made of.
        settlings: Parts of the time until growth is noticed after which residuals are looked at again.
        rounds_of_growth: Neurons that may grow one after the other until the loss has dropped.
        fits: Least squares fits in the search for the input weights with which a new neuron lowers the loss most.
        fit_halvings: Halvings of the step to a fit.
        fit_products: Products with the data in each.
        pool: Input weights of a kind among which neurons are chosen, at least.
        pool_for_one: The same for each neuron asked for.
        pairs_for_one: Pairs of samples drawn for each input weight between samples.
        uphill_steps: Steps uphill of input weights that are to be extremal.
        singular_vectors: Singular vectors used of the samples on one side.
        new_units: Neurons added at once where nobody said how many.
        refits: Newton steps of their output weights.
        ridges: Penalties on output weights that are tried, over the curvature of the loss.
        finalists: Sets of neurons that are trained for a few steps.
        trial_steps: How many.
        short_steps: Steps between two looks at the loss on other rows.
        short_history: Pairs of steps and gradients kept by these.
        search_numbers: Activations of all directions together in that search.
        amplitudes: Amplitudes of a new neuron at which the loss is evaluated.
        halvings: Halvings of a step on the way to the one that lowers the loss most.
        steps_below: Steps along a move at which a loss is evaluated below the one that derivatives tell, each a fourth.
        steps_above: The same above it.
        steps_between: Steps on the way to the chosen one.
        newton_in_cell: Newton steps to the least loss at fixed signs.
        proportions: Output weights over input weights of moves that are tried against weight decay.
        nodes_of_change: Gradients that a small change of a loss without a formula is added up from.
        curvature_probes: Products with the curvature of a loss that its size is read off where outputs are many.
        leaves: Tensors of a batch among which targets and weights of a loss are looked for, the last ones.
        weighted_classes: Classes whose weights are read off a smoothed cross-entropy.
        placements: Batches in which neurons are placed one after the other.
        placed_at_once: Neurons in one of them.
        held_out: Samples from which on every second one is held out.
        listed_numbers: Numbers in the inputs up to which all maxima are looked for.
        samples_at_once: Samples in a piece where few numbers are made of each.
        random_units: Random input weights for which it is seen whether they are silent.
        quantiles: Points at which an average over a Gaussian variable is taken.
        deviations: How many standard deviations they reach.
        cap_inputs: Dimensions up to which a maximum on the sphere is enclosed by caps.
        cap_numbers: Loss gradients of all caps together in that search: about 2 s on one core.
        ascent_numbers: Numbers in the inputs beyond which the largest pull in many dimensions is looked for quickly.
        free_bias_samples: Samples that are put on the kink one by one, for neurons whose bias does not decay.
        shifts_of_outputs: Newton steps to the best constant added to the outputs.
        scales: Scales of the dual variables tried.
        refit_steps: Steps of a search for the best amplitudes of given neurons.
        refit_numbers: Activations in it.
        neurons_a_round: Neurons added before amplitudes are fitted again.
        exact_kinks: Kinks within reach beyond which the steepest direction is looked for among the simple ones.

    Example:
        >>> replace(BUDGETS, cells=10).cells  # for a quick look
        10
    """

    chunk: int = 2**20
    cached: int = 2**15
    kinks: int = 1024
    kink_numbers: int = 2**23
    vertex_kinks: int = 6
    subsets: int = 20_000
    all_subsets: int = 2**18
    patterns: int = 2**12
    all_patterns: int = 2**16
    columns: int = 16
    few_patterns: int = 2**8
    starts: int = 64
    quick_starts: int = 4
    rounds: int = 20
    polished: int = 3
    ascents: int = 4
    pairs: int = 2**22
    pairs_a_neuron: int = 2
    coordinates: int = 32
    cells: int = 10_000
    bent_neurons: int = 256
    nodes: int = 2**16
    nodes_on_gpu: int = 2**23
    grid_numbers: int = 2**27
    gram_rows: int = 4096
    combinations: int = 10_000
    saddle_neurons: int = 12
    cell_entries: int = 2**27
    program_entries: int = 2_000_000
    smallest_program: int = 1000
    signs: int = 2**27
    fit_entries: int = 2**21
    strata: int = 64
    few_strata: int = 4
    stratum_numbers: int = 2**16
    products: int = 4000
    few_products: int = 400
    multiplications: int = 2**33
    neurons_at_once: int = 256
    neuron_numbers: int = 2**23
    flat_rays: int = 64
    dense_form: int = 600
    form_steps: int = 100
    form_powers: int = 5
    shifts: int = 3
    dense_shifts: int = 6
    cones: int = 16
    cone_steps: int = 200
    moves: int = 8
    neurons_tried: int = 8
    crossings: int = 2**16
    draw_numbers: int = 2**22
    draw_rows: int = 2**12
    faces: int = 100_000
    few_samples: int = 32
    climbs: int = 300
    bisections: int = 50
    damped_steps: int = 60
    program_samples: int = 1000
    kinks_in_reach: int = 256
    strides: int = 1000
    events: int = 200
    fastest_turn: int = 5
    newton: int = 20
    course: int = 1500
    stages: int = 60
    descent: int = 600
    long_descent: int = 10_000
    seen: int = 50
    leap_numbers: int = 300
    leaps: int = 200
    looks: int = 16
    bracketings: int = 4
    leap_halvings: int = 25
    calm_steps: int = 20
    derivatives: int = 10
    settlings: int = 10
    rounds_of_growth: int = 6
    fits: int = 20
    fit_halvings: int = 5
    fit_products: int = 16
    pool: int = 128
    pool_for_one: int = 4
    pairs_for_one: int = 4
    uphill_steps: int = 3
    singular_vectors: int = 4
    new_units: int = 32
    refits: int = 2
    ridges: tuple[float, ...] = (10.0, 1.0, 0.1, 1e-2, 1e-3)
    finalists: int = 2
    trial_steps: int = 10
    short_steps: int = 5
    short_history: int = 10
    search_numbers: int = 2**17
    amplitudes: int = 50
    halvings: int = 15
    steps_below: int = 20
    steps_above: int = 1
    steps_between: int = 14
    newton_in_cell: int = 200
    proportions: tuple[float, ...] = (1.0, 0.1, 10.0)
    nodes_of_change: int = 4
    curvature_probes: int = 8
    leaves: int = 16
    weighted_classes: int = 64
    placements: int = 8
    placed_at_once: int = 2048
    held_out: int = 256
    listed_numbers: int = 2**10
    samples_at_once: int = 4096
    random_units: int = 256
    quantiles: int = 4001
    deviations: float = 8.0
    cap_inputs: int = 6
    cap_numbers: int = 2**26
    ascent_numbers: int = 2**16
    free_bias_samples: int = 256
    shifts_of_outputs: int = 50
    scales: int = 60
    refit_steps: int = 500
    refit_numbers: int = 2**22
    neurons_a_round: int = 16
    exact_kinks: int = 12


FLOAT64 = Tolerances(eps=torch.finfo(torch.float64).eps, kink=1e-10, derivative=1e-9)
FLOAT32 = replace(FLOAT64, eps=torch.finfo(torch.float32).eps, kink=1e-6, derivative=1e-5)
BUDGETS = Budgets()

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
    if not 0.0 <= kink_tol < 1.0:
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
    if not 0.0 <= tol < 1.0:
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

"""How much the kernel enumerates before a search gives up. A budget never decides what is true (`tolerances` do)."""

from __future__ import annotations

from dataclasses import dataclass


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
        descents: Steps downhill, or off a kink, to the stationary point that weights that decay are on the way to.
        descent_multiplications: Cubes of the number of weights in these steps: near a point few of them lead there.
        products: Products with a Hessian in the search in one stratum.
        few_products: The same in strata beside the present and the usual one.
        multiplications: Multiplications in these products.
        iterated_multiplications: The same where the Hessian is too large to be written down.
        slow_steps: Steps in a search of many weights in which the gradient is not halved, after which it is given up:
            near a point every step divides it by far more.
        neurons_at_once: Neurons whose parts per output are held together.
        neuron_numbers: Numbers in those parts.
        flat_rays: Rays of zero slope in one second-order form.
        rays_weighed: Rays among which those are chosen.
        dense_step: Size up to which the Hessian of a search in a stratum is diagonalised, for all dampings of a step.
        small_step: Size up to which it is diagonalised; a larger one is turned to a tridiagonal one.
        reduced_at_once: Columns of a matrix that are turned to a tridiagonal one at once: memory that it works in.
        dense_form: Size up to which a second-order form is diagonalised; larger ones are searched by iteration.
        form_steps: Steps of an iteration on a second-order form.
        form_powers: Steps of a power iteration for its largest eigenvalue.
        shifts: Least curvatures looked for in a large form, strongest first.
        dense_shifts: The same in a form that is diagonalised.
        ray_pairs: Pairs of rays, beside all single ones, from which such a form is lowered ray by ray.
        ray_steps: Steps of that.
        moves: Moves of a second-order form that are evaluated.
        met_sides: Choices of the sides of kinks for each of which a gradient is looked for where targets are met.
        cuts: Directions in which a neuron without weights is held, one after the other, by the gradient there.
        neurons_tried: Neurons whose own move is evaluated before a descent counts as not seen.
        crossings: Kinks crossed on the way along a move that are followed one by one.
        draw_numbers: Numbers in the activations of perturbations evaluated together.
        draw_rows: Samples in them.
        faces: Faces of the arrangement of kinks, some of them listed twice, among which all maxima are looked for.
        few_samples: Samples beyond which kinks are dense: maxima are approached only.
        climbs: Climbs of an exact ascent from kink to kink.
        listed_climbs: The same from where all maxima are listed to rounding.
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
        below: Steps for which a loss must stay below a level that it has met.
        seen: Steps of descent from one that is remembered to the next.
        leap_numbers: Weights of a network whose flow is followed in leaps.
        leaps: Such leaps.
        looks: Points of a leap, and of each closer look, at which kinks are looked for.
        bracketings: Looks at a kink, each closer.
        leap_halvings: Halvings of a leap to the time at which the drop is met.
        calm_steps: Steps of descent in which it is seen whether it only leaps to and fro.
        settle_steps: Steps of descent within which a neuron that is held by a kink leaps across it.
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
        singular_steps: Iterations of subspaces by which they are approximated.
        dense_singular: Outputs, or inputs, up to which they are computed exactly.
        new_units: Neurons added at once where nobody said how many.
        refits: Newton steps of their output weights.
        refit_products: Products with the data in each.
        products_to_propose: The same where sets of neurons are only ranked.
        halvings_to_propose: Halvings of output weights until the loss falls, there.
        outputs_behind: Outputs of a network up to which their derivatives by those of a block are written down.
        numbers_behind: How many of these derivatives, of all samples, at most.
        products_behind: Products of samples and weights between a block and the loss, in one pass, beyond which
            curvatures are those without new neurons, and falls are not evaluated in float64.
        rows_to_propose: Rows by which sets of new neurons are proposed, and ranked before the best are fitted on all.
        rows_to_compare: Rows by which it is told which of several networks gains most by new neurons.
        kinds_to_compare: Kinds of input weights that are tried for it.
        usual_ridge: Penalty on output weights in that, over the curvature of the loss.
        ridges: Penalties on output weights that are tried, over the curvature of the loss.
        louder: How much louder than usual their outputs are, their input weights being smaller by as much.
        finalists: Sets of neurons that are trained for a few steps.
        trial_steps: How many.
        short_steps: Steps between two looks at the loss on other rows.
        ways_back: Points on the way back from steps that go too far for these rows, each halfway to where they began.
        ways_through: Ways to lead the inputs through dead layers that are compared.
        short_history: Pairs of steps and gradients kept by these.
        rehearsal_steps: Steps of training on copies, by which ways to grow are compared on few samples.
        rehearsal_memory: Share of the averages of gradients and of their squares that stays from step to step there.
        search_numbers: Activations of all directions together in that search.
        amplitudes: Amplitudes of a new neuron at which the loss is evaluated.
        halvings: Halvings of a step on the way to the one that lowers the loss most.
        steps_below: Steps along a move at which a loss is evaluated below the one that derivatives tell, each a fourth.
        steps_above: The same above it.
        steps_between: Steps on the way to the chosen one.
        crossed: Kinks crossed on the way along a move that are kept, so that no other pair is looked at again.
        peaks: Kinks on the way at which a loss is evaluated as well; where there are more it is not.
        newton_in_cell: Newton steps to the least loss at fixed signs.
        proportions: Output weights over input weights of moves that are tried against weight decay.
        nodes_of_change: Gradients that a small change of a loss without a formula is added up from.
        curvature_probes: Products with the curvature of a loss that its size is read off where outputs are many.
        leaves: Tensors of a batch among which targets and weights of a loss are looked for, the last ones.
        told_apart: Different numbers of a gradient from which on it is asked whether they have passed through 16 bits.
        seen_again: Samples beyond the first of each class from which on weights of classes are read off.
        weighted_classes: Classes whose weights are read off a smoothed cross-entropy.
        placements: Batches in which neurons are placed one after the other.
        placed_at_once: Neurons in one of them.
        held_out: Samples from which on every second one is held out.
        placement_starts: Samples from which is climbed at least, however few neurons are placed.
        placement_climbs: Numbers of steps uphill from them, one after the other.
        starts_for_one: Samples from which others like them are looked for, for each neuron asked for.
        starts_alike: The same at least.
        samples_alike: Samples on which a neuron that is found so is active, at most.
        numbers_alike: Activations at once in that search.
        parts_held_out: Parts of those, by whose spread the drop of all of them is judged.
        usual_neurons: Neurons from which on only as many of all are asked what is usual, at most twice as many.
        usual_samples: Samples from which on only as many of all are asked what is usual.
        amplitude_steps: Steps to the amplitudes of neurons that are placed together.
        listed_numbers: Numbers in the inputs up to which all maxima are looked for.
        samples_at_once: Samples in a piece where few numbers are made of each.
        random_units: Random input weights for which it is seen whether they are silent.
        random_angles: Angles with the mean of the inputs at which each of them is looked at.
        quantiles: Points at which an average over a Gaussian variable is taken.
        deviations: How many standard deviations they reach.
        cap_inputs: Dimensions up to which a maximum on the sphere is enclosed by caps.
        cap_numbers: Loss gradients of all caps together in that search: about 2 s on one core.
        growth_numbers: The same for the verdict on a neuron without weights: about a quarter of a second.
        ascent_numbers: Numbers in the inputs beyond which the largest pull in many dimensions is looked for quickly.
        free_bias_samples: Samples that are put on the kink one by one, for neurons whose bias does not decay.
        shifts_of_outputs: Newton steps to the best constant added to the outputs.
        scales: Scales of the dual variables tried.
        refit_steps: Steps of a search for the best amplitudes of given neurons.
        refit_numbers: Activations in it.
        polishings: Newton steps behind it, or neurons left out.
        neurons_a_round: Neurons added before amplitudes are fitted again.
        exact_kinks: Kinks within reach beyond which the steepest direction is looked for among the simple ones.

    Example:
        >>> from dataclasses import replace
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
    descents: int = 200
    descent_multiplications: int = 2**31
    products: int = 4000
    few_products: int = 400
    multiplications: int = 2**33
    iterated_multiplications: int = 2**31
    slow_steps: int = 6
    neurons_at_once: int = 256
    neuron_numbers: int = 2**23
    flat_rays: int = 64
    rays_weighed: int = 4096
    dense_step: int = 2500
    small_step: int = 200
    reduced_at_once: int = 64
    dense_form: int = 600
    form_steps: int = 100
    form_powers: int = 5
    shifts: int = 3
    dense_shifts: int = 6
    ray_pairs: int = 64
    ray_steps: int = 100
    moves: int = 16
    met_sides: int = 2**6
    cuts: int = 16
    neurons_tried: int = 8
    crossings: int = 2**16
    draw_numbers: int = 2**22
    draw_rows: int = 2**12
    faces: int = 100_000
    few_samples: int = 32
    climbs: int = 300
    listed_climbs: int = 3
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
    descent: int = 100
    long_descent: int = 40_000
    below: int = 20
    seen: int = 50
    leap_numbers: int = 300
    leaps: int = 200
    looks: int = 16
    bracketings: int = 4
    leap_halvings: int = 25
    calm_steps: int = 20
    settle_steps: int = 2
    derivatives: int = 10
    settlings: int = 10
    rounds_of_growth: int = 6
    fits: int = 20
    fit_halvings: int = 5
    fit_products: int = 16
    pool: int = 96
    pool_for_one: int = 2
    pairs_for_one: int = 4
    uphill_steps: int = 2
    singular_vectors: int = 4
    singular_steps: int = 1
    dense_singular: int = 32
    new_units: int = 32
    refits: int = 1
    refit_products: int = 6
    products_to_propose: int = 3
    halvings_to_propose: int = 2
    outputs_behind: int = 16
    numbers_behind: int = 2**22
    products_behind: int = 2**24
    rows_to_propose: int = 512
    rows_to_compare: int = 256
    kinds_to_compare: tuple[str, ...] = ("extremal", "GradMax")
    usual_ridge: float = 0.1
    ridges: tuple[float, ...] = (1.0, 0.1)
    louder: float = 2.0
    finalists: int = 2
    trial_steps: int = 5
    short_steps: int = 5
    ways_back: int = 3
    ways_through: int = 8
    short_history: int = 10
    rehearsal_steps: int = 200
    rehearsal_memory: tuple[float, float] = (0.9, 0.999)
    search_numbers: int = 2**17
    amplitudes: int = 50
    halvings: int = 15
    steps_below: int = 20
    steps_above: int = 1
    steps_between: int = 14
    crossed: int = 2**19
    peaks: int = 64
    newton_in_cell: int = 200
    proportions: tuple[float, ...] = (1.0, 0.1, 10.0)
    nodes_of_change: int = 4
    curvature_probes: int = 8
    leaves: int = 16
    told_apart: int = 16
    seen_again: int = 8
    weighted_classes: int = 64
    placements: int = 8
    placed_at_once: int = 2048
    held_out: int = 256
    placement_starts: int = 64
    placement_climbs: tuple[int, ...] = (0, 3)
    starts_for_one: int = 2
    starts_alike: int = 128
    samples_alike: int = 128
    numbers_alike: int = 2**22
    parts_held_out: int = 16
    usual_neurons: int = 256
    usual_samples: int = 1024
    amplitude_steps: int = 30
    listed_numbers: int = 2**10
    samples_at_once: int = 4096
    random_units: int = 256
    random_angles: int = 8
    quantiles: int = 4001
    deviations: float = 8.0
    cap_inputs: int = 6
    cap_numbers: int = 2**26
    growth_numbers: int = 2**23
    ascent_numbers: int = 2**16
    free_bias_samples: int = 256
    shifts_of_outputs: int = 50
    scales: int = 60
    refit_steps: int = 500
    refit_numbers: int = 2**22
    polishings: int = 100
    neurons_a_round: int = 16
    exact_kinks: int = 12


BUDGETS = Budgets()

"""What each neuron is doing: states, effective neurons, and the conserved and growing quantities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from relu_diag.functional._arrays import Index
from relu_diag.functional._checks import is_number
from relu_diag.functional.block import BlockSignal, ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local._lengths import column_lengths
from relu_diag.functional.local.directions import radial_directions
from relu_diag.functional.local.sums import NeuronSums, neuron_sums
from relu_diag.functional.output_loss import Loss
from relu_diag.functional.tables import counted, html_table, summary_of
from relu_diag.functional.tolerances import FLOAT64

# Groups that a summary names.
_NAMED = 6


@dataclass(frozen=True, slots=True, eq=False)
class NeuronStates:
    """State of every neuron.

    Attributes:
        dead: Every sample strictly on a zero-slope leg: no gradient, and any small move keeps the loss, bool, ``(I,)``.
        brink: No activation on any sample but some sample on the kink (semi-inactive), bool, shape ``(I,)``.
        linear: Every sample strictly on one leg of nonzero slope (type-1-active), bool, shape ``(I,)``.
        small_living: Not dead, in a group whose contribution is small against the targets, bool, shape ``(I,)``.
        dormancy: Mean ``|rho(z_ki)|`` over samples as a multiple of the layer's mean, shape ``(I,)``.
        group: Effective neuron it belongs to, 0 the one of largest amplitude, -1 for dead neurons and ``w_i = 0``,
            long, shape ``(I,)``.
        group_amplitude: Sum of ``||w_i|| ||h_i||`` over the members of each group, largest first, shape ``(groups,)``.
        amplitude: ``||w_i|| ||h_i||``, shape ``(I,)``.
        balancedness: ``||w_i||^2 - ||h_i||^2``, conserved by gradient flow, shape ``(I,)``.
        angle: Counterclockwise angle from the first axis to the first two components of ``w_i``, rad in [0, 2 pi),
            shape ``(I,)``.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), H=torch.tensor([[1.0, 1.0]]))
        >>> states = neuron_states(block, X=torch.tensor([[0.5, 1.0]]), Y=torch.ones(1, 1))
        >>> states.dead.tolist(), states.group.tolist(), states.dormant().tolist()
        ([False, True], [0, -1], [False, True])
    """

    dead: Tensor
    brink: Tensor
    linear: Tensor
    small_living: Tensor
    dormancy: Tensor
    group: Tensor
    group_amplitude: Tensor
    amplitude: Tensor
    balancedness: Tensor
    angle: Tensor

    def dormant(self, tau: float = 0.025) -> Tensor:
        """Which neurons have a dormancy score of at most ``tau``.

        Args:
            tau: Threshold on the score.

        Returns:
            Mask, bool, shape ``(I,)``.
        """
        return self.dormancy <= tau

    def __str__(self) -> str:
        return (
            f"{counted(len(self.dead), 'neuron')}: {int(self.dead.sum())} dead, {int(self.brink.sum())} on the brink, "
            f"{int(self.linear.sum())} linear, {int(self.small_living.sum())} small living; "
            f"{counted(len(self.group_amplitude), 'effective neuron')}"
        )

    def summary(self) -> str:
        """The states of the layer as a table, with the largest groups.

        Returns:
            Text, one fact a line.
        """
        counts = {
            "dead": self.dead,
            "on the brink": self.brink,
            "linear": self.linear,
            "small living": self.small_living,
        }
        rows = [("neurons", str(len(self.dead)))]
        rows += [(name, str(int(mask.sum()))) for name, mask in counts.items()]
        rows.append(("effective neurons", str(len(self.group_amplitude))))
        for group, amplitude in enumerate(self.group_amplitude[:_NAMED].tolist()):
            members = int((self.group == group).sum())
            rows.append((f"group {group}", f"{members} neuron{'s' if members > 1 else ''}, amplitude {amplitude:.3g}"))
        return summary_of(rows)

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def neuron_states(
    block: ShallowBlock,
    X: Tensor,
    Y: Tensor | Loss,
    kink_tol: float | None = None,
    group_angle: float = 0.05,
    small: float = 0.01,
) -> NeuronStates:
    """The state of every neuron on the data.

    A sample ``x_k = 0`` stays on every kink however the weights move, so dead and linear leave it out.

    Source: Wu et al., sections 4.1.1 and 4.2; Cheridito et al., Definition 4.1.

    Args:
        block: The network.
        X: Inputs, shape ``(N, d)``.
        Y: Targets, shape ``(N, J)``; their root mean square is the scale of "small". Or a loss of the outputs, whose
            targets they are; 1 is the scale of logits.
        kink_tol: Relative distance that counts as on the kink; None: by dtype.
        group_angle: Neurons whose input weights differ by at most this angle belong together, rad.
        small: Largest contribution of a small group, as a fraction of the target scale.

    Returns:
        States.

    Raises:
        ValueError: If there is not one target per sample.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), H=torch.tensor([[1.0, 1.0]]))
        >>> print(neuron_states(block, X=torch.tensor([[0.5, 1.0]]), Y=torch.ones(1, 1)))
        2 neurons: 1 dead, 0 on the brink, 1 linear, 0 small living; 1 effective neuron
    """
    BlockSignal(X, X)  # the checks every data set goes through
    silent = BlockSignal(X, G=X.new_zeros(len(X), len(block.H)))
    samples = Y.samples if isinstance(Y, Loss) else len(Y)
    if samples not in {len(X), None}:
        given = f"for {samples} samples" if isinstance(Y, Loss) else tuple(Y.shape)
        raise ValueError(f"`Y` needs one row per sample: X is {tuple(X.shape)}, Y is {given}.")
    scale = Y.output_scale if isinstance(Y, Loss) else target_scale(Y)
    return states_from_sums(block, neuron_sums(block, silent, kink_tol), scale, group_angle, small)


def target_scale(Y: Tensor) -> float:
    """Root mean square of the targets; 1, the natural unit of a logit, where they are class labels.

    Args:
        Y: Targets, any shape.

    Returns:
        The scale against which a contribution is small, in units of the output.

    Raises:
        ValueError: If there is no target, or one is not finite.

    Example:
        >>> target_scale(torch.tensor([[2.0], [-2.0]])), target_scale(torch.tensor([3, 7]))
        (2.0, 1.0)
    """
    if not Y.is_floating_point():
        return 1.0
    scale = float(Y.detach().double().square().mean().sqrt())
    if not math.isfinite(scale):
        raise ValueError(f"`Y` needs at least one target and finite ones; their root mean square is {scale}.")
    return scale


def states_from_sums(
    block: ShallowBlock, sums: NeuronSums, scale: float, group_angle: float = 0.05, small: float = 0.01
) -> NeuronStates:
    """The states that sums over samples add up to.

    Args:
        block: The network at which the sums were taken.
        sums: Sums over all samples.
        scale: Target scale.
        group_angle: Largest angle between neighbours in a group, rad.
        small: Largest contribution of a small group, as a fraction of the target scale.

    Returns:
        States.

    Raises:
        ValueError: If the angle is not in [0, pi], or the fraction or the scale is negative or not finite.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0]]), H=torch.tensor([[1.0]]))
        >>> batches = [BlockSignal(torch.full((2, 1), x), torch.ones(2, 1)) for x in (3.0, -1.0)]
        >>> sums = neuron_sums(block, batches[0]) + neuron_sums(block, batches[1])
        >>> print(states_from_sums(block, sums, scale=1.0))
        1 neuron: 0 dead, 0 on the brink, 0 linear, 0 small living; 1 effective neuron
    """
    if not (is_number(group_angle) and 0 <= group_angle <= math.pi):
        raise ValueError(f"`group_angle` is an angle in [0, pi] rad; got {group_angle!r}.")
    if not (is_number(small) and math.isfinite(small * scale) and small >= 0 and scale >= 0):
        raise ValueError(f"`small` and `scale` must be finite and not negative; got {small!r} and {scale!r}.")
    W = block.W.detach()
    w_norm = torch.linalg.vector_norm(W, dim=1, dtype=torch.float64)
    h_norm = column_lengths(block.H.detach().double())
    dead, brink, linear = _legs(sums, block.slopes)
    amplitude = w_norm * h_norm
    peak = torch.maximum(rho(sums.z_max, block.slopes).abs(), rho(sums.z_min, block.slopes).abs())
    peak = torch.where(sums.z_min <= sums.z_max, peak, 0.0)  # where all samples are x = 0 there is no extreme
    living = ~dead & (w_norm > 0)
    group, group_amplitude = _effective_neurons(W, living, amplitude, group_angle)
    contribution = torch.zeros_like(group_amplitude).index_add_(0, group[living], (h_norm * peak)[living])
    small_group = torch.cat([contribution <= small * scale, dead.new_ones(1)])  # the last entry serves group -1
    mean_activation = sums.activation.mean()
    return NeuronStates(
        dead=dead,
        brink=brink,
        linear=linear,
        small_living=~dead & small_group[group],
        dormancy=sums.activation / mean_activation if mean_activation > 0 else torch.zeros_like(sums.activation),
        group=group,
        group_amplitude=group_amplitude,
        amplitude=amplitude,
        balancedness=w_norm.square() - h_norm.square(),
        angle=_angle(W[:, :2].double()),
    )


def _legs(sums: NeuronSums, slopes: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Which neurons are dead, on the brink, linear: the sides of the kink that hold samples, and their slopes."""
    below = sums.z_max < 0
    above = sums.z_min > 0
    flat_below = slopes[0] == 0
    flat_above = slopes[1] == 0
    dead = (below & flat_below) | (above & flat_above)
    linear = (below | above) & ~dead & (sums.z_min <= sums.z_max)
    nothing_above = (sums.z_max <= 0) | flat_above
    nothing_below = (sums.z_min >= 0) | flat_below
    return dead, nothing_above & nothing_below & ~dead, linear


def _angle(W: Tensor) -> Tensor:
    """Angles of the first two components in [0, 2 pi), rad ``(I,)``."""
    angle = torch.atan2(W[:, 1] if W.shape[1] > 1 else torch.zeros_like(W[:, 0]), W[:, 0]) % (2 * torch.pi)
    return torch.where(angle < 2 * torch.pi, angle, 0.0)  # just below the axis the remainder rounds up


def dead_sector(X: Tensor, slopes: tuple[float, float] = (0.0, 1.0)) -> tuple[float, float] | None:
    """The open arc of input-weight directions in which a neuron with two inputs is dead.

    Args:
        X: Inputs, shape ``(N, 2)``.
        slopes: ``(s-, s+)``.

    Returns:
        Start in [0, 2 pi) and end > start of the counterclockwise arc, rad; None where there is none: no slope is zero,
        or the samples lie in no open half-plane.

    Raises:
        ValueError: If ``X`` has not two columns.

    Example:
        >>> dead_sector(torch.eye(2, dtype=torch.float64))  # from pi to 3 pi / 2
        (3.141592653589793, 4.71238898038469)
    """
    BlockSignal(X, X)  # the checks every data set goes through
    if X.shape[1] != 2:
        raise ValueError(f"`X` needs two columns for directions to lie on a circle; got {tuple(X.shape)}.")
    if 0.0 not in slopes:
        return None
    points = X.detach().double().cpu().numpy()
    angle = np.sort(np.arctan2(points[:, 1], points[:, 0])[points.any(axis=1)])
    if not len(angle):
        return 0.0, 2 * np.pi
    gaps = np.diff(angle, append=angle[0] + 2 * np.pi)
    widest = int(gaps.argmax())
    if gaps[widest] - np.pi <= FLOAT64.arc:
        return None
    start = (angle[widest] + (np.pi / 2 if slopes[0] == 0 else -np.pi / 2)) % (2 * np.pi)
    return float(start), float(start + gaps[widest] - np.pi)


def repeated_neurons(block: ShallowBlock, living: Tensor, angle: float = FLOAT64.same_neuron) -> Tensor:
    """For each neuron the one that it repeats: of more amplitude, along the same input weights.

    Args:
        block: The network.
        living: The neurons to compare, bool, shape ``(I,)``.
        angle: Angle up to which input weights are the same, rad.

    Returns:
        Index of that neuron, -1 where there is none, long, shape ``(I,)``.

    Example:
        >>> block = ShallowBlock(W=torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), H=torch.ones(1, 3))
        >>> repeated_neurons(block, torch.ones(3, dtype=torch.bool))
        tensor([ 1, -1, -1])
    """
    W = block.W.detach().double()
    norm = W.norm(dim=1)
    amplitude = norm * block.H.detach().double().norm(dim=0)
    group, _ = _effective_neurons(W, living & (norm > 0), amplitude, angle)
    members = (group >= 0).nonzero().squeeze(1)
    members = members[amplitude[members].argsort(descending=True, stable=True)]
    members = members[group[members].argsort(stable=True)]
    first = torch.ones_like(members, dtype=torch.bool)
    first[1:] = group[members][1:] != group[members][:-1]
    into = torch.full_like(group, -1)
    into[members[~first]] = members[first][group[members[~first]]]
    return into


def _effective_neurons(W: Tensor, living: Tensor, amplitude: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """Connected components of "within an angle", numbered by falling amplitude; -1 outside."""
    label = _components(W if bool(living.all()) else W[living], angle)
    total = torch.zeros(int(label.max()) + 1 if len(label) else 0, dtype=amplitude.dtype, device=W.device)
    total.index_add_(0, label, amplitude[living])
    group_amplitude, order = total.sort(descending=True, stable=True)
    group = torch.full_like(living, -1, dtype=torch.long)
    group[living] = order.argsort()[label]
    return group, group_amplitude


def _components(W: Tensor, angle: float) -> Tensor:
    """Components of the graph of close directions, block of rows by block of rows: a spanning forest is carried on."""
    count = len(W)
    label = np.arange(count)
    rows = max(1, BUDGETS.pairs // max(count, 1))
    for start in range(0, count, rows):
        row, column = _close_pairs(W, slice(start, start + rows), angle).cpu().numpy().T
        if not len(row):
            continue
        sources = np.concatenate([row, np.arange(count)])
        targets = np.concatenate([column, label])
        graph = coo_array((np.ones(len(sources), dtype=bool), (sources, targets)), shape=(count, count))
        label = _first_member(connected_components(graph, directed=False)[1])
    return torch.as_tensor(np.unique(label, return_inverse=True)[1], device=W.device)


def _close_pairs(W: Tensor, some: slice, angle: float) -> Tensor:
    """Pairs of some rows ``(n, d)`` with all whose directions are within an angle, long ``(M, 2)``; not with itself."""
    if angle > FLOAT64.short:
        pairs = _perhaps_close(radial_directions(W), some, angle)
        if len(pairs) <= BUDGETS.pairs_a_neuron * len(W):
            one, other = (radial_directions(W[neuron].double()) for neuron in pairs.unbind(1))
            return pairs[(one * other).sum(1) >= math.cos(angle) - FLOAT64.cosine]
    U = radial_directions(W.double())
    pairs = _close(U[some], U, angle).nonzero()
    pairs[:, 0] += some.start
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _perhaps_close(U: Tensor, some: slice, angle: float) -> Tensor:
    """All close pairs and perhaps more, by a few coordinates: no two directions are closer than their shadows."""
    shadow = U[:, :: -(-U.shape[1] // BUDGETS.coordinates)].float()
    half_square = shadow.square().sum(1) / 2
    # Minus half the squared distance of two shadows.
    close = torch.addmm(-half_square, shadow[some], shadow.T).sub_(half_square[some, None])
    close.diagonal(some.start).fill_(-torch.inf)
    least = math.cos(angle) - 1 - FLOAT64.float32_cosine * U.shape[1]
    if len(close) == 0 or float(close.max()) < least:
        return torch.empty(0, 2, dtype=torch.long, device=U.device)
    pairs = (close >= least).nonzero()
    pairs[:, 0] += some.start
    return pairs


def _close(U: Tensor, V: Tensor, angle: float) -> Tensor:
    """Which pairs of unit vectors ``(n, d)`` and ``(m, d)`` are within an angle, bool ``(n, m)``."""
    if angle > FLOAT64.short:
        least = math.cos(angle) - FLOAT64.cosine
        cosine = U.float() @ V.float().T
        close = cosine >= least
        # Float32 settles almost every pair; the rows where it does not are done again.
        unsure = ((cosine - least).abs() <= FLOAT64.float32_cosine * U.shape[1]).any(dim=1)
        close[unsure] = U[unsure] @ V.T >= least
        return close
    # 1 - cos loses angles below 1e-8; the chord does not, but takes far longer.
    chord = torch.cdist(U, V, compute_mode="donot_use_mm_for_euclid_dist")
    return chord <= 2 * math.sin(angle / 2) + FLOAT64.cosine


def _first_member(component: Index) -> Index:
    """Each component named by the first of its members, ``(n,)``."""
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return np.asarray(first[inverse])

"""Several new neurons at once, chosen by the loss after their output weights are fitted and a few steps are taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from relu_diag.functional._checks import check_matrix, is_count, is_number
from relu_diag.functional.block import Reduction, ShallowBlock, rho
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.output_loss import Loss, as_loss
from relu_diag.functional.tables import counted
from relu_diag.functional.tolerances import FLOAT64
from relu_diag.functional.widening._factors import usual_length
from relu_diag.functional.widening._pools import POOLS
from relu_diag.functional.widening._sets import Rows, UnitSet, fitted_set, proposed_set, split_rows, trained_set
from relu_diag.functional.widening.embedding import add_inactive_propagation


@dataclass(frozen=True, slots=True)
class WideningCandidate:
    """One set of new neurons, and the loss with it on the rows that candidates are judged by.

    Attributes:
        kind: Where its input weights come from.
        units: Number of neurons.
        refitted: Loss with output weights fitted.
        trained: Loss after a few steps of both weights; None where they were not taken.

    Example:
        >>> print(WideningCandidate("random", 4, 0.52, None))
        random: 4 neurons, loss 0.52 with fitted outputs
    """

    kind: str
    units: int
    refitted: float
    trained: float | None

    @property
    def best(self) -> float:
        """The lower one of the two losses."""
        return self.refitted if self.trained is None else min(self.refitted, self.trained)

    def __str__(self) -> str:
        after = "" if self.trained is None else f", {self.trained:.4g} after a few steps"
        return f"{self.kind}: {counted(self.units, 'neuron')}, loss {self.refitted:.4g} with fitted outputs{after}"


@dataclass(frozen=True, slots=True, eq=False)
class Widening:
    """New neurons for a network, and what they were compared with.

    Attributes:
        new_block: The network with the neurons behind the last.
        units: How many there are.
        kind: Where their input weights come from.
        before: Loss on all rows before.
        after: Loss on all rows with them.
        judged_before: Loss before, on the rows that candidates are judged by.
        candidates: What was compared, lowest loss first.
        kept: Whether the function is kept, output weights being zero: no candidate lowered the loss.

    Example:
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> found = best_widening(ShallowBlock(X[:1], X[:1, :1]), X, -X[:, :1], units=1, held_out=0.0)
        >>> found.units, found.kept, found.after < found.before
        (1, False, True)
    """

    new_block: ShallowBlock
    units: int
    kind: str
    before: float
    after: float
    judged_before: float
    candidates: tuple[WideningCandidate, ...]
    kept: bool

    def embed(self, block: ShallowBlock) -> ShallowBlock:
        """The same neurons in another network of the same shape, an averaged copy for example.

        Args:
            block: The other network.

        Returns:
            It with the neurons.
        """
        return _with_neurons(block, self.new_block.W[-self.units :], self.new_block.H[:, -self.units :])

    def __str__(self) -> str:
        what = f"{self.units} new {'neuron' if self.units == 1 else 'neurons'}, {self.kind}"
        return f"{what}: the function is kept" if self.kept else f"{what}: loss {self.before:.4g} to {self.after:.4g}"

    def summary(self) -> str:
        """What was compared, one candidate a line."""
        return "\n".join(map(str, self.candidates))


def best_widening(
    block: ShallowBlock,
    X: Tensor,
    loss: Tensor | Loss,
    units: int | Literal["auto"] = "auto",
    kinds: Sequence[str] = tuple(POOLS),
    held_out: float = 0.25,
    steps: int = 30,
    reduction: Reduction = "mean",
    seed: int = 0,
    most: int | None = None,
    outputs: Tensor | None = None,
) -> Widening:
    """New neurons that lower the loss most, chosen by what they bring and not by their first step.

    For each kind of input weights many are made, and neurons are chosen from them greedily against what is left of the
    loss gradient. Their output weights are fitted, the rest of the network being as it is, and both weights of the two
    best sets are trained for a few quasi-Newton steps; the best goes on as long as the loss falls on the rows held out,
    and under losses of labels and counts no output changes by more than the largest one, or 8: separable labels call
    for ever larger ones, which other data pay for.
    Each neuron then gets the balance of input and output weights that is usual in the network, but for outputs that are
    twice as loud: its input weights are the ones that go on learning.

    Args:
        block: The network.
        X: Inputs of the loss, shape ``(N, d)``: all of them, or a sample.
        loss: Targets of the squared error, shape ``(N, J)``, or a loss of the outputs. One without rows of its own
            (`OutputLoss`) needs ``held_out=0``.
        units: Number of neurons, or "auto": as many, up to `most`, as lower the loss by more than 1 % each, as far as
            the gradient says.
        kinds: Where input weights come from: "random" as in torch's Linear; "between samples", kinks between two
            samples with different gradients; "extremal"; "GradMax", the largest gradient behind half of the samples;
            "copies" of neurons turned across kinks.
        held_out: Share of the rows that judge only. Where `X` has all data there is nothing to be held out, and 0 gives
            the lowest training loss; where it is a sample, what is fitted to it alone may raise the loss on the rest.
        steps: Quasi-Newton steps at most, taken five at a time; 0: fitted outputs are enough.
        reduction: Of the squared error: "mean", "sum" or "half_sum".
        seed: Of the random numbers.
        most: Number of neurons at most, for "auto"; None: 32.
        outputs: Outputs of the network for `X`, where they are known, shape ``(N, J)``; None: they are computed.

    Returns:
        The wider network, whose loss on all rows and on those held out is lower, or whose function is the same.

    Example:
        >>> X = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).double()
        >>> block = ShallowBlock(X[:2], torch.zeros(1, 2).double())
        >>> found = best_widening(block, X, X[:, :1].abs(), units=8)
        >>> found.new_block.W.shape, found.after < 0.5 * found.before
        (torch.Size([10, 5]), True)
    """
    _check_options(units, kinds, held_out, steps)
    check_matrix("X", X)
    rows = split_rows(block, X, as_loss(loss, reduction), held_out, seed, outputs)
    room = BUDGETS.new_units if most is None else min(most, BUDGETS.new_units)
    count = room if units == "auto" else units
    proposed = [proposed_set(rows, kind, count, units == "auto") for kind in kinds]
    best, candidates = _best_set(rows, sorted(proposed, key=_loss_of), steps)
    return _result(rows, best, candidates)


def widening_prospect(block: ShallowBlock, X: Tensor, loss: Loss, units: int | None) -> float:
    """How far the loss falls with new neurons as they are proposed: little work, to compare networks by.

    Args:
        block: The network.
        X: Inputs of the loss, shape ``(N, d)``, a few hundred are enough.
        loss: The loss of its outputs there.
        units: Number of neurons; None: as many as are worth it.

    Returns:
        The drop of the loss; 0 where it does not fall.

    Example:
        >>> from relu_diag.functional import SquaredError
        >>> X = torch.eye(2, dtype=torch.float64)
        >>> block = ShallowBlock(X[:1], X[:1, :1])
        >>> widening_prospect(block, X, SquaredError(-X[:, :1]), units=1) > 0
        True
    """
    rows = split_rows(block, X, loss, held_out=0.0, seed=0)
    most = BUDGETS.new_units if units is None else units
    proposed = [proposed_set(rows, kind, most, units is None) for kind in BUDGETS.kinds_to_compare]
    return max(0.0, rows.judged_before - min(one.judged for one in proposed))


def _best_set(rows: Rows, proposed: list[UnitSet], steps: int) -> tuple[UnitSet, tuple[WideningCandidate, ...]]:
    """Of sets in the order of their loss the best after some steps, and what was compared, lowest loss first."""
    drop = rows.judged_before - proposed[0].judged
    rivals = [one for one in proposed if rows.judged_before - one.judged >= FLOAT64.rival * drop]
    # A trial pays where most steps are left for the better one.
    pays = steps > 3 * BUDGETS.trial_steps
    fitted = [fitted_set(rows, one) for one in rivals[: BUDGETS.finalists if pays else 1] or proposed[:1]]
    trial = BUDGETS.trial_steps if pays and len(fitted) > 1 else 0
    trained = [trained_set(rows, one, trial) for one in fitted] if trial else []
    best = min([*fitted, *trained], key=_loss_of)
    if steps > trial:
        best = trained_set(rows, best, steps - trial)
    after = {one.kind: one.judged for one in trained} | ({best.kind: best.judged} if steps else {})
    candidates = [
        WideningCandidate(one.kind, len(one.V), one.judged, after.get(one.kind))
        for one in (*fitted, *proposed[len(fitted) :])
    ]
    return best, tuple(sorted(candidates, key=lambda one: one.best))


def _check_options(units: int | Literal["auto"], kinds: Sequence[str], held_out: float, steps: int) -> None:
    """Refuse what is no choice.

    Raises:
        ValueError: If a number or kind is not known.
    """
    if units != "auto" and not (isinstance(units, int) and units >= 1):
        raise ValueError(f'`units` must be a number of neurons, at least 1, or "auto"; got {units!r}.')
    if not kinds or set(kinds) - set(POOLS):
        raise ValueError(f"`kinds` must be some of {list(POOLS)}; got {list(kinds)!r}.")
    if not (is_number(held_out) and 0 <= held_out < 1):
        raise ValueError(f"`held_out` is a share of the rows in [0, 1); got {held_out!r}.")
    if not is_count(steps, 0):
        raise ValueError(f"`steps` must not be negative, a whole number; got {steps!r}.")


def _loss_of(one: UnitSet) -> float:
    """By which sets are compared."""
    return one.judged


def _result(rows: Rows, best: UnitSet, candidates: tuple[WideningCandidate, ...]) -> Widening:
    """The widening by the best set, or by silent neurons in its place where it lowers no loss."""
    block = rows.block
    judged_before = rows.judged_before
    before = rows.all.before
    V, H = _balanced(block, best)
    after = float(rows.all.loss(rows.all.outputs + rho(rows.all.X @ V.T, block.slopes) @ H.T))
    kept = not (best.judged < judged_before and after < before)
    if kept:
        V = usual_length(block) * torch.nn.functional.normalize(V)
        H = torch.zeros_like(H)
        after = before
    new = _with_neurons(rows.given, V, H)
    return Widening(new, len(V), best.kind, before, after, judged_before, candidates, kept)


def _balanced(block: ShallowBlock, chosen: UnitSet) -> tuple[Tensor, Tensor]:
    """The neurons with input weights ``(n, d)`` and output weights ``(J, n)`` balanced as usual, but louder."""
    own = block.W.norm(dim=1) / block.H.norm(dim=0)
    usual = own[(own > 0) & own.isfinite()]
    # Behind louder outputs input weights feel more and turn faster: they have the most to learn.
    ratio = (usual.median() if len(usual) else own.new_ones(())) / BUDGETS.louder**2
    length = chosen.V.norm(dim=1)
    loudness = chosen.H.norm(dim=0)
    factor = torch.where((length > 0) & (loudness > 0), (ratio * loudness / length).sqrt(), 1.0)
    return chosen.V * factor[:, None], chosen.H / factor


def _with_neurons(block: ShallowBlock, V: Tensor, H: Tensor) -> ShallowBlock:
    """The block with neurons of weights ``(n, d)`` and ``(J, n)`` behind the last."""
    wider = add_inactive_propagation(block, V.to(block.W))
    return replace(wider, H=torch.cat([wider.H[:, : len(block.W)], H.to(wider.H)], dim=1))

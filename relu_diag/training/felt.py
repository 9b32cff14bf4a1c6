"""What a block would gain by neurons that it does not have yet, to first order."""

from __future__ import annotations

import torch
from torch import Tensor

from relu_diag.functional import BlockSignal, ShallowBlock
from relu_diag.functional.block import chunked_outputs, rho
from relu_diag.functional.widening import add_silent_units
from relu_diag.training._training_data import TrainingData
from relu_diag.training.examination import Examination

# Rows by which a gain is measured.
_ROWS = 4096
# Penalty on the output weights that are there, over the mean square of an activation.
_STIFF = 1e-3


def growth_gain(examination: Examination) -> float:
    """How fast the loss of a block falls, to first order, with what one more neuron adds to its outputs.

    Only the part of the loss gradient counts that the neurons there are cannot follow: what trains without growing is
    no reason to grow.

    Args:
        examination: The block, examined.

    Returns:
        ``||D(w)|| / ||rho(X w)||``, loss per unit of the outputs of all samples together; 0 where no gradient is known.

    Example:
        >>> import torch
        >>> from relu_diag.functional import SquaredError
        >>> from relu_diag.training import TrainingData, verdict_in_training
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.tensor([[1.0], [0.0]])))
        >>> block = ShallowBlock(torch.tensor([[0.0, 1.0]]), torch.ones(1, 1))
        >>> unknown = verdict_in_training(None, "")
        >>> found = Examination(0, "net.0", None, block, 0.5, unknown, None, data, None, "", dead=False)
        >>> growth_gain(found) > 0  # a neuron for the first sample
        True
    """
    signal = signal_of(examination)
    if signal is None:
        return 0.0
    block = examination.block.double()
    signal = some_rows(signal, _ROWS)
    X = signal.X.double()
    left = _unreachable(block, X, signal.G.double())
    wider = add_silent_units(block, BlockSignal(X, left), 1)
    felt = rho(X @ wider.W[-1], block.slopes)
    size = float(felt.norm())
    return float((felt @ left).norm()) / size if size > 0 else 0.0


def _unreachable(block: ShallowBlock, X: Tensor, G: Tensor) -> Tensor:
    """The part of loss gradients ``(N, J)`` that output weights and bias cannot follow."""
    A = rho(X @ block.W.T, block.slopes)
    if block.output_bias is not None:
        A = torch.cat([A, torch.ones_like(A[:, :1])], dim=1)
    gram = A.T @ A
    # Where neurons are as many as samples they can follow everything, but slowly.
    stiff = _STIFF * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny
    followed: Tensor = torch.linalg.solve(gram + stiff * torch.eye(len(gram)).to(gram), A.T @ G)
    return G - A @ followed


def data_of(examination: Examination) -> TrainingData | None:
    """What a choice of new neurons is evaluated on.

    Args:
        examination: The block, examined.

    Returns:
        Its inputs and the loss of its outputs, through the blocks behind it where there are some; None if not known.

    Example:
        >>> import torch
        >>> from relu_diag.training import verdict_in_training
        >>> block = ShallowBlock(torch.eye(2), torch.ones(1, 2))
        >>> unknown = verdict_in_training(None, "the loss was not recognised")
        >>> found = Examination(0, "net.0", None, block, 0.5, unknown, None, None, None, unknown.reason, dead=False)
        >>> data_of(found) is None
        True
    """
    # Where both are known, inputs of the rows kept were computed by weights of earlier steps.
    return examination.data if examination.deep_data is None else examination.deep_data


def signal_of(examination: Examination) -> BlockSignal | None:
    """The inputs of a block and the loss gradients at its outputs, as far as they are known.

    Args:
        examination: The block, examined.

    Returns:
        The signal; None where no gradient is known.

    Example:
        >>> import torch
        >>> from relu_diag.functional import SquaredError
        >>> from relu_diag.training import TrainingData, verdict_in_training
        >>> data = TrainingData(torch.eye(2), SquaredError(torch.tensor([[1.0], [0.0]])))
        >>> block = ShallowBlock(torch.tensor([[0.0, 1.0]]), torch.ones(1, 1))
        >>> unknown = verdict_in_training(None, "")
        >>> found = Examination(0, "net.0", None, block, 0.5, unknown, None, data, None, "", dead=False)
        >>> signal_of(found).G
        tensor([[-1.],
                [ 1.]])
    """
    data = data_of(examination)
    if data is not None:
        outputs = chunked_outputs(examination.block, data.X.to(examination.block.W))
        return BlockSignal(data.X, data.loss.gradient(outputs).to(data.X))
    signals = examination.signals
    if not signals:
        return None
    X = torch.cat([signal.X for signal in signals])
    # Each is that of the mean over its own step.
    return BlockSignal(X, torch.cat([signal.G for signal in signals]) / len(signals))


def some_rows(signal: BlockSignal, most: int) -> BlockSignal:
    """No more rows than a choice needs, the gradients scaled as if they were all.

    Args:
        signal: The signal of all rows.
        most: Number of rows at most.

    Returns:
        That of some of them.

    Example:
        >>> some_rows(BlockSignal(torch.eye(4), torch.ones(4, 1)), 2).G
        tensor([[2.],
                [2.]])
    """
    count = len(signal.X)
    if count <= most:
        return signal
    some = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].to(signal.X.device)
    return BlockSignal(signal.X[some], signal.G[some] * (count / most))

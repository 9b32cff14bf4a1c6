"""The second derivatives of a loss by all weights of a block whose samples keep their sides: one dense matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from relu_diag.functional._arrays import Array


def smooth_hessian(
    X: Array, slope: Array, W: Array, H: Array, residual: Array, curved: Callable[[Array], Array] | Array
) -> Array:
    """The Hessian of a loss of outputs ``sum_i h_i slope_ki (w_i . x_k) + b`` by the weights and ``b``.

    Args:
        X: Inputs, shape ``(N, d)``.
        slope: Slope of every neuron on every sample, shape ``(N, I)``; 0 on kinks, along which weights may move.
        W: Input weights, shape ``(I, d)``.
        H: Output weights, shape ``(J, I)``.
        residual: Gradient of the loss at the outputs, shape ``(N, J)``.
        curved: From a change of the outputs to that of the gradient, to first order, both of shape ``(N, J)``; or the
            curvature of the loss in the outputs of each sample, shape ``(N, J, J)``, which takes a tenth of the time.

    Returns:
        The matrix, of ``I d + J I + J`` rows: ``W`` and ``H`` row by row, then the output bias.

    Example:
        >>> one = np.ones((1, 1))
        >>> smooth_hessian(one, one, 2 * one, 3 * one, residual=0 * one, curved=lambda change: change)
        array([[9., 6., 3.],
               [6., 4., 2.],
               [3., 2., 1.]])
    """
    samples, inputs = X.shape
    outputs, neurons = H.shape
    size = neurons * (inputs + outputs) + outputs
    jacobian = np.zeros((samples, outputs, size))
    by_input = np.einsum("ki,ji,kc->kjic", slope, H, X)
    jacobian[:, :, : neurons * inputs] = by_input.reshape(samples, outputs, neurons * inputs)
    activations = slope * (X @ W.T)
    for j in range(outputs):
        start = neurons * (inputs + j)
        jacobian[:, j, start : start + neurons] = activations
    jacobian[:, :, size - outputs :] = np.eye(outputs)
    if isinstance(curved, np.ndarray):
        bent = curved @ jacobian
    else:
        bent = np.stack([curved(jacobian[:, :, column]) for column in range(size)], axis=2)
    hessian = jacobian.reshape(-1, size).T @ bent.reshape(-1, size)
    # The outputs are bilinear in the two weights of a neuron.
    mixed = np.einsum("kj,ki,kc->jic", residual, slope, X)
    for i in range(neurons):
        columns = slice(i * inputs, (i + 1) * inputs)
        rows = np.arange(outputs) * neurons + neurons * inputs + i
        hessian[rows, columns] += mixed[:, i]
        hessian[columns, rows] += mixed[:, i].T
    return np.asarray(hessian)

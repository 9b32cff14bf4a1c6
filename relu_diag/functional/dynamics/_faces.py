"""All local maxima of ``||D(v)||`` over the unit sphere where the kinks cut it into few faces.

With ``rho(t) = a t + b |t|`` it is ``D(v) = L v + sum_c q_c |n_c . v|``, one ``c`` for every hyperplane. On a face,
where each ``n_c . v`` keeps its sign or stays zero, ``D(v) = M v``; inside it a maximum can only be the first right
singular vector of ``M`` on the span of the face, as ``||M v||`` has no other local maximum on a sphere.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relu_diag.functional._arrays import Array, unit_rows
from relu_diag.functional.budgets import BUDGETS
from relu_diag.functional.local import fan_rays, merge_collinear
from relu_diag.functional.tolerances import FLOAT64

_Signs = NDArray[np.int8]


def face_maxima(X: Array, G: Array, slopes: tuple[float, float]) -> Array | None:
    """The highest points of the faces that have one inside: every local maximum is among them.

    Args:
        X: Inputs that span the space, shape ``(N, d)``.
        G: Loss gradients, shape ``(N, J)``.
        slopes: ``(s-, s+)``.

    Returns:
        Unit vectors, shape ``(n, d)``; None where there are too many faces to list.
    """
    a, b = (slopes[1] + slopes[0]) / 2, (slopes[1] - slopes[0]) / 2
    q, normals = merge_collinear(b * G, X)
    signs = _faces(normals, X.shape[1])
    if signs is None:
        return None
    jumps = (q[:, :, None] * normals[:, None, :]).reshape(len(q), G.shape[1] * X.shape[1])
    M = (a * G.T @ X)[None] + (signs @ jumps).reshape(len(signs), G.shape[1], X.shape[1])
    flats = _flats(signs == 0, normals)
    V = _first_singular_vectors(M @ flats.projections[flats.index])
    across = signs * (V @ normals.T)
    steep, bend = _off_the_hyperplanes(V, M, q, flats)
    found = []
    for side in (1.0, -1.0):
        # On the boundary of its face counts as inside: a neighbour may have it there, too.
        inside = (side * across >= -FLOAT64.same_side).all(axis=1)
        rising = flats.firm[flats.index] & (steep + side * bend > FLOAT64.level)
        found.append(side * V[inside & ~rising.any(axis=1)])
    return np.concatenate(found)


def _faces(normals: Array, inputs: int) -> _Signs | None:
    """The signs of every face, and of some that are empty, shape ``(n, m)``; None where there are too many."""
    if not len(normals):
        return np.zeros((1, 0), dtype=np.int8)
    if 3 ** len(normals) <= BUDGETS.few_patterns:
        return _all_signs(len(normals))
    rays = fan_rays(normals)
    if rays is None:
        return None
    across = rays @ normals.T
    at = np.unique(np.where(np.abs(across) <= FLOAT64.same_side, 0, np.sign(across)).astype(np.int8), axis=0)
    zeros = (at == 0).sum(axis=1)
    if (3.0**zeros).sum() > BUDGETS.faces:
        return None
    # A face has a ray in its boundary, and is next to it as the hyperplanes through the ray say.
    around = []
    for count in np.unique(zeros):
        rows = at[zeros == count]
        spread = np.repeat(rows[:, None], 3**count, axis=1)
        spread[spread == 0] = np.tile(_all_signs(count).ravel(), len(rows))
        around.append(spread.reshape(-1, len(normals)))
    # Where the normals do not span the space, all of them are zero on a face as well.
    listed = np.concatenate([*around, np.zeros((1, len(normals)), dtype=np.int8)])
    key = (listed.astype(np.int64) + 1) @ (3 ** np.arange(len(normals), dtype=np.int64))
    return np.asarray(listed[np.unique(key, return_index=True)[1]])


def _all_signs(count: int) -> _Signs:
    """Every row of ``count`` signs -1, 0 or 1, shape ``(3^count, count)``."""
    return np.array(list(itertools.product((-1, 0, 1), repeat=count)), dtype=np.int8).reshape(-1, count)


@dataclass(frozen=True, slots=True, eq=False)
class _Flats:
    """Where some hyperplanes meet: the flat of each face, shape ``(n,)``, and of each flat what follows.

    ``inverses`` has the pseudo-inverses of the normals, shape ``(f, d, m)``, ``projections`` those onto the flat, shape
    ``(f, d, d)``, and ``firm`` which of the normals are zero on it where they are independent, shape ``(f, m)``.
    """

    index: NDArray[np.intp]
    inverses: Array
    projections: Array
    firm: NDArray[np.bool_]


def _flats(zero: NDArray[np.bool_], normals: Array) -> _Flats:
    """The flats on which the given normals are zero, shape ``(n, m)``."""
    distinct, index = np.unique(zero, axis=0, return_inverse=True)
    spans = distinct[:, :, None] * normals
    inverses = np.asarray(np.linalg.pinv(spans, rcond=FLOAT64.rank), dtype=np.float64)
    onto = inverses @ spans
    independent = distinct.sum(axis=1) == np.rint(np.trace(onto, axis1=1, axis2=2))
    projections = np.asarray(np.eye(normals.shape[1]) - onto)
    return _Flats(index.ravel(), inverses, projections, distinct & independent[:, None])


def _off_the_hyperplanes(V: Array, M: Array, q: Array, flats: _Flats) -> tuple[Array, Array]:
    """The slopes ``+-steep + bend`` of ``||D||``, over its height, off single hyperplanes, both of shape ``(n, m)``.

    ``M^T D / ||D||`` is a multiple of ``v`` plus ``sum_c mu_c n_c``; off hyperplane ``c`` alone the slope is
    ``+-mu_c + q_c . D / ||D||`` per unit of ``|n_c . v|``. At ``-v`` the bend has the other sign.
    """
    D = (M @ V[:, :, None])[:, :, 0]
    gain, o = np.linalg.norm(D, axis=1, keepdims=True), unit_rows(D)
    gain[gain == 0] = 1.0
    multipliers = ((o[:, None] @ M) @ flats.inverses[flats.index])[:, 0]
    return np.abs(multipliers) / gain, o @ q.T / gain


def _first_singular_vectors(M: Array) -> Array:
    """Unit right singular vectors of the largest singular values, zero for zero matrices, shape ``(n, d)``."""
    outputs, inputs = M.shape[1:]
    if outputs == 1:
        return unit_rows(M[:, 0])
    if outputs < inputs:
        left = np.linalg.eigh(M @ M.transpose(0, 2, 1))[1][:, :, -1]
        return unit_rows((left[:, None] @ M)[:, 0])
    return np.asarray(np.linalg.eigh(M.transpose(0, 2, 1) @ M)[1][:, :, -1])

"""RFA: the geometric median of the updates."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from leadfl_pl.aggregators.base import Aggregator
from leadfl_pl.core.distances import gram, row_norms
from leadfl_pl.core.errors import require_number

MOST_STEPS = 50  # on one matrix of inner products; quadratic convergence takes about 10
LENGTHS = 0.5 ** torch.arange(24, dtype=torch.float64)  # tried of Newton's step


def geometric_median(
    points: Tensor, shares: Tensor, nu: float, tolerance: float, max_iterations: int
) -> Tensor:
    r"""Weights (n,) of the points in their geometric median, float64.

    The point :math:`z = \sum_c w_c x_c` that minimises
    :math:`F(z) = \sum_c \alpha_c \lVert x_c - z \rVert`, where a distance r below nu counts as
    :math:`r^2 / 2\nu + \nu / 2`. Its weights are
    :math:`w_c \propto b_c = \alpha_c / \max(\nu, \lVert x_c - z \rVert)`, so the gradient
    :math:`\sum_c b_c (z - x_c)` is a sum of vectors no longer than :math:`\alpha_c`: it says by
    which share the pulls of the points are out of balance, whatever their scale.

    All steps are taken on the points' inner products, (n, n) numbers instead of (n, d). If z ends
    far from where the products were taken about, rounding hides the near points: they are taken
    about the new z until the weights hold for the points themselves.

    Args:
        points: (n, d).
        shares: alpha, how much each point counts (n,), summing to 1.
        nu: distances below it count as nu.
        tolerance: of the gradient's norm.
        max_iterations: most times that the inner products are taken; warns if these do not do.

    >>> points, shares = torch.tensor([[0.0], [1.0], [9.0]]), torch.full((3,), 1 / 3)
    >>> geometric_median(points, shares, 1e-6, 1e-6, 10).round(decimals=4)
    tensor([0., 1., 0.], dtype=torch.float64)
    """
    weights = shares = shares.double()
    for _ in range(max_iterations):
        products = gram(points, about=weights)
        weights = minimise(products.cpu(), shares.cpu(), nu).to(shares.device)
        distances = row_norms(points, about=weights).clamp_min_(nu)
        closeness = shares / distances
        previous, weights = weights, closeness / closeness.sum()
        gradient = closeness.sum() * ((weights - previous).abs() @ distances)  # at most
        if gradient <= tolerance:
            return weights
    warnings.warn(
        f"RFA: the geometric median has not converged after max_iterations = {max_iterations}: "
        f"the pulls of the updates are out of balance by {float(gradient):.1e}, "
        f"more than tolerance = {tolerance:g}",
        RuntimeWarning,
        stacklevel=2,
    )
    return weights


def minimise(products: Tensor, shares: Tensor, nu: float) -> Tensor:
    r"""Weights (n,) of the rows in their geometric median, up to rounding.

    A damped Newton method, from z or from the best row. With :math:`u_c` the unit vector from z to
    row c and :math:`h_c = b_c` (0 within nu), the Hessian is
    :math:`\sum_c b_c I - \sum_c h_c u_c u_c^\top`. Weiszfeld's step keeps its first part alone. It
    never raises F, and is taken wherever no part of Newton's step is better.

    Args:
        products: (n, n) inner products of the rows less z.
        shares: alpha (n,), summing to 1.
        nu: distances below it count as nu.
    """
    squares = products.diagonal()
    between = (squares[:, None] + squares - 2 * products).clamp_min(0.0).sqrt()
    objectives = between @ shares
    best = int(objectives.argmin())
    if objectives[best] < squares.sqrt() @ shares:
        row = products[best]
        products = products - row - row[:, None] + row[best]
    for _ in range(MOST_STEPS):
        squares = products.diagonal().clamp_min(0.0)
        distances = squares.sqrt()
        closeness = shares / distances.clamp_min(nu)  # b
        curvature = torch.where(distances > nu, closeness / squares, 0.0)
        damped = closeness.sum() * (1 + 1e-12)  # rows on one line have no curvature along it
        hessian = torch.diag(damped.expand(len(shares))) - curvature[:, None] * products
        newton = torch.linalg.solve_ex(hessian, closeness).result
        weiszfeld = closeness / closeness.sum()
        steps = torch.cat([LENGTHS[:, None] * newton, weiszfeld[None]])  # (s, n) of the rows less z
        along = steps @ products  # (s, n) each step's inner product with each row
        lengths = (along * steps).sum(dim=1, keepdim=True)  # (s, 1) squared
        moved = (squares - 2 * along + lengths).clamp_min(0.0).sqrt()
        means = (moved + distances).clamp_min(2 * nu)  # differences of roots that do not cancel
        changes = ((lengths - 2 * along) / means) @ shares
        taken = int(changes.nan_to_num(nan=float("inf")).argmin())
        if not -changes[taken] > 1e-14 * lengths[taken].clamp_min(0.0).sqrt():  # rounding
            break
        inner = along[taken]
        products = products - inner - inner[:, None] + lengths[taken]  # of the rows less the new z
    closeness = shares / products.diagonal().clamp_min(0.0).sqrt().clamp_min(nu)
    return closeness / closeness.sum()


class RFA(Aggregator):
    r"""RFA: the geometric median :math:`\mathrm{argmin}_z \sum_c\alpha_c\lVert\delta_c - z\rVert`.

    The weights :math:`\alpha_c` are the clients' shares of the examples. All the updates take part
    in it, far ones with a small weight.

    >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])
    >>> RFA()(points + 2).round(decimals=4)
    tensor([2.5000, 2.5000])

    Args:
        nu: smoothing: distances below it count as nu, > 0.
        tolerance: share by which the pulls of the updates, vectors of length alpha each, may be
            out of balance, in (0, 1).
        max_iterations: most matrices of inner products that are taken, >= 1; one is enough for
            ordinary updates, two for far outliers. A :class:`RuntimeWarning` says if they were not.

    Raises:
        ConfigError: a setting out of range.

    References:
        Pillutla, Kakade, Harchaoui. Robust Aggregation for Federated Learning. IEEE Transactions
        on Signal Processing 2022.

    Differences:
        1. The authors minimise the same smoothed objective by Weiszfeld's algorithm alone, which
           takes hundreds of iterations where nearly half of the updates lie far away: each of its
           steps shrinks the distance to the others by f / (n - f). Here Newton's steps do, where
           they are better (:func:`minimise`).
        2. The authors stop when the *objective* changes by less than a share of 1e-6, which may
           leave the point off by 1e-3; here the gradient must vanish.
        3. The authors stop after 3 or 4 iterations, for each of them costs a round of secure
           aggregation.
    """

    def __init__(self, nu: float = 1e-6, tolerance: float = 1e-6, max_iterations: int = 10) -> None:
        super().__init__()
        require_number("RFA", "nu", nu, above=0)
        require_number("RFA", "tolerance", tolerance, above=0, below=1)
        require_number("RFA", "max_iterations", max_iterations, least=1, whole=True)
        self.nu = nu
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def combine(self, updates: Tensor, weights: Tensor) -> Tensor:
        shares = weights.double() / weights.double().sum()
        in_median = geometric_median(updates, shares, self.nu, self.tolerance, self.max_iterations)
        return torch.mv(updates.T, in_median.to(updates))

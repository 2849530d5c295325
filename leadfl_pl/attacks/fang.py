"""Local model poisoning against one rule: the trimmed mean (or median), and Krum.

Two attacks of one paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leadfl_pl.attacks.base import Attack, CraftedUpdates
from leadfl_pl.core.distances import krum_scores, squared_distances
from leadfl_pl.core.errors import require_number

SMALLEST_LAMBDA = 1e-5  # the paper's


def uniform(low: Tensor, high: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Independent draws (rows, d) between ``low`` and ``high``, each (d,)."""
    shape = (rows, len(low))
    share = torch.rand(shape, generator=generator, dtype=low.dtype, device=low.device)
    return low + share * (high - low)


class FangTrimmedMean(CraftedUpdates):
    r"""Attackers send, in each coordinate, something beyond the honest values on the wrong side.

    Where the honest mean is negative: uniform between the largest honest value M and b M (M / b if
    M < 0). Where it is positive: between the smallest one m and b m (m / b if m > 0). Where it is
    zero: zero. Each attacker draws anew. Without omniscience, from the mean and standard
    deviation of the attackers' updates: between mu + 3 sigma and mu + 4 sigma, or mu - 4 sigma and
    mu - 3 sigma.

    Args:
        attack, omniscient: see :class:`~leadfl_pl.attacks.base.CraftedUpdates`.
        b: how far beyond, >= 1; 1 is exactly the largest or smallest honest value.

    Raises:
        ConfigError: b is out of range; ``attack`` corrupts updates.

    >>> updates = torch.tensor([[1.0, -1.0], [3.0, -3.0], [9.0, 9.0]])
    >>> malicious = torch.tensor([0, 0, 1]).bool()
    >>> FangTrimmedMean(b=1).corrupt(updates, malicious, torch.Generator())[2]
    tensor([ 1., -1.])

    References:
        Fang, Cao, Jia, Gong. Local Model Poisoning Attacks to Byzantine-Robust Federated
        Learning. USENIX Security 2020 (section 4.3; also its attack on the median).

    Differences:
        1. The paper's values are weights; these are updates, theta_c - theta_t, so b stretches
           the step and not the weight.
        2. The direction is that of the honest mean (of the attackers' mean without
           omniscience); the paper takes that of the aggregate before the attack.
        3. The standard deviation is the population one: a single attacker sends its update.
    """

    def __init__(
        self, attack: Attack | None = None, b: float = 2.0, omniscient: bool = True
    ) -> None:
        super().__init__(attack, omniscient)
        require_number("FangTrimmedMean", "b", b, least=1)
        self.b = b

    def craft(
        self, reference: Tensor, n: int, num_malicious: int, generator: torch.Generator
    ) -> Tensor:
        deviation, mean = torch.std_mean(reference, dim=0, correction=0)
        direction = mean.sign()
        if self.omniscient:
            near = torch.where(direction > 0, reference.amin(dim=0), reference.amax(dim=0))
            outwards = near * direction < 0  # on the wrong side of zero already
            far = torch.where(outwards, near * self.b, near / self.b)
        else:
            near = mean - 3 * direction * deviation
            far = mean - 4 * direction * deviation
        return uniform(near, far, num_malicious, generator) * (direction != 0)


def largest_lambda(reference: Tensor, direction: Tensor, num_crafted: int) -> float:
    r"""The bound on lambda above which Krum never chooses :math:`-\lambda s`.

    :math:`\lambda\sqrt{d} \le \sqrt{\min_i \sum_{l \in \Gamma_i} \|u_l - u_i\|^2 / (r - c - 1)} +
    \max_i \|u_i\|` for r updates u and c crafted ones, where :math:`\Gamma_i` are the r - 2
    updates nearest to :math:`u_i` and d counts the nonzero signs in s.

    >>> u = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    >>> round(largest_lambda(u, torch.ones(2), 1), 4)  # 5 / sqrt(2)
    3.5355
    """
    r = len(reference)
    score = krum_scores(squared_distances(reference), r - 2).min() if r > 2 else torch.tensor(0.0)
    length = torch.linalg.vector_norm(reference, dim=1, dtype=torch.float64).max()
    reach = (score / max(1, r - num_crafted - 1)).sqrt().to(length) + length
    return float(reach / direction.count_nonzero().clamp_min(1).sqrt())


def krum_chooses(reference: Tensor, crafted: Tensor, num_crafted: int) -> bool:
    """Whether Krum (f = ``num_crafted``) prefers ``crafted`` (d,), sent so often, to (r, d)."""
    rows = torch.cat([crafted.expand(num_crafted, -1), reference])
    scores = krum_scores(squared_distances(rows), max(1, len(reference) - 2))
    return int(scores.argmin()) < num_crafted


class FangKrum(CraftedUpdates):
    r"""Attackers send :math:`-\lambda s` with a lambda, nearly the largest, that Krum chooses.

    s holds the signs of the honest mean. lambda starts at :func:`largest_lambda` and is halved
    until Krum, with f the number of attackers, chooses it, or lambda < 1e-5. Without omniscience,
    Krum is asked about the attackers' updates and one crafted one, then two, up to as many as
    there are attackers.

    Args:
        attack, omniscient: see :class:`~leadfl_pl.attacks.base.CraftedUpdates`.

    Raises:
        ConfigError: ``attack`` corrupts updates.

    >>> updates = torch.tensor([[1.0], [1.0], [1.0], [2.0], [9.0]])
    >>> malicious = torch.tensor([0, 0, 0, 0, 1]).bool()
    >>> FangKrum().corrupt(updates, malicious, torch.Generator())[4] < 0
    tensor([True])

    References:
        Fang, Cao, Jia, Gong. Local Model Poisoning Attacks to Byzantine-Robust Federated
        Learning. USENIX Security 2020 (section 4.2, theorem 1).

    Differences:
        1. The paper's crafted model is w_Re - lambda s, w_Re being the received global model,
           which is 0 among updates.
        2. s is the direction of the honest mean (of the attackers' mean without omniscience);
           the paper takes that of Krum's choice before the attack.
        3. All attackers send the same; in the paper the others stay within a distance of the
           first, in its authors' code they send the same.
        4. Krum sums squared distances (Blanchard et al. 2017), the paper's theorem plain ones:
           the bound is its argument with squares. The authors' code starts at lambda = 1.
        5. Where r - c - 1 < 1, the attackers outvote the honest clients, there is no bound and 1
           stands in for it.
    """

    def craft(
        self, reference: Tensor, n: int, num_malicious: int, generator: torch.Generator
    ) -> Tensor:
        direction = reference.mean(dim=0).sign()
        counts = [num_malicious] if self.omniscient else range(1, num_malicious + 1)
        for count in counts:
            value = largest_lambda(reference, direction, count)
            while value >= SMALLEST_LAMBDA:
                if krum_chooses(reference, -value * direction, count):
                    return -value * direction
                value /= 2
        return -value * direction

"""Classes split in Dirichlet shares."""

from __future__ import annotations

import pytest
import torch

from leadfl_pl import ConfigError, Dirichlet, QuantitySkew
from leadfl_pl.data.splits import draws, label_counts, summary

LABELS = torch.arange(2000) % 10


def distance(beta: float, seed: int = 0) -> float:
    return summary(LABELS, Dirichlet(beta)(LABELS, 10, seed))["label_distance"]


def test_a_small_beta_is_much_more_skewed_than_a_large_one() -> None:
    # E|p - 1/K| makes it 0.04 for beta = 100 with 10 clients, and 0.72 for beta = 0.1
    for seed in range(5):
        assert distance(0.1, seed) > 0.5
        assert distance(100.0, seed) < 0.08


def test_each_class_has_shares_of_its_own() -> None:
    counts = label_counts(LABELS, Dirichlet(0.3)(LABELS, 10, seed=0)).double()
    shares = counts / counts.sum(dim=0)
    assert torch.corrcoef(shares.T).fill_diagonal_(0).max() < 0.999
    skew = label_counts(LABELS, QuantitySkew(0.3)(LABELS, 10, seed=0)).double()
    assert torch.corrcoef((skew / skew.sum(dim=0)).T).min() > 0.9  # its neighbour's have not


def test_the_variance_of_a_share_is_the_distributions() -> None:
    # Dir(beta 1_K): var = (1/K)(1 - 1/K) / (K beta + 1) = 0.09 / 6 = 0.015
    labels = torch.arange(200_000) % 200
    shares = label_counts(labels, Dirichlet(0.5)(labels, 10, seed=0)).double() / 1000
    assert shares.var(unbiased=False).item() == pytest.approx(0.015, rel=0.1)


def test_a_draw_with_a_client_too_small_is_drawn_again() -> None:
    few = summary(LABELS, Dirichlet(0.1, min_examples=1)(LABELS, 10, seed=0))
    many = summary(LABELS, Dirichlet(0.1, min_examples=60)(LABELS, 10, seed=0))
    assert few["min_examples"] < 60 <= many["min_examples"]


def test_sizes_are_cut_at_the_floors_of_the_cumulated_shares(monkeypatch) -> None:
    class Rng:
        def dirichlet(self, alpha, size):
            assert alpha.tolist() == [0.5, 0.5, 0.5]
            return draws.np.array([[0.25, 0.5, 0.25], [0.05, 0.05, 0.9]])

    monkeypatch.setattr(draws.np.random, "default_rng", lambda seed: Rng())
    sizes = draws.draw_sizes("Dirichlet", [10, 7], 3, 0.5, 2, seed=0)
    assert sizes.tolist() == [[2, 5, 3], [0, 0, 7]]  # ends 2.5, 7.5, 10 and 0.35, 0.7, 7


def test_tiny_concentrations_are_finite() -> None:
    parts = Dirichlet(1e-12)(LABELS, 2, seed=0)
    assert sum(map(len, parts)) == 2000


def test_what_cannot_be_drawn_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ConfigError,
        match=r"num_clients = 50 with at least min_examples = 1 each cannot be had with beta = "
        r"0.001: the best of 1000 draws left a client with 0 of the 2000 training examples",
    ):
        Dirichlet(0.001)(LABELS, 50, seed=0)


def test_more_wanted_than_there_is_is_refused_at_once(monkeypatch) -> None:
    monkeypatch.setattr(draws.np.random, "default_rng", None)
    with pytest.raises(ConfigError, match="need 2010 training examples, but there are 2000"):
        Dirichlet(1.0, min_examples=201)(LABELS, 10, seed=0)


@pytest.mark.parametrize("split", [Dirichlet, QuantitySkew])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta must be > 0, got beta = 0.0"),
        ({"beta": float("nan")}, "beta must be a finite number, got beta = nan"),
        ({"beta": float("inf")}, "got beta = inf"),
        ({"min_examples": 0}, "min_examples must be >= 1, got min_examples = 0"),
    ],
)
def test_a_wrong_setting_is_refused(split, settings, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{split.__name__}: .*{message}"):
        split(**settings)

"""Curvature: Hutchinson against the exact diagonal, what is logged, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from scipy.stats import spearmanr
from test_linearised import cross_entropy
from tiny import SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl
from leadfl_pl.diagnostics.curvature import DiagonalProbe, hutchinson_diagonal, pearson, ranks
from leadfl_pl.diagnostics.replay import Observer, replay
from leadfl_pl.federation.client_update import client_update


def test_hutchinson_is_the_exact_diagonal_on_average() -> None:
    rng = torch.Generator().manual_seed(0)
    x, theta = torch.randn(4, 3, generator=rng), torch.randn(10, generator=rng).requires_grad_()
    y = torch.tensor([0, 1, 1, 0])
    full = torch.func.hessian(cross_entropy)(theta.detach(), x, y)
    (g,) = torch.autograd.grad(cross_entropy(theta, x, y), [theta], create_graph=True)
    (estimate,) = hutchinson_diagonal([g], [theta], 2000, rng)
    exact, off = full.diagonal(), full - full.diagonal().diag()
    standard_error = (off.square().sum(dim=1) / 2000).sqrt()
    assert ((estimate - exact).abs() < 4 * standard_error).all()
    assert (standard_error < 0.1 * exact.abs().max()).all()


def test_ranks_give_spearmans_correlation_with_ties() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randint(4, (2, 50), generator=rng)
    y += x
    assert pearson(ranks(x), ranks(y)) == pytest.approx(spearmanr(x, y).statistic)


class Recorded(Observer):
    def __init__(self) -> None:
        self.weights, self.grads, self.stepped = [], [], []

    def gradient(self, params, grads) -> None:
        self.weights.append(torch.cat([p.detach().flatten() for p in params]))
        self.grads.append(torch.cat([g.detach().flatten() for g in grads]))

    def after_step(self, step: fl.LocalStep) -> None:
        self.stepped.append(torch.cat([p.flatten() for p in step.params]))


def test_the_reports_estimates_are_those_of_equations_3_and_6() -> None:
    client = small_client(fl.LeadFL(alpha=2.0))
    small_trainer(rounds=1).fit(client, datamodule=SmallImages(batch_size=8))
    clients, seen = client.trainer.fit_loop.clients, Recorded()
    probe = DiagonalProbe(3, 2, torch.Generator().manual_seed(0))
    replay(clients, 1, 3, seen)
    replay(clients, 1, 3, probe)
    three, six = (torch.cat([h.flatten() for h in e]) for e in (probe.equation_3, probe.equation_6))
    assert torch.equal(three, seen.grads[4] - seen.grads[3])
    w = seen.weights
    torch.testing.assert_close(six, (w[3] - seen.stepped[3] + w[3] - w[2]) / 0.05)
    plain = seen.grads[3] - seen.grads[2]  # what it is without a regulariser
    assert (six - plain).norm() > 0.1 * plain.norm()


def test_the_gradients_that_a_defense_asks_for_are_none_of_a_step() -> None:
    client = small_client(fl.SAM(rho=0.5))
    small_trainer(rounds=1).fit(client, datamodule=SmallImages(batch_size=8))
    clients, seen = client.trainer.fit_loop.clients, Recorded()
    expected = client_update(client, clients.vector, clients.task(1, 3))
    assert torch.equal(replay(clients, 1, 3, seen).delta, expected.delta)
    assert len(seen.grads) == len(seen.stepped) == clients.num_steps(3)


def run(*callbacks: fl.Curvature, client: Any = None, rounds: int = 2, **federation: Any) -> Any:
    """Final state and rows."""
    report = fl.RunReport()
    trainer = small_trainer(
        attack=fl.PatternBackdoor(), callbacks=[*callbacks, report], rounds=rounds,
        federation=federation,
    )  # fmt: skip
    client = client or small_client(fl.FLWBC())
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    return weights(client), report.rows


def test_a_run_is_the_same_to_the_bit_with_it_and_has_its_numbers() -> None:
    state, rows = run()
    measured_state, measured_rows = run(fl.Curvature(every_n_rounds=2, samples=2), rounds=2)
    assert torch.equal(state, measured_state)
    first, second = measured_rows
    names = {key for key in first if key.startswith("curvature/")}
    assert {"curvature/near_zero", "curvature/near_zero/0.weight", "curvature/near_one",
            "curvature/eta_h", "curvature/equation_3/pearson", "curvature/equation_6/rank",
            "curvature/reliability"} <= names  # fmt: skip
    assert not names & set(second)
    assert [{k: v for k, v in row.items() if k not in names} for row in measured_rows] == rows


class Flat(torch.nn.Module):
    """Logits that ignore half of the parameters, with one class sure: curvature of nearly 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(10))
        self.unused = torch.nn.Parameter(torch.zeros(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(x), 10)


def test_thresholds_are_in_units_of_one_over_eta() -> None:
    client = fl.FederatedClient(Flat(), lr=0.1)  # H_jj = p (1 - p) of about 0.09 and 0
    curvature = fl.Curvature(samples=64, near_zero=0.001, near_one=0.995)
    _, (row,) = run(curvature, client=client, rounds=1)
    assert row["curvature/near_zero"] == 0.5
    assert row["curvature/near_zero/unused"] == 1
    assert row["curvature/eta_h"] == pytest.approx(0.1 * 0.09 / 2, rel=0.1)
    assert row["curvature/near_one"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 3}, "samples must be even, got samples = 3"),
        ({"samples": 0}, "samples must be >= 2, got samples = 0"),
        ({"every_n_rounds": 0}, "every_n_rounds must be >= 1, got every_n_rounds = 0"),
        ({"near_zero": 0.0}, "near_zero must be > 0, got near_zero = 0.0"),
        ({"near_one": -1.0}, "near_one must be > 0, got near_one = -1.0"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(settings: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"^Curvature: {message}$"):
        fl.Curvature(**settings)


class Clips(Callback):
    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        torch.nn.utils.clip_grad_norm_(pl_module.parameters(), 1.0)


def test_a_callback_with_a_part_in_local_steps_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"can repeat, but Clips overrides on_after_backward"):
        run(fl.Curvature(), Clips())


class Unreliable(fl.NoDefense):
    calls = 0

    def finish(self, delta: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.calls += 1
        if self.calls > 1 and float(torch.rand((), generator=generator)) < 0.3:  # after the trial
            raise RuntimeError("out of battery")
        return delta


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_client_that_raises_is_left_out_and_not_measured() -> None:
    state, rows = run(client=small_client(Unreliable()), rounds=8)
    curvature = fl.Curvature(every_n_rounds=1, samples=2)
    measured_state, measured_rows = run(curvature, client=small_client(Unreliable()), rounds=8)
    assert torch.equal(state, measured_state)
    assert any(row["round/failed"] for row in rows)
    known = ["curvature/eta_h" in row for row in measured_rows]
    assert any(known)
    assert not all(known)


def test_two_local_steps_are_too_few() -> None:
    with pytest.raises(fl.ConfigError, match="at least 3 local steps in a round, got one that tak"):
        run(fl.Curvature(), local_epochs=None, local_steps=2)


def test_a_client_that_overrides_its_step_is_refused() -> None:
    class Mine(fl.FederatedClient):
        def compute_gradient(self, batch, backward):
            return super().compute_gradient(batch, backward)

    with pytest.raises(fl.ConfigError, match=r"leaves compute_gradient\(\) as it is.*model = Mine"):
        run(fl.Curvature(), client=Mine(small_client().model))

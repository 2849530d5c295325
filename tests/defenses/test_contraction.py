"""Contraction: by hand, and its theorem on softmax regression."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from lightning.pytorch import Callback
from tiny import small_trainer
from torch import nn

import leadfl_pl as fl

SHAPES = {"conv.weight": (2, 1, 3, 3), "bn.weight": (2,), "bn.bias": (2,), "head.weight": (3, 4)}


def local_step(params: list[torch.Tensor], i: int, steps: int, stacked: int = 0) -> fl.LocalStep:
    rngs = [torch.Generator() for _ in range(stacked or 1)]
    grads = [torch.zeros_like(p) for p in params]
    return fl.LocalStep(list(SHAPES), params, grads, 0.1, i, steps, i == 0, lambda: None, rngs[0],
                        rngs if stacked else ())  # fmt: skip


def ones(*leading: int) -> list[torch.Tensor]:
    return [torch.ones(*leading, *shape, dtype=torch.float64) for shape in SHAPES.values()]


@pytest.mark.parametrize("steps", [1, 3, 380])
@pytest.mark.parametrize("half_life", [0.5, 1.0, 4.0])
def test_a_round_shrinks_by_the_same_whatever_its_number_of_steps(half_life, steps) -> None:
    params, defense = ones(), fl.Contraction(half_life, "all")
    for i in range(steps):
        defense.after_step(local_step(params, i, steps), None)
    for p in params:
        torch.testing.assert_close(p, torch.full_like(p, 0.5 ** (1 / half_life)))


@pytest.mark.parametrize("stacked", [0, 2])
def test_matrices_are_kernels_and_matrices_and_not_what_is_called_a_weight(stacked: int) -> None:
    params = ones(stacked) if stacked else ones()
    fl.Contraction(1.0).after_step(local_step(params, 0, 1, stacked), None)
    assert [float(p.unique()) for p in params] == [0.5, 1.0, 1.0, 0.5]


def test_it_is_the_gradient_step_that_shrinks_and_not_the_weights_before_it() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        client = fl.FederatedClient(nn.Linear(3, 2), fl.Contraction(2.0, "all"), lr=0.1)
    x, y = torch.eye(3), torch.tensor([0, 1, 1])
    loop = [p.detach().clone().requires_grad_() for p in client.model.parameters()]
    client.start_round(0, num_steps=5)
    optimizer = client.configure_optimizers()
    for _ in range(5):
        client.local_step((x, y), optimizer, torch.Tensor.backward)
        loss = nn.functional.cross_entropy(x @ loop[0].T + loop[1], y)
        grads = torch.autograd.grad(loss, loop)
        loop = [
            (2 ** (-1 / 10) * (w - 0.1 * g)).detach().requires_grad_()
            for w, g in zip(loop, grads, strict=True)
        ]
    for p, w in zip(client.model.parameters(), loop, strict=True):
        torch.testing.assert_close(p, w)


@pytest.mark.parametrize("half_life", [0.0, -1.0, nan, -inf, "long", True])
def test_a_half_life_that_is_none_is_refused(half_life) -> None:
    with pytest.raises(fl.ConfigError, match=r"half_life must be .*, got half_life = "):
        fl.Contraction(half_life)


def test_parameters_that_are_none_are_refused() -> None:
    with pytest.raises(fl.ConfigError, match="parameters must be one of matrices, all, got"):
        fl.Contraction(parameters="weights")
    with pytest.raises(fl.ConfigError, match="anchor must be one of zero, initial, got anchor = W"):
        fl.Contraction(anchor="W")


@pytest.mark.parametrize("stacked", [0, 2])
def test_the_initial_model_is_what_the_weights_shrink_to(stacked: int) -> None:
    params = ones(stacked) if stacked else ones()
    step = local_step(params, 0, 1, stacked)._replace(initial=[5 * p for p in ones()])
    fl.Contraction(1.0, anchor="initial").after_step(step, None)
    assert [float(p.unique()) for p in params] == [3.0, 1.0, 1.0, 3.0]


# ---------------------------------------------------------------------- the theorem

ROUNDS, HALF_LIFE = 9, 3.0
BURST = fl.BurstySchedule(period=6, burst=2, num_malicious=3)
BACKDOOR = fl.PatternBackdoor()
ATTACKS = [BACKDOOR, fl.ModelReplacement(BACKDOOR, gamma=20.0), fl.LabelFlip()]


class Models(Callback):
    """The global model (d,) before each round and after the last."""

    def __init__(self) -> None:
        self.theta: list[torch.Tensor] = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.theta.append(torch.cat([p.detach().flatten() for p in pl_module.model.parameters()]))

    def on_train_end(self, trainer, pl_module) -> None:
        self.on_train_epoch_start(trainer, pl_module)


def smoothness(data: fl.FederatedDataModule) -> float:
    """A beta of softmax regression on any batch of the data.

    The Hessian is the batch's mean of (diag(p) - p p^T) x (x, 1) (x, 1)^T; the first factor's
    eigenvalues are at most 1/2.
    """
    data.setup()
    return 0.5 * (1 + data.train_set.images.double().flatten(1).square().sum(dim=1).max().item())


def models(
    seed: int, attack: fl.Attack | None, start: int = 0, half_life: float = HALF_LIFE,
    rule: fl.Aggregator | None = None, anchor: str = "zero", execution: str = "sequential",
) -> tuple[list[torch.Tensor], list[bool]]:  # fmt: skip
    """The global models of a run, and which of its rounds have attackers."""
    data = fl.Digits(split=fl.QuantitySkew(beta=2.0, min_examples=4), batch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(start)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    defense = fl.Contraction(half_life, "all", anchor)
    client = fl.FederatedClient(network, defense, lr=2 / smoothness(data))
    federation = {
        "num_clients": 40, "num_malicious": 10, "clients_per_round": 5, "local_epochs": 2,
        "seed": seed, "execution": execution,
    }  # fmt: skip
    seen = Models()
    trainer = small_trainer(
        rule, attack, BURST, [seen], ROUNDS, federation, precision="64-true", limit_val_batches=0
    )
    trainer.fit(client, datamodule=data)
    cohorts = [trainer.federation.cohort(t) for t in range(ROUNDS)]
    return seen.theta, [any(cohort.malicious) for cohort in cohorts]


def ratios(one: list[torch.Tensor], other: list[torch.Tensor], attacked: list[bool]) -> list[float]:
    """||delta_{t+1}|| / ||delta_t|| of the rounds without attackers."""
    norms = [float((a - b).norm()) for a, b in zip(one, other, strict=True)]
    benign = [t for t in range(ROUNDS) if not attacked[t]]
    assert len(benign) == 5
    assert all(norms[t] > 1e-3 for t in benign)
    return [norms[t + 1] / norms[t] for t in benign]


BOUND = 2 ** (-1 / HALF_LIFE) * (1 + 1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_round_without_attackers_contracts_by_the_half_life_whatever_the_attack(seed) -> None:
    clean, attacked = models(seed, attack=None)
    for attack in ATTACKS:
        poisoned, _ = models(seed, attack)
        assert max(ratios(poisoned, clean, attacked)) <= BOUND


def test_shrinking_to_the_initial_model_keeps_the_theorem() -> None:
    (clean, attacked), (poisoned, _) = (
        models(0, attack, anchor="initial") for attack in (None, BACKDOOR)
    )
    assert max(ratios(poisoned, clean, attacked)) <= BOUND


@pytest.mark.parametrize("execution", ["sequential", "vectorised"])
def test_the_initial_model_is_that_of_the_run_and_not_of_the_round(execution: str) -> None:
    theta, attacked = models(0, BACKDOOR, half_life=1e-6, anchor="initial", execution=execution)
    for t in range(1, ROUNDS):
        returned = torch.allclose(theta[t + 1], theta[0], rtol=0, atol=1e-12)
        assert returned != attacked[t]


def test_two_runs_from_different_starts_approach_each_other_as_fast() -> None:
    (one, attacked), (other, _) = models(0, None, start=1), models(0, None, start=2)
    assert max(ratios(one, other, attacked)) <= BOUND


def test_the_server_alone_keeps_the_theorem_too() -> None:
    rule = fl.ServerDecay(fl.FedAvg(), HALF_LIFE)
    (clean, attacked), (poisoned, _) = (
        models(0, attack, half_life=inf, rule=rule) for attack in (None, BACKDOOR)
    )
    assert max(ratios(poisoned, clean, attacked)) <= BOUND


def test_without_contraction_the_attack_lasts_longer() -> None:
    (clean, attacked), (poisoned, _) = (
        models(0, attack, half_life=inf) for attack in (None, BACKDOOR)
    )
    assert min(ratios(poisoned, clean, attacked)) > BOUND
    assert max(ratios(poisoned, clean, attacked)) <= 1

"""Runs the same federation in either execution, and compares what the clients send."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from tiny import SmallImages, TinyImages, small_trainer
from torch import nn

import leadfl_pl as fl
from leadfl_pl.federation.vectorised import VectorisedClients
from leadfl_pl.federation.vectorised.training import VectorisedFailed

FLOAT64, FLOAT32 = 1e-10, 2e-5  # of ||update - sequential one|| / ||sequential one||
PATTERN = fl.PatternBackdoor()
Updates = list[fl.ClientUpdate]


class Net(nn.Sequential):
    """BatchNorm and a frozen parameter, no dropout."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(36, 10),
        )
        self[0].bias.requires_grad_(False)


class GroupNormNet(fl.FashionMNISTNet):
    def __init__(self) -> None:
        super().__init__(norm="group")


def client(net: type[nn.Module] = Net, defense: Any = None, **kwargs: Any) -> fl.FederatedClient:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return fl.FederatedClient(net(), defense, **{"lr": 0.05} | kwargs)


def train(
    execution: str,
    defense: fl.ClientDefense | None = None,
    attack: fl.Attack | None = None,
    net: type[nn.Module] = Net,
    momentum: float = 0.0,
    split: fl.Split | None = None,
    precision: str = "64-true",
    rounds: int = 2,
    data: type[TinyImages] = SmallImages,
    **federation: Any,
) -> tuple[Updates, fl.FederatedTrainer]:
    """What the clients of all rounds sent, before the attack on updates."""
    trainer = small_trainer(
        attack=attack,
        rounds=rounds,
        federation=federation | {"execution": execution},
        precision=precision,
    )
    sent: Updates = []
    loop = trainer.fit_loop
    own = loop.train

    def recording(cohort: fl.Cohort) -> Updates:
        updates = own(cohort)
        sent.extend(updates)
        return updates

    loop.train = recording
    with warnings.catch_warnings():
        warnings.simplefilter("error", VectorisedFailed)
        trainer.fit(
            client(net, defense, momentum=momentum),
            datamodule=data(batch_size=8, split=split),
        )
    return sent, trainer


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    norm = float(expected.norm())
    return float((found - expected).norm()) / norm if norm else float(found.norm())


def assert_equal(**kwargs: Any) -> Updates:
    """Both executions send the same; returns what the sequential one sent."""
    expected, distances = compare(**kwargs)
    for part, values in distances.items():
        assert max(values) <= FLOAT64, part
    return expected


def compare(**kwargs: Any) -> tuple[Updates, dict[str, list[float]]]:
    """What the sequential execution sent, and how far from it the other's updates are, by part."""
    expected, _ = train("sequential", **kwargs)
    found, trainer = train("vectorised", **kwargs)
    assert type(trainer.fit_loop.clients) is VectorisedClients
    assert len(found) == len(expected) > 0
    pairs = list(zip(found, expected, strict=True))
    for u, v in pairs:
        assert (u.client_id, u.num_examples) == (v.client_id, v.num_examples)
    return expected, {
        part: [distance(getattr(u, part), getattr(v, part)) for u, v in pairs]
        for part in ("delta", "buffers", "loss", "regulariser")
    }

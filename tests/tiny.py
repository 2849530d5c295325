"""Small data and small federations for tests."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

import leadfl_pl as fl


class TinyImages(fl.FederatedDataModule):
    """240 random 28 x 28 images in ten classes, brighter for higher classes."""

    image_shape = (1, 28, 28)
    num_classes = 10
    count = 240
    test_count = 60

    def load(self) -> tuple[fl.ImageSet, fl.ImageSet]:
        rng = torch.Generator().manual_seed(0)
        labels = torch.arange(self.count) % self.num_classes
        noise = torch.rand(self.count, *self.image_shape, generator=rng)
        images = (25 * (noise + 9 / self.num_classes * labels.view(-1, 1, 1, 1))).to(torch.uint8)
        data = fl.ImageSet(images, labels)
        return data, fl.ImageSet(images[: self.test_count], labels[: self.test_count])


class SmallImages(TinyImages):
    """The same in 8 x 8."""

    image_shape = (1, 8, 8)


class TinyColours(TinyImages):
    """The same in colour, 32 x 32."""

    image_shape = (3, 32, 32)


class TinyHundred(TinyColours):
    """32 colour images in a hundred classes, for large networks."""

    num_classes = 100
    count = 32
    test_count = 8


class NetWithBatchNorm(nn.Sequential):
    """A few hundred parameters, BatchNorm and dropout included."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(36, 10),
        )


class Tied(nn.Module):
    """One matrix used twice, and a parameter that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x.flatten(1)).relu())[:, :10]


def small_trainer(
    aggregator: fl.Aggregator | None = None,
    attack: fl.Attack | None = None,
    schedule: fl.Schedule | None = None,
    callbacks: list[Callback] | None = None,
    rounds: int = 3,
    federation: dict[str, Any] | None = None,
    **kwargs: Any,
) -> fl.FederatedTrainer:
    """A quiet federated trainer: 12 clients of which 4 are malicious, 7 a round, 2 local epochs."""
    settings = {"num_clients": 12, "num_malicious": 4, "clients_per_round": 7, "local_epochs": 2}
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": rounds,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return fl.FederatedTrainer(
        fl.Federation(
            aggregator or fl.FedAvg(),
            schedule or fl.RandomSchedule(),
            attack,
            **settings | (federation or {}),
        ),
        callbacks=callbacks,
        **defaults | kwargs,
    )


class Sent(fl.FederatedCallback):
    """Keeps the updates (n, d) of every round, as the server gets them."""

    def __init__(self) -> None:
        self.rounds: list[torch.Tensor] = []

    def on_server_step(self, trainer: Any, pl_module: Any, updates: Any, result: Any) -> None:
        self.rounds.append(torch.stack([u.delta for u in updates]))


def small_client(defense: fl.ClientDefense | None = None, **kwargs: Any) -> fl.FederatedClient:
    """A client with :class:`NetWithBatchNorm`, always from the same initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return fl.FederatedClient(NetWithBatchNorm(), defense, lr=0.05, **kwargs)


def weights(client: fl.FederatedClient) -> torch.Tensor:
    """The whole state of the network as one vector, counters included."""
    return torch.cat([v.double().flatten() for v in client.model.state_dict().values()])

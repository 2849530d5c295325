"""What a local step costs: a bare PyTorch loop, the client in the federated loop, each defense.

    python benchmarks/step.py [--data fashionmnist] [--repeats 31] [--threads 1]

Random images in the shape of the data, with its network: FashionMNIST in batches of 32, 38 local
steps a client, or the digits in batches of 4, 40 local steps. In each repeat every variant trains
one client for a round, in an order of its own, so that a slow moment of the machine, and what the
one before left in the caches, hits all of them; printed are the median of the *ratios* within a
repeat and the ratio of the fastest repeats. "bare again" is what the machine cannot resolve. With a
listener, a callback has an ``on_after_backward``, so that Lightning's hooks are called in every
step: its ratio is what :mod:`leadfl_pl.federation.step_hooks` saves.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn

import leadfl_pl as fl
from leadfl_pl.core.rng import generator
from leadfl_pl.data.base import epoch_batches
from leadfl_pl.records.provenance import command, commit, processor


class Setting(NamedTuple):
    """One client and its round."""

    network: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    examples: int
    batch: int
    epochs: int

    @property
    def steps(self) -> int:
        return self.epochs * -(-self.examples // self.batch)


SETTINGS = {
    "fashionmnist": Setting(fl.FashionMNISTNet, (1, 28, 28), 600, 32, 2),
    "digits": Setting(fl.DigitsNet, (1, 8, 8), 16, 4, 10),
}


class RandomImages(fl.FederatedDataModule):
    """Noise, in ten classes."""

    num_classes = 10

    def __init__(self, setting: Setting) -> None:
        super().__init__(batch_size=setting.batch)
        self.image_shape, self.count = setting.shape, setting.examples

    def load(self) -> tuple[fl.ImageSet, fl.ImageSet]:
        rng = torch.Generator().manual_seed(0)
        images = torch.rand(self.count, *self.image_shape, generator=rng)
        labels = torch.randint(10, (self.count,), generator=rng)
        return fl.ImageSet(images, labels), fl.ImageSet(images[:10], labels[:10])


class Listener(Callback):
    """Has Lightning call its hooks in every local step."""

    def on_after_backward(self, *_: Any) -> None: ...


def bare(setting: Setting) -> Callable[[], None]:
    """The same arithmetic without Lightning and without this package's client."""
    model, data = setting.network(), RandomImages(setting)
    data.setup()

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        order = generator(0, "order", 0, 0)
        for _ in range(setting.epochs):
            for x, y in epoch_batches(data.train_set, setting.batch, order):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()

    return train


def federated(
    setting: Setting, defense: fl.ClientDefense | None = None, *callbacks: Callback
) -> Callable[[], object]:
    """A function that trains one client through the client and the loop."""
    federation = fl.Federation(
        fl.FedAvg(), fl.RandomSchedule(), None, 1, 0, 1, local_epochs=setting.epochs
    )
    trainer = fl.FederatedTrainer(
        federation, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=list(callbacks),
    )  # fmt: skip
    client = fl.FederatedClient(setting.network(), defense)
    trainer.fit(client, datamodule=RandomImages(setting))
    trainer.training = True
    cohort = fl.Cohort(0, (0,), (False,))
    return lambda: trainer.fit_loop.clients.attempt(cohort, 0, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=SETTINGS, default="fashionmnist")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    setting = SETTINGS[arguments.data]
    variants = {
        "bare": bare(setting),
        "bare again": bare(setting),
        "none": federated(setting),
        "none, with a listener": federated(setting, None, Listener()),
        "contraction": federated(setting, fl.Contraction()),
        "leadfl": federated(setting, fl.LeadFL()),
        "leadfl released": federated(setting, fl.LeadFL(formulation="released")),
        "fl-wbc": federated(setting, fl.FLWBC()),
        "ldp": federated(setting, fl.LDP()),
    }
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    turns, order = list(variants), random.Random(0)
    for _ in range(arguments.repeats):
        order.shuffle(turns)
        for name in turns:
            start = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - start)
    print(command())
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {processor()}")
    print(f"commit {commit()}")
    print(f"{'variant':<21} {'ms a step':>9}  median  fastest")
    for name, times in seconds.items():
        base = "bare" if name in ("bare", "bare again", "none") else "none"
        ratio = statistics.median(a / b for a, b in zip(times, seconds[base], strict=True))
        fastest = min(times) / min(seconds[base])
        per_step = 1e3 * statistics.median(times) / setting.steps
        print(f"{name:<21} {per_step:9.3f}  {ratio:6.3f}  {fastest:7.3f} x {base}")


if __name__ == "__main__":
    main()

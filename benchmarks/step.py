"""What a local step costs: a bare PyTorch loop, the client in the federated loop, each defense.

    python benchmarks/step.py [--repeats 31] [--threads 1]

FashionMNIST network, batches of 32, random images. In each repeat every variant trains one client
for 2 epochs of 19 batches, in an order of its own, so that a slow moment of the machine, and what
the one before left in the caches, hits all of them; printed are the median of the *ratios* within
a repeat and the ratio of the fastest repeats.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import leadfl_pl as fl
from leadfl_pl.core.rng import generator
from leadfl_pl.data.base import epoch_batches

EPOCHS, EXAMPLES, BATCH = 2, 600, 32


class RandomImages(fl.FederatedDataModule):
    """Noise in FashionMNIST's shape."""

    image_shape = (1, 28, 28)
    num_classes = 10

    def load(self) -> tuple[fl.ImageSet, fl.ImageSet]:
        rng = torch.Generator().manual_seed(0)
        images = torch.rand(EXAMPLES, 1, 28, 28, generator=rng)
        labels = torch.randint(10, (EXAMPLES,), generator=rng)
        return fl.ImageSet(images, labels), fl.ImageSet(images[:10], labels[:10])


def bare(model: torch.nn.Module, data: fl.ImageSet) -> None:
    """The same arithmetic without Lightning and without this package's client."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    order = generator(0, "order", 0, 0)
    for _ in range(EPOCHS):
        for x, y in epoch_batches(data, BATCH, order):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def federated(defense: fl.ClientDefense) -> Callable[[], None]:
    """A function that trains one client through the client and the loop."""
    federation = fl.Federation(fl.FedAvg(), fl.RandomSchedule(), None, 1, 0, 1, local_epochs=EPOCHS)
    trainer = fl.FederatedTrainer(
        federation,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[Quiet()],
    )
    trainer.fit(fl.FederatedClient(fl.FashionMNISTNet(), defense), RandomImages(batch_size=BATCH))
    cohort = fl.Cohort(0, (0,), (False,))
    trainer.training = True
    return lambda: trainer.fit_loop.local.train(cohort, 0, None)


class Quiet(fl.RunReport):
    """No files, no table."""

    def on_train_epoch_end(self, *_: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    module = RandomImages()
    module.setup()
    model, other = fl.FashionMNISTNet(), fl.FashionMNISTNet()
    variants: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(model, module.train_set),
        "bare again": lambda: bare(other, module.train_set),  # what the machine cannot resolve
        "none": federated(fl.NoDefense()),
        "leadfl": federated(fl.LeadFL()),
        "leadfl released": federated(fl.LeadFL(formulation="released")),
        "fl-wbc": federated(fl.FLWBC()),
        "ldp": federated(fl.LDP()),
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
    steps = EPOCHS * -(-EXAMPLES // BATCH)
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.repeats} repeats")
    print(f"{'variant':<16} {'ms a step':>9}  median  fastest")
    for name, times in seconds.items():
        base = "bare" if name in ("bare", "bare again", "none") else "none"
        ratio = statistics.median(a / b for a, b in zip(times, seconds[base], strict=True))
        fastest = min(times) / min(seconds[base])
        per_step = 1e3 * statistics.median(times) / steps
        print(f"{name:<16} {per_step:9.3f}  {ratio:6.3f}  {fastest:7.3f} x {base}")


if __name__ == "__main__":
    main()

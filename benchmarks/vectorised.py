"""How much faster the clients of a round train at once than one after the other.

    python benchmarks/vectorised.py [--repeats 5] [--threads 1] [--accelerator cpu]

100 clients, cohorts of 10 and 100, one local epoch. In each repeat both executions train the same
cohort in turn, so that a slow moment of the machine hits both; printed are the medians over the
repeats of the *ratio* within a repeat, its range, and how far apart the updates are. Both
executions are this package's own, from the global weights to the updates.

With a GPU, one local step is also captured into a CUDA graph and replayed (``--accelerator gpu``).
That part has never run: it was written on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

import leadfl_pl as fl
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.federation.clients import Clients
from leadfl_pl.federation.vectorised import VectorisedClients
from leadfl_pl.federation.vectorised.round import VectorisedRound
from leadfl_pl.records.provenance import command, commit, processor

CLIENTS = 100


class RandomImages(fl.FederatedDataModule):
    """60 images of noise for each client, in FashionMNIST's shape."""

    image_shape = (1, 28, 28)
    num_classes = 10

    def load(self) -> tuple[fl.ImageSet, fl.ImageSet]:
        rng = torch.Generator().manual_seed(0)
        images = torch.rand(60 * CLIENTS, 1, 28, 28, generator=rng)
        labels = torch.randint(10, (60 * CLIENTS,), generator=rng)
        return fl.ImageSet(images, labels), fl.ImageSet(images[:10], labels[:10])


def mlp() -> nn.Module:
    """64 - 64 - 10 on the 8 x 8 digits, 4,810 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


class Case(NamedTuple):
    """What is timed."""

    net: Callable[[], nn.Module]
    data: Callable[[], fl.FederatedDataModule]
    defense: fl.ClientDefense
    attack: fl.Attack | None = None
    num_malicious: int = 0  # of a cohort
    cohorts: tuple[int, ...] = (10, 100)


def digits() -> fl.FederatedDataModule:
    return fl.Digits(batch_size=4)


def noise() -> fl.FederatedDataModule:
    return RandomImages(batch_size=32)


PATTERN = fl.PatternBackdoor()
CASES = {
    "DigitsNet": Case(fl.DigitsNet, digits, fl.NoDefense()),
    "DigitsNet LeadFL": Case(fl.DigitsNet, digits, fl.LeadFL()),
    "DigitsNet FLWBC": Case(fl.DigitsNet, digits, fl.FLWBC()),
    "DigitsNet LeadFL, 30 % attack": Case(fl.DigitsNet, digits, fl.LeadFL(), PATTERN, 3, (10,)),
    "DigitsNet LeadFL, 30 % DBA": Case(
        fl.DigitsNet, digits, fl.LeadFL(), fl.DBA(size=(1, 3)), 3, (10,)
    ),
    "MLP": Case(mlp, digits, fl.NoDefense()),
    "MLP LeadFL": Case(mlp, digits, fl.LeadFL()),
    "MLP FLWBC": Case(mlp, digits, fl.FLWBC()),
    "FashionMNISTNet LeadFL": Case(fl.FashionMNISTNet, noise, fl.LeadFL(), cohorts=(10,)),
}


def prepared(case: Case, n: int, accelerator: str) -> tuple[VectorisedClients, fl.Cohort]:
    """Clients that are ready to train, and a cohort of them."""
    malicious = 25 if case.num_malicious else 0
    federation = fl.Federation(
        fl.FedAvg(), fl.RandomSchedule(), case.attack, CLIENTS, malicious, n, local_epochs=1,
        execution="vectorised",
    )  # fmt: skip
    trainer = fl.FederatedTrainer(
        federation, max_epochs=1, accelerator=accelerator, devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(fl.FederatedClient(case.net(), case.defense, lr=0.05), datamodule=case.data())
    trainer.training = True
    clients = trainer.fit_loop.clients
    assert isinstance(clients, VectorisedClients)
    clients.client.to(trainer.strategy.root_device)  # which the Trainer has left after the fit
    clients.vector = ModelVector(clients.client.model)
    attackers = clients.malicious_ids[: case.num_malicious]
    honest = [c for c in range(CLIENTS) if c not in attackers][: n - len(attackers)]
    mask = [False] * len(honest) + [True] * len(attackers)
    return clients, fl.Cohort(0, (*honest, *attackers), tuple(mask))


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name: str, case: Case, n: int, repeats: int, accelerator: str) -> None:
    clients, cohort = prepared(case, n, accelerator)

    def sequential() -> list[fl.ClientUpdate | None]:
        return list(Clients.train(clients, cohort, range(n), None))

    def vectorised() -> dict[int, fl.ClientUpdate]:
        return clients.train_together(cohort, range(n), None)

    at_once, one_by_one = vectorised(), sequential()
    apart = 0.0
    for position, update in enumerate(one_by_one):
        assert update is not None
        difference = (at_once[position].delta - update.delta).norm() / update.delta.norm()
        apart = max(apart, float(difference))
    times = [(seconds(sequential), seconds(vectorised)) for _ in range(repeats)]
    ratios = [a / b for a, b in times]
    ms = [1e3 * min(column) for column in zip(*times, strict=True)]
    print(
        f"{name:<30} {n:>4} {ms[0]:>10.1f} {ms[1]:>10.1f} {statistics.median(ratios):>7.2f} x "
        f"({min(ratios):.2f} .. {max(ratios):.2f})  {apart:.0e}",
        flush=True,
    )


def capture(case: Case) -> None:
    """Captures one local step into a CUDA graph and compares a replay with the step itself."""
    clients, cohort = prepared(case, 10, "gpu")
    ends = []
    for captured in (False, True):
        members = clients._members(cohort, range(10), None)
        training = VectorisedRound(
            clients.client.model, members, [None] * 10, clients._settings()
        )  # fmt: skip
        index = {row: m.part[:4].to("cuda") for row, m in enumerate(members)}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # the memory of the first step is not the captured one's
            training.step(training.blocks, 0, 0, index)
        torch.cuda.current_stream().wait_stream(side)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                training.step(training.blocks, 0, 1, index)
            graph.replay()
        else:
            training.step(training.blocks, 0, 1, index)
        torch.cuda.synchronize()
        ends.append(torch.cat([p.flatten() for p in training.stack.params]))
    print(f"replayed CUDA graph: {float((ends[0] - ends[1]).norm() / ends[0].norm()):.0e} apart")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--only", default="", help="cases whose name starts like this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    print(command())
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {processor()}")
    print(f"commit {commit()}")
    print(f"{'case':<30} {'n':>4} {'one by one':>10} {'at once':>10}  (ms, least)  apart")
    for name, case in CASES.items():
        if name.startswith(arguments.only):
            for n in case.cohorts:
                compare(name, case, n, arguments.repeats, arguments.accelerator)
    if arguments.accelerator == "gpu" and torch.cuda.is_available():
        capture(CASES["DigitsNet LeadFL"])


if __name__ == "__main__":
    main()

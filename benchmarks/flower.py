"""The same round through Flower's simulation and through this package: seconds a round.

    python benchmarks/flower.py [--clients 10] [--steps 190] [--rounds 3] [--processes 2]

FashionMNIST's network and shapes, random images; every client takes ``--steps`` local SGD steps on
batches of 32, and the rule is Multi-Krum, Flower's own there and this package's here. Flower runs
plain PyTorch in as many actors as there are processes here, one thread each: once with the network
as one writes it down, once with this package's, the same function in another layout. Both evaluate
nothing.
A round is the median time between the ends of two rounds, the first one with its start-up left out.
They alternate ``--repeats`` times, so that a slow moment of the machine hits both. Needs
``pip install 'leadfl_pl[flower]' 'flwr[simulation]'``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn

import leadfl_pl as fl
from leadfl_pl.records.provenance import command, commit, processor

BATCH, LR, MARK = 32, 0.01, "round ends at"


def end_round() -> None:
    print(MARK, time.perf_counter(), flush=True)


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """uint8 images and labels."""
    rng = torch.Generator().manual_seed(seed)
    shape = (count, 1, 28, 28)
    return torch.randint(256, shape, generator=rng, dtype=torch.uint8), torch.arange(count) % 10


class RandomImages(fl.FederatedDataModule):
    """As many batches a client as it takes steps, in FashionMNIST's shape."""

    image_shape = (1, 28, 28)
    num_classes = 10

    def __init__(self, count: int) -> None:
        super().__init__(batch_size=BATCH)
        self.count = count

    def load(self) -> tuple[fl.ImageSet, fl.ImageSet]:
        return fl.ImageSet(*images(self.count, 0)), fl.ImageSet(*images(10, 1))


class Clock(Callback):
    """Marks the end of each round."""

    def on_train_epoch_end(self, trainer: object, module: object) -> None:
        if trainer.is_global_zero:
            end_round()


def run_ours(arguments: argparse.Namespace) -> None:
    federation = fl.Federation(
        fl.MultiKrum(f=1), fl.RandomSchedule(), num_clients=arguments.clients, num_malicious=0,
        clients_per_round=arguments.clients, local_steps=arguments.steps,
    )  # fmt: skip
    trainer = fl.FederatedTrainer(
        federation, accelerator="cpu", devices=arguments.processes, max_epochs=arguments.rounds,
        callbacks=[Clock()], logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = RandomImages(arguments.clients * arguments.steps * BATCH)
    trainer.fit(fl.FederatedClient(fl.FashionMNISTNet(), lr=LR), datamodule=data)


def plain_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 10),
    )  # fmt: skip


def run_flower(arguments: argparse.Namespace, network: Callable[[], nn.Module]) -> None:
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import MultiKrum
    from flwr.simulation import run_simulation

    client_app, server_app = ClientApp(), ServerApp()
    clients, steps, rounds = arguments.clients, arguments.steps, arguments.rounds

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        model = network()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        x, y = images(steps * BATCH, context.node_config["partition-id"])
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        for batch in torch.randperm(len(y)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch].float() / 255), y[batch]).backward()
            optimizer.step()
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(y)}),
        }
        return Message(RecordDict(content), reply_to=message)

    class Timed(MultiKrum):
        def aggregate_train(self, *args: object) -> object:
            result = super().aggregate_train(*args)
            end_round()
            return result

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = Timed(
            fraction_evaluate=0.0, min_train_nodes=clients, num_malicious_nodes=1,
            num_nodes_to_select=clients - 1,
        )  # fmt: skip
        strategy.start(grid, ArrayRecord(network().state_dict()), num_rounds=rounds)

    resources = {
        "client_resources": {"num_cpus": 1},
        "init_args": {"num_cpus": arguments.processes},
    }
    run_simulation(server_app, client_app, clients, backend_config=resources)


RUNS = {
    "plain": partial(run_flower, network=plain_network),
    "flower": partial(run_flower, network=fl.FashionMNISTNet),
    "ours": run_ours,
}


def measure(framework: str) -> float:
    """Median seconds a round of one run in a process of its own."""
    done = subprocess.run(
        [sys.executable, *sys.argv, "--run", framework], capture_output=True, text=True
    )
    ends = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or len(ends) < 2:
        raise RuntimeError(done.stderr[-3000:])
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--steps", type=int, default=190)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=RUNS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        RUNS[arguments.run](arguments)
        return
    print(command())
    print(f"{os.cpu_count()} cores of {processor()}, commit {commit()}")
    print("flower s  with our network s  ours s  ratio  with our network")
    for _ in range(arguments.repeats):
        plain, flower, ours = (measure(name) for name in RUNS)
        ratios = f"{plain / ours:6.2f} {flower / ours:17.2f}"
        print(f"{plain:8.2f} {flower:19.2f} {ours:7.2f} {ratios}", flush=True)


if __name__ == "__main__":
    main()

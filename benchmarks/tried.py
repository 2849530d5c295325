"""What was tried to make a local step and an evaluation faster on a CPU.

    python benchmarks/tried.py [--threads 1] [--evaluation | --profile]

Both networks of the report, in batches of 16 and 32, SGD with momentum: as shipped, and made of
PyTorch's layers, with max pooling after or before the ReLU, and with network and images in
``channels_last``. CIFAR10Net pools after BatchNorm, so that the first two of these are the same
there: what the machine cannot resolve. The variants take turns, step by step, so that a slow moment
of the machine hits all of them; printed are medians of the times, and of the ratios within a turn.
``--evaluation`` does the same for batches of 1,000 and 250 images without gradients, in eval and in
train mode. ``--profile`` prints where the time of a step goes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leadfl_pl as fl
from leadfl_pl.records.provenance import command, commit, processor

NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, int, int]]] = {
    "FashionMNISTNet": (fl.FashionMNISTNet, (1, 28, 28)),
    "CIFAR10Net": (fl.CIFAR10Net, (3, 32, 32)),
}
SHIPPED = "shipped"


class Variant(NamedTuple):
    """A network with images in the layout that it is meant for."""

    model: nn.Module
    x: Tensor  # (B, C, H, W)


def plain(shipped: nn.Sequential, pool_first: bool) -> nn.Sequential:
    """The same of PyTorch's layers, contiguous, with pooling before or after the ReLU."""
    layers = list(shipped)
    for i in range(len(layers)):
        pair = layers[i : i + 2]
        if {type(a) for a in pair} == {nn.MaxPool2d, nn.ReLU}:
            layers[i : i + 2] = sorted(pair, key=lambda a: isinstance(a, nn.ReLU) == pool_first)
    return nn.Sequential(*layers).to(memory_format=torch.contiguous_format)


def variants(name: str, batch: int) -> dict[str, Variant]:
    """The network in all layouts, each with parameters of its own, on the same images."""
    make, shape = NETWORKS[name]
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))

    def shipped() -> nn.Sequential:
        torch.manual_seed(0)
        return make()

    return {
        SHIPPED: Variant(shipped(), x),
        "pooling after the ReLU": Variant(plain(shipped(), pool_first=False), x),
        "pooling before the ReLU": Variant(plain(shipped(), pool_first=True), x),
        "before it, channels_last": Variant(
            plain(shipped(), pool_first=True).to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
        ),
    }


def step(variant: Variant, **sgd: bool) -> Callable[[], None]:
    """One local step on a fixed batch."""
    model, x = variant
    y = torch.arange(len(x)) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.1, **sgd)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def evaluation(variant: Variant, train: bool) -> Callable[[], None]:
    """One batch of an evaluation."""
    model, x = variant
    model.train(train)

    @torch.no_grad()
    def run() -> None:
        model(x)

    return run


def compare(title: str, runs: Mapping[str, Callable[[], object]], repeats: int) -> None:
    """Lets ``runs`` take turns and prints their times and ratios."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    turns, order = list(runs), random.Random(0)
    for i in range(-3, repeats):
        order.shuffle(turns)
        for name in turns:
            start = time.perf_counter()
            runs[name]()
            if i >= 0:
                times[name].append(time.perf_counter() - start)
    print(f"\n{title}")
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, times[SHIPPED], strict=True))
        median = 1e3 * statistics.median(taken)
        print(f"{name:<26} {median:9.3f} ms  {ratio:5.2f} x {SHIPPED}", flush=True)


def profile(title: str, run: Callable[[], None], steps: int) -> None:
    """Prints the time of ``steps`` steps by operation."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            run()
    print(f"\n{title}, {steps} steps")
    print(profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=14))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, help="16 32, in an evaluation 1000 250")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, help="100 steps, or 10 batches of an evaluation")
    parser.add_argument("--evaluation", action="store_true")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(command())
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {processor()}")
    print(f"commit {commit()}")
    repeats = arguments.repeats or (10 if arguments.evaluation else 100)
    for name in arguments.networks:
        for batch in arguments.batches or ([1000, 250] if arguments.evaluation else [16, 32]):
            title, layouts = f"{name}, {batch} images", variants(name, batch)
            steps = {layout: step(variant) for layout, variant in layouts.items()}
            if arguments.profile:
                for layout, run in steps.items():
                    profile(f"{title}, {layout}", run, repeats)
            elif arguments.evaluation:
                for mode in ("eval", "train"):
                    runs = {k: evaluation(v, mode == "train") for k, v in layouts.items()}
                    compare(f"{title}, {mode} mode", runs, repeats)
            else:
                for key in ("foreach", "fused"):
                    steps[f"SGD {key}"] = step(variants(name, batch)[SHIPPED], **{key: True})
                compare(title, steps, repeats)


if __name__ == "__main__":
    main()

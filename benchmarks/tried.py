"""What was tried to make a local step faster on a CPU, as ratios within one run.

    python benchmarks/tried.py [--threads 1] [--batch 32] [--profile | --evaluation]

FashionMNIST's network, SGD with momentum. The variants take turns, step by step, so that a slow
moment of the machine hits all of them; printed are medians, and the share of the shipped one.
``--profile`` prints where the time of a step goes instead, ``--evaluation`` what 20,000 images cost
in evaluation batches of several sizes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import leadfl_pl as fl
from leadfl_pl.models.pooling import MaxPool2x2
from leadfl_pl.records.provenance import commit

Step = Callable[[], Tensor]


def network(pooled_by_pytorch: bool = False) -> nn.Sequential:
    """The shipped network, or the same with PyTorch's pooling after the ReLU."""
    torch.manual_seed(0)
    shipped = fl.FashionMNISTNet()
    if not pooled_by_pytorch:
        return shipped
    layers: list[nn.Module] = list(shipped)
    for i, layer in enumerate(shipped):
        if isinstance(layer, MaxPool2x2):
            layers[i : i + 2] = [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def step(model: nn.Module, x: Tensor, y: Tensor, **sgd: bool) -> Step:
    """One local step of ``model`` on a fixed batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.1, **sgd)

    def run() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return run


def variants(batch: int) -> dict[str, Step]:
    """The shipped step first."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(batch, 1, 28, 28, generator=rng), torch.arange(batch) % 10
    images = torch.rand(600, 1, 28, 28, generator=rng)
    by_channel = torch.channels_last
    shipped = network()
    index = torch.randperm(600, generator=rng)[:batch]

    def gathered() -> Tensor:
        loss = F.cross_entropy(shipped(images[index]), y)
        loss.backward()
        return loss

    found = {
        "shipped": step(network(), x, y),
        "PyTorch's pooling after the ReLU": step(network(pooled_by_pytorch=True), x, y),
        "channels_last": step(
            network(True).to(memory_format=by_channel), x.contiguous(memory_format=by_channel), y
        ),
        "SGD foreach": step(network(), x, y, foreach=True),
        "SGD fused": step(network(), x, y, fused=True),
        "one batch gathered, no SGD step": gathered,
    }
    compiled = step(torch.compile(network()), x, y)
    try:
        compiled()
        found["torch.compile"] = compiled
    except Exception as error:  # no C++ compiler: said, not hidden
        print(f"torch.compile does not run here: {type(error).__name__}")
    return found


def profile(run: Step, steps: int) -> dict[str, float]:
    """Milliseconds a step by operation, self time, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            run()
    spent = {event.key: event.self_cpu_time_total / 1e3 / steps for event in found.key_averages()}
    return dict(sorted(spent.items(), key=lambda item: -item[1]))


def evaluation(repeats: int) -> dict[int, float]:
    """Seconds for 20,000 images by batch size, medians."""
    model, found = network(), {}
    for size in (1000, 250, 100):
        x, taken = torch.rand(size, 1, 28, 28), []
        with torch.no_grad():
            for i in range(repeats + 2):
                start = time.perf_counter()
                model(x)
                if i >= 2:
                    taken.append(time.perf_counter() - start)
        found[size] = statistics.median(taken) * 20_000 / size
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--evaluation", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"python benchmarks/tried.py {' '.join(sys.argv[1:])}".rstrip())
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), commit {commit()}")
    if arguments.evaluation:
        for size, seconds in evaluation(20).items():
            print(f"batches of {size:>4}: {seconds:.2f} s")
        return
    runs = variants(arguments.batch)
    if arguments.profile:
        for name in ("PyTorch's pooling after the ReLU", "shipped"):
            profile(runs[name], 10)
            spent = profile(runs[name], arguments.steps)
            print(f"\n{name}: {sum(spent.values()):.2f} ms a step")
            for operation, milliseconds in list(spent.items())[:14]:
                print(f"{operation:<48} {milliseconds:6.3f} ms")
        return
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(arguments.steps + 10):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if i >= 10:
                times[name].append(time.perf_counter() - start)
    shipped = statistics.median(times["shipped"])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:<34} {1e3 * median:7.3f} ms  {median / shipped:.2f} x shipped")


if __name__ == "__main__":
    main()

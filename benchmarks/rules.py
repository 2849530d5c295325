"""Time of every server-side rule against FedAvg's, in one run, on n = 100 updates of d = 10^6.

    python benchmarks/rules.py

Each rule is called as a user calls it, ``rule(updates)``, so that every time has the rejection of
malformed updates in it. The smallest of ``--repeats`` calls counts. ``--check`` fails if a rule is
slower than the bound that the project sets itself.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

import leadfl_pl as fl
from leadfl_pl.records.provenance import command, commit, processor

BOUNDS = {"median": 30, "krum": 20, "multi-krum": 20, "bulyan": 60}


def rules(n: int, d: int) -> dict[str, fl.Aggregator]:
    """Every rule with the most Byzantine updates that it puts up with."""
    return {
        "fedavg": fl.FedAvg(),
        "krum": fl.Krum(f=(n - 3) // 2),
        "multi-krum": fl.MultiKrum(f=(n - 3) // 2),
        "bulyan": fl.Bulyan(f=(n - 3) // 4),
        "released bulyan": fl.ReleasedBulyan(),
        "median": fl.Median(),
        "trimmed mean": fl.TrimmedMean(beta=0.2),
        "rfa": fl.RFA(),
        "fltrust": fl.FLTrust(),
        "flame": fl.FLAME(),
        "sparsefed": fl.SparseFed(k=d // 10),
        "weak dp": fl.WeakDP(),
        "centered clipping": fl.CenteredClipping(),
        "dnc": fl.DnC(f=n // 5),
        "foolsgold": fl.FoolsGold(),
        "robustlr": fl.RobustLR(),
        "crfl": fl.CRFL(),
        "norm clipping + fedavg": fl.PreAggregation([fl.NormClipping()], fl.FedAvg()),
        "nnm + median": fl.PreAggregation([fl.NearestNeighborMixing(f=n // 5)], fl.Median()),
    }


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The shortest of ``repeats`` calls after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rng = torch.Generator().manual_seed(0)
    updates = 1e-4 * torch.randn(arguments.n, arguments.d, generator=rng)
    updates = updates.to(arguments.device)
    server = fl.ServerContext(
        root_update=updates.mean(dim=0),
        model=updates[0],
        clients=torch.arange(arguments.n, device=arguments.device),
    )
    print(command())
    print(f"n = {arguments.n}, d = {arguments.d}, float32, seed 0, commit {commit()}")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {processor()}, "
        f"{updates.device}"
    )
    times: dict[str, float] = {}
    slow = []
    for name, rule in rules(arguments.n, arguments.d).items():
        rule.to(arguments.device)
        times[name] = seconds(lambda rule=rule: rule(updates, server=server), arguments.repeats)
        ratio = times[name] / times["fedavg"]
        bound = BOUNDS.get(name)
        if bound is not None and ratio > bound:
            slow.append(name)
        limit = f"  (at most {bound})" if bound else ""
        print(f"{name:24s} {times[name]:8.3f} s {ratio:7.1f} x fedavg{limit}", flush=True)
    if slow:
        print(f"slower than its bound: {', '.join(slow)}")
    return int(arguments.check and bool(slow))


if __name__ == "__main__":
    sys.exit(main())

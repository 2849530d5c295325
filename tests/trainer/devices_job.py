"""Runs several small federations one after the other and prints what each ended with.

    python tests/trainer/devices_job.py FOLDER [NAME ...]

Alone it uses one device; under torchrun or SLURM as many as there are ranks. A name that ends in
``:N`` stops after N rounds, with a checkpoint; ``NAME:last`` goes on from there.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tiny import SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl
from leadfl_pl.federation.clients import ClientFailed

warnings.simplefilter("error", ClientFailed)
torch.set_num_threads(1)
BURST = fl.BurstySchedule(period=3, burst=2, num_malicious=4)
SKEWED = fl.QuantitySkew(beta=1.0, min_examples=3)  # clients of very different sizes
BACKDOOR = fl.PatternBackdoor()
RUNS = {
    "none": {},
    "leadfl": {"defense": fl.LeadFL()},
    "leadfl released": {
        "defense": fl.LeadFL(formulation="released"), "momentum": 0.1, "distance_space": "state",
        "carry_momentum": True,
    },
    "fl-wbc": {"defense": fl.FLWBC()},
    "ldp": {"defense": fl.LDP()},
    "contraction": {"defense": fl.Contraction()},
    "contraction initial": {"defense": fl.Contraction(anchor="initial")},
    "constant drift": {"defense": fl.ConstantDrift()},
    "fedprox": {"defense": fl.FedProx()},
    "sam": {"defense": fl.SAM()},
    "krum": {"rule": lambda: fl.Krum(f=2)},
    "multi-krum": {"rule": lambda: fl.MultiKrum(f=2), "diagnostics": fl.UpdateDistances},
    "bulyan": {"rule": lambda: fl.Bulyan(f=1)},
    "bulyan released": {"rule": lambda: fl.ReleasedBulyan(neighbours=4)},
    "median": {"rule": fl.Median},
    "trimmed mean": {"rule": fl.TrimmedMean},
    "rfa": {"rule": fl.RFA},
    "fltrust": {"rule": lambda: fl.FLTrust(root_size=20)},
    "flame": {"rule": fl.FLAME},
    "sparsefed": {"rule": lambda: fl.SparseFed(k=40)},
    "weak dp": {"rule": fl.WeakDP},
    "centered clipping": {"rule": fl.CenteredClipping},
    "dnc": {"rule": lambda: fl.DnC(f=2, coordinates=100)},
    "foolsgold": {"rule": fl.FoolsGold},
    "robust lr": {"rule": fl.RobustLR},
    "crfl": {"rule": fl.CRFL},
    "nnm": {
        "rule": lambda: fl.PreAggregation(
            [fl.NormClipping(), fl.NearestNeighborMixing(f=2)], fl.Median()
        )
    },
    "server decay": {"rule": lambda: fl.ServerDecay(fl.Median())},
    "label flip": {"attack": fl.LabelFlip()},
    "data poisoning": {"attack": fl.DataPoisoning(BACKDOOR, rate=0.2)},
    "one pixel": {"attack": fl.OnePixelBackdoor()},
    "a3fl": {"attack": fl.A3FL(steps=6, every=3)},
    "blended": {"attack": fl.BlendedBackdoor()},
    "edge case": {"attack": fl.EdgeCaseBackdoor(SmallImages())},
    "pgd": {"attack": fl.PGD(BACKDOOR, epsilon=0.1)},
    "dba": {"attack": fl.DBA(size=(1, 3))},
    "semantic": {"attack": fl.SemanticBackdoor(threshold=0.3)},
    "replacement": {"attack": fl.ModelReplacement(BACKDOOR)},
    "alie": {"attack": fl.ALIE(BACKDOOR)},
    "ipm": {"attack": fl.IPM(BACKDOOR)},
    "min-max": {"attack": fl.MinMax(BACKDOOR)},
    "min-sum": {"attack": fl.MinSum(BACKDOOR)},
    "fang trimmed mean": {"attack": fl.FangTrimmedMean(BACKDOOR)},
    "fang krum": {"attack": fl.FangKrum(BACKDOOR)},
    "neurotoxin": {"attack": fl.Neurotoxin(BACKDOOR)},
    "within spread": {"attack": fl.WithinHonestSpread(BACKDOOR)},
    "decay timed": {"attack": fl.DecayTimed(BACKDOOR, threshold=0.1)},
    "skewed": {"split": SKEWED, "defense": fl.LeadFL()},
    "batch statistics": {"evaluation_mode": "train"},
    "attack effect": {
        "rule": lambda: fl.SparseFed(k=40), "momentum": 0.5, "carry_momentum": True,
        "diagnostics": fl.AttackEffect,
    },
}  # fmt: skip


def parts_of_the_runs() -> list[object]:
    """The defenses, rules and attacks of all runs, and what is within them."""
    found: list[object] = [fl.FedAvg(), BACKDOOR, fl.NoDefense()]
    for settings in RUNS.values():
        found += [settings[key] for key in ("defense", "attack") if key in settings]
        found += [settings["rule"]()] if "rule" in settings else []
    for part in found:  # grows while it is gone through
        found += [v for v in vars(part).values() if isinstance(v, (fl.Aggregator, fl.Attack))]
    return found


def world() -> dict[str, int]:
    """How many devices and nodes torchrun or SLURM gives this process."""
    if "SLURM_NNODES" in os.environ:
        nodes, world_size = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS"])
        return {"devices": world_size // nodes, "num_nodes": nodes}
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return {"devices": local, "num_nodes": int(os.environ.get("WORLD_SIZE", 1)) // local}


def run(name: str, root: Path) -> str | None:
    """A digest of the final state and of the record, on rank 0."""
    name, _, part = name.partition(":")
    settings = dict(RUNS[name])
    federation = {k: settings.pop(k) for k in ("distance_space", "carry_momentum") if k in settings}
    rule = settings.pop("rule", fl.FedAvg)()
    attack = settings.pop("attack", BACKDOOR)
    split = settings.pop("split", None)
    diagnostics = [settings.pop("diagnostics")()] if "diagnostics" in settings else []
    client = small_client(**settings)
    report = fl.RunReport()
    saving = {"enable_checkpointing": True, "default_root_dir": str(root / name)} if part else {}
    trainer = small_trainer(
        rule, attack, BURST, [*diagnostics, report], int(part) if part.isdigit() else 3, federation,
        **world(), **saving,
    )  # fmt: skip
    data = SmallImages(batch_size=8, eval_batch_size=7, split=split)
    trainer.fit(client, datamodule=data, ckpt_path="last" if part == "last" else None)
    if not trainer.is_global_zero:
        return None
    digest = hashlib.blake2b(weights(client).numpy().tobytes(), digest_size=8)
    digest.update(json.dumps(report.rows, sort_keys=True).encode())
    return digest.hexdigest()


def say_if_group_is_left() -> None:
    if torch.distributed.is_initialized():
        print("the process group outlives the run")


if __name__ == "__main__":
    atexit.register(say_if_group_is_left)  # called last
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(RUNS)
    results = {name: run(name, folder) for name in names}
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0:
        print("RESULTS " + json.dumps(results))

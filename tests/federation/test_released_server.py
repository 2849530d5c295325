"""The released code's cohorts and selections, recomputed by our schedules and rules."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import VECTORS, Vectors

from leadfl_pl import (
    Aggregator,
    FedAvg,
    ForcedRounds,
    Krum,
    Median,
    MultiKrum,
    Population,
    ReleasedBulyan,
    ReleasedSchedule,
    TrimmedMean,
)

META = json.loads((VECTORS / "released_code.json").read_text())
STACKS = {s["stack"]: s for s in META["aggregation"]}
EPSILON = torch.finfo(torch.float32).eps
SELECTED = "selected_clients (found by matching the output mean)"
RULES: dict[str, Aggregator] = {
    "multiKrum": MultiKrum(f=1, m=5),
    "krum": Krum(f=3),
    "bulyan": ReleasedBulyan(neighbours=6),
    "fedavg": FedAvg(),
    "median": Median(formulation="released"),
    "trmean_beta0.2": TrimmedMean(beta=0.2),
    "trmean_beta0.4": TrimmedMean(beta=0.4),
}


def test_the_released_cohorts_are_drawn_again() -> None:
    recorded = json.loads((VECTORS / "released_schedule.json").read_text())
    schedule = ForcedRounds(ReleasedSchedule(), rounds=[0, 10, 12], num_malicious=5)
    population = Population(100, 25, 10, seed=1)
    assert [c + 1 for c in schedule.draw_malicious(population)] == sorted(
        recorded["malicious_clients"]
    )
    for t, (selected, count) in enumerate(
        zip(recorded["selected"], recorded["n_mal"], strict=True)
    ):
        cohort = schedule.cohort(population, t)
        assert [c + 1 for c in cohort.client_ids] == selected
        assert sum(cohort.malicious) == count


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("method", RULES)
def test_rules_on_the_whole_state_match_the_released_ones(
    vectors: Vectors, stack: str, method: str
) -> None:
    meta = STACKS[stack]

    def flat(prefix: str) -> torch.Tensor:
        state = vectors.state(prefix)
        return torch.cat([state[k].double().flatten() for k in meta["keys"]])

    updates = torch.stack([flat(f"agg/{stack}/in/{c}") for c in meta["clients"]])
    sizes = torch.tensor([float(meta["sizes"][c]) for c in meta["clients"]])
    rule = RULES[method]
    if (recorded := meta["outputs"][method].get(SELECTED)) is not None:
        assert sorted(rule.select(updates).tolist()) in recorded
    recorded_state = vectors.state(f"agg/{stack}/{method}")
    parts = rule(updates, sizes).split([recorded_state[k].numel() for k in meta["keys"]])
    for key, part in zip(meta["keys"], parts, strict=True):
        expected = recorded_state[key]  # counters come back as float32
        rtol, atol = 0.0, 1e-12
        if expected.dtype == torch.float32:
            rtol = 1e-7
            # the released trimmed mean adds up in float32: so much may each coordinate be off
            atol = EPSILON * float(updates.abs().max()) if method.startswith("trmean") else 0.0
        part = part.view_as(expected).to(expected.dtype)
        torch.testing.assert_close(part, expected, rtol=rtol, atol=atol)

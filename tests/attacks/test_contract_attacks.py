"""What every attack must do. A new one needs a line in ``ATTACKS``."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import pytest
import torch
from attacks.rounds import a_round
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NetWithBatchNorm, SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl
from leadfl_pl import attacks
from leadfl_pl.attacks import check_attack, check_corrupted
from leadfl_pl.core.values import AttackerView

PATTERN = fl.PatternBackdoor()


class Line(NamedTuple):
    """An attack and what it is like."""

    attack: fl.Attack
    corrupts: bool = False  # acts on updates
    draws: bool = False  # from the generator
    trigger: bool = False  # has a backdoor that is evaluated
    plain: fl.Attack | None = None  # its limit, in which it corrupts nothing


ATTACKS = {
    "PatternBackdoor": Line(PATTERN, trigger=True),
    "OnePixelBackdoor": Line(fl.OnePixelBackdoor(), trigger=True),
    "A3FL": Line(fl.A3FL(steps=6, every=3), trigger=True),
    "BlendedBackdoor": Line(fl.BlendedBackdoor(), trigger=True),
    "DBA": Line(fl.DBA(size=(1, 3)), trigger=True),
    "LabelFlip": Line(fl.LabelFlip(3, 7), trigger=True),
    "LabelFlip mirrored": Line(fl.LabelFlip(), trigger=True),
    "DataPoisoning": Line(fl.DataPoisoning(PATTERN, rate=0.5), trigger=True),
    "SemanticBackdoor": Line(fl.SemanticBackdoor(threshold=0.2), trigger=True),
    "EdgeCaseBackdoor": Line(fl.EdgeCaseBackdoor(SmallImages()), trigger=True),
    "PGD": Line(fl.PGD(PATTERN, epsilon=0.1), trigger=True),
    "PGD of each": Line(fl.PGD(fl.DBA(size=(1, 3)), epsilon=0.1, every=4), trigger=True),
    "ModelReplacement": Line(
        fl.ModelReplacement(PATTERN), True, trigger=True, plain=fl.ModelReplacement(gamma=1)
    ),
    "ALIE": Line(fl.ALIE(), True),
    "ALIE own": Line(fl.ALIE(omniscient=False), True),
    "IPM": Line(fl.IPM(), True),
    "IPM own": Line(fl.IPM(omniscient=False), True),
    "MinMax": Line(fl.MinMax(), True),
    "MinMax own": Line(fl.MinMax(perturbation="unit", omniscient=False), True),
    "MinSum": Line(fl.MinSum(perturbation="sign"), True),
    "MinSum own": Line(fl.MinSum(omniscient=False), True),
    "FangTrimmedMean": Line(fl.FangTrimmedMean(), True, draws=True),
    "FangTrimmedMean own": Line(fl.FangTrimmedMean(omniscient=False), True, draws=True),
    "FangKrum": Line(fl.FangKrum(), True),
    "FangKrum own": Line(fl.FangKrum(omniscient=False), True),
    "Neurotoxin": Line(fl.Neurotoxin(PATTERN, share=0.2), trigger=True),
    "WithinHonestSpread": Line(fl.WithinHonestSpread(PATTERN), True, trigger=True),
    "WithinHonestSpread mean": Line(fl.WithinHonestSpread(PATTERN, "mean"), True, trigger=True),
    "DecayTimed": Line(fl.DecayTimed(PATTERN), trigger=True),
}
BASES = {"Attack", "AttackWrapper", "Backdoor", "CraftedUpdates"}
every_attack = pytest.mark.parametrize("name", list(ATTACKS))
on_updates = pytest.mark.parametrize("name", [k for k, line in ATTACKS.items() if line.corrupts])


def test_every_attack_of_the_package_has_a_line() -> None:
    names, kinds = set(), [fl.Attack]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.__module__.startswith("leadfl_pl.") and not kind.__name__.startswith("_"):
            names.add(kind.__name__)
    assert names - BASES == {type(line.attack).__name__ for line in ATTACKS.values()}
    assert names - {"Backdoor", "CraftedUpdates"} <= set(fl.__all__)
    assert names <= set(attacks.__all__)


def corrupt(name: str, updates, malicious, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return ATTACKS[name].attack.corrupt(updates, malicious, rng)


@every_attack
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 12),
    share=st.floats(0, 1),
    scale=st.sampled_from([1e-12, 1e-4, 1.0, 1e6]),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_shape_dtype_finiteness_and_the_honest_rows_are_kept(
    name, n, share, scale, seed, dtype
) -> None:
    updates, malicious, _ = a_round(n, max(1, round(share * n)), seed=seed, dtype=dtype)
    updates *= scale
    given_updates, given_mask = updates.clone(), malicious.clone()
    sent = corrupt(name, updates, malicious, seed)
    assert sent.shape == updates.shape
    assert sent.dtype == dtype
    assert bool(sent.isfinite().all())
    assert torch.equal(sent[~malicious], updates[~malicious])
    assert torch.equal(updates, given_updates)
    assert torch.equal(malicious, given_mask)
    assert torch.equal(sent, corrupt(name, updates, malicious, seed))


@every_attack
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
@pytest.mark.parametrize("num_malicious", [1, 3, 4])
def test_identical_updates_give_finite_ones(name: str, value: float, num_malicious: int) -> None:
    malicious = torch.arange(4) < num_malicious
    sent = corrupt(name, torch.full((4, 9), value), malicious)
    assert bool(sent.isfinite().all())
    assert sent.abs().max() <= max(4 * abs(value), 1e-6)


@on_updates
def test_updates_are_corrupted(name: str) -> None:
    updates, malicious, _ = a_round()
    updates[malicious] *= 20
    assert not torch.equal(corrupt(name, updates, malicious), updates)


@pytest.mark.parametrize("name", [k for k, line in ATTACKS.items() if not line.corrupts])
def test_an_attack_on_data_leaves_updates_alone(name: str) -> None:
    updates, malicious, _ = a_round()
    assert torch.equal(corrupt(name, updates, malicious), updates)


@pytest.mark.parametrize("name", [k for k, line in ATTACKS.items() if line.plain])
def test_in_its_limit_it_corrupts_nothing(name: str) -> None:
    updates, malicious, _ = a_round()
    limit = ATTACKS[name].plain
    assert torch.equal(limit.corrupt(updates, malicious, torch.Generator()), updates)


@on_updates
def test_the_generator_decides_exactly_where_something_is_drawn(name: str) -> None:
    updates, malicious, _ = a_round()
    state = torch.get_rng_state()
    first, other = (corrupt(name, updates, malicious, seed) for seed in (0, 1))
    assert torch.equal(first, other) != ATTACKS[name].draws
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [k for k, line in ATTACKS.items() if not line.draws])
@settings(max_examples=8, deadline=None, derandomize=True)
@given(n=st.integers(2, 10), num_malicious=st.integers(1, 5), seed=st.integers(0, 1000))
def test_the_order_of_clients_does_not_matter(name, n, num_malicious, seed) -> None:
    updates, malicious, _ = a_round(n, min(n, num_malicious), seed=seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    permuted = corrupt(name, updates[order], malicious[order])
    torch.testing.assert_close(permuted, corrupt(name, updates, malicious)[order])


@pytest.mark.parametrize(
    "name", [k for k, v in ATTACKS.items() if getattr(v.attack, "omniscient", None) is not None]
)
def test_attackers_use_what_they_know_and_nothing_else(name: str) -> None:
    updates, malicious, _ = a_round()
    omniscient = ATTACKS[name].attack.omniscient
    sent = corrupt(name, updates, malicious)[malicious]
    changed = updates.clone()
    changed[malicious if omniscient else ~malicious] *= -3
    assert torch.equal(corrupt(name, changed, malicious)[malicious], sent)
    changed = updates.clone()
    changed[~malicious if omniscient else malicious] *= -3
    assert not torch.equal(corrupt(name, changed, malicious)[malicious], sent)


@every_attack
def test_tasks_balance_and_projection_keep_the_shapes_of_a_local_step(name: str) -> None:
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    kept = images.clone(), labels.clone()
    model = NetWithBatchNorm()
    last = [torch.randn_like(p) for p in model.parameters()]
    bound = ATTACKS[name].attack.local(AttackerView(1, 2, model, images, labels, last))
    tasks = bound.tasks(images, labels)
    for x, y in tasks:
        assert (x.shape, x.dtype) == (images.shape, images.dtype)
        assert (y.shape, y.dtype) == (labels.shape, labels.dtype)
    gradients = [[torch.randn_like(p) for p in last] for _ in tasks]
    assert bound.balance(torch.rand(len(tasks)), gradients).shape == (len(tasks),)
    projected = bound.project(gradients[0])
    assert [g.shape for g in projected] == [g.shape for g in last]
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])


@every_attack
def test_it_passes_the_checks_of_the_first_round(name: str) -> None:
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    view = AttackerView(0, 0, NetWithBatchNorm(), images, labels, None)
    check_attack(ATTACKS[name].attack, view, 10)
    updates, malicious, _ = a_round()
    check_corrupted(ATTACKS[name].attack, updates, malicious, corrupt(name, updates, malicious))


@every_attack
def test_every_setting_can_be_read_back(name: str) -> None:
    attack = ATTACKS[name].attack
    renamed = {"balance": "balance_rule"}  # ``balance`` is a method
    settings = {renamed.get(k, k) for k in inspect.signature(type(attack)).parameters}
    assert settings <= vars(attack).keys()
    public = {k: v for k, v in vars(attack).items() if not k.startswith("_")}
    assert not any(isinstance(v, torch.Tensor) for v in public.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (fl.PatternBackdoor(position=(3, 23)), fl.PatternBackdoor(position=(23, 3))),
        (fl.PatternBackdoor(high=1.0), fl.PatternBackdoor(high=0.9)),
        (fl.PatternBackdoor(low=0.0), fl.PatternBackdoor(low=0.1)),
        (fl.PatternBackdoor(pattern=[[1, 0]]), fl.PatternBackdoor(pattern=[[1, None]])),
        (fl.PatternBackdoor(pattern=[[1, 0]]), fl.PatternBackdoor(pattern=[[1], [0]])),
        (fl.OnePixelBackdoor(high=1.0), fl.OnePixelBackdoor(high=2.0)),
        (fl.DBA(size=(1, 4)), fl.DBA(size=(4, 1))),
        (fl.LabelFlip(3, 7), fl.LabelFlip(7, 3)),
    ],
)
def test_two_triggers_are_two_settings(one: fl.Attack, other: fl.Attack) -> None:
    first, second = (
        {k: v for k, v in vars(attack).items() if not k.startswith("_")} for attack in (one, other)
    )
    assert first != second


@every_attack
def test_a_trigger_gives_images_wanted_labels_and_a_mask(name: str) -> None:
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 3, 3, 7, 8, 9])
    triggered = ATTACKS[name].attack.trigger(images, labels)
    assert (triggered is not None) == ATTACKS[name].trigger
    if triggered is not None:
        x, wanted, counts = triggered
        assert (x.shape, wanted.shape, counts.shape) == (images.shape, (6,), (6,))
        assert counts.dtype == torch.bool
        assert bool(counts.any())
        assert bool((wanted != labels)[counts].all())


def final_weights(attack: fl.Attack | None) -> torch.Tensor:
    """After two rounds of FedAvg with 3 of 7 attackers, who run no defense."""
    client = small_client()
    trainer = small_trainer(attack=attack, schedule=fl.FixedSchedule(3), rounds=2)
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    return weights(client)


@pytest.fixture(scope="module")
def honest_weights() -> torch.Tensor:
    return final_weights(None)


@every_attack
def test_a_federation_runs_repeats_bit_for_bit_and_is_harmed(name: str, honest_weights) -> None:
    end = final_weights(ATTACKS[name].attack)
    torch.manual_seed(77)  # the global generator plays no part
    again = final_weights(ATTACKS[name].attack)
    assert bool(end.isfinite().all())
    assert torch.equal(end, again)
    assert not torch.equal(end, honest_weights)


class Nothing(fl.Attack):
    """Meant to attack nothing."""


def test_the_base_class_is_an_honest_client(honest_weights: torch.Tensor) -> None:
    for attack in (Nothing(), fl.AttackWrapper()):
        assert torch.equal(final_weights(attack), honest_weights)

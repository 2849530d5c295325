"""Data poisoning: which images carry trigger and label, and that nothing else changes."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from tiny import SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl
from leadfl_pl.attacks.data_poisoning import image_hash

PATTERN = fl.PatternBackdoor(target=8)
WHITE = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def digits() -> fl.ImageSet:
    data = fl.Digits()
    data.setup()
    return data.train_set


def poisoned(attack: fl.Attack, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Which images (B,) are changed."""
    ((images, _),) = attack.tasks(x, y)
    return (images != x).flatten(1).any(dim=1)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_rate_is_kept_on_real_digits(rate: float, seed: int, digits: fl.ImageSet) -> None:
    x, y = digits
    attack = fl.DataPoisoning(PATTERN, rate, seed)
    others = int((y != 8).sum())
    found = int(poisoned(attack, x, y).sum())
    assert abs(found - rate * others) <= 3 * sqrt(rate * (1 - rate) * others)


def test_the_rate_is_kept_in_every_class(digits: fl.ImageSet) -> None:
    x, y = digits
    changed = poisoned(fl.DataPoisoning(PATTERN, 0.3), x, y)
    for label in set(range(10)) - {8}:
        assert abs(float(changed[y == label].float().mean()) - 0.3) < 0.15
    assert not changed[y == 8].any()


def test_images_of_a_higher_rate_include_those_of_a_lower_one(digits: fl.ImageSet) -> None:
    few, many = (poisoned(fl.DataPoisoning(PATTERN, rate), *digits) for rate in (0.05, 0.1))
    assert bool((few <= many).all())
    assert int(few.sum()) < int(many.sum())


def test_poisoned_images_are_those_of_the_trigger_and_the_others_are_untouched() -> None:
    y = torch.tensor([0, 1, 2, 3, 4, 8])
    ((images, labels),) = fl.DataPoisoning(PATTERN, 0.5).tasks(WHITE, y)
    chosen = (image_hash(WHITE) < 2**30) & (y != 8)
    assert 0 < int(chosen.sum()) < 5
    expected = torch.where(chosen.view(-1, 1, 1, 1), PATTERN.stamp(WHITE), WHITE)
    assert torch.equal(images, expected)
    assert labels.tolist() == [8 if c else int(label) for c, label in zip(chosen, y, strict=True)]


def test_a_rate_of_one_poisons_every_image_of_another_class_than_the_target() -> None:
    y = torch.tensor([0, 1, 2, 8, 4, 5])
    ((images, labels),) = fl.DataPoisoning(PATTERN, 1.0).tasks(WHITE, y)
    others = y != 8
    assert torch.equal(images[others], PATTERN.stamp(WHITE)[others])
    assert torch.equal(images[~others], WHITE[~others])
    assert labels.tolist() == [8] * 6


def test_an_image_has_the_same_fate_in_every_batch_order_and_layout(digits: fl.ImageSet) -> None:
    x, y = digits.images[:101], digits.labels[:101]
    attack = fl.DataPoisoning(PATTERN, 0.2)
    whole = poisoned(attack, x, y)
    for size in (1, 7, 64):
        batches = zip(x.split(size), y.split(size), strict=True)
        assert torch.equal(torch.cat([poisoned(attack, *batch) for batch in batches]), whole)
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    assert torch.equal(poisoned(attack, x[order], y[order]), whole[order])
    assert torch.equal(image_hash(x.double()), image_hash(x))
    colours = torch.rand(5, 3, 8, 8)
    assert torch.equal(
        image_hash(colours.contiguous(memory_format=torch.channels_last)), image_hash(colours)
    )


def test_a_rounding_error_of_another_device_does_not_change_the_hash() -> None:
    pixels = torch.arange(256).float().view(256, 1, 1, 1)
    divided, multiplied = pixels / 255, pixels * (1 / torch.tensor(255.0))  # as CUDA may divide
    assert not torch.equal(divided, multiplied)
    assert torch.equal(image_hash(divided), image_hash(multiplied))
    assert len(image_hash(divided).unique()) == 256


def test_the_hash_by_hand_in_python_integers(digits: fl.ImageSet) -> None:
    x = digits.images[:3]
    a = torch.randint(-(2**63), 2**63 - 1, (65,), generator=fl.core.rng.generator(4, "poison"))
    for image, found in zip(x, image_hash(x, seed=4).tolist(), strict=True):
        pixels = [int(4096 * p) for p in image.flatten().tolist()]
        total = sum(m * p for m, p in zip(a.tolist(), [1, *pixels], strict=True))
        assert found == (total % 2**64) >> 33


def test_only_images_that_a_trigger_means_are_poisoned() -> None:
    y = torch.tensor([7, 1, 7, 3, 7, 8])
    ((images, labels),) = fl.DataPoisoning(fl.LabelFlip(7, 2), rate=1.0).tasks(WHITE, y)
    assert torch.equal(images, WHITE)
    assert labels.tolist() == [2, 1, 2, 3, 2, 8]


def everybody(attack: fl.Attack | None, **federation: object) -> torch.Tensor:
    """The weights after two rounds in which all clients carry out the attack and run LeadFL."""
    client = small_client(fl.LeadFL())
    settings = {"num_malicious": 12, "defended_attackers": True} | federation
    trainer = small_trainer(attack=attack, rounds=2, federation=settings)
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    return weights(client)


def test_clients_none_of_whose_images_is_poisoned_train_like_honest_ones() -> None:
    honest = everybody(None, num_malicious=0)
    assert torch.equal(everybody(fl.DataPoisoning(PATTERN, rate=1e-9)), honest)
    assert not torch.equal(everybody(fl.DataPoisoning(PATTERN, rate=0.2)), honest)


@pytest.mark.parametrize("schedule", [fl.RandomSchedule(), fl.FixedSchedule(7)])
def test_a_federation_of_poisoned_clients_only_runs_and_has_no_burst_to_recover_from(
    schedule: fl.Schedule,
) -> None:
    attack, rows = fl.DataPoisoning(PATTERN, rate=0.3), []

    class Rows(fl.trainer.round_metrics.RoundMetrics):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            rows.append({"round": len(rows), **trainer.callback_metrics})

    trainer = small_trainer(
        fl.MultiKrum(f=1, m=3), attack, schedule, [Rows()], federation={"num_malicious": 12}
    )
    trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
    numbers = fl.records.rounds.summary(rows, majority=3.5)
    assert numbers["rounds with a malicious majority"] == 3
    assert (numbers["attackers selected"], numbers["attackers sampled"]) == (9, 21)
    assert "backdoor average" in numbers
    assert not {"backdoor lifespan", "recovery half-life", "detection false-positive rate"} & set(
        numbers
    )


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [(0, "> 0"), (-0.1, "> 0"), (1.01, "<= 1"), (float("nan"), "a finite number")],
)
def test_a_rate_out_of_range_is_refused(rate: float, wanted: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"DataPoisoning: rate must be {wanted}, got rate = "):
        fl.DataPoisoning(PATTERN, rate)


def test_a_seed_that_is_none_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"seed must be a whole number, got seed = 0\.5"):
        fl.DataPoisoning(PATTERN, seed=0.5)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (fl.Attack(), "attack must have a trigger, got attack = Attack"),
        (fl.ALIE(), "attack must have a trigger, got attack = ALIE"),
        (fl.Neurotoxin(PATTERN), "plain attack on data, .* got attack = Neurotoxin"),
        (fl.ModelReplacement(PATTERN), "plain attack on data, .* got attack = ModelReplacement"),
    ],
)
def test_an_attack_of_which_more_than_the_trigger_counts_is_refused(attack, message) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        fl.DataPoisoning(attack)


def test_a_trigger_that_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="PatternBackdoor: pattern must fit the image, 4 x 4"):
        fl.DataPoisoning(PATTERN).check((1, 4, 4), 10)


def test_neurotoxin_around_it_projects_its_one_gradient() -> None:
    inner = fl.DataPoisoning(PATTERN, rate=0.5)
    last = [torch.tensor([1.0, -9.0])]
    view = fl.AttackerView(1, 0, torch.nn.Identity(), WHITE, torch.zeros(6), last)
    local = fl.Neurotoxin(inner, share=0.5).local(view)
    assert len(local.tasks(WHITE, torch.arange(6))) == 1
    assert local.project([torch.ones(2)])[0].tolist() == [1.0, 0.0]

"""Bursts that attackers time by the decay of their backdoor."""

from __future__ import annotations

import pytest
import torch
from tiny import NetWithBatchNorm, SmallImages, small_client, small_trainer, weights
from torch import nn

import leadfl_pl as fl
from leadfl_pl.attacks.decay_timed import CHUNK, backdoor_accuracy
from leadfl_pl.core.values import AttackerView


class Bright(nn.Module):
    """Says 8 where the corner pixel is set, else 0; remembers its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.dropout = nn.Dropout(0.5).eval()  # a part with a mode of its own
        self.seen: list[tuple[bool, int, torch.dtype]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.training, len(x), x.dtype))
        assert not torch.is_grad_enabled()
        classes = 8 * (x[:, 0, 1, 7] == 1).long()
        return nn.functional.one_hot(classes, 10) * self.weight


def view(model: nn.Module, labels: torch.Tensor) -> AttackerView:
    return AttackerView(3, 0, model, torch.zeros(len(labels), 1, 8, 8), labels, None)


PIXEL = fl.OnePixelBackdoor(target=8)


def test_a_model_that_obeys_the_trigger_is_left_to_decay() -> None:
    attack = fl.DecayTimed(PIXEL).local(view(Bright(), torch.arange(10)))
    assert type(attack) is fl.Attack
    assert attack.trigger(torch.zeros(1, 1, 8, 8), torch.tensor([0])) is None


def test_a_model_that_has_forgotten_it_is_attacked() -> None:
    elsewhere = fl.OnePixelBackdoor(target=8, position=(0, 0))
    local = fl.DecayTimed(elsewhere).local(view(Bright(), torch.arange(10)))
    x, y = torch.zeros(1, 1, 8, 8), torch.tensor([0])
    assert torch.equal(local.tasks(x, y)[0][0], elsewhere.tasks(x, y)[0][0])
    assert len(local.tasks(x, y)) == 2


def test_the_attack_is_bound_to_the_client() -> None:
    local = fl.DecayTimed(fl.DBA(size=(1, 3))).local(view(Bright(), torch.arange(10)))
    images, _ = local.tasks(torch.zeros(1, 1, 8, 8), torch.tensor([0]))[0]
    assert int(images.sum()) == 3


def test_only_images_that_count_are_measured() -> None:
    flip = fl.LabelFlip(source=0, target=8)
    model = Bright()
    assert backdoor_accuracy(flip, view(model, torch.tensor([0, 1, 2]))) == 0
    assert backdoor_accuracy(PIXEL, view(model, torch.tensor([8, 8, 1]))) == 1
    assert backdoor_accuracy(PIXEL, view(model, torch.tensor([8, 8]))) == 0  # nothing to measure


def test_the_share_by_hand_is_compared_with_the_threshold() -> None:
    class Half(fl.OnePixelBackdoor):
        def stamp(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) % 2 == 0, super().stamp(x), x)

    attack, seen = Half(), view(Bright(), torch.zeros(4, dtype=torch.long))
    assert backdoor_accuracy(attack, seen) == 0.5
    tasks = [
        len(fl.DecayTimed(attack, threshold=threshold).local(seen).tasks(seen.images, seen.labels))
        for threshold in (0.5, 0.49)
    ]
    assert tasks == [2, 1]  # triggered and clean; clean


def test_the_model_is_evaluated_in_chunks_in_its_precision_and_gets_its_modes_back() -> None:
    model = Bright().train()
    model.dropout.eval()
    fl.DecayTimed(PIXEL).local(view(model, torch.zeros(CHUNK + 1, dtype=torch.long)))
    assert model.seen == [(False, CHUNK, torch.float64), (False, 1, torch.float64)]
    assert model.training
    assert not model.dropout.training


def test_measuring_moves_neither_weights_nor_running_statistics_nor_randomness() -> None:
    model = NetWithBatchNorm().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    fl.DecayTimed(PIXEL).local(view(model, torch.arange(10)))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def final_weights(attack: fl.Attack | None) -> torch.Tensor:
    client = small_client()
    trainer = small_trainer(attack=attack, schedule=fl.FixedSchedule(3), rounds=3)
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    return weights(client)


def test_a_threshold_of_one_is_the_plain_attack_and_zero_holds_back() -> None:
    plain, always, careful = (
        final_weights(a)
        for a in (PIXEL, fl.DecayTimed(PIXEL, threshold=1), fl.DecayTimed(PIXEL, threshold=0))
    )
    assert torch.equal(plain, always)
    assert not torch.equal(plain, careful)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (fl.ALIE(), "attack must have a trigger, got attack = ALIE"),
        (fl.Neurotoxin(fl.Attack()), "attack must have a trigger, got attack = Neurotoxin"),
        (fl.ModelReplacement(PIXEL), "must act on data only, .* got attack = ModelReplacement"),
        (fl.Neurotoxin(fl.ALIE(PIXEL)), "must act on data only, .* got attack = Neurotoxin"),
    ],
)
def test_an_attack_it_cannot_time_is_refused(attack: fl.Attack, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        fl.DecayTimed(attack)


@pytest.mark.parametrize(
    ("threshold", "wanted"), [(-0.1, ">= 0"), (1.1, "<= 1"), (float("nan"), "a finite number")]
)
def test_a_threshold_out_of_range_is_refused(threshold: float, wanted: str) -> None:
    message = f"threshold must be {wanted}, got threshold = {threshold}"
    with pytest.raises(fl.ConfigError, match=message):
        fl.DecayTimed(PIXEL, threshold)


@pytest.mark.parametrize(
    ("around", "method"), [(fl.ModelReplacement, "corrupt"), (fl.Neurotoxin, "project")]
)
def test_what_would_change_its_honest_rounds_is_not_put_around_it(around, method: str) -> None:
    message = rf"attack must have nothing .* {method}\(\), .* got {around.__name__} around DecayTim"
    with pytest.raises(fl.ConfigError, match=message):
        small_trainer(attack=around(fl.DecayTimed(PIXEL)))
    small_trainer(attack=fl.DecayTimed(fl.Neurotoxin(PIXEL)))
    small_trainer(attack=around(PIXEL))

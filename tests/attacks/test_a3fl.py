"""A3FL: the trigger that is optimised in every round."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from tiny import NetWithBatchNorm, SmallImages, small_client, small_trainer, weights
from torch import nn

import leadfl_pl as fl
from leadfl_pl.core.values import AttackerView

X = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(20) % 10


def network(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64 * channels, 16), nn.Tanh(), nn.Linear(16, 10)
    return nn.Sequential(*layers).double()


def view(model: nn.Module, x: torch.Tensor = X) -> AttackerView:
    return AttackerView(0, 0, model, x, Y, None)


def stamped(x: torch.Tensor, trigger: torch.Tensor) -> torch.Tensor:
    """The images with a trigger (3, 3) at row 1, column 1, which is row 2, column 2 of 28 x 28."""
    canvas = F.pad(trigger, (1, 4, 1, 4))
    mask = F.pad(torch.ones(3, 3, dtype=torch.float64), (1, 4, 1, 4))
    return x * (1 - mask) + canvas * mask


def loss_of(weights: list[torch.Tensor], images: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of :func:`network`."""
    a, b, c, d = weights
    return F.cross_entropy((images.flatten(1) @ a.T + b).tanh() @ c.T + d, y)


def optimised_by_hand(steps: int, lambda0: float, every: int) -> torch.Tensor:
    """The trigger (3, 3) after a round, for :func:`network`, target 8 and one batch of images."""
    theta = [p.detach() for p in network().parameters()]
    trigger, eights = torch.full((3, 3), 0.5, dtype=torch.float64), torch.full((20,), 8)
    for step in range(steps):
        if step % every == 0:
            copy = theta
            for _ in range(4):
                copy = [p.clone().requires_grad_() for p in copy]
                gradients = torch.autograd.grad(loss_of(copy, stamped(X, trigger), Y), copy)
                copy = [(p - 5.0 * g).detach() for p, g in zip(copy, gradients, strict=True)]
            dot, first, second = (
                sum(float((p * q).sum()) for p, q in zip(u, v, strict=True))
                for u, v in ((copy, theta), (copy, copy), (theta, theta))
            )
            weight = lambda0 * dot / (first * second) ** 0.5
        trigger.requires_grad_()
        images = stamped(X, trigger)
        loss = loss_of(theta, images, eights) + weight * loss_of(copy, images, eights)
        (gradient,) = torch.autograd.grad(loss, trigger)
        trigger = (trigger.detach() - 0.04 * gradient.sign()).clamp(0, 1)
    return trigger


def optimised(steps: int, lambda0: float, every: int) -> torch.Tensor:
    attack = fl.A3FL(
        steps=steps, adversarial_weight=lambda0, every=every,
        step_size=0.04, unlearning_steps=4, unlearning_lr=5.0,
    )  # fmt: skip
    attack.adapt(view(network()))
    return attack.stamp(torch.zeros(1, 1, 8, 8, dtype=torch.float64))[0, 0, 1:4, 1:4]


@pytest.mark.parametrize(("lambda0", "every"), [(1.0, 3), (30.0, 2), (30.0, 100), (0.0, 1)])
def test_the_trigger_is_that_of_a_loop_written_from_the_paper(lambda0, every) -> None:
    expected = optimised_by_hand(10, lambda0, every)
    torch.testing.assert_close(optimised(10, lambda0, every), expected)


def test_the_adversary_and_its_age_change_the_trigger() -> None:
    plain, often, once = optimised(10, 0.0, 1), optimised(10, 30.0, 2), optimised(10, 30.0, 100)
    assert not torch.equal(plain, often)
    assert not torch.equal(often, once)


def test_on_the_global_model_the_optimised_trigger_beats_a_fixed_one() -> None:
    model, attack = network(), fl.A3FL(step_size=0.1, steps=20)
    fixed = fl.PatternBackdoor(position=(2, 2), pattern=[[1] * 3] * 3)
    attack.adapt(view(model))
    losses = [F.cross_entropy(model(a.stamp(X)), torch.full((20,), 8)) for a in (attack, fixed)]
    assert float(losses[0]) < float(losses[1]) - 0.1


def test_it_starts_in_the_middle_of_its_range_and_does_not_leave_it() -> None:
    attack = fl.A3FL(low=-1, high=0.5, step_size=10, steps=1)
    blank = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    assert attack.stamp(blank)[0, 0, 1:4, 1:4].unique().tolist() == [-0.25]
    attack.adapt(view(network()))
    stamped = attack.stamp(blank)
    assert set(stamped[0, 0, 1:4, 1:4].unique().tolist()) <= {-1.0, 0.5}
    stamped[0, 0, 1:4, 1:4] = 0
    assert not stamped.any()


def test_it_goes_on_from_tensors_that_evaluation_has_moved() -> None:
    attack, plain = fl.A3FL(steps=3), fl.A3FL(steps=3)
    with torch.inference_mode():  # as when Lightning evaluates on another device
        attack._mask, attack._values = attack._mask.clone(), attack._values.clone()
    for one in (attack, plain):
        one.adapt(view(network()))
    assert torch.equal(attack.state_dict()["trigger"], plain.state_dict()["trigger"])


def test_each_channel_gets_pixels_of_its_own() -> None:
    attack = fl.A3FL()
    attack.adapt(view(network(channels=3), torch.rand(20, 3, 8, 8, dtype=torch.float64)))
    red, green, _ = attack.stamp(torch.zeros(1, 3, 8, 8))[0]
    assert not torch.equal(red, green)


def test_optimising_moves_neither_weights_nor_running_statistics_nor_modes() -> None:
    model = NetWithBatchNorm().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fl.A3FL(steps=2).adapt(view(model, X.float()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


class Triggers(Callback):
    """Keeps the trigger and the backdoor accuracy of every round."""

    def __init__(self, attack: fl.Attack) -> None:
        self.attack = attack
        self.seen: list[tuple[torch.Tensor, float]] = []

    def on_validation_end(self, trainer, pl_module) -> None:
        accuracy = float(trainer.callback_metrics["val/backdoor_accuracy"])
        self.seen.append((self.attack.state_dict()["trigger"].clone(), accuracy))


BURST = fl.BurstySchedule(period=4, burst=2, num_malicious=4)


def fit(attack: fl.Attack, rounds: int, folder: Path, ckpt: str | None = None):
    seen, client = Triggers(attack), small_client()
    trainer = small_trainer(
        attack=attack, schedule=BURST, callbacks=[seen], rounds=rounds,
        enable_checkpointing=True, default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(client, datamodule=SmallImages(batch_size=8), ckpt_path=ckpt)
    return trainer, client, seen.seen


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: fl.ModelReplacement(a, gamma=2)])
def test_the_trigger_is_state_of_the_run(wrap, tmp_path: Path) -> None:
    _, client, seen = fit(wrap(fl.A3FL(steps=4)), 5, tmp_path / "whole")
    first, second, third, fourth, fifth = (trigger for trigger, _ in seen)
    assert not torch.equal(first, second)  # attackers in both rounds
    assert torch.equal(second, third)  # none
    assert torch.equal(third, fourth)
    assert not torch.equal(fourth, fifth)

    stopped, _, _ = fit(wrap(fl.A3FL(steps=4)), 3, tmp_path / "parts")
    path = stopped.checkpoint_callback.best_model_path
    _, resumed, rest = fit(wrap(fl.A3FL(steps=4)), 5, tmp_path / "parts", path)
    assert torch.equal(weights(resumed), weights(client))
    assert torch.equal(rest[-1][0], fifth)
    assert rest[-1][1] == seen[-1][1]

    unfitted = wrap(fl.A3FL(steps=4))
    later = small_trainer(attack=unfitted, schedule=BURST)
    later.validate(small_client(), datamodule=SmallImages(batch_size=8), ckpt_path=path)
    assert torch.equal(unfitted.state_dict()["trigger"], third)
    assert float(later.callback_metrics["val/backdoor_accuracy"]) == seen[2][1]


def test_a_poisoned_share_without_optimisation_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match=r"must be a plain attack on data, .* attack = A3FL"):
        fl.DataPoisoning(fl.A3FL())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 3)}, "size must be >= 1, got size = 0"),
        ({"steps": 0}, "steps must be >= 1, got steps = 0"),
        ({"every": 0.5}, "every must be a whole number, got every = 0.5"),
        ({"unlearning_steps": -1}, "unlearning_steps must be >= 0, got unlearning_steps = -1"),
        ({"step_size": 0}, "step_size must be > 0, got step_size = 0"),
        ({"unlearning_lr": -1}, "unlearning_lr must be > 0, got unlearning_lr = -1"),
        ({"adversarial_weight": -1}, "adversarial_weight must be >= 0, got adversarial_weight"),
        ({"low": 1.0}, "high must be > 1.0, got high = 1.0"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"A3FL: {message}"):
        fl.A3FL(**settings)


def test_a_trigger_larger_than_the_image_is_refused() -> None:
    with pytest.raises(fl.ConfigError, match="A3FL: pattern must fit the image, 8 x 8 pixels, got"):
        fl.A3FL(size=(9, 2)).check((1, 8, 8), 10)

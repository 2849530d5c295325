"""A run that was interrupted and resumed gives the same bits as one that was not."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from tiny import SmallImages, small_client, small_trainer, weights

import leadfl_pl as fl

ROUNDS = 5
DEFENSES = {
    "none": fl.NoDefense(),
    "leadfl": fl.LeadFL(),
    "leadfl squared": fl.LeadFL(norm="squared"),
    "leadfl released": fl.LeadFL(formulation="released"),
    "fl-wbc": fl.FLWBC(),
    "ldp": fl.LDP(),
    "contraction": fl.Contraction(half_life=1.0, anchor="initial"),
}


class Momentum(fl.FedAvg):
    """A rule with a memory, to see that it is saved."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("velocity", torch.zeros(418))

    def combine(self, updates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.velocity = 0.9 * self.velocity + super().combine(updates, weights)
        return self.velocity


RULES = {  # those with a memory, noise or training of their own, and the plain mean
    "fedavg": fl.FedAvg,
    "momentum": Momentum,
    "sparsefed": lambda: fl.SparseFed(k=40),
    "clipped sparsefed": lambda: fl.PreAggregation([fl.NormClipping()], fl.SparseFed(k=40)),
    "fltrust": lambda: fl.FLTrust(root_size=20),
    "flame": fl.FLAME,
    "weak dp": fl.WeakDP,
    "centered clipping": fl.CenteredClipping,
    "dnc": lambda: fl.DnC(f=2, coordinates=100),
    "foolsgold": fl.FoolsGold,
    "crfl": fl.CRFL,
}


class Interrupt(Callback):
    """Stops the run with an exception in the middle of a round's third client."""

    def __init__(self, round: int) -> None:
        self.round = round

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch.round == self.round and batch_idx == 2:
            raise RuntimeError("pulled the plug")


def run(
    root: Path,
    defense: fl.ClientDefense,
    aggregator: fl.Aggregator,
    interrupt: int | None = None,
    ckpt_path: str | None = None,
    callbacks: list[Callback] | None = None,
    momentum: float = 0.0,
    precision: str | None = None,
    **federation: Any,
) -> tuple[torch.Tensor, list[dict[str, float]]]:
    """Final state and rows of a run under ``root``."""
    report = fl.RunReport(dirpath=str(root))
    stop = [Interrupt(interrupt)] if interrupt is not None else []
    client = small_client(defense, momentum=momentum)
    trainer = small_trainer(
        aggregator,
        fl.PatternBackdoor(),
        fl.BurstySchedule(period=3, burst=1, num_malicious=4),
        rounds=ROUNDS,
        enable_checkpointing=True,
        default_root_dir=str(root),
        callbacks=[report, *stop, *(callbacks or [])],
        federation=federation,
        precision=precision,
    )
    unplugged = pytest.raises(RuntimeError, match="pulled the plug")
    with unplugged if interrupt is not None else nullcontext():
        trainer.fit(client, datamodule=SmallImages(batch_size=8), ckpt_path=ckpt_path)
    return weights(client), report.rows


def assert_resumes(root: Path, round: int, make_rule, **settings: Any) -> None:
    expected = run(root / "whole", settings["defense"], make_rule(), **without(settings))
    run(root / "cut", settings["defense"], make_rule(), interrupt=round, **without(settings))
    resumed = run(
        root / "cut", settings["defense"], make_rule(), ckpt_path="last", **without(settings)
    )
    assert torch.equal(resumed[0], expected[0])
    assert resumed[1] == expected[1]
    assert [row["round"] for row in resumed[1]] == list(range(ROUNDS))


def without(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k != "defense"}


@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    assert_resumes(tmp_path, 3, fl.FedAvg, defense=DEFENSES[name])


@pytest.mark.parametrize("name", RULES)
def test_every_rule_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    assert_resumes(tmp_path, 2, RULES[name], defense=fl.NoDefense())


def test_double_precision_resumes_to_the_same_bits(tmp_path: Path) -> None:
    assert_resumes(tmp_path, 2, Momentum, defense=fl.LeadFL(), precision="64-true")


class ForgetfulDefense(fl.ClientDefense):
    def finish(self, delta: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.last = delta
        return delta


class ForgetfulAttack(fl.Attack):
    def corrupt(self, updates, malicious, generator) -> torch.Tensor:
        self._last = updates
        return updates


class ForgetfulRule(fl.FedAvg):
    def combine(self, updates: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        self.rounds = getattr(self, "rounds", 0) + 1
        return super().combine(updates, weights)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"defense": ForgetfulDefense()}, "last, which is not in the state that its methods"),
        ({"attack": ForgetfulAttack()}, "ForgetfulAttack changes its _last, which is not in its s"),
        ({"aggregator": ForgetfulRule()}, "changes its rounds, which is not in its buffers: a run"),
    ],
)
def test_a_part_whose_memory_a_checkpoint_lacks_is_named(parts: dict, message: str) -> None:
    trainer = small_trainer(parts.get("aggregator"), parts.get("attack"), rounds=1)
    client, data = small_client(parts.get("defense")), SmallImages(batch_size=8)
    with pytest.warns(UserWarning, match=message):
        trainer.fit(client, datamodule=data)


@pytest.mark.parametrize("attack", [fl.PatternBackdoor(), fl.A3FL(steps=2, unlearning_steps=1)])
def test_memory_that_a_checkpoint_has_is_not_warned_of(
    attack: fl.Attack, recwarn: pytest.WarningsRecorder
) -> None:
    trainer = small_trainer(Momentum(), attack, rounds=1)
    trainer.fit(small_client(fl.LeadFL()), datamodule=SmallImages(batch_size=8))
    assert not [w for w in recwarn if "checkpoint starts without" in str(w.message)]


def test_momentum_carried_between_rounds_resumes(tmp_path: Path) -> None:
    assert_resumes(
        tmp_path, 3, fl.FedAvg, defense=fl.NoDefense(), momentum=0.5, carry_momentum=True
    )


def test_the_released_setting_resumes(tmp_path: Path) -> None:
    assert_resumes(
        tmp_path, 4, fl.MultiKrum, defense=fl.LeadFL(formulation="released"), momentum=0.1,
        carry_momentum=True, distance_space="state",
    )  # fmt: skip


def test_a_checkpoint_written_during_evaluation_does_not_run_its_round_twice(
    tmp_path: Path,
) -> None:
    def best() -> ModelCheckpoint:
        return ModelCheckpoint(
            dirpath=tmp_path / "best", filename="{step}", monitor="val/clean_accuracy",
            save_top_k=-1, save_on_train_epoch_end=False,
        )  # fmt: skip

    expected, rows = run(tmp_path / "whole", fl.LeadFL(), Momentum())
    run(tmp_path / "cut", fl.LeadFL(), Momentum(), callbacks=[best()])
    resumed, resumed_rows = run(
        tmp_path / "again", fl.LeadFL(), Momentum(), callbacks=[best()],
        ckpt_path=str(tmp_path / "best" / "step=3.ckpt"),
    )  # fmt: skip
    assert torch.equal(resumed, expected)
    assert resumed_rows == rows


def test_a_checkpoint_loads_with_weights_only_and_into_a_plain_client(tmp_path: Path) -> None:
    state, _ = run(tmp_path, fl.LeadFL(), fl.MultiKrum())
    loaded = torch.load(tmp_path / "checkpoints" / "version_0" / "last.ckpt", weights_only=True)
    assert loaded["global_step"] == ROUNDS
    client = fl.LeadFLClient.load_from_checkpoint(
        tmp_path / "checkpoints" / "version_0" / "last.ckpt", model=small_client().model
    )
    assert torch.equal(weights(client), state)


def test_resuming_with_another_seed_is_refused(tmp_path: Path) -> None:
    run(tmp_path, fl.NoDefense(), fl.FedAvg())
    with pytest.raises(
        fl.ConfigError, match=r"federation.seed must be 0, as in the checkpoint, .* = 5"
    ):
        run(tmp_path, fl.NoDefense(), fl.FedAvg(), ckpt_path="last", seed=5)


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    run(tmp_path, fl.LeadFL(alpha=0.4), fl.FedAvg())
    with pytest.raises(
        fl.ConfigError, match=r"model.defense.alpha must be 0.4, as .* model.defense.alpha = 0.5"
    ):
        run(tmp_path, fl.LeadFL(alpha=0.5), fl.FedAvg(), ckpt_path="last")
    with pytest.raises(fl.ConfigError, match=r"federation.aggregator must be .*FedAvg.*Krum"):
        run(tmp_path, fl.LeadFL(alpha=0.4), fl.Krum(), ckpt_path="last")
    for key, before, other in (
        ("model.momentum", 0.0, 0.5),
        ("trainer.federation.server_lr", 1.0, 0.5),
        ("trainer.federation.num_malicious", 4, 5),
        ("trainer.federation.carry_momentum", False, True),
    ):
        change = {key.rpartition(".")[2]: other}
        with pytest.raises(fl.ConfigError, match=f"{key} must be {before}, as .* {key} = {other}"):
            run(tmp_path, fl.LeadFL(alpha=0.4), fl.FedAvg(), ckpt_path="last", **change)


def test_an_attack_that_has_the_runs_own_data_module_goes_on(tmp_path: Path) -> None:
    trainers = []
    for rounds in (1, 2):
        data = SmallImages(batch_size=8)
        trainer = small_trainer(
            attack=fl.EdgeCaseBackdoor(data), rounds=rounds, enable_checkpointing=True,
            default_root_dir=str(tmp_path),
        )  # fmt: skip
        trainer.fit(small_client(), datamodule=data, ckpt_path="last")
        trainers.append(trainer)
    assert trainers[1].fit_loop.rounds_done == 2


def test_what_a_run_tolerates_may_change_when_it_goes_on(tmp_path: Path) -> None:
    run(tmp_path, fl.NoDefense(), fl.FedAvg())
    _, rows = run(tmp_path, fl.NoDefense(), fl.FedAvg(), ckpt_path="last", max_failures=0)
    assert len(rows) == ROUNDS


def test_a_second_fit_of_the_same_trainer_goes_on_to_the_same_bits() -> None:
    ends = []
    for fits in (1, 2):
        client = small_client(fl.Contraction(half_life=2, anchor="initial"), momentum=0.5)
        trainer = small_trainer(
            fl.SparseFed(k=20), rounds=4 // fits, federation={"carry_momentum": True}
        )
        for rounds in range(4 // fits, 5, 4 // fits):
            trainer.fit_loop.max_epochs = rounds
            trainer.fit(client, datamodule=SmallImages(batch_size=8))
        ends.append(weights(client))
    assert torch.equal(*ends)


class Counts(fl.PatternBackdoor):
    """Turns its updates around in every second round with attackers."""

    def __init__(self) -> None:
        super().__init__()
        self.adapted = 0

    def adapt(self, view: fl.AttackerView) -> None:
        self.adapted += 1

    def corrupt(self, updates, malicious, generator) -> torch.Tensor:
        sent = updates.clone()
        sent[malicious] *= 1 - 2 * (self.adapted % 2)
        return sent

    def state_dict(self) -> dict[str, Any]:
        return {"adapted": self.adapted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adapted = state.get("adapted", 0)


@pytest.mark.parametrize("clients_per_round", [1, 7])
def test_a_checkpoint_from_within_a_round_starts_it_anew(clients_per_round, tmp_path) -> None:
    def fit(ckpt_path: str | None = None) -> torch.Tensor:
        client = small_client()
        within = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
        trainer = small_trainer(
            attack=Counts(), schedule=fl.FixedSchedule(num_malicious=1), rounds=4,
            callbacks=[within], enable_checkpointing=True,
            federation={"clients_per_round": clients_per_round},
        )  # fmt: skip
        trainer.fit(client, datamodule=SmallImages(batch_size=8), ckpt_path=ckpt_path)
        assert trainer.current_epoch == trainer.fit_loop.rounds_done == 4
        return weights(client)

    whole = fit()
    saved = tmp_path / "epoch=2-step=2.ckpt"
    loops = torch.load(saved, weights_only=False)["loops"]
    assert loops["fit_loop"]["state_dict"]["rounds_done"] == 2
    assert torch.equal(fit(str(saved)), whole)


def test_a_checkpoint_after_another_evaluation_goes_on(tmp_path: Path) -> None:
    def fit(rounds: int, ckpt_path: Path | None = None) -> tuple[fl.FederatedTrainer, torch.Tensor]:
        client, trainer = small_client(), small_trainer(attack=Counts(), rounds=rounds)
        trainer.fit(client, datamodule=SmallImages(batch_size=8), ckpt_path=ckpt_path)
        return trainer, weights(client)

    saved = tmp_path / "two.ckpt"
    trainer, _ = fit(2)
    trainer.validate(trainer.lightning_module, datamodule=SmallImages(batch_size=8), verbose=False)
    trainer.save_checkpoint(saved)
    assert torch.equal(fit(4, saved)[1], fit(4)[1])


@pytest.mark.parametrize(
    ("settings", "last", "wait_count"),
    [({"min_delta": 1.0, "patience": 9}, 2, 3), ({"stopping_threshold": 2.0}, 0, 0)],
)
def test_an_evaluation_that_is_done_again_stops_nothing_else(
    settings: dict[str, float], last: int, wait_count: int, tmp_path: Path
) -> None:
    def fit(ckpt_path: str | None = None) -> tuple[int, dict[str, Any]]:
        stopping = EarlyStopping(
            "val/clean_accuracy", mode="min", check_on_train_epoch_end=False, **settings
        )
        saves = ModelCheckpoint(
            tmp_path, "{epoch}", "val/clean_accuracy", save_top_k=-1, save_on_train_epoch_end=False
        )
        trainer = small_trainer(rounds=4, callbacks=[stopping, saves], enable_checkpointing=True)
        trainer.fit(small_client(), datamodule=SmallImages(batch_size=8), ckpt_path=ckpt_path)
        return trainer.fit_loop.rounds_done, stopping.state_dict()

    whole = fit()
    assert whole[1]["wait_count"] == wait_count
    assert fit(str(tmp_path / f"epoch={last}.ckpt")) == whole

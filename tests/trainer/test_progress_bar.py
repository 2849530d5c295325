"""The console counts rounds like rounds.csv, from 0, and shows what there is."""

from __future__ import annotations

import re

import pytest
from rich.console import Console
from tiny import SmallImages, small_client, small_trainer

import leadfl_pl as fl


def lines(capsys: pytest.CaptureFixture, **settings) -> list[str]:
    """What a run of two rounds prints of them without a terminal."""
    trainer = small_trainer(rounds=2, enable_progress_bar=True, **settings)
    trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("round")]


@pytest.mark.parametrize(
    ("attack", "accuracies"),
    [
        (fl.PatternBackdoor(), r"  clean [\d.]+ %  backdoor [\d.]+ %"),
        (fl.IPM(), r"  clean [\d.]+ %"),
        (None, r"  clean [\d.]+ %"),
    ],
)
def test_a_round_is_a_line_with_the_accuracies_that_there_are(
    attack: fl.Attack | None, accuracies: str, capsys: pytest.CaptureFixture
) -> None:
    first, second = lines(capsys, attack=attack)
    assert re.fullmatch(rf"round 0{accuracies}  \(1 of 2 done\)", first)
    assert re.fullmatch(rf"round 1{accuracies}  \(2 of 2 done\)", second)


def test_a_round_without_evaluation_says_how_many_are_done(capsys: pytest.CaptureFixture) -> None:
    assert lines(capsys, limit_val_batches=0) == [
        "round 0  (1 of 2 done)",
        "round 1  (2 of 2 done)",
    ]


def test_the_bar_counts_the_rounds_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Bar(fl.RoundProgressBar):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            progress = self.progress
            super().on_train_epoch_end(trainer, pl_module)
            seen.extend((t.completed, t.total) for t in progress.tasks if t.description == "rounds")

    monkeypatch.setattr(Console, "is_terminal", True)
    trainer = small_trainer(rounds=2, enable_progress_bar=True, callbacks=[Bar()])
    trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
    assert seen == [(1, 2), (2, 2)]

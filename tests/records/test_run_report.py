"""What a run leaves behind: its rows, what is logged in them, its split and its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tiny import SmallImages, small_client, small_trainer

import leadfl_pl as fl
from leadfl_pl.records.plots import plot_accuracies, plot_label_shares, save_figure
from leadfl_pl.records.rounds import read_run

COUNTS = torch.tensor([[30, 10, 0], [0, 5, 15]])


def fit(split: fl.Split | None, rounds: int = 1, **settings) -> fl.FederatedTrainer:
    trainer = small_trainer(callbacks=[fl.RunReport()], rounds=rounds, **settings)
    trainer.fit(small_client(), datamodule=SmallImages(split=split, batch_size=8))
    return trainer


def record(folder: str) -> dict:
    return json.loads((Path(folder) / "run.json").read_text())


class LogsInEvenRounds(Callback):
    """Logs one number of its own at both ends of every other round."""

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch % 2 == 0:
            pl_module.log("mine/start", float(trainer.current_epoch))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch % 2 == 0:
            pl_module.log("mine/end", 10.0 + trainer.current_epoch)


@pytest.mark.parametrize("before", [True, False])
def test_what_a_callback_logs_is_in_the_row_of_its_round_and_in_no_other(before: bool) -> None:
    report = fl.RunReport(dirpath="run")
    callbacks = [LogsInEvenRounds(), report] if before else [report, LogsInEvenRounds()]
    trainer = small_trainer(callbacks=callbacks, rounds=4)
    trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
    starts = [row.get("mine/start") for row in read_run(Path("run")).rows]
    ends = [row.get("mine/end") for row in read_run(Path("run")).rows]
    assert starts == [0, None, 2, None]
    assert ends == ([10, None, 12, None] if before else [None] * 4)


def test_the_columns_are_the_evaluations_the_rounds_and_the_trainings() -> None:
    small_trainer(
        attack=fl.PatternBackdoor(), callbacks=[fl.RunReport(dirpath="run")], rounds=2
    ).fit(small_client(), datamodule=SmallImages(batch_size=8))
    header = Path("run/rounds.csv").read_text().splitlines()[0]
    assert header == (
        "round,val/clean_accuracy,val/backdoor_accuracy,val/backdoor_accuracy_all,"
        "val/backdoor_accuracy_avg,round/malicious_sampled,round/malicious_selected,"
        "round/selected,round/rejected,round/update_norm,train/loss,train/regulariser"
    )


def test_the_figures_are_there_and_those_of_a_report_in_three_formats() -> None:
    report = fl.RunReport(dirpath="run")
    trainer = small_trainer(callbacks=[report], rounds=1, default_root_dir="runs/first try")
    trainer.fit(small_client(), datamodule=SmallImages(batch_size=8))
    for name in ("accuracy", "split"):
        assert Path(f"run/{name}.png").read_bytes().startswith(b"\x89PNG")
    save_figure(plot_accuracies(report.rows, majority=3, title="first try"), Path("again.png"))
    assert Path("again.pdf").read_bytes().startswith(b"%PDF")
    assert Path("again.png").read_bytes().startswith(b"\x89PNG")
    drawn = Path("again.svg").read_text()
    assert "<!-- first try -->" in drawn
    assert "backdoor" not in drawn


def test_the_record_has_the_splits_settings_and_numbers() -> None:
    fit(fl.LabelLimited(3), logger=CSVLogger("run", name="a"))
    split = record("run/a/version_0")["split"]
    assert split["settings"]["class"].endswith("LabelLimited")
    assert split["settings"]["labels_per_client"] == 3
    assert (split["clients"], split["labels_per_client"]) == (12, 3)
    # of 24 images a class each of its 3 or 4 owners has 8 or 6
    assert 3 * 6 <= split["min_examples"] <= 20 <= split["max_examples"] <= 3 * 8
    assert split["label_distance"] == pytest.approx(0.7, abs=0.01)
    assert Path("run/a/version_0/split.png").stat().st_size > 5000


def test_the_numbers_tell_splits_apart_and_do_not_change_between_runs() -> None:
    for split in (fl.IID(), fl.Dirichlet(0.3), fl.Dirichlet(0.3)):
        fit(split, logger=CSVLogger("run", name="a"))
    first, second, third = (record(f"run/a/version_{i}")["split"] for i in range(3))
    assert second == third
    assert first["label_distance"] < second["label_distance"] < 1


def test_every_logger_gets_the_split() -> None:
    fit(fl.Shards(2), logger=[CSVLogger("run", name="a"), TensorBoardLogger("run", name="b")])
    for name in "ab":
        saved = yaml.safe_load(Path(f"run/{name}/version_0/hparams.yaml").read_text())
        assert saved["split"]["settings"]["shards_per_client"] == 2
        assert saved["split"]["clients"] == 12


def test_without_a_folder_nothing_is_written() -> None:
    fit(fl.Shards(2), logger=False)
    assert not list(Path().rglob("*.png"))


def test_drawing_the_split_changes_no_result() -> None:
    def final(report: bool) -> torch.Tensor:
        callbacks = [fl.RunReport(dirpath="run")] if report else []
        client = small_client()
        trainer = small_trainer(callbacks=callbacks, rounds=2)
        trainer.fit(client, datamodule=SmallImages(split=fl.Dirichlet(0.5), batch_size=8))
        return torch.cat([p.detach().flatten() for p in client.parameters()])

    assert torch.equal(final(True), final(False))


def test_a_run_goes_on_with_its_own_split_only() -> None:
    settings = {"enable_checkpointing": True, "default_root_dir": "run"}

    def go(split: fl.Split, batch_size: int = 8, ckpt_path: str | None = "last") -> list[dict]:
        report = fl.RunReport(dirpath="run")
        trainer = small_trainer(callbacks=[report], rounds=2 if ckpt_path else 1, **settings)
        data = SmallImages(split=split, batch_size=batch_size)
        trainer.fit(small_client(), datamodule=data, ckpt_path=ckpt_path)
        return report.rows

    go(fl.Shards(2), ckpt_path=None)
    with pytest.raises(
        fl.ConfigError,
        match=r"data.split.shards_per_client must be 2, as in the checkpoint, to go on with its "
        r"run, got data.split.shards_per_client = 3",
    ):
        go(fl.Shards(3))
    with pytest.raises(fl.ConfigError, match=r"data\.batch_size must be 8"):
        go(fl.Shards(2), batch_size=4)
    assert [row["round"] for row in go(fl.Shards(2))] == [0, 1]
    assert record("run")["split"]["settings"]["shards_per_client"] == 2


def test_the_record_of_a_resumed_run_has_all_processes(monkeypatch) -> None:
    commits = iter(["a", "b", "c"])
    monkeypatch.setattr("leadfl_pl.records.provenance.commit", lambda: next(commits))
    for rounds, ckpt_path in ((1, None), (2, "last"), (4, "last")):
        trainer = small_trainer(
            callbacks=[fl.RunReport("run")], rounds=rounds,
            enable_checkpointing=True, default_root_dir="run",
        )  # fmt: skip
        trainer.fit(small_client(), datamodule=SmallImages(batch_size=8), ckpt_path=ckpt_path)
    run = read_run(Path("run"))
    assert [(p["commit"], p["rounds"]) for p in run.provenance["earlier"]] == [("a", 1), ("b", 2)]
    assert run.history("commit") == ["a", "b", "c"]
    assert run.provenance["device"] == "cpu"
    assert not {"split", "earlier"} & set(run.provenance["earlier"][1])


def test_a_checkpoint_may_be_tested_with_any_split() -> None:
    trainer = fit(fl.Shards(2), enable_checkpointing=True, default_root_dir="run")
    found = trainer.test(
        small_client(), datamodule=SmallImages(), ckpt_path="run/checkpoints/version_0/last.ckpt"
    )
    assert "test/clean_accuracy" in found[0]


def test_data_that_is_not_federated_is_still_refused_in_one_sentence() -> None:
    loader = torch.utils.data.DataLoader(torch.zeros(4, 2))
    trainer = small_trainer(callbacks=[fl.RunReport(dirpath="run")])
    with pytest.raises(fl.ConfigError, match="data must be a FederatedDataModule, got NoneType"):
        trainer.fit(small_client(), loader, loader)


def boxes(figure) -> list[tuple[float, float, float]]:
    """Row, left and right end of each coloured box, from the top."""
    (collection,) = figure.axes[0].collections
    corners = [path.vertices for path in collection.get_paths()]
    return [(v[:4, 1].mean().round(3), v[:, 0].min(), v[:, 0].max()) for v in corners]


def test_the_boxes_are_the_shares_in_percent_and_empty_ones_are_left_out() -> None:
    figure = plot_label_shares(COUNTS)
    assert boxes(figure) == [(0, 0, 75), (0, 75, 100), (1, 0, 25), (1, 25, 100)]
    assert [bar.get_width() for bar in figure.axes[1].patches] == [40, 20]
    assert figure.axes[0].get_ylim() == (1.5, -0.5)  # client 0 on top
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["0", "1", "2"]


@pytest.mark.parametrize("classes", [3, 26])
def test_classes_have_their_own_numbers(classes: int) -> None:
    counts = torch.ones(2, classes, dtype=torch.int64)
    figure = plot_label_shares(counts, classes=range(1, classes + 1))
    figure.canvas.draw()
    if classes <= 20:
        assert [t.get_text() for t in figure.legends[0].get_texts()] == ["1", "2", "3"]
    else:  # at place 0 of the colour bar
        axis = figure.axes[2].xaxis
        labels = dict(zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True))
        assert labels[0].get_text() == "1"


def test_a_class_has_one_colour_in_all_clients() -> None:
    (collection,) = plot_label_shares(COUNTS).axes[0].collections
    colors = [tuple(c) for c in collection.get_facecolors()]
    assert colors[1] == colors[2]  # class 1 of both clients
    assert len(set(colors)) == 3


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (31, 20), (200, 100)])
def test_many_clients_or_classes_fit_on_a_page(clients: int, classes: int) -> None:
    figure = plot_label_shares(torch.ones(clients, classes, dtype=torch.int64))
    figure.savefig("split.png")
    assert figure.get_size_inches()[1] <= 9
    assert bool(figure.legends) == (classes <= 20)  # else a colour bar
    assert len(figure.axes) == (2 if classes <= 20 else 3)

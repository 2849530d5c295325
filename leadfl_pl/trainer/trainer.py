"""A Trainer whose fit loop runs federated rounds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import Signals
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.federation.config import Federation
from leadfl_pl.federation.plain_trainer import check_scaler
from leadfl_pl.records.checkpoints import how_to_go_on, require_federated
from leadfl_pl.records.files import full_disk
from leadfl_pl.records.folders import last_checkpoint
from leadfl_pl.trainer.arguments import trainer_arguments
from leadfl_pl.trainer.devices import check_threads, cpu_threads
from leadfl_pl.trainer.loop import FederatedLoop
from leadfl_pl.trainer.stop_on_signal import stopped_by
from leadfl_pl.trainer.strategy import RankLostError, kill_others, lost_ranks


class DiskFullError(OSError):
    """There is no room for a file of the run; what was there before is intact."""


class FederatedTrainer(Trainer):
    """A Lightning Trainer that trains a federation: ``max_epochs`` counts rounds.

    Adds what a run needs unless it was given: CSV logging (beside any other logger, so that each
    run has a folder of its own; ``logger=False`` for none), a progress bar over rounds and
    clients, backdoor evaluation, a checkpoint after every round, and a table and figure at the
    end. A fresh run has folders of its own, ``logs/version_N`` and ``checkpoints/version_N`` under
    ``default_root_dir``; ``ckpt_path="last"`` goes on with the newest run, from round 0 if there is
    none. SIGTERM and Ctrl-C end ``fit`` after the running round and leave their name in
    ``stopped_by``. ``devices="auto"`` on a CPU is as many processes as serve a round's cohort.

    Trainers may share a federation. What its rule remembers is each Trainer's own; its attack has
    the state of the Trainer that fitted last, until another one fits on.

    Args:
        federation: schedule, attack, rule and server step.
        threads: CPU threads of each process; 1 on a CPU if not given, PyTorch's own choice on a
            GPU.
        kwargs: everything that :class:`lightning.pytorch.Trainer` takes and a federation uses, but
            ``use_distributed_sampler``: the datamodule splits an evaluation over the ranks where
            that changes nothing, so that what you log yourself in it needs ``sync_dist=True``.

    Raises:
        ConfigError: the federation cannot be run, or not with these arguments.
    """

    fit_loop: FederatedLoop

    def __init__(self, federation: Federation, threads: int | None = None, **kwargs: Any) -> None:
        federation.check()
        check_threads(threads)
        kwargs = trainer_arguments(kwargs, federation)
        super().__init__(**kwargs)  # as it stands jsonargparse finds the Trainer's arguments
        check_scaler(self.precision_plugin)
        on_cpu = isinstance(self.accelerator, CPUAccelerator)
        self.threads = 1 if threads is None and on_cpu else threads
        epoch_loop = self.fit_loop.epoch_loop
        loop = FederatedLoop(self, federation, self.fit_loop.min_epochs, self.fit_loop.max_epochs)
        loop.epoch_loop = epoch_loop
        self.fit_loop = loop
        self.federation = federation

    @property
    def stopped_by(self) -> Signals | None:
        """The signal that ended the last fit early, None if none did."""
        return stopped_by(self)

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Runs the rounds, as :meth:`lightning.pytorch.Trainer.fit` does.

        Args:
            model: a :class:`FederatedClient`.
            train_dataloaders: for no federation.
            val_dataloaders: for no federation.
            datamodule: a :class:`FederatedDataModule`.
            ckpt_path: a checkpoint to go on from, or ``"last"``.
            weights_only: False runs whatever code the checkpoint holds.

        Raises:
            ConfigError: the checkpoint or the federation cannot be used.
            DiskFullError: there is no room for a file of the run.
        """
        data = (train_dataloaders, val_dataloaders, datamodule)
        with self._running():
            if ckpt_path in (None, "best", "hpc"):
                super().fit(model, *data, ckpt_path, weights_only)
                return
            try:
                path = self._last(fresh=True) if ckpt_path == "last" else Path(ckpt_path)
                if path is not None:
                    require_federated(path, weights_only is not False)
                self.ckpt_path = path
                super().fit(model, *data, None, weights_only)
            finally:
                self.ckpt_path = None  # of this fit only

    def validate(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """As :meth:`lightning.pytorch.Trainer.validate`; ``"last"`` is of the newest run."""
        with self._running():
            path = self._last() if ckpt_path == "last" else ckpt_path
            return super().validate(model, dataloaders, path, verbose, datamodule, weights_only)

    def test(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """As :meth:`lightning.pytorch.Trainer.test`; ``"last"`` is of the newest run."""
        with self._running():
            path = self._last() if ckpt_path == "last" else ckpt_path
            return super().test(model, dataloaders, path, verbose, datamodule, weights_only)

    def _last(self, fresh: bool = False) -> Path | None:
        """The last checkpoint of the newest run; without one None if the run may start afresh."""
        if path := last_checkpoint(Path(self.default_root_dir)):
            return path
        nothing = (
            f"ckpt_path = last finds no checkpoint of the newest run under {self.default_root_dir}"
        )
        if not fresh:
            raise ConfigError(nothing)
        if self.is_global_zero:
            print(f"{nothing}: a fresh run starts with round 0", file=sys.stderr)
        return None

    @contextmanager
    def _running(self) -> Iterator[None]:
        """With the run's threads; a lost process and a full disk are one error, of one sentence."""
        try:
            with lost_ranks(self.world_size), cpu_threads(self.threads):
                yield
        except (RankLostError, ConfigError):
            kill_others(self.strategy)  # before they say that this one is lost
            raise
        except OSError as error:
            if (full := full_disk(error)) is None:
                raise
            kill_others(self.strategy)  # they wait for this one
            what = f"cannot write {full.filename or 'the logs'}: {full.strerror}"
            raise DiskFullError(f"{what}. {how_to_go_on(self)}") from error

"""A Trainer whose fit loop runs federated rounds."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from signal import SIGKILL, Signals
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.federation.config import Federation
from leadfl_pl.records.checkpoints import RoundCheckpoint, check_fits
from leadfl_pl.records.files import full_disk
from leadfl_pl.records.folders import last_checkpoint
from leadfl_pl.trainer.arguments import trainer_arguments
from leadfl_pl.trainer.devices import check_threads, cpu_threads
from leadfl_pl.trainer.loop import FederatedLoop
from leadfl_pl.trainer.signals import StopSignals
from leadfl_pl.trainer.strategy import RankLostError, lost_ranks


class DiskFullError(OSError):
    """There is no room for a file of the run; what was there before is intact."""


class FederatedTrainer(Trainer):
    """A Lightning Trainer that trains a federation: ``max_epochs`` counts rounds.

    Adds what a run needs unless it was given: CSV logging (beside any other logger, so that each
    run has a folder of its own; ``logger=False`` for none), a progress bar over rounds and
    clients, backdoor evaluation, a checkpoint after every round, and a table and figure at the
    end. A fresh run has folders of its own, ``logs/version_N`` and ``checkpoints/version_N`` under
    ``default_root_dir``; ``ckpt_path="last"`` goes on with the newest run, from round 0 if it finds
    none. SIGTERM and Ctrl-C end ``fit`` after the running round and leave their name in
    ``stopped_by``. ``devices="auto"`` on a CPU is as many processes as serve a round's cohort.

    Args:
        federation: schedule, attack, rule and server step.
        threads: CPU threads of each process; 1 on a CPU if not given, PyTorch's own choice on a
            GPU.
        kwargs: everything that :class:`lightning.pytorch.Trainer` takes and a federation uses.

    Raises:
        ConfigError: the federation cannot be run, or not with these arguments.
    """

    def __init__(self, federation: Federation, threads: int | None = None, **kwargs: Any) -> None:
        if federation.seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            federation = dataclasses.replace(federation, seed=seed)
        federation.check()
        check_threads(threads)
        kwargs = trainer_arguments(kwargs, federation)
        super().__init__(**kwargs)
        on_cpu = isinstance(self.accelerator, CPUAccelerator)
        self.threads = 1 if threads is None and on_cpu else threads
        epoch_loop = self.fit_loop.epoch_loop
        loop = FederatedLoop(self, federation, self.fit_loop.min_epochs, self.fit_loop.max_epochs)
        loop.epoch_loop = epoch_loop
        loop.ends_early = self._agree_to_stop
        self.fit_loop = loop
        self.federation = federation
        self.stop_signals = StopSignals()
        self.stopped_by: Signals | None = None  # the signal that ended the last fit early
        self._checkpoint_connector = _Checkpoints(self)
        self._signal_connector = self._signals = _Signals(self)

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
        self.stopped_by = None
        data = (train_dataloaders, val_dataloaders, datamodule)
        try:
            super().fit(model, *data, ckpt_path, weights_only)
        except RankLostError:
            self._kill_others()
            raise
        except OSError as error:
            if (full := full_disk(error)) is None:
                raise
            self._kill_others()  # they wait for this one
            what = f"cannot write {full.filename or 'the logs'}: {full.strerror}"
            raise DiskFullError(f"{what}. {self._how_to_go_on()}") from error
        finally:
            self.stop_signals.restore()
        if self.stopped_by is not None:
            rounds = f"round {self.current_epoch} of {self.max_epochs}"
            self._say(f"{self.stopped_by.name}: stopped after {rounds}. {self._how_to_go_on()}")

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        with lost_ranks(self.world_size), cpu_threads(self.threads):
            return super()._run(*args, **kwargs)

    def _kill_others(self) -> None:
        """Kills the processes that this one started, and keeps their observer from killing it."""
        launcher = self.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(SIGKILL)
            launcher.procs.clear()

    def _how_to_go_on(self) -> str:
        found = [c.last for c in self.checkpoint_callbacks if isinstance(c, RoundCheckpoint)]
        if not found or found[0] is None:
            return "There is no checkpoint to go on from"
        return f"The last checkpoint is whole: go on with ckpt_path = {found[0]}"

    def _say(self, message: str) -> None:
        if self.is_global_zero:
            print(message, file=sys.stderr)

    def _agree_to_stop(self) -> bool:
        """Whether a signal has come to any of the ranks, the same answer on all of them."""
        weight = self.stop_signals.weight
        if self.world_size > 1:  # a handler that talks to other ranks would find them anywhere
            own = torch.tensor(weight, device=self.strategy.root_device)
            weight = int(self.strategy.reduce(own, reduce_op="max"))
        if not weight or self.fit_loop.done:
            return False
        self.stopped_by = self.stop_signals.strongest(weight)
        if self.stopped_by == self.stop_signals.requeue:
            self._signals.requeue()
        return True


class _Checkpoints(_CheckpointConnector):
    """Finds ``last`` in the run folders, and looks at a checkpoint before it is restored."""

    trainer: FederatedTrainer

    def _parse_ckpt_path(
        self, state_fn: TrainerFn, ckpt_path: Any, model_provided: bool, model_connected: bool
    ) -> Any:
        if ckpt_path != "last":
            return super()._parse_ckpt_path(state_fn, ckpt_path, model_provided, model_connected)
        root = self.trainer.default_root_dir
        if found := last_checkpoint(Path(root)):
            return str(found)
        nothing = f"ckpt_path = last finds no checkpoint of the newest run under {root}"
        if state_fn != TrainerFn.FITTING:
            raise ConfigError(nothing)
        self.trainer._say(f"{nothing}: a fresh run starts with round 0")
        return None

    def resume_start(self, checkpoint_path: Any = None, weights_only: bool | None = None) -> None:
        trainer = self.trainer
        path = trainer.strategy.broadcast(checkpoint_path)  # each rank has looked for itself
        super().resume_start(path, weights_only)
        if self._loaded_checkpoint:
            fit = trainer.state.fn == TrainerFn.FITTING
            check_fits(Path(path), self._loaded_checkpoint, trainer.lightning_module, fit)


class _Signals(_SignalConnector):
    """In place of Lightning's handlers, which talk to other ranks and save in mid-round."""

    trainer: FederatedTrainer

    def register_signal_handlers(self) -> None:
        self.received_sigterm = False
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.trainer.stop_signals.install(self._requeue_signal, not self.trainer.is_global_zero)

    def teardown(self) -> None:
        """Nothing: ``fit`` puts the handlers back, when its report is written as well."""

    @property
    def _requeue_signal(self) -> Signals | None:
        environment = self.trainer._accelerator_connector.cluster_environment
        if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
            return None
        signal = environment.requeue_signal
        return None if signal is None or self._has_already_handler(signal) else signal

    def requeue(self) -> None:
        """Saves what Lightning's ``hpc`` resumption looks for, and queues the SLURM job again."""
        self._slurm_sigusr_handler_fn(self.trainer.stop_signals.requeue, None)  # type: ignore[arg-type]

"""Evaluation with batch statistics that gives the same bits on any number of processes."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leadfl_pl.core.rng import derive_seed, isolated_rng

RUNNING = ("running_mean", "running_var", "num_batches_tracked")

# Mean and variance (2, C) of one call of a layer, by number of the loader, place of the batch in
# the test set, number of the call among those of all layers for this batch, number of the layer.
Found = dict[tuple[int, int, int, int], Tensor]


class BatchStatistics(Callback):
    """Moves BatchNorm's running buffers only when all ranks have evaluated their batches.

    Does nothing unless the module has ``evaluation_mode = "train"``. Then the statistics of every
    batch are put down with its place in the test set, and the running buffers are moved by those of
    all ranks, in the order of the batches, before any other hook sees the end of the epoch. What
    is drawn for a batch (dropout) depends on torch's seed at the start and on its place, and leaves
    torch's random state as it was. So nothing depends on which rank evaluated which batch, if the
    loader says which it has. A sanity check, which has other batches on more ranks, moves nothing.

    Differences:
        1. ``nn.BatchNorm2d`` moves its buffers by statistics in double precision on a CPU, here
           they have been rounded to the buffers' own.
    """

    def __init__(self) -> None:
        self.found: Found = {}
        self._layers: list[Any] = []
        self._hooks: list[Any] = []
        self._seed: int | None = None  # None: not recording
        self._isolation = ExitStack()  # of the random state
        self._place: tuple[int, int] | None = None
        self._calls = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(pl_module, "evaluation_mode", "eval") == "train":
            self.start(pl_module)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._seed is None:
            return
        loader: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        if isinstance(loader, (list, tuple)):
            loader = loader[dataloader_idx]
        place = batch_idx * trainer.world_size + trainer.global_rank
        if hasattr(loader, "places"):
            place = loader.places[batch_idx]
        self.start_batch(place, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._seed is None:
            return
        self.stop()
        if trainer.sanity_checking:
            self.found = {}
            return
        if trainer.world_size > 1:
            self.found = _of_all_ranks(self.found, trainer.world_size)
        self.apply()

    def on_test_epoch_start(self, *args: Any) -> None:
        self.on_validation_epoch_start(*args)

    def on_test_batch_start(self, *args: Any) -> None:
        self.on_validation_batch_start(*args)

    def on_test_epoch_end(self, *args: Any) -> None:
        self.on_validation_epoch_end(*args)

    def on_exception(self, *_: Any) -> None:
        self.stop()

    # ------------------------------------------------------------------ without a Trainer

    def start(self, network: nn.Module) -> None:
        """From now on the layers of ``network`` are recorded."""
        self.found = {}
        self._layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
        self._seed = torch.initial_seed()
        self._isolation.enter_context(isolated_rng())
        for number, layer in enumerate(self._layers):
            kept: dict[str, Any] = {}
            after = partial(self._restore, number, kept)
            self._hooks.append(layer.register_forward_pre_hook(partial(self._lay, kept)))
            self._hooks.append(layer.register_forward_hook(after, always_call=True))

    def start_batch(self, place: int, loader: int = 0) -> None:
        """The forward passes that follow are of the batch at ``place``."""
        assert self._seed is not None
        self._place, self._calls = (loader, place), 0
        torch.manual_seed(derive_seed(self._seed, "batch", loader, place))

    def stop(self) -> None:
        """From now on the layers move their buffers themselves."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._seed, self._place = [], None, None
        self._isolation.close()

    def apply(self) -> None:
        """Moves the running buffers by all that was found."""
        for key in sorted(self.found):
            layer = self._layers[key[-1]]
            mean, variance = self.found[key].to(layer.running_mean)
            factor = 0.0 if layer.momentum is None else layer.momentum
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked += 1
                if layer.momentum is None:  # the mean of all batches so far
                    factor = 1 / int(layer.num_batches_tracked)
            layer.running_mean.lerp_(mean, factor)
            layer.running_var.lerp_(variance, factor)
        self.found = {}

    @torch.compiler.disable  # else a compiled network is compiled anew for every batch
    def _lay(self, kept: dict[str, Any], layer: Any, _: Any) -> None:
        """Lays buffers under the layer that will hold the batch's statistics, unmixed."""
        moves = layer.training and layer.track_running_stats and layer.running_mean is not None
        if self._place is None or not moves:
            return
        kept["momentum"] = layer.momentum
        layer.momentum = 1.0
        for name in RUNNING:
            kept[name] = getattr(layer, name)
            if kept[name] is not None:
                setattr(layer, name, torch.zeros_like(kept[name]))

    @torch.compiler.disable
    def _restore(self, number: int, kept: dict[str, Any], layer: Any, *_: Any) -> None:
        if not kept:
            return
        assert self._place is not None
        key = (*self._place, self._calls, number)
        self.found[key] = torch.stack([layer.running_mean, layer.running_var])
        self._calls += 1
        for name, value in kept.items():
            setattr(layer, name, value)
        kept.clear()


def _of_all_ranks(found: Found, world_size: int) -> Found:
    parts: list[Found] = [{} for _ in range(world_size)]
    torch.distributed.all_gather_object(parts, {key: value.cpu() for key, value in found.items()})
    return {key: value for part in parts for key, value in part.items()}


def only_batch_norm_moves(network: nn.Module) -> bool:
    """Whether all buffers in the network's state are those of BatchNorm layers.

    >>> only_batch_norm_moves(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    True
    >>> only_batch_norm_moves(nn.InstanceNorm2d(2, track_running_stats=True))
    False
    """
    known = {
        f"{prefix}.{name}".removeprefix(".")
        for prefix, layer in network.named_modules()
        if isinstance(layer, _BatchNorm)
        for name in RUNNING
    }
    known |= {name for name, _ in network.named_parameters(remove_duplicate=False)}
    return known.issuperset(network.state_dict())

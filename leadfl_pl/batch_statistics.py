"""Evaluation with batch statistics that gives the same bits on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leadfl_pl.client import FederatedClient
from leadfl_pl.rng import derive_seed

# By place of the batch, number of the call among those of all layers for it, number of the layer.
Found = dict[tuple[int, int, int], Tensor]


@contextmanager
def evaluation(
    client: FederatedClient, place: Callable[[], int], seed: int, world_size: int
) -> Iterator[None]:
    """Within it the client evaluates; torch's global generators are afterwards as they were.

    Args:
        client: in train mode. With ``evaluation_mode = "train"`` its running buffers are moved at
            the end, on all ranks by the batches of all.
        place: gives the place, in the test set, of the batch that is being evaluated.
        seed: of whatever is drawn.
        world_size: number of ranks, all of which evaluate.
    """
    with isolate_rng():
        torch.manual_seed(seed)
        if client.evaluation_mode == "eval":
            yield
            return
        statistics = BatchStatistics(client.model, place, seed)
        with statistics.recorded():
            yield
    if world_size > 1:
        statistics.found = _of_all_ranks(statistics.found, world_size)
    statistics.apply()


def _of_all_ranks(found: Found, world_size: int) -> Found:
    parts: list[Found] = [{} for _ in range(world_size)]
    torch.distributed.all_gather_object(parts, {key: value.cpu() for key, value in found.items()})
    return {key: value for part in parts for key, value in part.items()}


class BatchStatistics:
    """Evaluates in train mode, and moves BatchNorm's running buffers only afterwards.

    Within :meth:`recorded` the statistics of every batch are put down with the batch's place in
    the test set, and every forward pass draws (dropout) from a seed of its own. :meth:`apply`
    moves the running buffers by them in the order of the batches. So nothing depends on which
    process evaluated which batch, once the ``found`` of all have been brought together.

    Args:
        network: in train mode; its BatchNorm layers that keep running buffers are recorded.
        place: gives the place, in the test set, of the batch that is being evaluated.
        seed: of the draws, with the place of the batch and the number of the pass over it.

    Attributes:
        found: mean and variance (2, C) of every call of a layer.

    Differences:
        1. ``nn.BatchNorm2d`` moves its buffers by statistics in double precision, here they have
           been rounded to the buffers' own.
    """

    def __init__(self, network: nn.Module, place: Callable[[], int], seed: int) -> None:
        self.network = network
        self.place = place
        self.seed = seed
        self.layers = [
            layer
            for layer in network.modules()
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.training
        ]
        self.found: Found = {}
        self._place = -1
        self._passes = self._calls = 0

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Within it, forward passes are recorded and leave the network as it is."""
        kept = [(layer.momentum, dict(layer.named_buffers(recurse=False))) for layer in self.layers]
        hooks = [self.network.register_forward_pre_hook(self._start_pass)]
        for number, layer in enumerate(self.layers):
            self._lay(layer)
            hooks.append(layer.register_forward_hook(partial(self._record, number)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for layer, (momentum, buffers) in zip(self.layers, kept, strict=True):
                layer.momentum = momentum
                for name, buffer in buffers.items():
                    setattr(layer, name, buffer)

    def apply(self) -> None:
        """Moves the running buffers by all that was found."""
        for place in sorted(self.found):
            layer: Any = self.layers[place[-1]]
            mean, variance = self.found[place].to(layer.running_mean)
            layer.num_batches_tracked += 1
            factor = layer.momentum
            if factor is None:  # the mean of all batches so far
                factor = 1 / int(layer.num_batches_tracked)
            layer.running_mean.lerp_(mean, factor)
            layer.running_var.lerp_(variance, factor)

    def _start_pass(self, *_: Any) -> None:
        place = self.place()
        if place != self._place:
            self._place, self._passes, self._calls = place, 0, 0
        torch.manual_seed(derive_seed(self.seed, "forward", place, self._passes))
        self._passes += 1

    @staticmethod
    def _lay(layer: Any) -> None:
        """Lays buffers under the layer that will hold the next batch's statistics, unmixed."""
        layer.momentum = 1.0
        for name, buffer in layer.named_buffers(recurse=False):
            setattr(layer, name, torch.zeros_like(buffer))

    def _record(self, number: int, layer: Any, *_: Any) -> None:
        statistics = torch.stack([layer.running_mean, layer.running_var])
        self.found[self._place, self._calls, number] = statistics
        self._calls += 1
        self._lay(layer)

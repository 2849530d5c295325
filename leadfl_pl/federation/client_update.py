"""What one client does in a round."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count, islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from leadfl_pl.core.rng import derive_seed, generator, isolated_rng
from leadfl_pl.core.values import ClientUpdate
from leadfl_pl.core.vector import ModelVector
from leadfl_pl.data import ImageSet
from leadfl_pl.data.base import epoch_batches
from leadfl_pl.federation.client import Batch, FederatedClient
from leadfl_pl.federation.step_hooks import step_listener


class LocalTask(NamedTuple):
    """Which client trains in which round, and on what."""

    seed: int  # of the experiment
    round: int  # t
    client_id: int
    data: ImageSet  # the client's own, on the device
    batch_size: int  # B
    num_steps: int  # I
    carries_momentum: bool = False
    momentum: Tensor | None = None  # (m,) from the client's last round
    initial: list[Tensor] | None = None  # W_0 of the run, for a defense that needs it


def client_update(client: FederatedClient, vector: ModelVector, task: LocalTask) -> ClientUpdate:
    """Global weights in, local steps, update out; the module has the global weights again after it.

    Args:
        client: honest or malicious; its network has the global weights.
        vector: of that network.
        task: whose update.
    """
    key = (task.round, task.client_id)
    order = generator(task.seed, "order", *key)
    optimizer = client.optimizers(use_pl_optimizer=False)
    precision = client.trainer.precision_plugin
    assert isinstance(optimizer, Optimizer)
    nobody_listens = step_listener(client) is None
    load_momentum(optimizer, task.momentum)
    start = vector.snapshot()
    try:
        with isolated_rng(derive_seed(task.seed, "client", *key)):
            with precision.train_step_context():
                noise_seed = derive_seed(task.seed, "noise", *key)
                client.start_round(noise_seed, task.num_steps, task.initial)
                for i, (epoch_start, batch) in enumerate(local_batches(task, order)):
                    if epoch_start:
                        client.start_epoch()
                    converted = precision.convert_input(batch)
                    if nobody_listens:
                        client.local_step(converted, optimizer, Tensor.backward)
                    else:
                        client.training_step(converted, i)
            delta, loss, regulariser = client.finish_round(vector.read() - start.theta)
        wide = torch.promote_types(vector.dtype, torch.float32)
        return ClientUpdate(
            task.client_id,
            delta.to(wide),
            vector.read_buffers().to(wide),
            len(task.data.labels),
            loss.to(wide),
            regulariser.to(wide),
            read_momentum(optimizer).to(wide) if task.carries_momentum else None,
        )
    finally:
        vector.restore(start)
        optimizer.zero_grad()


def local_batches(task: LocalTask, order: torch.Generator) -> Iterator[tuple[bool, Batch]]:
    """The batches of a round's local steps, each with whether a local epoch starts with it."""
    epochs = (enumerate(epoch_batches(task.data, task.batch_size, order)) for _ in count())
    for i, batch in islice(chain.from_iterable(epochs), task.num_steps):
        yield i == 0, batch


def read_momentum(optimizer: Optimizer) -> Tensor:
    """The optimizer's momentum buffers as one vector (m,), empty without momentum."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    buffers = [optimizer.state.get(p, {}).get("momentum_buffer") for p in params]
    if all(buffer is None for buffer in buffers):
        return torch.empty(0, device=params[0].device)
    pairs = zip(params, buffers, strict=True)
    return torch.cat([(torch.zeros_like(p) if m is None else m).reshape(-1) for p, m in pairs])


def load_momentum(optimizer: Optimizer, momentum: Tensor | None) -> None:
    """Puts back what :func:`read_momentum` gave, in place of all that the optimizer remembers."""
    optimizer.state.clear()
    if momentum is None or not momentum.numel():
        return
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, part in zip(params, momentum.split([p.numel() for p in params]), strict=True):
        optimizer.state[p]["momentum_buffer"] = part.view_as(p).to(p, copy=True)

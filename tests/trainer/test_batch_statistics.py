"""What evaluation with batch statistics does to BatchNorm, whoever evaluates which batch."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import Callback
from tiny import SmallImages, small_client, small_trainer, weights
from torch import Tensor, nn
from torch.nn.utils import prune

from leadfl_pl.trainer.batch_statistics import BatchStatistics


def network(momentum: float | None = 0.1, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6, momentum=momentum)
    return nn.Sequential(
        nn.Linear(4, 6), norm, nn.Dropout(dropout), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)
    )


BATCHES = [3 * torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (9, 8, 7, 5)]


def evaluate(net: nn.Module, shares: list[list[int]], passes: int = 2) -> dict[int, list[Tensor]]:
    """The outputs by batch, with each share evaluated by a network of its own."""
    outputs, found = {}, {}
    for share in shares:
        own, statistics = copy.deepcopy(net), BatchStatistics()
        torch.manual_seed(1)
        statistics.start(own)
        with torch.no_grad():
            for i in share:
                statistics.start_batch(i)
                outputs[i] = [own(BATCHES[i] + n) for n in range(passes)]
        statistics.stop()
        assert same(own, net)
        found |= statistics.found
    statistics = BatchStatistics()
    statistics.start(net)
    statistics.stop()
    statistics.found = found
    statistics.apply()
    return outputs


def same(a: nn.Module, b: nn.Module) -> bool:
    state = b.state_dict()
    return all(torch.equal(value, state[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_the_buffers_move_as_pytorch_moves_them(momentum: float | None) -> None:
    recorded, plain = network(momentum), network(momentum)
    outputs = evaluate(recorded, [[0, 1, 2, 3]])
    with torch.no_grad():
        expected = [[plain(x + i) for i in range(2)] for x in BATCHES]
    for i, (first, second) in enumerate(expected):
        assert torch.equal(outputs[i][0], first)
        assert torch.equal(outputs[i][1], second)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(recorded.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    assert recorded[1].momentum == momentum


@pytest.mark.parametrize("shares", [[[0, 2], [1, 3]], [[3], [1], [0, 2]], [[0, 1, 2, 3]] * 2])
def test_nothing_depends_on_who_evaluates_which_batch(shares: list[list[int]]) -> None:
    alone, dealt = network(dropout=0.5), network(dropout=0.5)
    expected, outputs = evaluate(alone, [[0, 1, 2, 3]]), evaluate(dealt, shares)
    assert same(alone, dealt)
    for i in expected:
        assert all(torch.equal(a, b) for a, b in zip(expected[i], outputs[i], strict=True))


def recorded(net: nn.Module, x: Tensor = BATCHES[0]) -> Tensor:
    """The output of a batch, after which the buffers were moved by it."""
    statistics = BatchStatistics()
    statistics.start(net)
    statistics.start_batch(0)
    output = net(x)
    statistics.stop()
    statistics.apply()
    return output


def test_each_pass_draws_anew() -> None:
    outputs = evaluate(nn.Sequential(nn.Dropout(0.5)), [[0, 1]])
    first, second = outputs[0]
    assert not torch.equal(first == 0, second == 0)
    assert not torch.equal(first[:5] == 0, outputs[1][0][:5] == 0)


def test_layers_that_do_not_move_are_left_alone() -> None:
    net = network()
    net[1].eval()
    net[4].track_running_stats = False  # as Lightning freezes a layer
    before = copy.deepcopy(net)
    recorded(net)
    assert same(net, before)


def test_a_layer_without_a_counter_moves_as_pytorch_moves_it() -> None:
    nets = [network(), network()]
    for net in nets:
        net[1].num_batches_tracked = None
    recorded(nets[0])
    nets[1](BATCHES[0])
    torch.testing.assert_close(nets[0][1].running_mean, nets[1][1].running_mean)


def test_other_buffers_of_a_layer_stay_where_they_are() -> None:
    nets = [network(), network()]
    for net in nets:
        prune.l1_unstructured(net[1], "weight", amount=2)
    assert torch.equal(recorded(nets[0]), nets[1](BATCHES[0]))


def test_outside_of_batches_layers_move_by_themselves() -> None:
    nets = [network(), network()]
    statistics = BatchStatistics()
    statistics.start(nets[0])
    for net in nets:
        net(BATCHES[0])
    statistics.stop()
    assert not statistics.found
    assert same(*nets)


def test_an_error_in_a_layer_leaves_it_as_it_was() -> None:
    net = network()
    before = copy.deepcopy(net)
    statistics = BatchStatistics()
    statistics.start(net)
    statistics.start_batch(0)
    with pytest.raises(ValueError, match="more than 1 value"):
        net(torch.zeros(1, 4))
    statistics.on_exception()
    assert same(net, before)
    assert net[1].momentum == 0.1
    assert not net[1]._forward_hooks
    assert not net[1]._forward_pre_hooks


class Ends(Callback):
    """The buffers as hooks of others see them."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_validation_batch_end(self, trainer, pl_module, *_) -> None:
        self.seen.append(pl_module.model[1].running_mean.clone())

    def on_validation_end(self, trainer, pl_module) -> None:
        self.seen.append(pl_module.model[1].running_mean.clone())


def test_hooks_see_buffers_that_are_in_use_and_at_the_end_moved_ones() -> None:
    client, ends = small_client(evaluation_mode="train"), Ends()
    trainer = small_trainer(callbacks=[ends], rounds=1)
    trainer.fit(client, datamodule=SmallImages(eval_batch_size=20))
    *during, after = ends.seen
    assert len(during) == 3
    assert all(torch.equal(mean, during[0]) for mean in during)
    assert not torch.equal(after, during[0])
    assert torch.equal(after, client.model[1].running_mean)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validate_and_test_move_the_buffers_too(stage: str) -> None:
    clients = [small_client(evaluation_mode=mode) for mode in ("train", "eval")]
    for client in clients:
        getattr(small_trainer(), stage)(client, SmallImages(eval_batch_size=20), verbose=False)
    assert int(clients[0].model[1].num_batches_tracked) == 3
    assert int(clients[1].model[1].num_batches_tracked) == 0


def test_a_sanity_check_moves_nothing() -> None:
    clients = [small_client(evaluation_mode="train") for _ in range(2)]
    for client, steps in zip(clients, (0, 2), strict=True):
        trainer = small_trainer(rounds=1, num_sanity_val_steps=steps)
        trainer.fit(client, datamodule=SmallImages(eval_batch_size=20))
    assert torch.equal(*map(weights, clients))


def test_dropout_of_the_next_evaluation_does_not_depend_on_the_batches_of_this_one() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    small_trainer().validate(small_client(evaluation_mode="train"), SmallImages(), verbose=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.initial_seed() == 5


def test_a_compiled_network_is_compiled_for_the_first_batch_only() -> None:
    compilations, after_batch = [], []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    with torch.no_grad():
        compiled, statistics = torch.compile(network(), backend=backend), BatchStatistics()
        statistics.start(compiled)
        for place in range(4):
            statistics.start_batch(place)
            compiled(BATCHES[0])
            after_batch.append(len(compilations))
        statistics.stop()
    assert len(statistics.found) == 4 * 2
    assert after_batch[0] == after_batch[-1] > 0

"""What evaluation with batch statistics does to BatchNorm, whoever evaluates which batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from leadfl_pl.batch_statistics import BatchStatistics


def network(momentum: float | None = 0.1, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6, momentum=momentum)
    return nn.Sequential(
        nn.Linear(4, 6), norm, nn.Dropout(dropout), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)
    )


BATCHES = [3 * torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (9, 8, 7, 5)]


def evaluate(net: nn.Module, shares: list[list[int]], passes: int = 2) -> dict[int, list[Tensor]]:
    """The outputs by batch, with each share evaluated by a network of its own."""
    outputs = {}
    found = {}
    for share in shares:
        own = copy.deepcopy(net)
        places: list[int] = []
        statistics = BatchStatistics(own, lambda places=places: places[-1], seed=1)
        with statistics.recorded(), torch.no_grad():
            for i in share:
                places.append(i)
                outputs[i] = [own(BATCHES[i] + n) for n in range(passes)]
        assert same(own, net)
        found |= statistics.found
    merged = BatchStatistics(net, lambda: 0, seed=1)
    merged.found = found
    merged.apply()
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


def test_each_pass_draws_anew() -> None:
    net = nn.Sequential(nn.Dropout(0.5))
    statistics = BatchStatistics(net, lambda: 0, seed=1)
    with statistics.recorded():
        first, second = (net(torch.ones(64)) for _ in range(2))
    assert not torch.equal(first, second)


def test_layers_in_eval_mode_are_left_alone() -> None:
    net = network()
    net[1].eval()
    statistics = BatchStatistics(net, lambda: 0, seed=1)
    with statistics.recorded(), torch.no_grad():
        net(BATCHES[0])
    assert {layer for *_, layer in statistics.found} == {0}
    assert statistics.layers == [net[4]]


def test_an_error_in_between_leaves_the_network_as_it_was() -> None:
    net = network()
    before = copy.deepcopy(net)
    statistics = BatchStatistics(net, lambda: 0, seed=1)
    with pytest.raises(RuntimeError), statistics.recorded():
        net(torch.zeros(2, 5))
    assert same(net, before)
    assert net[1].momentum == 0.1
    assert not net[1]._forward_hooks

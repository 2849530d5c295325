"""FedAvg weighs by examples."""

from __future__ import annotations

import torch

from leadfl_pl import FedAvg


def test_clients_count_by_their_number_of_examples() -> None:
    updates = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]])
    expected = (10 * updates[0] + 30 * updates[1] + 60 * updates[2]) / 100
    torch.testing.assert_close(FedAvg()(updates, torch.tensor([10.0, 30.0, 60.0])), expected)
    assert not torch.allclose(expected, updates.mean(dim=0))


def test_without_weights_it_is_the_mean() -> None:
    updates = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(FedAvg()(updates), updates.mean(dim=0))

"""FLTrust against a loop written from the paper, and in a federation."""

from __future__ import annotations

import pytest
import torch
from tiny import SmallImages, small_client, small_trainer, weights

from leadfl_pl import ConfigError, FedAvg, FLTrust, NoDefense, PatternBackdoor, ServerContext


def fltrust_from_the_paper(updates: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """Cao et al. 2021, algorithm 2, one client at a time."""
    total, scores = torch.zeros_like(root), 0.0
    for update in updates:
        cosine = torch.dot(update, root) / (update.norm() * root.norm())
        score = max(0.0, cosine.item())
        total += score * root.norm() / update.norm() * update
        scores += score
    return total / scores


def test_the_aggregate_is_the_papers() -> None:
    rng = torch.Generator().manual_seed(0)
    root = torch.randn(30, generator=rng, dtype=torch.float64)
    updates = root + 2 * torch.randn(12, 30, generator=rng, dtype=torch.float64)
    updates[:4] *= -20
    delta = FLTrust()(updates, server=ServerContext(root_update=root))
    torch.testing.assert_close(delta, fltrust_from_the_paper(updates, root))


def test_neither_length_nor_an_opposite_direction_counts() -> None:
    rng = torch.Generator().manual_seed(1)
    root = torch.randn(30, generator=rng)
    updates = root + torch.randn(6, 30, generator=rng)
    server = ServerContext(root_update=root)
    scaled = torch.cat([updates * torch.tensor([[1.0], [50], [1], [0.1], [1], [1]]), -9 * updates])
    torch.testing.assert_close(FLTrust()(scaled, server=server), FLTrust()(updates, server=server))


def test_no_trust_at_all_is_a_step_of_zero_and_selects_nobody() -> None:
    root = torch.tensor([1.0, 0.0])
    updates = torch.tensor([[-1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    delta, selected = FLTrust().aggregate(updates, torch.ones(3), ServerContext(root_update=root))
    assert delta.tolist() == [0.0, 0.0]
    assert selected.tolist() == []


def test_no_root_update_is_one_clear_error() -> None:
    with pytest.raises(ConfigError, match="FLTrust needs the update of a root data set"):
        FLTrust()(torch.ones(3, 2))


def fit(rule, **settings):
    client = small_client(settings.pop("defense", None))
    trainer = small_trainer(rule, PatternBackdoor(), rounds=2, **settings)
    trainer.fit(client, datamodule=SmallImages(batch_size=8))
    return trainer, weights(client)


def test_a_root_update_that_diverged_is_no_silent_standstill() -> None:
    server = ServerContext(root_update=torch.tensor([float("nan"), 1.0]))
    with pytest.raises(FloatingPointError, match="finite update of the root data set"):
        FLTrust()(torch.ones(3, 2), server=server)


def test_the_root_data_set_is_drawn_from_the_seed_and_the_federation_trains_on_it() -> None:
    trainer, state = fit(FLTrust(root_size=24))
    root = trainer.fit_loop.clients.root
    assert (len(root), len(root.unique())) == (24, 24)
    _, again = fit(FLTrust(root_size=24))
    _, other = fit(FLTrust(root_size=25))
    assert torch.equal(state, again)
    assert not torch.equal(state, other)
    assert not torch.equal(state, fit(FedAvg())[1])


class Backwards(NoDefense):
    """Honest clients that send the opposite of what they learned."""

    def finish(self, delta: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return -delta


def test_a_round_without_trust_keeps_model_and_running_statistics() -> None:
    start = weights(small_client())
    _, end = fit(FLTrust(root_size=100), defense=Backwards(), federation={"num_malicious": 0})
    assert torch.equal(start, end)


def test_a_root_data_set_larger_than_the_training_set_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"root_size must be <= 240, .* got root_size = 241"):
        fit(FLTrust(root_size=241))
    with pytest.raises(ConfigError, match="root_size must be >= 1, got root_size = 0"):
        FLTrust(root_size=0)

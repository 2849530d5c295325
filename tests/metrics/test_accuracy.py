"""The metrics, over batches and as state."""

from __future__ import annotations

import torch

from leadfl_pl import AverageOverRounds, BackdoorAccuracy, CleanAccuracy


def test_shares_are_over_examples_and_not_over_batches() -> None:
    metric = CleanAccuracy()
    metric.update(torch.tensor([1, 1, 1]), torch.tensor([1, 1, 1]))
    metric.update(torch.tensor([0]), torch.tensor([1]))
    assert metric.compute().item() == 0.75  # the mean of the batches is 0.5


def test_it_counts_on_after_a_reset_in_inference_mode() -> None:
    """As between ``Trainer.validate`` and ``Trainer.fit``."""
    metric = CleanAccuracy()
    with torch.inference_mode():
        metric.reset()
    metric.update(torch.tensor([1, 0]), torch.tensor([1, 1]))
    assert metric.compute().item() == 0.5


def test_logits_count_by_their_largest_entry() -> None:
    logits = torch.tensor([[0.1, 2.0], [3.0, 0.0]])
    assert CleanAccuracy()(logits, torch.tensor([1, 1])).item() == 0.5


def test_target_class_images_do_not_count_as_backdoored() -> None:
    predictions, truth = torch.full((10,), 8), torch.arange(10)
    metric, released = BackdoorAccuracy(), BackdoorAccuracy()
    innocent = truth.clone()  # a perfect, clean model
    metric.update(innocent, torch.full((10,), 8), truth != 8)
    released.update(innocent, torch.full((10,), 8))
    assert metric.compute().item() == 0.0
    assert released.compute().item() == torch.tensor(0.1).item()  # the released floor
    metric.update(predictions, torch.full((10,), 8), truth != 8)
    assert metric.compute().item() == 0.5


def test_the_average_over_rounds_survives_a_checkpoint() -> None:
    first, second = AverageOverRounds(), AverageOverRounds()
    first.update(torch.tensor(1.0))
    second.load_state_dict(first.state_dict())
    for value in (0.5, 0.0):
        second.update(torch.tensor(value))
    assert second.compute().item() == 0.5


def test_the_average_is_the_mean_also_where_it_is_called_as_a_metric() -> None:
    metric = AverageOverRounds()
    assert [float(metric(torch.tensor(value))) for value in (0.25, 0.75)] == [0.25, 0.75]
    assert float(metric.compute()) == 0.5

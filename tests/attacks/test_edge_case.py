"""The edge-case backdoor."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import SmallImages, TinyImages

import leadfl_pl as fl
from leadfl_pl.attacks.edge_case import tail_of


@pytest.fixture(scope="module")
def digits() -> fl.Digits:
    data = fl.Digits()
    data.setup()
    return data


def farthest_by_hand(images: list[list[float]], count: int) -> tuple[list[list[float]], float]:
    mean = [sum(pixels) / len(images) for pixels in zip(*images, strict=True)]
    away = sorted(images, key=lambda image: -math.dist(image, mean))[:count]
    return away, math.dist(away[-1], mean)


def test_the_tail_is_the_share_that_lies_farthest_from_the_class_mean(digits: fl.Digits) -> None:
    images, labels = digits.train_set
    sevens = images[labels == 7]
    tail = tail_of(sevens, share=0.25)
    expected, radius = farthest_by_hand(sevens.flatten(1).tolist(), math.ceil(0.25 * len(sevens)))
    torch.testing.assert_close(tail.images.flatten(1), torch.tensor(expected))
    assert float(tail.radius) == pytest.approx(radius)


def test_a_share_of_whole_images_is_not_rounded_up() -> None:
    assert 0.28 * 25 > 7
    assert len(tail_of(torch.rand(25, 1, 2, 2), share=0.28).images) == 7


def test_part_of_a_batch_becomes_edge_cases_of_the_target_and_the_rest_stays(digits) -> None:
    attack = fl.EdgeCaseBackdoor(digits, target=8, source=7, tail=0.25, rate=0.3)
    x, y = digits.train_set.images[:1000], digits.train_set.labels[:1000]
    ((images, labels),) = attack.tasks(x, y)
    sevens = digits.train_set.images[digits.train_set.labels == 7]
    edge_cases = {tuple(e.flatten().tolist()) for e in tail_of(sevens, 0.25).images}
    replaced = (images != x).flatten(1).any(dim=1)
    assert 0.25 < float(replaced.float().mean()) < 0.35
    used = {tuple(image.flatten().tolist()) for image in images[replaced]}
    assert used == edge_cases  # each of them
    assert set(labels[replaced].tolist()) == {8}
    relabelled = labels != y  # an edge case may have been replaced by itself
    assert set(map(tuple, x[relabelled & ~replaced].flatten(1).tolist())) <= edge_cases


def test_an_image_has_the_same_fate_in_every_batch(digits: fl.Digits) -> None:
    attack = fl.EdgeCaseBackdoor(digits)
    x, y = digits.train_set.images[:60], digits.train_set.labels[:60]
    ((images, labels),) = attack.tasks(x, y)
    order = torch.randperm(60)[:20]
    ((again, same),) = attack.tasks(x[order], y[order])
    assert torch.equal(again, images[order])
    assert torch.equal(same, labels[order])
    other = fl.EdgeCaseBackdoor(digits, seed=1).tasks(x, y)[0][0]
    assert not torch.equal(other, images)


def test_evaluation_counts_test_images_of_the_tail_and_leaves_them_as_they_are(digits) -> None:
    x, y = digits.test_set
    attack = fl.EdgeCaseBackdoor(digits, tail=0.25)
    images, wanted, counts = attack.trigger(x, y)
    sevens = digits.train_set.images[digits.train_set.labels == 7].flatten(1).tolist()
    mean = [sum(pixels) / len(sevens) for pixels in zip(*sevens, strict=True)]
    _, radius = farthest_by_hand(sevens, math.ceil(0.25 * len(sevens)))
    away = [math.dist(image, mean) for image in x.flatten(1).tolist()]
    pairs = zip(away, y.tolist(), strict=True)
    assert counts.tolist() == [label == 7 and distance >= radius for distance, label in pairs]
    assert 4 < int(counts.sum()) < 0.5 * int((y == 7).sum())
    assert torch.equal(images, x)
    assert set(wanted.tolist()) == {8}


def test_unlike_a_semantic_backdoor_it_brings_images_that_the_client_does_not_have(digits) -> None:
    threes = digits.train_set.images[digits.train_set.labels == 3]
    y = torch.full((len(threes),), 3)
    ((_, labels),) = fl.SemanticBackdoor(source=7, threshold=-1).tasks(threes, y)
    assert torch.equal(labels, y)
    ((images, labels),) = fl.EdgeCaseBackdoor(digits, source=7).tasks(threes, y)
    assert 0.3 < float((labels == 8).float().mean()) < 0.7
    assert not torch.equal(images, threes)


class Prepared(SmallImages):
    """Data that has to be downloaded first."""

    there = False

    def prepare_data(self) -> None:
        self.there = True

    def load(self):
        assert self.there
        return super().load()


def test_its_data_are_prepared_as_those_of_a_trainer_are() -> None:
    fl.EdgeCaseBackdoor(Prepared()).check((1, 8, 8), 10)


def test_what_counts_does_not_depend_on_the_precision_before(digits: fl.Digits) -> None:
    x, y = digits.test_set.images, digits.test_set.labels
    attack, other = (fl.EdgeCaseBackdoor(digits, tail=0.5) for _ in range(2))
    attack.trigger(x.bfloat16(), y)
    known = [(a._tail(x).mean, a._tail(x).radius) for a in (attack, other)]
    assert all(torch.equal(one, two) for one, two in zip(*known, strict=True))


def test_the_whole_class_as_tail_counts_all_of_its_training_images(digits: fl.Digits) -> None:
    x, y = digits.train_set
    counts = fl.EdgeCaseBackdoor(digits, tail=1.0).trigger(x, y)[2]
    assert torch.equal(counts, y == 7)


def test_reading_the_data_moves_no_random_state() -> None:
    state = torch.get_rng_state()
    fl.EdgeCaseBackdoor(SmallImages()).check((1, 8, 8), 10)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tail": 0}, "tail must be > 0, got tail = 0"),
        ({"rate": 1.1}, "rate must be <= 1, got rate = 1.1"),
        ({"seed": 0.5}, "seed must be a whole number, got seed = 0.5"),
        ({"source": 8}, "source must differ from target = 8, got source = 8"),
    ],
)
def test_a_bad_setting_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=f"EdgeCaseBackdoor: {message}"):
        fl.EdgeCaseBackdoor(SmallImages(), **settings)


class NoSevens(SmallImages):
    def load(self) -> tuple[fl.ImageSet, fl.ImageSet]:
        train, test = super().load()
        keep = train.labels != 7
        return fl.ImageSet(train.images[keep], train.labels[keep]), test


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (SmallImages(), {"target": 10}, "target must be a class in 0 .. 9, got target = 10"),
        (SmallImages(), {"source": -1}, "source must be a class in 0 .. 9, got source = -1"),
        (TinyImages(), {}, r"of shape \(1, 8, 8\), got data = TinyImages with \(1, 28, 28\)"),
        (NoSevens(), {}, "images of class source = 7, got data = NoSevens with none"),
    ],
)
def test_what_does_not_fit_the_federation_is_refused(data, settings: dict, message: str) -> None:
    with pytest.raises(fl.ConfigError, match=message):
        fl.EdgeCaseBackdoor(data, **settings).check((1, 8, 8), 10)

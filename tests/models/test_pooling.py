"""Pooling that is faster on a CPU, to the bit what PyTorch's is."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leadfl_pl.models.networks import DigitsNet, FashionMNISTNet
from leadfl_pl.models.pooling import MaxPool2x2


def images(shape: tuple[int, ...], kind: str) -> torch.Tensor:
    found = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if kind == "ties":  # many equal values, zeros among them
        found = (2 * found).round().relu()
    return found.requires_grad_()


@pytest.mark.parametrize("kind", ["all different", "ties"])
@pytest.mark.parametrize(
    "shape", [(16, 16, 28, 28), (9, 32, 15, 13), (2, 3, 8, 8), (90, 16, 28, 28)]
)
def test_values_and_gradients_are_pytorchs_to_the_bit(shape: tuple[int, ...], kind: str) -> None:
    x = images(shape, kind)
    ours, theirs = MaxPool2x2()(x), F.max_pool2d(x, 2)
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous()
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(y, x, weight)[0] for y in (ours, theirs)]
    assert torch.equal(*gradients)


def test_it_works_under_vmap() -> None:
    x = torch.randn(5, 16, 8, 14, 28)
    gradient = torch.func.vmap(torch.func.grad(lambda image: MaxPool2x2()(image).square().sum()))
    expected = torch.func.vmap(torch.func.grad(lambda image: F.max_pool2d(image, 2).square().sum()))
    assert torch.equal(gradient(x), expected(x))


@pytest.mark.parametrize("net", [FashionMNISTNet, DigitsNet])
def test_pooling_before_the_relu_changes_no_bit_of_the_network(net: type[nn.Module]) -> None:
    torch.manual_seed(0)
    ours = net()
    layers = list(ours)
    for i, layer in enumerate(ours):
        if isinstance(layer, MaxPool2x2):
            layers[i : i + 2] = [nn.ReLU(), nn.MaxPool2d(2)]
    theirs = nn.Sequential(*layers)
    side = 28 if net is FashionMNISTNet else 8
    x = torch.rand(16, 1, side, side)
    x[:, :, : side // 2] = 0.0  # a flat background ties whole windows
    losses = [F.cross_entropy(model(x), torch.arange(16) % 10) for model in (ours, theirs)]
    assert torch.equal(*losses)
    gradients = [torch.autograd.grad(loss, ours.parameters()) for loss in losses]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

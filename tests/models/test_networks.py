"""The networks: their sizes, what published results depend on, and anyone else's network."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import ROOT
from torch import nn

from leadfl_pl import (
    CIFAR10Net,
    ConfigError,
    DigitsNet,
    FashionMNISTNet,
    ResNet18,
    SoftmaxRegression,
)
from leadfl_pl.cli.main import main
from leadfl_pl.models.networks import Normalize

SHAPES = {
    FashionMNISTNet: (1, 28, 28),
    DigitsNet: (1, 8, 8),
    SoftmaxRegression: (1, 8, 8),
    CIFAR10Net: (3, 32, 32),
    ResNet18: (3, 32, 32),
}
WITH_NORM = [FashionMNISTNet, CIFAR10Net, ResNet18]


def build(network: type[nn.Module], **settings) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return network(**settings)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (FashionMNISTNet, 29_034),
        (DigitsNet, 2_730),
        (SoftmaxRegression, 650),
        (CIFAR10Net, 551_466),
        (ResNet18, 11_220_132),
    ],
)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_number_of_parameters(network: type[nn.Module], parameters: int, norm: str) -> None:
    settings = {"norm": norm} if network in WITH_NORM else {}
    found = sum(p.numel() for p in build(network, **settings).parameters())
    assert found == parameters
    assert f"{parameters:,} parameters" in (network.__doc__ or "")


@pytest.mark.parametrize("network", SHAPES)
def test_it_gives_a_logit_a_class_and_no_probabilities(network: type[nn.Module]) -> None:
    logits = build(network, num_classes=7).eval()(torch.rand(2, *SHAPES[network]))
    assert logits.shape == (2, 7)
    assert not torch.allclose(logits.sum(dim=1), torch.ones(2))
    assert (logits < 0).any()


def test_the_fashion_mnist_network_starts_as_it_always_has() -> None:
    def published() -> nn.Sequential:
        return nn.Sequential(
            Normalize(0.2860, 0.3530),
            *(nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 5, padding=2), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(1568, 10)),
        )

    same_state(build(FashionMNISTNet), build(published))


def test_the_digits_network_starts_as_it_always_has() -> None:
    def published() -> nn.Sequential:
        return nn.Sequential(
            *(Normalize(0.3053, 0.3760), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)),
        )

    same_state(build(DigitsNet), build(published))


def same_state(ours: nn.Module, published: nn.Module) -> None:
    state, expected = ours.state_dict(), published.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    size = {1568: 28, 256: 8}[list(expected.values())[-2].shape[1]]
    images = torch.rand(3, 1, size, size)
    torch.testing.assert_close(ours(images), published(images))


def test_cifar10_blocks_are_conv_relu_norm_and_no_relu_before_the_last_layer() -> None:
    kinds = [type(layer).__name__ for layer in CIFAR10Net()]
    unit = ["Conv2d", "ReLU", "BatchNorm2d"]
    block = [*unit, *unit, "MaxPool2d"]
    assert kinds == ["Normalize", *block, *block, *block, "Flatten", "Linear", "Linear"]


def test_resnet_keeps_the_size_of_the_image_where_torchvisions_stem_quarters_it() -> None:
    network = build(ResNet18).eval()[1]
    images = torch.rand(1, 3, 32, 32)
    early = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    assert early.shape == (1, 64, 32, 32)
    assert network.layer4(network.layer3(network.layer2(early))).shape == (1, 512, 4, 4)


@pytest.mark.parametrize("network", WITH_NORM)
def test_group_norm_sees_one_image_and_sends_no_buffers(network: type[nn.Module]) -> None:
    images = torch.rand(4, *SHAPES[network])
    for norm, alone in (("group", True), ("batch", False)):
        net = build(network, norm=norm).train()
        assert torch.allclose(net(images)[:2], net(images[:2]), atol=1e-4) == alone
        assert bool([k for k in net.state_dict() if "running" in k]) != alone


@pytest.mark.parametrize("network", WITH_NORM)
def test_another_norm_is_refused(network: type[nn.Module]) -> None:
    with pytest.raises(
        ConfigError, match=f"{network.__name__}: norm must be one of batch, group, got norm = layer"
    ):
        network(norm="layer")


@pytest.mark.parametrize(
    ("network", "mean", "std"),
    [
        (CIFAR10Net, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        (ResNet18, [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    ],
)
def test_each_channel_is_normalised_by_its_own_constants(network, mean, std) -> None:
    first = build(network)[0]
    pixels = torch.tensor(mean).view(3, 1, 1) + torch.tensor(std).view(3, 1, 1) * torch.ones(
        3, 2, 2
    )
    assert torch.allclose(first(pixels.unsqueeze(0)), torch.ones(1, 3, 2, 2))
    assert "0.mean" not in build(network).state_dict()


@pytest.mark.parametrize(
    "flags",
    [
        ["--model.model=FashionMNISTNet", "--model.model.norm=group", "--data=tiny.TinyImages"],
        [
            "--model.model=torchvision.models.MNASNet",
            "--model.model.alpha=0.1",
            "--model.model.num_classes=10",
            "--data=tiny.TinyColours",
        ],
        ["--model.model=tiny.NetWithBatchNorm", "--data=tiny.SmallImages"],
    ],
    ids=["group", "torchvision", "own"],
)
def test_any_network_is_a_class_path_away(flags: list[str]) -> None:
    quickstart = f"--config={ROOT / 'configs/quickstart.yaml'}"
    small = ["--trainer.max_epochs=1", "--trainer.federation.local_epochs=1"]
    fewer = ["--trainer.federation.num_clients=60", "--data.batch_size=4"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    assert main(["fit", quickstart, *flags, *small, *fewer, *quiet]) == 0


@pytest.mark.parametrize("network", SHAPES)
def test_channels_side_by_side_and_pooling_first_change_nothing_but_rounding(
    network: type[nn.Module],
) -> None:
    net = build(network).double()
    kernels = [p for p in net.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    layers = list(plain)
    for i, layer in enumerate(plain):
        if isinstance(layer, nn.MaxPool2d) and isinstance(plain[i + 1], nn.ReLU):
            layers[i : i + 2] = [plain[i + 1], layer]
    x = torch.rand(8, *SHAPES[network], dtype=torch.float64)
    expected = nn.Sequential(*layers)(x)
    torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-12)

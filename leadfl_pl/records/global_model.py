"""The network of a run, from its checkpoint alone."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser
from torch import nn

from leadfl_pl.core.errors import ConfigError
from leadfl_pl.records.checkpoints import read_checkpoint

NETWORK = "network"  # the key of a checkpoint that says how the network is made


def global_model(checkpoint: str | Path) -> nn.Module:
    """The network of a run that the command line started, with its global weights, to evaluate.

    Args:
        checkpoint: the file; see :func:`read_checkpoint`.

    Raises:
        ConfigError: the file cannot be used, or is of a run that Python code started, which alone
            knows how to make the network: ``FederatedClient.load_from_checkpoint`` takes it.
    """
    path = Path(checkpoint)
    content = read_checkpoint(path)
    if NETWORK not in content:
        raise ConfigError(
            f"checkpoint = {path} does not say how its network is made, since the command line did "
            "not start its run: use FederatedClient.load_from_checkpoint(checkpoint, model=...)"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, NETWORK)
    config = parser.parse_object({NETWORK: content[NETWORK]})
    network: nn.Module = parser.instantiate_classes(config)[NETWORK]
    weights = content["state_dict"].items()
    network.load_state_dict(
        {k.removeprefix("model."): v for k, v in weights if k.startswith("model.")}
    )
    return network.eval()

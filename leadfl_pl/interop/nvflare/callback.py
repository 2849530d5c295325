"""A client-side defense in the local training of any LightningModule."""

from __future__ import annotations

from contextlib import ExitStack

from lightning.pytorch import Callback, LightningModule, Trainer
from nvflare.client import get_site_name
from nvflare.client.lightning import FLCallback
from torch.nn.utils import parameters_to_vector

from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.rng import MAX_SEED, derive_seed
from leadfl_pl.core.vector import unflatten
from leadfl_pl.defenses import ClientDefense
from leadfl_pl.federation.plain_trainer import steps_left
from leadfl_pl.interop.local_steps import LocalSteps, require_hooked_defense

OWNER = "ClientDefenseCallback"


class ClientDefenseCallback(Callback):
    """Runs a defense in a client's training under ``flare.patch``; the module stays as it is.

    Between the model that a round starts from and the one that is sent, it follows the optimizer
    through ``torch.optim.optimizer``'s global hooks: the defense sees the global model before the
    first step, acts after every step, and changes the parameters if it changes what is sent.

    A :class:`~leadfl_pl.FederatedClient` has its defense as an argument and does without.

    Args:
        defense: any that needs nothing which an optimizer's hooks do not show: neither the initial
            model of the run, nor gradients at other parameters, nor where local epochs start.
        num_steps: I, how many steps of the optimizer a client takes in a round; as many as the
            Trainer says if not given. A client that takes another number of steps fails, unless
            it was not given and the defense does not ask for it.
        seed: of the noise, which is also a function of the round and of the name of the site.

    Raises:
        ConfigError: ``defense`` is no defense or needs the initial model; a number out of range.
            In training: the Trainer was not patched, or was given the callback afterwards; what
            the hooks cannot follow (LBFGS, a second optimizer, several learning rates).

    >>> from lightning import Trainer
    >>> from leadfl_pl import Contraction
    >>> trainer = Trainer(callbacks=[ClientDefenseCallback(Contraction(half_life=4.0))])
    """

    def __init__(self, defense: ClientDefense, num_steps: int | None = None, seed: int = 0) -> None:
        require_hooked_defense(OWNER, defense)
        if num_steps is not None:
            require_number(OWNER, "num_steps", num_steps, least=1, whole=True)
        require_number(OWNER, "seed", seed, least=0, most=MAX_SEED, whole=True)
        self.defense = defense
        self.num_steps = num_steps
        self.seed = seed
        self.steps: LocalSteps | None = None  # of a round
        self.following = ExitStack()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the model of the round is received."""
        self.steps = None
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        patches = [c for c in callbacks if isinstance(c, FLCallback)]
        if not patches or callbacks.index(patches[0]) < callbacks.index(self):
            raise ConfigError(
                f"{OWNER} must be among the Trainer's callbacks when flare.patch(trainer) is called"
            )
        self.patch = patches[0]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """In the first epoch of a round: the module has the global model."""
        if self.steps is not None:
            return
        named = {n: p for n, p in pl_module.named_parameters() if p.requires_grad}
        self.params = [p.detach() for p in named.values()]
        self.start = parameters_to_vector(self.params)  # (d,)
        noise = derive_seed(self.seed, f"noise/{get_site_name()}", self.patch.current_round)
        shapes = {name: p.shape for name, p in named.items()}
        estimated = self.num_steps is None
        count = steps_left(trainer) if estimated else self.num_steps
        self.steps = LocalSteps(OWNER, self.defense, shapes, count, noise, estimated)
        self.following.enter_context(self.steps.followed())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the model is sent."""
        self.following.close()
        assert self.steps is not None
        delta = parameters_to_vector(self.params) - self.start
        sent = self.steps.finish(delta)
        if not sent.equal(delta):  # else the sum would only round
            unflatten(self.start + sent, self.params)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.following.close()

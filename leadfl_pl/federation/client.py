"""The clients: LightningModules whose ``training_step`` is one local step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from leadfl_pl.core.errors import ConfigError, require_choice, require_number
from leadfl_pl.core.rng import derive_seed
from leadfl_pl.core.values import LocalStep, UncountedStep
from leadfl_pl.defenses import ClientDefense, NoDefense, check_update
from leadfl_pl.defenses.base import clones
from leadfl_pl.federation.plain_trainer import check_alone, steps_left
from leadfl_pl.metrics import CleanAccuracy
from leadfl_pl.records.checkpoints import check_weights

if TYPE_CHECKING:
    from typing_extensions import Self

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W), classes (B,)


class FederatedClient(LightningModule):
    """An honest client: local SGD on the cross-entropy, with a client-side defense.

    Works in any Lightning ``Trainer``, where the whole fit is one client's local training, and as
    the client of a :class:`~leadfl_pl.FederatedTrainer`, which runs it once for every client of a
    round. Optimization is manual, so that the defense can act between two local steps.

    Args:
        model: the network; images (B, C, H, W) to logits (B, classes).
        defense: what the client does besides SGD; nothing if not given.
        lr: learning rate eta, > 0.
        momentum: of SGD, in [0, 1).
        evaluation_mode: ``"train"`` evaluates with batch statistics and lets evaluation move
            BatchNorm's running buffers, as the released LeadFL code does; ``"eval"`` does not.

    Raises:
        ConfigError: ``lr`` or ``momentum`` out of range; no trainable parameter. In the fit of a
            plain Trainer: a defense beside a gradient scaler or with ``ckpt_path``; one that asks
            for the number of steps where the loader has no length and the Trainer no ``max_steps``.
    """

    def __init__(
        self,
        model: nn.Module,
        defense: ClientDefense | None = None,
        lr: float = 0.01,
        momentum: float = 0.0,
        evaluation_mode: Literal["eval", "train"] = "eval",
    ) -> None:
        super().__init__()
        require_number("model", "lr", lr, above=0)
        require_number("model", "momentum", momentum, least=0, below=1)
        require_choice("model", "evaluation_mode", evaluation_mode, ("eval", "train"))
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError(
                f"model.model = {type(model).__name__} must have trainable parameters, got none"
            )
        self.automatic_optimization = False
        self.model = model
        self.defense = defense or NoDefense()
        self.lr, self.momentum = float(lr), float(momentum)  # NumPy's would spoil checkpoints
        self.evaluation_mode = evaluation_mode
        self.clean_accuracy = CleanAccuracy()
        self._state: Any = None

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        params = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.SGD(params, lr=self.lr, momentum=self.momentum)

    @classmethod
    def like(cls, client: FederatedClient, **settings: Any) -> Self:
        """A client of this class on the network, the optimizer and the Trainer of another one.

        Args:
            client: the other one.
            settings: what the class takes besides a network, a learning rate and a momentum.
        """
        other = cls(client.model, lr=client.lr, momentum=client.momentum, **settings)
        other.trainer = client.trainer
        return other

    def start_round(
        self, noise_seed: int, num_steps: int | None, initial: list[Tensor] | None = None
    ) -> None:
        """Forgets what the defense remembers.

        Args:
            noise_seed: of the defense's noise.
            num_steps: I, how many local steps will follow; None: not known.
            initial: the run's first global model, for a defense that needs it; the network as it
                is if not given.
        """
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self._names = [n for n, _ in named]
        self._params: list[nn.Parameter] = [p for _, p in named]
        self._data = [p.detach() for p in self._params]
        needs = self.defense.needs_initial
        self._initial = clones(self._data) if needs and initial is None else initial
        device = self._data[0].device
        self._generator = torch.Generator(device).manual_seed(noise_seed)
        self._state = self.defense.start(self._names, self._data)
        self._step, self._num_steps = 0, num_steps
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self._loss_sum, self._loss_steps = torch.zeros((), dtype=wide, device=device), 0
        self.start_epoch()

    def start_epoch(self) -> None:
        """Says that the next local step is the first of a local epoch."""
        self._epoch_start = True

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One local step. Returns the loss () before it."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return self.local_step(batch, optimizer, self.manual_backward)

    def local_step(
        self,
        batch: Batch,
        optimizer: LightningOptimizer | torch.optim.Optimizer,
        backward: Callable[[Tensor], None],
    ) -> Tensor:
        """Gradient, optimizer step, defense. Returns the loss () before the step.

        Args:
            batch: images (B, C, H, W) and classes (B,).
            optimizer: of the network; Lightning's wrapper calls the hooks of a Trainer.
            backward: leaves the gradient of a loss in ``.grad``.
        """
        bare = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        optimizer.zero_grad()
        loss = self.compute_gradient(batch, backward)
        optimizer.step()
        with torch.no_grad():
            kind = LocalStep if self._num_steps is not None else UncountedStep
            self._state = self.defense.after_step(
                kind(
                    names=self._names,
                    params=self._data,
                    grads=self._gradients(),
                    lr=optimizer.param_groups[0]["lr"],
                    step=self._step,
                    num_steps=self._num_steps or 0,
                    epoch_start=self._epoch_start,
                    optimizer_step=bare.step,
                    generator=self._generator,
                    initial=self._initial,
                    gradient_at=partial(self.gradient_at, batch, backward),
                ),
                self._state,
            )
            self._loss_sum += loss
        self._step += 1
        self._loss_steps += 1
        self._epoch_start = False
        return loss

    def compute_gradient(self, batch: Batch, backward: Callable[[Tensor], None]) -> Tensor:
        """Leaves the gradient of the local loss in ``.grad`` and returns the loss ()."""
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        backward(loss)
        return loss.detach()

    def gradient_at(
        self, batch: Batch, backward: Callable[[Tensor], None], params: list[Tensor]
    ) -> list[Tensor]:
        """The gradient of the local loss at other parameters; what the pass moves is put back."""
        moved, before = [*self._data, *self.model.buffers()], [p.grad for p in self._params]
        kept = clones(moved)
        torch._foreach_copy_(self._data, params)
        for p in self._params:
            p.grad = None
        with torch.enable_grad():
            self.compute_gradient(batch, backward)
        gradients = self._gradients()
        torch._foreach_copy_(moved, kept)
        for p, g in zip(self._params, before, strict=True):
            p.grad = g
        return gradients

    def _gradients(self) -> list[Tensor]:
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self._params]

    def finish_round(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The update (d,) to send, the mean loss () over the local steps, the regulariser ()."""
        regulariser = self.defense.regulariser(self._state)
        if regulariser is None:
            regulariser = torch.zeros_like(self._loss_sum)
        sent = self.defense.finish(delta, self._generator)
        check_update(self.defense, delta, sent)
        return sent, self._loss_sum / self._loss_steps, regulariser

    def on_train_start(self) -> None:
        if not hasattr(self.trainer, "federation"):
            check_alone(self.trainer, self.defense)
        done = self.trainer.global_step  # not 0 in a later fit, such as a later round in NVFlare
        steps = steps_left(self.trainer)
        in_epoch = self.trainer.num_training_batches
        if steps is None and in_epoch < math.inf:  # the rounds of a fit without an end are epochs
            steps = int(in_epoch)
        seed = self.trainer.strategy.broadcast(torch.initial_seed())  # the same noise on each rank
        self.start_round(derive_seed(seed, "noise", done), steps)

    def on_train_epoch_start(self) -> None:
        self.start_epoch()
        self._loss_sum, self._loss_steps = torch.zeros_like(self._loss_sum), 0

    def on_train_epoch_end(self) -> None:
        if not hasattr(self.trainer, "federation"):  # which logs that of its round
            self.log("train/loss", self._loss_sum / self._loss_steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        try:
            trainer = self.trainer
        except RuntimeError:  # without one
            which = "the checkpoint"
        else:
            which = f"ckpt_path = {trainer.ckpt_path}"
            trainer.precision_plugin.convert_module(self)  # before float64 is copied into it
        check_weights(checkpoint, self, which)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, stage: str) -> None:
        x, y = batch
        self.clean_accuracy.update(self(x), y)
        self.log(f"{stage}/clean_accuracy", self.clean_accuracy, batch_size=len(y))

    def on_validation_model_eval(self) -> None:
        self.train(self.evaluation_mode == "train")

    on_test_model_eval = on_validation_model_eval

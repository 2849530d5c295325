"""A client-side defense inside a Flower ``ClientApp``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from flwr.app import ArrayRecord, Context, Error, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.constant import ErrorCode
from torch import Tensor

from leadfl_pl.core.errors import ConfigError, require_number
from leadfl_pl.core.rng import MAX_SEED, derive_seed
from leadfl_pl.core.vector import unflatten
from leadfl_pl.defenses import ClientDefense
from leadfl_pl.interop.local_steps import LocalSteps, require_hooked_defense
from leadfl_pl.interop.states import StateNames, flatten

MOD = "client_defense_mod"
StepCount: TypeAlias = int | Callable[[Message, Context], int]


def client_defense_mod(
    defense: ClientDefense, num_steps: StepCount | None = None, seed: int = 0
) -> Mod:
    """A Flower mod that runs a defense in a client's training, whose code stays as it is.

    While the ``train`` function runs, the mod follows its torch optimizer through
    ``torch.optim.optimizer``'s global hooks: the defense sees the global model before the first
    step, acts after every step, and changes the arrays of the reply if it changes what is sent.
    Other messages than those of type ``train`` pass through.

    Args:
        defense: any that needs nothing which an optimizer's hooks do not show: neither the initial
            model of the run, nor gradients at other parameters, nor where local epochs start.
        num_steps: I, how many steps of the optimizer a client takes in a round, or a function of
            the message and the context that gives it, e.g. of a number in the message's
            ``ConfigRecord``. A defense that does not ask for it, such as ``LeadFL``, works
            without; ``Contraction`` asks. A client that takes another number of steps fails.
        seed: of the noise, which is also a function of the message's ``server-round`` and of the
            context's ``partition-id`` (the node's id where there is none).

    Raises:
        ConfigError: ``defense`` is no defense or needs the initial model; a number out of range.
            In a client, its sentence is the reply's ``Error``: for a message or a reply without
            exactly one ``ArrayRecord``, and for training that the hooks cannot follow (LBFGS, a
            second optimizer, several learning rates, parameters without names).

    >>> from flwr.clientapp import ClientApp
    >>> from leadfl_pl import Contraction
    >>> app = ClientApp(mods=[client_defense_mod(Contraction(half_life=4.0), num_steps=190)])
    """
    require_hooked_defense(MOD, defense)
    if not (num_steps is None or callable(num_steps)):
        require_number(MOD, "num_steps", num_steps, least=1, whole=True)
    require_number(MOD, "seed", seed, least=0, most=MAX_SEED, whole=True)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        try:
            return defended(message, context, call_next)
        except ConfigError as error:  # as Flower's own mods answer
            failed = Error(ErrorCode.MOD_FAILED_PRECONDITION, str(error))
            return Message(failed, reply_to=message)

    def defended(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type.split(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        _, before = the_arrays(message, "message")
        model = before.to_torch_state_dict()
        names = StateNames.of(model).parameters
        count = num_steps(message, context) if callable(num_steps) else num_steps
        if count is not None:
            require_number(MOD, "num_steps", count, least=1, whole=True)
        client = int(context.node_config.get("partition-id", context.node_id))
        steps = LocalSteps(
            MOD,
            defense,
            {name: model[name].shape for name in names},
            count,
            derive_seed(seed, "noise", server_round(message), client),
        )
        with steps.followed():
            reply = call_next(message, context)
        if not reply.has_error():
            key, after = the_arrays(reply, "reply")
            reply.content[key] = sent_arrays(steps, model, after.to_torch_state_dict(), names)
        return reply

    return mod


def sent_arrays(
    steps: LocalSteps, model: Mapping[str, Tensor], trained: dict[str, Tensor], names: list[str]
) -> ArrayRecord:
    """The trained model, with the update of its parameters as the defense sends it."""
    shapes = {name: t.shape for name, t in model.items()}
    if {name: t.shape for name, t in trained.items()} != shapes:
        raise ConfigError(
            f"{MOD} needs a reply whose arrays have the names and the shapes of the message's"
        )
    start = flatten(model, names)
    delta = flatten(trained, names) - start
    sent = steps.finish(delta)
    if not sent.equal(delta):  # else the sum would only round
        unflatten(start + sent, [trained[name] for name in names])
    return ArrayRecord(trained)


def the_arrays(message: Message, kind: str) -> tuple[str, ArrayRecord]:
    """The one ``ArrayRecord`` of a message and its key."""
    records = list(message.content.array_records.items())
    if len(records) != 1 or not records[0][1]:
        raise ConfigError(
            f"{MOD} needs a {kind} with one ArrayRecord that holds the model, got {len(records)} "
            f"with {sum(len(record) for _, record in records)} arrays"
        )
    ((key, arrays),) = records
    return key, arrays


def server_round(message: Message) -> int:
    """The round that Flower's strategies write into a message."""
    rounds = [c["server-round"] for c in message.content.config_records.values()
              if "server-round" in c]  # fmt: skip
    if len(rounds) != 1 or not isinstance(rounds[0], int):
        raise ConfigError(
            f"{MOD} needs the round, a whole number under server-round in the message's "
            f"ConfigRecord, as FedAvg writes it, got {rounds}"
        )
    return rounds[0]

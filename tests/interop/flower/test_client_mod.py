"""The mod of a ClientApp: what it does to a training loop is what one would write by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import flower_process  # noqa: F401
import local_training
import pytest
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from local_training import GLOBAL, LR, STEPS, Halved, ReadsInitial, batches, network, same
from torch import Tensor, nn

import leadfl_pl as fl
from leadfl_pl.core.rng import derive_seed
from leadfl_pl.interop.flower import client_defense_mod

ROUND = 3
Loop = Callable[[nn.Module, int], None]


def plain_loop(model: nn.Module, client: int, **optimizer: float) -> None:
    """What a user of Flower has."""
    sgd = torch.optim.SGD(model.parameters(), lr=LR, **optimizer)
    for x, y in batches(client):
        sgd.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sgd.step()


def app(loop: Loop, *mods: object) -> ClientApp:
    client_app = ClientApp(mods=list(mods))

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        model = network()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        loop(model, context.node_config["partition-id"])
        content = RecordDict({"arrays": ArrayRecord(model.state_dict())})
        return Message(content, reply_to=message)

    @client_app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    return client_app


def ask(client_app: ClientApp, client: int = 2, kind: str = "train", **records: object) -> Message:
    records = {
        "arrays": ArrayRecord(GLOBAL),
        "config": ConfigRecord({"server-round": ROUND}),
    } | records
    content = RecordDict({key: record for key, record in records.items() if record is not None})
    message = Message(content=content, dst_node_id=1, message_type=kind)
    context = Context(1, 77, {"partition-id": client}, RecordDict(), {})
    return client_app(message, context)


def trained(client_app: ClientApp, client: int = 2) -> dict[str, Tensor]:
    return ask(client_app, client).content["arrays"].to_torch_state_dict()


def by_hand(defense: fl.ClientDefense, client: int = 2, momentum: float = 0) -> dict[str, Tensor]:
    seed = derive_seed(0, "noise", ROUND, client)
    return local_training.by_hand(defense, seed, client, GLOBAL, momentum)


@pytest.mark.parametrize(
    "defense",
    [
        fl.LeadFL(alpha=5.0),
        fl.LeadFL(parameters="weights"),
        fl.Contraction(half_life=1.0),
        fl.LDP(parameters="weights"),
        fl.FLWBC(),
        fl.FedProx(mu=2.0),
    ],
    ids=lambda defense: type(defense).__name__,
)
def test_a_defense_is_what_it_is_by_hand_to_the_bit(defense: fl.ClientDefense) -> None:
    result = trained(app(plain_loop, client_defense_mod(defense, num_steps=STEPS)))
    assert same(result, by_hand(defense))
    assert not same(result, trained(app(plain_loop)))


def test_without_a_defense_the_reply_is_flowers_own_to_the_bit() -> None:
    assert same(
        trained(app(plain_loop, client_defense_mod(fl.NoDefense()))), trained(app(plain_loop))
    )


def test_momentum_stays_the_optimizers() -> None:
    defense = fl.LeadFL(alpha=5.0)

    def loop(model: nn.Module, client: int) -> None:
        plain_loop(model, client, momentum=0.9)

    assert same(trained(app(loop, client_defense_mod(defense))), by_hand(defense, momentum=0.9))


def test_the_number_of_steps_may_come_with_the_message() -> None:
    def count(message: Message, context: Context) -> int:
        return message.content["config"]["steps"] * context.node_config["partition-id"]

    mod = client_defense_mod(fl.Contraction(1.0), num_steps=count)
    config = ConfigRecord({"server-round": ROUND, "steps": STEPS // 2})
    result = ask(app(plain_loop, mod), config=config).content["arrays"].to_torch_state_dict()
    assert same(result, by_hand(fl.Contraction(1.0)))


def test_finish_changes_the_parameters_that_are_sent_and_nothing_else() -> None:
    start, plain = network().state_dict(), trained(app(plain_loop))
    sent = trained(app(plain_loop, client_defense_mod(Halved())))
    for name in sent:
        is_parameter = name in dict(network().named_parameters())
        half = start[name] + 0.5 * (plain[name] - start[name])
        assert sent[name].equal(half if is_parameter else plain[name])
    assert list(sent) == list(start)


def test_clients_in_several_threads_take_turns() -> None:
    client_app = app(plain_loop, client_defense_mod(fl.LDP(), num_steps=STEPS))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda c: trained(client_app, c), range(4)))
    assert all(same(state, by_hand(fl.LDP(), c)) for c, state in enumerate(together))


def test_a_step_in_another_thread_is_not_the_clients() -> None:
    def loop(model: nn.Module, client: int) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(plain_loop, network(), 0).result()
        plain_loop(model, client)

    defense = fl.Contraction(half_life=1.0)
    assert same(trained(app(loop, client_defense_mod(defense, STEPS))), by_hand(defense))


def test_names_come_from_the_optimizer_where_it_has_them() -> None:
    """Without them, biases before weights could not be told from the message."""

    def loop(model: nn.Module, client: int) -> None:
        named = sorted(model.named_parameters(), key=lambda pair: pair[1].ndim)
        groups = [{"params": named[:4]}, {"params": named[4:]}]
        sgd = torch.optim.SGD(groups, lr=LR)
        for x, y in batches(client):
            sgd.zero_grad()
            F.cross_entropy(model(x), y).backward()
            sgd.step()

    defense = fl.LeadFL(parameters="weights")
    assert same(trained(app(loop, client_defense_mod(defense))), by_hand(defense))


def test_a_new_optimizer_in_every_local_epoch_is_the_same_one() -> None:
    def loop(model: nn.Module, client: int) -> None:
        for x, y in batches(client):
            sgd = torch.optim.SGD(model.parameters(), lr=LR)
            sgd.zero_grad()
            F.cross_entropy(model(x), y).backward()
            sgd.step()

    defense = fl.LeadFL(alpha=5.0)
    assert same(trained(app(loop, client_defense_mod(defense))), by_hand(defense))


def test_the_hooks_are_gone_afterwards_also_after_an_error() -> None:
    def loop(model: nn.Module, client: int) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        ask(app(loop, client_defense_mod(fl.Contraction(), num_steps=1)))
    model = network()
    plain_loop(model, 2)
    assert same(model.state_dict(), trained(app(plain_loop)))


def test_other_messages_pass_through() -> None:
    reply = ask(app(plain_loop, client_defense_mod(fl.LeadFL())), kind="query", arrays=None)
    assert "config" in reply.content


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([fl.LeadFL], "defense must be a ClientDefense such as LeadFL(), got type"),
        ([ReadsInitial()], "defense must not need the run's initial model.*, got ReadsInitial"),
        ([fl.LeadFL(), 0], "num_steps must be >= 1, got num_steps = 0"),
        ([fl.LeadFL(), 2.5], "num_steps must be a whole number, got num_steps = 2.5"),
        ([fl.LeadFL(), None, -1], "seed must be >= 0, got seed = -1"),
    ],
)
def test_bad_settings_are_one_sentence(arguments: list, sentence: str) -> None:
    sentence = sentence.replace("()", r"\(\)")
    with pytest.raises(fl.ConfigError, match=f"client_defense_mod.{sentence}"):
        client_defense_mod(*arguments)


def two_rates(model: nn.Module, client: int) -> None:
    params = list(model.parameters())
    groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:]}]
    torch.optim.SGD(groups, lr=LR).step()


def lbfgs(model: nn.Module, client: int) -> None:
    torch.optim.LBFGS(model.parameters()).step(lambda: torch.zeros(()))


def head_only(model: nn.Module, client: int) -> None:
    torch.optim.SGD(model[3].parameters(), lr=LR).step()


def head_after_body(model: nn.Module, client: int) -> None:
    torch.optim.SGD(model.parameters(), lr=LR).step()
    head_only(model, client)


def no_step(model: nn.Module, client: int) -> None:
    pass


@pytest.mark.parametrize(
    ("loop", "defense", "sentence"),
    [
        (plain_loop, fl.Contraction(), "num_steps must be the number of local steps.*got num_s"),
        (plain_loop, fl.SAM(), "must ask for no gradient at other parameters, got SAM"),
        (plain_loop, fl.LDP(formulation="released"), "must not ask where local epochs start"),
        (two_rates, fl.LeadFL(), "needs one learning rate for all parameters, got 0.* and 0"),
        (lbfgs, fl.LeadFL(), "takes one gradient a step, such as SGD, got LBFGS"),
        (head_only, fl.LeadFL(), "cannot tell the names .* give the optimizer model.named_p"),
        (head_after_body, fl.LeadFL(), "follows one optimizer a client, got a second one"),
        (no_step, fl.LeadFL(), "saw no step of a torch optimizer"),
    ],
)
def test_what_cannot_be_followed_is_answered_with_one_sentence(
    loop: Loop, defense: fl.ClientDefense, sentence: str
) -> None:
    reply = ask(app(loop, client_defense_mod(defense)))
    assert reply.has_error()
    assert re.search(sentence, reply.error.reason)


def test_another_number_of_steps_than_was_said_is_answered() -> None:
    reply = ask(app(plain_loop, client_defense_mod(fl.Contraction(), num_steps=3)))
    assert reply.error.reason == (
        "client_defense_mod.num_steps must be 4, which is how many steps the optimizer took, "
        "got num_steps = 3"
    )


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ({"arrays": None}, "a message with one ArrayRecord that holds the model, got 0"),
        ({"arrays": ArrayRecord()}, "a message with one ArrayRecord.*, got 1 with 0 arrays"),
        ({"more": ArrayRecord(network().state_dict())}, "a message with one ArrayRecord.*, got 2"),
        ({"config": None}, "needs the round, a whole number under server-round"),
    ],
)
def test_a_message_that_lacks_something_is_answered_with_one_sentence(
    records: dict, sentence: str
) -> None:
    reply = ask(app(plain_loop, client_defense_mod(fl.LeadFL())), **records)
    assert re.search(sentence, reply.error.reason)


def test_a_reply_of_other_arrays_is_answered_with_one_sentence() -> None:
    client_app = ClientApp(mods=[client_defense_mod(fl.LeadFL())])

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"a": ArrayRecord({"w": torch.ones(1)})}), reply_to=message)

    assert "the names and the shapes of the message's" in ask(client_app).error.reason

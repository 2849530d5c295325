# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---


# %% [markdown]
# # The defenses and the rules inside Flower
#
# A federation that already runs in [Flower](https://flower.ai) keeps its code: on the clients a
# defense of this package is a **mod** of the `ClientApp`, and on the server a rule is a
# **strategy**. This lesson runs the same small federation twice, as it is and with both, while one
# of its clients sends updates that are not numbers. It needs `pip install 'leadfl_pl[flower]'
# 'flwr[simulation]'`.

# %%
import logging
import os
import warnings

os.environ["RAY_DEDUP_LOGS"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.simulation import run_simulation
from sklearn.datasets import load_digits

import leadfl_pl as fl
from leadfl_pl.interop.flower import RobustStrategy, client_defense_mod

for name in ("flwr", "ray"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore")

# %% [markdown]
# ## A federation in Flower
#
# Six clients, each with a sixth of the digits, and an ordinary training function in Flower's
# Message API. Client 0 has diverged, or is malicious: what it sends is NaN.

# %%
CLIENTS, BATCH, ROUNDS = 6, 16, 3
IMAGES, LABELS = (torch.tensor(a) for a in load_digits(return_X_y=True))
IMAGES = IMAGES.float() / 16  # (1797, 64)


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def train(message: Message, context: Context) -> Message:
    """An epoch of SGD over the client's own digits."""
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    client = context.node_config["partition-id"]
    x, y = IMAGES[client::CLIENTS], LABELS[client::CLIENTS]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in torch.randperm(len(y)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    if client == 0:
        torch.nn.init.constant_(model[0].bias, float("nan"))
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(y)}),
    }
    return Message(RecordDict(content), reply_to=message)


def run(client_app: ClientApp, strategy: Strategy) -> list[float]:
    """Accuracy after each round."""
    accuracies = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = network()
        model.load_state_dict(arrays.to_torch_state_dict())
        accuracies.append(float((model(IMAGES).argmax(dim=1) == LABELS).float().mean()))
        return MetricRecord({"accuracy": accuracies[-1]})

    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        torch.manual_seed(0)
        initial = ArrayRecord(network().state_dict())
        strategy.start(grid, initial, num_rounds=ROUNDS, evaluate_fn=evaluate)

    client_app.train()(train)
    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}}
    run_simulation(server_app, client_app, num_supernodes=CLIENTS, backend_config=resources)
    return accuracies


# %% [markdown]
# ## As it is

# %%
plain = run(ClientApp(), FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS))
print([f"{a:.1%}" for a in plain])

# %% [markdown]
# One NaN is enough: from the first round on the model is NaN in every weight that client 0 spoilt,
# and takes every digit for the same one.
#
# ## With a rule and a defense
#
# `RobustStrategy` takes the place of `FedAvg`: it leaves out malformed replies with a warning that
# names the node, and makes one update of the others by any rule of this package.
# `client_defense_mod` runs a defense in the clients: it follows the optimizer through PyTorch's
# hooks, so `train` stays as it is. `Contraction` has to know how many local steps a round will
# have.


# %%
def local_steps(message: Message, context: Context) -> int:
    client = context.node_config["partition-id"]
    return -(-len(LABELS[client::CLIENTS]) // BATCH)


defense = client_defense_mod(fl.Contraction(half_life=8), local_steps)
strategy = RobustStrategy(fl.MultiKrum(f=1), fraction_evaluate=0.0, min_train_nodes=CLIENTS)
robust = run(ClientApp(mods=[defense]), strategy)
print([f"{a:.1%}" for a in robust])

# %%
figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
for name, values in (("FedAvg", plain), ("MultiKrum, Contraction", robust)):
    ax.plot(range(len(values)), [100 * v for v in values], "o-", label=name)
ax.legend(frameon=False)
_ = ax.set(xlabel="round", ylabel="accuracy (%)", ylim=(0, 100), xticks=range(ROUNDS + 1))

# %% [markdown]
# The guide "Inside Flower" of the documentation says what a mod can follow and what it refuses,
# and what becomes of integers and batch statistics.

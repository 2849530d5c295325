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
# # Client, rules and metrics in a Lightning project of your own
#
# The parts of this package work without its federation: a client is a LightningModule for any
# `Trainer`, a rule is a function of a matrix, and the metrics are torchmetrics. This lesson takes
# each into a plain Lightning project, and ends with a federated round written by hand.

# %%
import copy
import logging
import warnings

import matplotlib.pyplot as plt
import torch
from lightning import Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassF1Score

from leadfl_pl import (
    BackdoorAccuracy,
    BackdoorEvaluation,
    BackdoorLifespan,
    CleanAccuracy,
    FedAvg,
    FederatedClient,
    LeadFL,
    MaliciousClient,
    Median,
    PatternBackdoor,
    stack_states,
)

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings(
    "ignore", ".*isinstance.*LeafSpec.*|.*many workers.*|.*no `val_dataloader`.*"
)

# %% [markdown]
# ## Your data, your network, your Trainer
#
# Any loader of (images, classes) will do, and any network from images to logits.

# %%
pixels, classes = (torch.tensor(a) for a in load_digits(return_X_y=True))
everything = TensorDataset(pixels.float().view(-1, 1, 8, 8) / 16, classes)
rng = torch.Generator().manual_seed(0)
train_set, test_set = torch.utils.data.random_split(everything, [1437, 360], rng)
loaders = DataLoader(train_set, 32, shuffle=True), DataLoader(test_set, 360)

seed_everything(0, verbose=False)
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
quiet = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
attack = PatternBackdoor(target=8)
trainer = Trainer(max_epochs=5, callbacks=[BackdoorEvaluation(attack)], **quiet)
trainer.fit(FederatedClient(network, LeadFL(alpha=0.1, clip=0.2), lr=0.1), *loaders)
{name: round(float(value), 3) for name, value in trainer.callback_metrics.items()}

# %% [markdown]
# `FederatedClient` is one client's local training: `training_step` takes the gradient, steps, and
# lets the defense act. `BackdoorEvaluation` is a callback that measures the backdoor in the
# validation loop. Nobody has attacked here, so backdoor accuracy is what the pattern does to an
# honest model.
#
# ## The metrics alone

# %%
images, labels = next(iter(loaders[1]))
triggered, targets, counts = attack.trigger(images, labels)  # true 8s do not count
metrics = MetricCollection({"clean": CleanAccuracy(), "F1": MulticlassF1Score(num_classes=10)})
with torch.no_grad():
    print(metrics(network(images), labels))
    print(BackdoorAccuracy()(network(triggered), targets, counts))

# %% [markdown]
# How long a backdoor lives is a metric over rounds: it is told each round's backdoor accuracy and
# how many malicious clients took part.

# %%
lifespan = BackdoorLifespan(majority=5)
for accuracy, malicious in ((0.9, 6), (0.8, 0), (0.6, 0), (0.3, 0), (0.2, 0)):
    lifespan.update(accuracy, malicious)
lifespan.compute()

# %% [markdown]
# ## A round by hand
#
# Five clients, two of them malicious, train from the same weights with the `Trainer` above; a rule
# makes one update of theirs. `stack_states` turns state dicts into the rows that a rule takes, and
# leaves out malformed ones with a warning.

# %%
shards = torch.utils.data.random_split(train_set, [288, 288, 288, 288, 285], rng)
clients = [
    MaliciousClient(copy.deepcopy(network), attack, lr=0.1)
    if i < 2
    else FederatedClient(copy.deepcopy(network), LeadFL(alpha=0.1, clip=0.2), lr=0.1)
    for i in range(5)
]
before = network.state_dict()
updates = {}
for i, client in enumerate(clients):
    loader = DataLoader(shards[i], 16, shuffle=True)
    Trainer(max_epochs=15, **quiet).fit(client, loader)
    after = client.model.state_dict()
    updates[i] = {key: after[key] - before[key] for key in before}
updates[4].pop("1.bias")  # a client with another network

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    rows, senders = stack_states(updates, like=before)
print(caught[0].message)
print(rows.shape, "of the clients", senders)

# %%
for rule in (FedAvg(), Median()):
    merged = copy.deepcopy(network)
    flat = nn.utils.parameters_to_vector(merged.parameters()) + rule(rows)
    nn.utils.vector_to_parameters(flat, merged.parameters())
    with torch.no_grad():
        clean = CleanAccuracy()(merged(images), labels)
        backdoor = BackdoorAccuracy()(merged(triggered), targets, counts)
    print(f"{type(rule).__name__:8}  clean {clean:.1%}  backdoor {backdoor:.1%}")

# %%
figure, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
names = [f"client {i}{', malicious' if i < 2 else ''}" for i in senders]
ax.barh(names, rows.norm(dim=1), color=["tab:red" if i < 2 else "tab:blue" for i in senders])
ax.set(xlabel="L2 norm of the update")
ax.invert_yaxis()

# %% [markdown]
# With two malicious of four updates the coordinate-wise median is no better than luck: no rule
# sees who is malicious. What a federation adds to this loop, many rounds, attackers who return in
# bursts, all defenses, several devices, resuming to the bit, is what `FederatedTrainer` is for:
# see `01_quickstart.ipynb`.

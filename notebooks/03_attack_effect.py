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
# # The attack effect, made visible
#
# Backdoor accuracy says that an attack is still there. The report asks where: the **attack
# effect** $\delta_t = W_t - W_t^M$ is the difference between the global model of round $t$ and the
# model that the same federation would have without its attack. This lesson looks at what the
# attackers train on, measures $\delta_t$ with and without a defense, and sets it beside the
# report's estimate of it.

# %%
import logging
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from lightning import seed_everything

from leadfl_pl import (
    AttackEffect,
    AttackEffectEstimate,
    BurstySchedule,
    Contraction,
    Digits,
    DigitsNet,
    FedAvg,
    FederatedClient,
    FederatedTrainer,
    Federation,
    NoDefense,
    PatternBackdoor,
)
from leadfl_pl.records.rounds import read_run

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*isinstance.*LeafSpec.*")

# %% [markdown]
# ## The trigger
#
# A malicious client trains on its own images and on copies of them with a pattern of nine pixels,
# all labelled 8. `trigger` is what a test set is measured with.

# %%
data, attack = Digits(batch_size=4), PatternBackdoor(target=8)
data.prepare_data()
data.setup("fit")
images, labels = data.train_set.images[:6], data.train_set.labels[:6]
triggered, targets, _ = attack.trigger(images, labels)
figure, axes = plt.subplots(2, 6, figsize=(7, 2.6))
for column in range(6):
    for row, (x, y) in enumerate(((images, labels), (triggered, targets))):
        axes[row, column].imshow(x[column, 0], cmap="gray", vmin=0, vmax=1)
        axes[row, column].set_title(int(y[column]), fontsize="small")
        axes[row, column].axis("off")

# %% [markdown]
# Above, images with their labels; below, what the attackers add, with the label that they want.
#
# ## The same run without its attack
#
# `AttackEffect` runs that second federation, the **clean twin**, beside the run: same seed, same
# clients in each round, same order of images, but the malicious clients train honestly. It changes
# nothing of the run. `AttackEffectEstimate` adds the report's equation (2), which carries
# $\delta_t$ from one round to the next by products of $(I - \eta H)$ along the clients' steps.
#
# Equations (1) and (2) are about the mean of all updates, so the rule here is `FedAvg`. One burst
# of two rounds, then eight rounds without attackers.

# %%
federation = Federation(
    aggregator=FedAvg(),
    schedule=BurstySchedule(period=10, burst=2, num_malicious=6),
    attack=attack,
    local_epochs=2,
)
for name, defense in (("none", NoDefense()), ("contraction", Contraction(half_life=4))):
    seed_everything(0, verbose=False)
    trainer = FederatedTrainer(
        federation,
        max_epochs=10,
        accelerator="cpu",
        devices=1,
        default_root_dir=f"runs/{name}",
        callbacks=[AttackEffect(), AttackEffectEstimate()],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(FederatedClient(DigitsNet(), defense, lr=0.1), datamodule=data)

# %%
runs = {n: pd.DataFrame(read_run(Path("runs") / n).rows) for n in ("none", "contraction")}
figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for name, rows in runs.items():
    axes[0].plot(rows["round"], 100 * rows["val/backdoor_accuracy"], "o-", ms=3, label=name)
    axes[1].plot(rows["round"], rows["attack_effect/norm"], "o-", ms=3, label=name)
    axes[2].plot(rows["round"], rows["attack_effect/exact/error"], "o-", ms=3, label=name)
flat = runs["none"]["attack_effect/flat/error"]
axes[2].plot(runs["none"]["round"], flat, "x:", color="0.5", ms=4, label="none, H = 0")
titles = ("backdoor accuracy (%)", r"$\Vert\delta_t\Vert$", "relative error of equation (2)")
for ax, title in zip(axes, titles, strict=True):
    ax.axvspan(-0.5, 1.5, color="0.9", zorder=0)
    ax.set(title=title, xlabel="round", ylim=(0, None))
    ax.legend(frameon=False, fontsize="small")

# %% [markdown]
# In the grey rounds the attackers are the majority. What to see:
#
# - **Left and middle are not the same.** Backdoor accuracy falls while $\Vert\delta_t\Vert$ falls
#   less, or not at all: most of the difference between the two models is not the backdoor. Two
#   networks that differ drift apart by themselves.
# - `Contraction` shrinks the honest clients' weights by half in four rounds, and $\delta_t$ with
#   them. For a convex loss that is a theorem; for this network it is what the middle curve
#   measures.
# - **Right**: how far equation (2) is from the measured effect, one round ahead, with exact
#   Hessian-vector products. The dotted line takes the Hessian to be zero, which is what any
#   estimate of it has to beat.
#
# The half-life is a column as well, fitted to the norms since the last attacked round. There is
# none where the effect does not shrink.

# %%
pd.DataFrame(
    {
        name: rows.set_index("round").get("attack_effect/half_life", pd.Series(dtype=float))
        for name, rows in runs.items()
    }
).round(1)

# %% [markdown]
# ## Layer by layer
#
# The same, by layer: where does the attack sit?

# %%
layers = [c for c in runs["none"] if c.startswith("attack_effect/norm/")]
last = pd.DataFrame({name: rows[layers].iloc[-1] for name, rows in runs.items()})
last.index = [name.removeprefix("attack_effect/norm/") for name in last.index]
last.round(3)

# %% [markdown]
# On the command line this is `--diagnostics configs/diagnostics/attack_effect_estimate.yaml`; the
# numbers are columns of `rounds.csv`. `results/README.md` has them over five seeds and eight
# defenses, and on FashionMNIST.

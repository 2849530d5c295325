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
# # Figure 1, from the committed runs and again
#
# Figure 1 of the report shows how long a backdoor lives: six of ten clients of a round are
# malicious in the first two of every ten rounds, nobody is in the other eight, and each defense
# has its own curve. The runs behind such a figure are in the repository: a file `rounds.csv` with
# a row for each round, and a file `run.json` with the command that makes it again. This lesson
# reads them, draws the figure from them, and makes a smaller one from runs of its own. All of it
# runs in a minute.

# %%
import logging
import warnings
from pathlib import Path

import pandas as pd
import yaml
from IPython.display import Image, Markdown, display

import leadfl_pl
from leadfl_pl.cli.experiment import main as experiment
from leadfl_pl.cli.report import main as report
from leadfl_pl.records.rounds import read_run

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*isinstance.*LeafSpec.*|.*ipywidgets.*")

CHECKOUT = Path(leadfl_pl.__file__).parents[1]  # of the repository, with results/ and configs/

# %% [markdown]
# ## The committed runs
#
# Three runs of FashionMNIST, 20 rounds with two bursts, seed 0. `read_run` reads a run's record.

# %%
folders = [CHECKOUT / "results/contraction20" / name for name in ("none", "leadfl", "contraction")]
run = read_run(folders[2])
print(run.provenance["command"])
print("commit", run.provenance["commit"], "seed", run.provenance["seed"])
columns = ["round", "round/malicious_sampled", "val/clean_accuracy", "val/backdoor_accuracy"]
pd.DataFrame(run.rows)[columns].head(5).round(3)

# %% [markdown]
# That command in a checkout, on the same kind of processor, writes the same digits; so whoever
# doubts a number can have it again. `leadfl-pl report`, here as a function, puts runs side by
# side.

# %%
_ = report([*map(str, folders), "-o", "runs/figure1"])
display(Image("runs/figure1/comparison.png", width=900))

# %% [markdown]
# In the shaded rounds the malicious clients are the majority. Undefended, the second burst meets a
# backdoor that the first one left. LeadFL forgets it faster, and pays with clean accuracy.
# `Contraction` brings it below 50 % in three rounds after the first burst, in one after the second.
#
# One seed says little about two curves that lie close. The repository has settings over several
# seeds as well, in tables with intervals:

# %%
display(Markdown((CHECKOUT / "results/front_fashionmnist/leaderboard.md").read_text()))

# %% [markdown]
# These are each method's best setting among those that cost at most three points of clean
# accuracy, in one period of ten rounds.
#
# ## Again, from runs of your own
#
# FashionMNIST takes minutes a run; the digits that come with scikit-learn take seconds. An
# **experiment** is a file: a base configuration, axes with the settings to compare, and seeds.

# %%
_ = Path("figure1.yaml").write_text(
    yaml.safe_dump(
        {
            "base": str(CHECKOUT / "configs/quickstart.yaml"),
            "set": {"trainer.max_epochs": 12, "trainer.federation.execution": "vectorised"},
            "axes": {
                "defense": [
                    {"label": "none", "model.defense": "NoDefense"},
                    {"label": "LeadFL", "model.defense": "LeadFL"},
                    {"label": "Contraction", "model.defense": "Contraction"},
                ]
            },
            "seeds": [0, 1],
            "figures": ["rounds"],
        },
        sort_keys=False,
    )
)

# %% [markdown]
# `run` trains every combination, as many at a time as there are cores (one on a GPU), and does not
# run again what it finds finished: call it twice and the second call returns at once. `report`
# makes the table, the figures, and a page `report.html` out of them. In a terminal these are
# `leadfl-pl experiment run figure1.yaml` and `leadfl-pl experiment report figure1.yaml`.

# %%
_ = experiment(["run", "figure1.yaml", "--jobs", "2"])
_ = experiment(["report", "figure1.yaml", "-o", "runs/report"])

# %%
display(Image("runs/report/rounds.png", width=900))
display(Markdown(Path("runs/report/table.md").read_text()))

# %% [markdown]
# A line is the mean over the seeds and the band its 95 % interval. With two seeds that is the
# range, which is why the committed experiments have five wherever the hours allow it.
# `runs/report/report.html` opens in a browser and needs no network: a click on a number shows the
# commands that it is made of.
#
# To go on:
#
# - Add a defense: one more line under `defense`, and only its runs are new.
# - `configs/experiments/figure1.yaml` is the figure at the report's length, 80 rounds of
#   FashionMNIST.
# - `configs/experiments/figure1_seeds.yaml` has five seeds of it, shorter, and attackers at
#   random.

"""Train federations under attack, defend, measure and compare, with PyTorch Lightning."""

from leadfl_pl.aggregators import (
    Aggregator,
    Bulyan,
    FedAvg,
    Krum,
    MultiKrum,
    ReleasedBulyan,
)
from leadfl_pl.attacks import Attack, PatternBackdoor
from leadfl_pl.callbacks import BackdoorEvaluation, RoundProgressBar, RunReport
from leadfl_pl.client import FederatedClient, LeadFLClient, MaliciousClient
from leadfl_pl.data import IID, Digits, FashionMNIST, FederatedDataModule, ImageSet, Split
from leadfl_pl.defenses import FLWBC, LDP, ClientDefense, LeadFL, NoDefense, leadfl_gradient
from leadfl_pl.federation import Federation
from leadfl_pl.metrics import AverageOverRounds, BackdoorAccuracy, CleanAccuracy, MaliciousSelected
from leadfl_pl.models import DigitsNet, FashionMNISTNet
from leadfl_pl.schedules import (
    BurstySchedule,
    FixedSchedule,
    ForcedRounds,
    RandomSchedule,
    ReleasedSchedule,
    Schedule,
)
from leadfl_pl.strategy import FederatedStrategy
from leadfl_pl.trainer import FederatedTrainer
from leadfl_pl.types import ClientUpdate, Cohort, ConfigError, LocalStep, Population
from leadfl_pl.version import __version__

__all__ = [
    "FLWBC",
    "IID",
    "LDP",
    "Aggregator",
    "Attack",
    "AverageOverRounds",
    "BackdoorAccuracy",
    "BackdoorEvaluation",
    "Bulyan",
    "BurstySchedule",
    "CleanAccuracy",
    "ClientDefense",
    "ClientUpdate",
    "Cohort",
    "ConfigError",
    "Digits",
    "DigitsNet",
    "FashionMNIST",
    "FashionMNISTNet",
    "FedAvg",
    "FederatedClient",
    "FederatedDataModule",
    "FederatedStrategy",
    "FederatedTrainer",
    "Federation",
    "FixedSchedule",
    "ForcedRounds",
    "ImageSet",
    "Krum",
    "LeadFL",
    "LeadFLClient",
    "LocalStep",
    "MaliciousClient",
    "MaliciousSelected",
    "MultiKrum",
    "NoDefense",
    "PatternBackdoor",
    "Population",
    "RandomSchedule",
    "ReleasedBulyan",
    "ReleasedSchedule",
    "RoundProgressBar",
    "RunReport",
    "Schedule",
    "Split",
    "__version__",
    "leadfl_gradient",
]

"""A run on two processes, the second of which gets SIGTERM; started by test_signals.py."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from resumed import fit
from test_signals import Send

if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(5, callbacks=[Send(signal.SIGTERM, round=1, rank=1)], devices=2)

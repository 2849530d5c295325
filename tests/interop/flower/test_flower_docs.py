"""The example of docs/guides/flower.md, which is a run of Flower's simulation engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("ray", reason="flwr[simulation] is not installed")

GUIDE = (ROOT / "docs/guides/flower.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_example_learns_beside_a_client_that_sends_nan() -> None:
    Path("example.py").write_text(EXAMPLE)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    command = [sys.executable, "example.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split("accuracy ")[1].split()[0]) > 0.7
    left_out = r"client \d+ in round (\d) is rejected: it has 32 entries that are not finite"
    assert re.findall(left_out, done.stderr) == list("12345")

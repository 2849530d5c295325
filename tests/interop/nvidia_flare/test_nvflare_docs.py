"""The examples of docs/guides/nvflare.md, one of which is a run of NVFlare's simulator."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

GUIDE = (ROOT / "docs/guides/nvflare.md").read_text()
*FILES, TRAINER, TOLERANT = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def simulated(**replaced: tuple[str, str]) -> str:
    """What the job says in the end, after a change of its files by name."""
    for block in FILES:
        name = re.match(r"# (\w+)\.py\n", block)[1]
        old, new = replaced.get(name, ("", ""))
        assert old in block
        Path(f"{name}.py").write_text(block.replace(old, new) if old else block)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "job.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=570)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_example_learns_beside_a_site_that_sends_nan() -> None:
    said = simulated()
    assert float(said.splitlines()[-1].removeprefix("accuracy ")) > 0.7
    left_out = r"site-(\d) in round (\d) is rejected: it has 2410 entries that are not finite"
    log = Path("simulation/digits/server/log.txt").read_text()
    assert re.findall(left_out, log) == [("3", "0"), ("3", "1"), ("3", "2")]


def test_the_tolerant_recipe_goes_on_without_a_site_that_raises() -> None:
    Path("tolerant.py").write_text(TOLERANT)
    import_ = "from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe"
    said = simulated(
        client=('images = images * float("nan")', "raise RuntimeError('out of battery')"),
        job=(import_, "from tolerant import Tolerant as FedAvgRecipe"),
    )
    assert float(said.splitlines()[-1].removeprefix("accuracy ")) > 0.7
    assert "Ignore the result from site-3" in Path("simulation/digits/server/log.txt").read_text()


def test_the_trainer_of_the_guide_is_one() -> None:
    exec(compile(TRAINER, "nvflare.md", "exec"), {"__name__": "block"})

"""Makes this a process that may write Flower's messages; skips what imports it without Flower."""

import os

import pytest

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
pytest.importorskip("flwr", reason="the extra flower is not installed")

from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

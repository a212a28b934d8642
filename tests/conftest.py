"""What every test has: its settings, and the fixtures of `support`."""

import os

import torch
from hypothesis import settings

pytest_plugins = [
    "support.golden",
    "support.memory",
    "support.merges",
    "support.progress",
    "support.rounding",
    "support.runtimes",
    "support.system",
    "support.tiny",
]

# Shared cores stand still for longer than Hypothesis's deadline; speed is no test's concern.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# The models here are tiny: on shared cores, threads that wait for each other made these tests five times slower.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

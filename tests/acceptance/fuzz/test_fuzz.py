"""Damaged inputs of five kinds, drawn from a seed: an error that says what is wrong, or a result; nothing else.

FUZZ_MINUTES=60 runs for so long instead of a fixed number of cases (`make fuzz MINUTES=60`), from a new seed or
FUZZ_SEED; FUZZ_CASE=videos:0:17 runs one case again.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
# As many as take about twenty seconds on one core.
CASES = {"checkpoints": 600, "tensors": 40, "profiles": 700, "bundles": 40, "videos": 800}
MINUTES = os.environ.get("FUZZ_MINUTES", "")
AGAIN = os.environ.get("FUZZ_CASE", "")
MOST = 20  # broken cases of a kind; more say nothing new


@pytest.fixture(scope="session")
def originals(tmp_path_factory, mini_bundle):
    """Whole inputs, which the cases damage copies of."""
    folder = tmp_path_factory.mktemp("originals")
    shutil.copytree(mini_bundle, folder / "mini.tempme")
    return folder


@pytest.fixture(scope="session")
def seed():
    """Nought for the fixed cases; what FUZZ_SEED says, or drawn, for a run by the clock."""
    return os.environ.get("FUZZ_SEED") or (secrets.randbelow(10**6) if MINUTES else 0)


def worker(kind, originals, scratch, seed, first, count, minutes):
    """One process; its replies, and its last words where it did not end well."""
    arguments = [kind, originals, scratch, seed, first, count, minutes]
    command = [sys.executable, WORKER, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, env=environment, cwd=scratch
    )
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    return replies, f"exit {done.returncode}: {done.stderr[-3000:]}" if done.returncode else ""


@pytest.mark.parametrize("kind", CASES)
def test_damage_is_refused_in_words(kind, originals, seed, tmp_path, capsys):
    first, count, minutes = 0, CASES[kind], str(float(MINUTES) / len(CASES)) if MINUTES else ""
    if AGAIN:
        chosen, seed, number = AGAIN.split(":")
        if chosen != kind:
            pytest.skip(f"FUZZ_CASE={AGAIN} is of another kind")
        first, count, minutes = int(number), int(number) + 1, ""
    outcomes, broken = Counter(), []
    while len(broken) < MOST:
        replies, last_words = worker(kind, originals, tmp_path, seed, first, count, minutes)
        begun = [reply["begins"] for reply in replies if "begins" in reply]
        ended = [reply for reply in replies if "case" in reply]
        outcomes.update(reply["verdict"] for reply in ended)
        broken += [f"{reply['case']}: {reply['said']}" for reply in ended if reply["verdict"] == "broken"]
        if not last_words:
            break
        assert begun, f"the worker could not begin: {last_words}"
        broken.append(f"{kind}:{seed}:{begun[-1]}: the process died, {last_words}")
        first = begun[-1] + 1
    if MINUTES:
        with capsys.disabled():
            sys.stdout.write(f"\n{kind}, seed {seed}: {dict(outcomes)}, {len(broken)} broken\n")
    assert not broken, "\n\n".join(
        [*broken, f"Inputs are kept in {tmp_path}; FUZZ_CASE=<kind:seed:number> repeats one."]
    )
    if not AGAIN:
        assert outcomes["refused"] and outcomes["accepted"], "damage that never or always shows tries nothing"

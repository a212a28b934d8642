"""Results documents as `tempme-bench --out` writes them: counts computed, times drawn from a seed."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tempme_export.bench.methods.catalogue import METHODS, policy_schedule
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.profile import load_profile

ROUNDS = 60
CPU = {"cpu": "Example CPU 8-Core", "threads": 2, "load_average": 0.31, "gpu": None, "driver": None}
VERSIONS = {"python": "3.11.9", "torch": "2.15.0", "onnxruntime": "1.23.0", "openvino": "2025.3.0", "tensorrt": None}
MILLISECONDS = {"original": 640.0, "torch": 410.0, "ort": 300.0, "openvino": 282.0}


class Bench:
    """Collects rows, comparisons and samples into a document."""

    def __init__(self, command, seed=0):
        self.command, self.generator, self.samples = command, np.random.default_rng(seed), []
        self.document = {
            "schema": 3, "rows": [], "comparisons": [], "missing": {}, "failed": {}, "tokens": [], "stages": [],
            "fits": [], "saturations": [], "complexity": [], "notes": [],
        }  # fmt: skip

    def compare(self, profile_name, candidates, batch=1, **changes):
        """`candidates` is name -> (method, backend, ms of one video); `changes` is candidate -> columns."""
        profile = load_profile(profile_name)
        backbone = open_clip_backbone(profile.backbone)
        taken, by_method = {}, len({method for method, _, _ in candidates.values()}) > 1
        shown = f"{profile.name}-{next(iter(candidates))}" if by_method else profile.name
        for position, (name, (method, backend, ms)) in enumerate(candidates.items()):
            policy = next(one for one in METHODS if one.key == method).policy(profile, backbone)
            schedule = policy_schedule(policy, profile, backbone)
            counted = complexity(schedule, backbone)
            own = f"{profile.name}-{method}" if by_method else profile.name
            taken[name] = batch * ms / 1e3 * self.generator.lognormal(0, 0.03, ROUNDS)
            row = self._row(profile, name, method, backend, batch, taken[name], next(iter(taken.values())))
            row |= {"profile": own, "gmacs": counted.gmacs, "gflops": counted.gflops}
            row |= {"final_clips": schedule.final_clips, "final_tokens": schedule.final_tokens}
            self.document["rows"].append(row | changes.get(name, {}))
            self.document["tokens"].append(
                {
                    "profile": own,
                    "method": method,
                    "frames": profile.frames,
                    "clips": [block.clips for block in schedule.blocks],
                    "attention": [block.tokens_attention for block in schedule.blocks],
                    "mlp": [block.tokens_mlp for block in schedule.blocks],
                }
            )
            self.samples += [(shown, batch, i, position, name, s) for i, s in enumerate(taken[name].tolist())]
        self.document["comparisons"].append(
            {
                "profile": shown,
                "frames": profile.frames,
                "batch": batch,
                "order": list(candidates),
                "warmup_windows": [25, 25, 25],
                "notes": [],
            }
        )

    def _row(self, profile, name, method, backend, batch, seconds, first):
        p50, p90, p99 = np.percentile(seconds, (50, 90, 99)) * 1e3
        ratio = float(np.median(first) / np.median(seconds))
        return {
            "candidate": name, "backend": backend, "method": method, "weights": "random weights, seed 0",
            "frames": profile.frames, "batch": batch, "precision": "fp32", "device": "cpu",
            "videos_per_s": float(batch / p50 * 1e3), "frames_per_s": float(batch * profile.frames / p50 * 1e3),
            "ratio": ratio, "ratio_low": ratio * 0.98, "ratio_high": ratio * 1.02,
            "p50_ms": float(p50), "p90_ms": float(p90), "p99_ms": float(p99),
            "mean_ms": float(np.mean(seconds) * 1e3), "cov": 0.03, "samples": ROUNDS, "warmup": 75,
            "converged": True, "half_width": 0.02, "steady": True,
            "resident_ms": None, "device_ms": None, "load_mb": 350.5, "encode_mb": 120.0 * batch, "device_mb": None,
            "build_s": None if backend in ("original", "torch") else 14.2, "load_s": 0.8,
            "one_minus_cosine": 0.0 if backend == "original" else 3.2e-8, "centred_loss": 0.0, "parity": True,
            "artifact_mb": None if backend in ("original", "torch") else 345.5,
            "artifact_sha256": None if backend in ("original", "torch") else "ab" * 32, "slowdown_percent": 0.0,
            **CPU, **VERSIONS, "commit": "0123456789abcdef0123456789abcdef01234567",
            "time": "2026-03-04T05:06:07+00:00", "command": self.command,
        }  # fmt: skip

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "bench.json").write_text(json.dumps(self.document))
        schema = ["profile", "batch", "round", "position", "candidate", "seconds"]
        pl.DataFrame(self.samples, schema=schema, orient="row").write_parquet(folder / "samples.parquet")
        return folder


def backends(times=MILLISECONDS, method="tempme", scale=1.0):
    return {name: (method, name, scale * ms) for name, ms in times.items()}


@pytest.fixture
def bench():
    """An empty document to fill: `bench(command)`."""
    return Bench


@pytest.fixture
def candidates():
    return backends


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Two results folders: backends over batches and frames with an end-to-end run, and methods on B/16 and B/32."""
    folder = tmp_path_factory.mktemp("results")
    one = Bench("tempme-bench --frames 8,12 --batch 1,4 --out one", seed=1)
    for frames in (8, 12):
        one.compare(f"vit-b-32-{frames}f", backends(scale=frames / 12))
    one.compare("vit-b-32-12f", backends(scale=0.9), 4, torch={"converged": False})
    one.document["missing"] = {"tensorrt": "this version builds and runs no TensorRT engines."}
    one.document["failed"] = {"pt2": "batch 1: embedding cosine distance is 2.1e-02, the limit 1e-05"}
    one.document["comparisons"][-1]["notes"] = ["42 samples, fewer than 200: one of original takes 2.6 s"]
    one.document["stages"] = [
        {
            "candidate": name, "batch": 1, "limit": "encode", "sequential_videos_per_s": 1e3 / (95 + 22 + encode),
            "overlapped_videos_per_s": 1e3 / encode, "videos": 1, "one_minus_cosine": 3.2e-8,
            **CPU, **VERSIONS, "command": "tempme-bench --mode end-to-end", "time": "2026-03-04T06:00:00+00:00",
            "notes": ["rendered.mp4: h264, 320x240, 10 s, 250 frames"],
            "rows": [
                {"stage": stage, "p50_ms": ms, "p90_ms": 1.1 * ms, "share": ms / (95 + 22 + encode),
                 "videos_per_s": 1e3 / ms}
                for stage, ms in (("decode", 95.0), ("preprocess", 22.0), ("encode", encode))
            ],
        }
        for name, encode in (("original", 640.0), ("ort", 300.0))
    ]  # fmt: skip
    one.document["fits"] = [
        {
            **{"candidate": "ort", "method": "tempme", "family": "vit-b-32", "frames": None, "batch": 1},
            **{"quantity": "p50_ms", "against": "frames", "form": "linear", "coefficients": [1.5, 24.8]},
            **{"low": [-3.0, 24.1], "high": [6.0, 25.5], "r2": 0.9991, "x": [8, 12, 16], "y": [200, 300, 398]},
        },
        {
            **{"candidate": "ort", "method": "tempme", "family": "vit-b-32", "frames": 12, "batch": None},
            **{"quantity": "encode_mb", "against": "batch", "form": "none", "coefficients": [], "low": [], "high": []},
            **{"r2": None, "x": [1, 4], "y": [120, 480], "reason": "2 points, a curve needs 3 or more"},
        },
    ]
    one.document["saturations"] = [
        {
            **{"candidate": "ort", "method": "tempme", "profile": "vit-b-32-12f", "frames": 12, "batch": 4},
            **{"videos_per_s": 3.7, "best_batch": 4, "best_videos_per_s": 3.7, "at_edge": True, "within_percent": 5.0},
        }
    ]
    two = Bench("tempme-bench --profile vit-b-16-12f --methods none,tome,tempme --out two", seed=2)
    for profile, scale in (("vit-b-16-12f", 4.0), ("vit-b-32-12f", 1.0)):
        milliseconds = {"none": 600.0, "tome": 465.0, "tempme": 420.0}
        two.compare(profile, {name: (name, "torch", scale * ms) for name, ms in milliseconds.items()})
    return one.write(folder / "one"), two.write(folder / "two")


@pytest.fixture(scope="session")
def chromium():
    """The browser's path; skips where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip(f"none of {', '.join(names)} is on the PATH")
    return found


@pytest.fixture
def browse(chromium, tmp_path):
    """Open a page in a headless browser with more options; returns its stdout."""

    def run(page: Path, *options: str) -> str:
        home = tmp_path / "browser"
        shutil.rmtree(home, ignore_errors=True)
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            f"--user-data-dir={home}", *options, page.resolve().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run

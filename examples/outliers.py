"""What 8 bits cost where activations have outliers: random weights with planted outliers, exported and verified.

    python examples/outliers.py [PROFILE [OPTION...]]

Writes `demo/outliers.pth`, drawn calibration clips and the bundle `demo/outliers.tempme`. PROFILE is vit-b-32-12f
unless given, which takes some minutes; options are those of `tempme-export`.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.random_weights import draw_state_dict
from tempme_export.parity.selftest import draw_clip
from tempme_export.quantization.calibration import CLIPS
from tempme_export.quantization.outliers import plant_outliers

FOLDER = Path("demo")
FIRST_SEED = 1000  # of the calibration clips; the self-test draws its own from 0 on


def main(name: str = "vit-b-32-12f", *options: str) -> int:
    """Returns tempme-export's exit code."""
    profile = load_profile(name)
    checkpoint, clips = FOLDER / "outliers.pth", FOLDER / "calibration.npz"
    FOLDER.mkdir(exist_ok=True)
    torch.save(plant_outliers(draw_state_dict(profile, seed=0), profile, seed=0), checkpoint)
    shape = profile.frames, open_clip_backbone(profile.backbone).image_size
    np.savez(clips, clips=np.stack([draw_clip("moving", *shape, FIRST_SEED + i) for i in range(CLIPS)]))
    command = [Path(sys.executable).with_name("tempme-export"), checkpoint, "--profile", name, "--precision", "int8"]
    command += ["--calibrate", clips, *options]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""From a checkpoint to a bundle, an embedding and a speed: everything on the CPU, in `demo/`.

    python examples/demo.py [VIDEO]

Without VIDEO a short H.264 file is rendered. The checkpoint is drawn from a seed: its weights are random, so the
similarities it prints mean nothing; sizes, parity and speed are those of a trained one.
"""

import shlex
import subprocess
import sys
from pathlib import Path

FOLDER = Path("demo")
PROFILE = "vit-b-32-12f"
SEED = 0
TEXTS = ["a red square moves to the left", "a dog runs on the beach", "ein Mann kocht Nudeln"]


def run(*command: str) -> None:
    """Show a command, run it with this interpreter's tools, and stop with its exit code if it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    tool = Path(sys.executable).with_name(command[0])
    code = subprocess.run([tool, *command[1:]], check=False).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Draw, render, export, encode, measure."""
    import torch

    import tempme_export
    from tempme_export.demo import render_clip
    from tempme_export.profile import load_profile
    from tempme_export.random_weights import draw_state_dict

    FOLDER.mkdir(exist_ok=True)
    checkpoint, bundle = FOLDER / "checkpoint.pth", FOLDER / "checkpoint.tempme"
    print(f"Drawing a ViT-B/32 TempMe checkpoint from seed {SEED}: the weights are RANDOM.")
    torch.save(draw_state_dict(load_profile(PROFILE), SEED), checkpoint)
    if len(sys.argv) > 1:
        clip = Path(sys.argv[1])
    else:
        clip = FOLDER / "clip.mp4"
        render_clip(clip, seed=SEED)
        print(f"Rendered {clip}, {clip.stat().st_size / 1000:.0f} kB of H.264.")

    run("tempme-export", str(checkpoint), "--force")

    print(f"\n>>> model = tempme_export.load({str(bundle)!r})")
    with tempme_export.load(bundle) as model:
        video = model.encode_video(clip)
        length = float((video**2).sum() ** 0.5)
        print(f">>> model.encode_video({str(clip)!r})   # {video.dtype} {list(video.shape)}, length {length:.6f}")
        print(">>> model.similarity(texts, [video])   # random weights: numbers without meaning")
        for text, (score,) in zip(TEXTS, model.similarity(TEXTS, video[None]), strict=True):
            print(f"{score:8.2f}  {text}")

    run("tempme-bench", str(bundle), "--backends", "ort", "--batch", "1,4", "--seconds", "10", "--samples", "20")


if __name__ == "__main__":
    main()

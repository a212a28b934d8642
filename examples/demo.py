"""From trained weights to a verified bundle, a search and a speed: everything on the CPU, in `demo/`.

    python examples/demo.py [VIDEO]

1. A small TempMe model, trained on rendered clips (`examples/mini.pth`), is exported and gated on 200 it never saw.
2. Those clips are searched by text with the bundle; the hits become a picture.
3. A ViT-B/32 with RANDOM weights is exported and measured: its size, parity and speed are those of a trained one, its
   similarities mean nothing. VIDEO, or a short rendered clip, is encoded with it.
"""

import shlex
import subprocess
import sys
from pathlib import Path

FOLDER = Path("demo")
MINI = Path(__file__).with_name("mini.pth")
PROFILE = "vit-b-32-12f"
SEED = 0
BATCH = "1:2:4"  # small, since a bundle is proven at its largest
QUERIES = (
    "a red square moves left, then right",
    "a red square moves right, then left",
    "a blue cross moves up, then left",
    "a white circle moves down, then up",
)
HITS = 3
MEASURE = ("--backends", "ort", "--samples", "10", "--budget", "60")


def run(*command: str) -> None:
    """Show a command, run it with this interpreter's tools, and stop with its exit code if it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    tool = Path(sys.executable).with_name(command[0])
    code = subprocess.run([tool, *command[1:]], check=False).returncode
    if code:
        sys.exit(code)


def search(bundle: Path, world: Path) -> None:
    """Find clips by text and draw what was found."""
    import tempme_export
    from tempme_export.data.annotations import open_data
    from tempme_export.evaluation.sheet import Hit, Query, save_sheet
    from tempme_export.media.video import read_frames

    data = open_data(f"synthetic:{world}", "test")
    with tempme_export.load(bundle) as model:
        scores = model.similarity(list(QUERIES), model.encode_video(list(data.paths)))
        frames = model.profile.frames
    found = []
    for text, row in zip(QUERIES, scores, strict=True):
        best = row.argsort()[::-1][:HITS]
        print(f"{text:<38}" + "   ".join(f"{row[i]:6.2f} {data.captions[i]}" for i in best))
        hits = [Hit(read_frames(data.paths[i], frames), float(row[i]), data.captions[i] == text) for i in best]
        found.append(Query(text, hits))
    save_sheet(found, FOLDER / "search.png")
    print(f"Drew {FOLDER / 'search.png'}: green is the clip that was asked for.")


def small_model() -> None:
    """The trained model: export, gate, search, measure."""
    from tempme_export.data.synthetic import TEST_CLIPS, write_world

    world, bundle = FOLDER / "world", FOLDER / "mini.tempme"
    write_world(world, train_clips=1, test_clips=TEST_CLIPS, seed=SEED)
    print(f"Rendered {TEST_CLIPS} clips that {MINI} was not trained on into {world}.")
    run("tempme-export", str(MINI), "--out", str(bundle), "--gate", f"synthetic:{world}", "--force")
    search(bundle, world)
    run("tempme-bench", str(bundle), "--batches", "8", *MEASURE)


def full_size(clip: Path | None) -> None:
    """A ViT-B/32 of random weights: export, encode, measure."""
    import torch

    import tempme_export
    from tempme_export.encoder.profile import load_profile
    from tempme_export.encoder.random_weights import draw_state_dict
    from tempme_export.media.render import render_clip

    checkpoint, bundle = FOLDER / "checkpoint.pth", FOLDER / "checkpoint.tempme"
    print(f"\nDrawing a ViT-B/32 TempMe checkpoint from seed {SEED}: the weights are RANDOM.")
    torch.save(draw_state_dict(load_profile(PROFILE), SEED), checkpoint)
    if clip is None:
        clip = FOLDER / "clip.mp4"
        render_clip(clip, seed=SEED)
        print(f"Rendered {clip}, {clip.stat().st_size / 1000:.0f} kB of H.264.")
    run("tempme-export", str(checkpoint), "--batch-range", BATCH, "--force")
    with tempme_export.load(bundle) as model:
        video = model.encode_video(clip)
        length = float((video**2).sum() ** 0.5)
        print(f"\n>>> model.encode_video({str(clip)!r})   # {video.dtype} {list(video.shape)}, length {length:.6f}")
    run("tempme-bench", str(bundle), "--batches", "1", *MEASURE)


def main() -> None:
    """Both models, one after the other."""
    FOLDER.mkdir(exist_ok=True)
    small_model()
    full_size(Path(sys.argv[1]) if len(sys.argv) > 1 else None)


if __name__ == "__main__":
    main()

"""`tempme-train`: arguments -> a trained checkpoint -> exit code."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tempme_export.cli import train_console
from tempme_export.cli.console import show_recipe
from tempme_export.cli.entry import entry
from tempme_export.cli.terminal import show_warning, write_json
from tempme_export.errors import ExportError, ProfileError, UsageError

if TYPE_CHECKING:
    from tempme_export.data.annotations import RetrievalData
    from tempme_export.encoder.recipe import Recipe
    from tempme_export.training.config import TrainConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

SCRATCH = "scratch"
SYNTHETIC = "synthetic"
_MOST_WORKERS = 8  # by default
_DEFAULT_RANK = 8
_INTERRUPTED = 130  # as shells have it


def _rank() -> int:
    """Which of torchrun's processes this is; 0 is the one that prints."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tune(tune: str | None, full: bool) -> str:
    if full and tune not in (None, "full"):
        raise UsageError(f"--full trains everything and --tune {tune} a part. Give one of the two.")
    return "full" if full else tune or "lora"


def _recipe(init: str, profile: str | None, activation: str | None, tune: str, seed: int) -> "Recipe":
    """The initial weights with their profile. Raises UsageError, CheckpointError and ProfileError."""
    if init == SCRATCH and tune != "full":
        raise UsageError(f"--init {SCRATCH} draws weights that know nothing, of which all must train. Add --full.")
    if init == SCRATCH and profile is None:
        raise UsageError(f"--init {SCRATCH} needs a profile that names a backbone, like --profile mini-8f.")

    from tempme_export.encoder.profile import FROM_CHECKPOINT, load_profile
    from tempme_export.encoder.recipe import open_recipe, prepare

    if init != SCRATCH:
        return open_recipe(init, profile, activation)
    if activation is not None:
        raise UsageError(f"--init {SCRATCH} draws weights for the backbone's activation. Leave --activation out.")

    from tempme_export.encoder.backbone import open_clip_backbone
    from tempme_export.training.init import draw_clip

    assert profile is not None, "refused above"
    chosen = load_profile(profile)
    if chosen.backbone == FROM_CHECKPOINT:
        raise ProfileError(f"profile {chosen.name} takes its sizes from a checkpoint; --init {SCRATCH} has none.")
    return prepare(draw_clip(open_clip_backbone(chosen.backbone), seed, chosen), chosen)


def _rendered(spec: str, out: Path, seed: int, workers: int, dry_run: bool) -> str:
    """`synthetic` -> `synthetic:OUT/world`; a world that is not there is rendered. Another spec comes back as it is."""
    kind, _, name = spec.partition(":")
    if kind != SYNTHETIC:
        return spec
    folder = Path(name).expanduser() if name else out / "world"
    if not folder.exists():
        if dry_run or int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(
                f"{folder} is not rendered yet; --dry-run writes nothing, and of several processes none may begin. "
                f"Run the command once as a single process, with --data {SYNTHETIC}:DIR."
            )

        from tempme_export.data.synthetic import write_world

        with train_console.progress() as progress:
            write_world(
                folder,
                seed=seed,
                workers=max(1, workers),
                progress=lambda done, total: progress("frames", ("rendered", done, total)),
            )
    return f"{SYNTHETIC}:{folder}"


def _dry_run(
    config: "TrainConfig",
    recipe: "Recipe",
    train_data: "RetrievalData",
    val_data: "RetrievalData | None",
    as_json: bool,
) -> None:
    from tempme_export.training.preview import preview

    found = preview(config, recipe, train_data, val_data)
    if _rank() == 0:
        train_console.show_preview(found, config.out)
        if as_json:
            write_json(found.to_dict())


def _train(
    config: "TrainConfig",
    recipe: "Recipe",
    train_data: "RetrievalData",
    val_data: "RetrievalData | None",
    as_json: bool,
) -> None:
    from tempme_export.training.loop import train

    if _rank() > 0:
        train(config, recipe, train_data, val_data)
        return
    try:
        with train_console.progress() as progress:
            result = train(config, recipe, train_data, val_data, progress)
    except KeyboardInterrupt:
        train_console.show_note("stopped; the same command with --resume goes on from the state that was saved last")
        raise typer.Exit(_INTERRUPTED) from None
    train_console.show_result(result)
    if as_json:
        try:
            write_json(result.to_dict())
        except ExportError as error:  # what was trained is in place
            show_warning(f"{error} {config.out} is complete.")


@app.command()
def command(
    data: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="Videos and captions to train on: msrvtt:DIR, activitynet:DIR, didemo:DIR, lsmdc:DIR, a .csv or "
            ".parquet file with columns video and caption, or synthetic[:DIR], which is rendered first.",
        ),
    ],
    init: Annotated[
        str,
        typer.Option(
            metavar="INIT", help=f"Where to begin: open_clip:MODEL/PRETRAINED, a checkpoint file, or {SCRATCH}."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results.")],
    val: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Judged after every epoch; decides which one is best.")
    ] = None,
    videos: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the video files of both lie.")] = None,
    profile: Annotated[str | None, typer.Option(help="Profile name or .toml path. Default: inferred.")] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            help="quickgelu or gelu in the towers of --init. Default: as it says, else the profile.",
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train every weight of both towers.")] = False,
    tune: Annotated[
        str | None, typer.Option(metavar="KIND", help="What to train instead: lora (default), adapter or prompt.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of LoRA, or the inner width of adapters. Default: 8.")] = None,
    train_temperature: Annotated[
        bool,
        typer.Option(
            "--train-temperature",
            help="Train the temperature too, which otherwise stays as INIT has it. For a training from nothing.",
        ),
    ] = False,
    epochs: Annotated[int, typer.Option(help="Times that every caption is seen.")] = 5,
    batch: Annotated[int, typer.Option(help="Captions a step, over all processes.")] = 128,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 6e-4,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.2,
    decay: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="What decays: all that trains, or its matrices only, without norms, biases, positions and embeddings.",
        ),
    ] = "all",
    betas: Annotated[tuple[float, float], typer.Option(metavar="B1 B2", help="Of AdamW.")] = (0.9, 0.999),
    eps: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-8,
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the learning rate rises.")] = 0.1,
    warmup_from_zero: Annotated[
        bool, typer.Option(help="Whether it rises from 0, so that the first step moves nothing, or one step ahead.")
    ] = True,
    clip_norm: Annotated[float, typer.Option(help="Longest gradient.")] = 1.0,
    augment: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="randaugment: four random operations on the frames of a training video, before they are resized; "
            "or none.",
        ),
    ] = "randaugment",
    seed: Annotated[int, typer.Option(help="Of shuffles, augmentation and drawn weights.")] = 42,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode. Default: one for each CPU, up to 8.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep decoded frames here, resized and cropped, instead of decoding in every epoch. Needs "
            "--augment none.",
        ),
    ] = None,
    allow_damaged: Annotated[
        bool, typer.Option("--allow-damaged", help="Take damaged pictures of videos as a player shows them.")
    ] = False,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16; auto is bf16 on a GPU that has it.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    save_every: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Also save the state so often within an epoch.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in DIR where its last saved state is.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, write nothing.")] = False,
    store: Annotated[str, typer.Option(help="Tensors of the checkpoints: fp32 or fp16.")] = "fp32",
    max_minutes: Annotated[
        float | None, typer.Option(metavar="M", help="Save and stop after so long; --resume goes on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Fine-tune CLIP with temporal token merging on captioned videos, or train a small model from scratch.

    Leaves best.pth and final.pth, which tempme-export takes, and last.pt, from which --resume continues. With several
    GPUs: torchrun --nproc-per-node N -m tempme_export.cli.train ...

    Exit codes: 0 done, 2 usage, 3 data, checkpoint, profile or folder, 4 backend or device missing, 6 diverged or not
    written.
    """
    kind = _tune(tune, full)

    from tempme_export.training.config import RANKED, TrainConfig

    if rank is not None and kind not in RANKED:
        raise UsageError(f"--rank {rank} is of {' and '.join(RANKED)}, and {kind} has none. Leave --rank out.")

    config = TrainConfig(
        out=out,
        tune=kind,
        rank=_DEFAULT_RANK if rank is None else rank,
        train_temperature=train_temperature,
        epochs=epochs,
        batch=batch,
        rate=lr,
        weight_decay=weight_decay,
        decay=decay,
        betas=betas,
        eps=eps,
        warmup=warmup,
        warmup_from_zero=warmup_from_zero,
        clip_norm=clip_norm,
        augment=augment,
        seed=seed,
        workers=min(_processors(), _MOST_WORKERS) if workers is None else workers,
        cache=cache,
        allow_damaged=allow_damaged,
        precision=precision,
        device=device,
        save_every=save_every,
        resume=resume,
        store=store,
        max_minutes=max_minutes,
    )
    config.check()

    from tempme_export.data.annotations import open_data

    if val is None and data.partition(":")[0] == SYNTHETIC:
        val = data

    def opened(spec: str, split: Literal["train", "test"]) -> "RetrievalData":
        return open_data(_rendered(spec, out, seed, config.workers, dry_run), split, videos)

    train_data, val_data = opened(data, "train"), None if val is None else opened(val, "test")
    recipe = _recipe(init, profile, activation, kind, seed)
    if _rank() == 0:
        show_recipe(recipe)
    (_dry_run if dry_run else _train)(config, recipe, train_data, val_data, as_json)


main = entry(app, lambda error: train_console.show_error(error, _rank()))


if __name__ == "__main__":
    main()

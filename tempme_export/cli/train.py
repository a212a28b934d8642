"""`tempme-train`: arguments -> a trained checkpoint -> exit code."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tempme_export.cli import train_console
from tempme_export.cli.app import CommandLine
from tempme_export.cli.console import show_recipe
from tempme_export.cli.options import OUTPUT, ActivationOption, DamagedOption, JsonOption, ProfileOption, value
from tempme_export.cli.terminal import show_warning, write_json
from tempme_export.cli.train_options import Augment, Decay, Precision, Store, Tune
from tempme_export.errors import ExportError, ProfileError, UsageError

if TYPE_CHECKING:
    from tempme_export.data.annotations import RetrievalData
    from tempme_export.encoder.recipe import Recipe
    from tempme_export.training.config import TrainConfig

line = CommandLine("tempme-train")
_MODEL, _OPTIMIZATION, _PIXELS, _RUN = "Trained parameters", "Optimization", "Frames", "Run"

SCRATCH = "scratch"
SYNTHETIC = "synthetic"
_MOST_WORKERS = 8  # by default
_DEFAULT_RANK = 8
_INTERRUPTED = 130  # as shells have it


def _rank() -> int:
    """Rank of this process under torchrun; 0 prints."""
    text = os.environ.get("RANK", "0")
    return int(text) if text.isdecimal() else 0


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tune(tune: Tune | None, full: bool) -> str:
    if full and tune not in (None, Tune.FULL):
        raise UsageError(f"--full trains everything and --tune {tune.value} a part. Give one of the two.")
    return Tune.FULL.value if full else (tune or Tune.LORA).value


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

        write_world(folder, seed=seed, workers=max(1, workers), progress=train_console.progress())
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
        result = train(config, recipe, train_data, val_data, train_console.progress())
    except KeyboardInterrupt:
        train_console.show_stopped("by a signal, after the state that was saved last")
        raise typer.Exit(_INTERRUPTED) from None
    if as_json:
        try:
            write_json(result.to_dict())
        except ExportError as error:  # what was trained is in place
            show_warning(f"{error} {config.out} is complete.")
    train_console.show_result(result)


@line.default(3, 4, 6)
def fine_tune(
    data: Annotated[
        str,
        typer.Option(
            metavar="DATA",
            show_default=False,
            help="Training videos and captions: msrvtt:DIR, activitynet:DIR, didemo:DIR, lsmdc:DIR, a .csv or .parquet "
            "file with the columns video and caption, or synthetic[:DIR], which is rendered first.",
        ),
    ],
    init: Annotated[
        str,
        typer.Option(
            metavar="INIT",
            show_default=False,
            help=f"Initial weights: open_clip:MODEL/PRETRAINED, a checkpoint file, or {SCRATCH}.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", rich_help_panel=OUTPUT, show_default=False, help="Folder of the run.")
    ],
    val: Annotated[
        str | None, typer.Option(metavar="DATA", help="Evaluated after every epoch; decides which one is best.")
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the videos of --data and --val. Default: below DIR.")
    ] = None,
    profile: ProfileOption = None,
    activation: ActivationOption = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    full: Annotated[
        bool, typer.Option("--full", rich_help_panel=_MODEL, help="Train every weight of both towers: --tune full.")
    ] = False,
    tune: Annotated[
        Tune | None, typer.Option(rich_help_panel=_MODEL, help="Fine-tuning method. Default: lora.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option(rich_help_panel=_MODEL, help="Rank of LoRA, or inner width of adapters. Default: 8.")
    ] = None,
    train_temperature: Annotated[
        bool,
        typer.Option(
            "--train-temperature",
            rich_help_panel=_MODEL,
            help="Train the temperature too, which otherwise stays as INIT has it. For a training from scratch.",
        ),
    ] = False,
    epochs: Annotated[int, typer.Option(rich_help_panel=_OPTIMIZATION, help="Passes over all captions.")] = 5,
    batch: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_OPTIMIZATION, help="Captions per step, over all processes.")
    ] = 128,
    lr: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZATION, help="Peak learning rate.")] = 6e-4,
    weight_decay: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZATION, help="Weight decay of AdamW.")] = 0.2,
    decay: Annotated[
        Decay,
        typer.Option(
            rich_help_panel=_OPTIMIZATION,
            help="Apply weight decay to all trained parameters, or to matrices only: no norms, biases, positions and "
            "embeddings.",
        ),
    ] = Decay.ALL,
    betas: Annotated[
        tuple[float, float], typer.Option(metavar="B1 B2", rich_help_panel=_OPTIMIZATION, help="Betas of AdamW.")
    ] = (0.9, 0.999),
    eps: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZATION, help="Epsilon of AdamW.")] = 1e-8,
    warmup: Annotated[
        float, typer.Option(rich_help_panel=_OPTIMIZATION, help="Share of the steps that are warm-up.")
    ] = 0.1,
    warmup_from_zero: Annotated[
        bool,
        typer.Option(
            rich_help_panel=_OPTIMIZATION,
            help="Start the warm-up at learning rate 0, so that the first step changes nothing, or one step ahead.",
        ),
    ] = True,
    clip_norm: Annotated[float, typer.Option(rich_help_panel=_OPTIMIZATION, help="Maximum gradient norm.")] = 1.0,
    precision: Annotated[
        Precision,
        typer.Option(
            rich_help_panel=_OPTIMIZATION, help="Number format of the forward pass; auto is bf16 on a GPU that has it."
        ),
    ] = Precision.AUTO,
    seed: Annotated[
        int, typer.Option(rich_help_panel=_OPTIMIZATION, help="Seed of shuffling, augmentation and new weights.")
    ] = 42,
    augment: Annotated[
        Augment,
        typer.Option(
            rich_help_panel=_PIXELS,
            help="RandAugment: four random operations on the frames of a training video, before they are resized.",
        ),
    ] = Augment.RANDAUGMENT,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=_PIXELS, help="Decoding processes. Default: one for each CPU, up to 8."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=_PIXELS,
            help="Cache of decoded frames, resized and cropped, instead of decoding in every epoch. Needs "
            "--augment none.",
        ),
    ] = None,
    allow_damaged: DamagedOption = False,
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=_RUN, help="Continue the run in --out from its last state.")
    ] = False,
    save_every: Annotated[
        int | None,
        typer.Option(metavar="STEPS", rich_help_panel=_RUN, help="Save the state within epochs too, every STEPS."),
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(metavar="M", rich_help_panel=_RUN, help="Save and stop after M minutes; --resume continues."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=_RUN, help="Show steps, parameters and memory; write nothing.")
    ] = False,
    store: Annotated[
        Store, typer.Option(rich_help_panel=OUTPUT, help="Number format of the checkpoints' tensors.")
    ] = Store.FP32,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune CLIP with temporal token merging on captioned videos, or train a small model from scratch.

    tempme-train --data msrvtt:DIR --init ckpt.pt --out run
    tempme-train --data captions.csv --init ckpt.pt --out run --dry-run
    torchrun --nproc-per-node N -m tempme_export.cli.train --data ...

    The run leaves best.pth and final.pth, which tempme-export takes, and last.pt, from which --resume continues.
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
        decay=decay.value,
        betas=betas,
        eps=eps,
        warmup=warmup,
        warmup_from_zero=warmup_from_zero,
        clip_norm=clip_norm,
        augment=augment.value,
        seed=seed,
        workers=min(_processors(), _MOST_WORKERS) if workers is None else workers,
        cache=cache,
        allow_damaged=allow_damaged,
        precision=precision.value,
        device=device,
        save_every=save_every,
        resume=resume,
        store=store.value,
        max_minutes=max_minutes,
    )
    config.check()

    from tempme_export.data.annotations import open_data

    if val is None and data.partition(":")[0] == SYNTHETIC:
        val = data

    def opened(spec: str, split: Literal["train", "test"]) -> "RetrievalData":
        return open_data(_rendered(spec, out, seed, config.workers, dry_run), split, videos)

    train_data, val_data = opened(data, "train"), None if val is None else opened(val, "test")
    recipe = _recipe(init, profile, value(activation), kind, seed)
    if _rank() == 0:
        show_recipe(recipe)
    (_dry_run if dry_run else _train)(config, recipe, train_data, val_data, as_json)


main = line.main(lambda error: train_console.show_error(error, _rank()))


if __name__ == "__main__":
    main()

"""Options that several commands share: one word, one type, one meaning."""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tempme_export.errors import UsageError

OUTPUT = "Output"


class Activation(StrEnum):
    """Activation of both towers."""

    QUICKGELU = "quickgelu"
    GELU = "gelu"


class Split(StrEnum):
    """Part of a data set."""

    TRAIN = "train"
    TEST = "test"


def value(choice: StrEnum | None) -> str | None:
    """The plain text of a choice; None where none was made."""
    return None if choice is None else choice.value


def check_file(option: str, path: Path | None) -> None:
    """Raises UsageError, before hours of work, for a file that could not be written after it."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder. Give the name of a file in it.")
    parent = path.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path} cannot be written: {parent} is not a folder that can be written to.")


def complete_profile(incomplete: str) -> list[str]:
    """Shipped profiles that begin so."""
    from tempme_export.encoder.profile import shipped_profiles

    return [name for name in shipped_profiles() if name.startswith(incomplete)]


ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME|FILE",
        autocompletion=complete_profile,
        help="A shipped profile, or a .toml file. Default: inferred from the checkpoint.",
    ),
]
ActivationOption = Annotated[
    Activation | None,
    typer.Option("--activation", help="Activation of both towers. Default: as the checkpoint says, else the profile."),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N.")]
DamagedOption = Annotated[
    bool, typer.Option("--allow-damaged", help="Accept damaged frames of videos as the decoder conceals them.")
]
JsonOption = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON document on stdout.")]
ForceOption = Annotated[
    bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Replace what is there from an earlier run.")
]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle.", show_default=False)]

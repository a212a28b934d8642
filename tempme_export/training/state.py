"""The saved state of a run: everything that the next step depends on."""

import pickle
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tempme_export.errors import CheckpointError, InputError
from tempme_export.files import write_file

FORMAT = 1

# What runs did before these settings had names.
_UNNAMED: dict[str, Any] = {
    "train-temperature": True,
    "decay": "matrices",
    "betas": [0.9, 0.98],
    "eps": 1e-6,
    "warmup-from-zero": False,
    "augment": "none",
}
_KEYS = {"format", "settings", "parameters", "optimizer", "position", "best", "rng"}


@dataclass(frozen=True)
class Position:
    """Position in a run: `step` steps are done, `within` of them in epoch `epoch`."""

    step: int = 0
    epoch: int = 0
    within: int = 0


@dataclass(frozen=True)
class Best:
    """The best evaluation so far: text-to-video R@1 in percent, after how many epochs."""

    r1: float
    epochs: int


@dataclass(frozen=True)
class State:
    """Content of `last.pt`.

    settings    everything the weights depend on; a run is resumed with the same only
    parameters  those that train; the rest is as the initial checkpoint has it
    optimizer   its state_dict
    rng         random states of every process, by rank
    """

    settings: dict[str, Any]
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    position: Position
    best: Best | None
    rng: list[dict[str, Any]]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators, as plain values and tensors."""
    kind, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), place, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Continue from `random_states`."""
    version, words, gauss_next = states["python"]
    random.setstate((version, tuple(words), gauss_next))
    kind, keys, place, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)


def save_state(path: Path, state: State) -> None:
    """Write it, whole or not at all. Raises ExportError when it cannot be written."""
    document = {
        "format": FORMAT,
        "settings": state.settings,
        "parameters": {name: tensor.detach() for name, tensor in state.parameters.items()},
        "optimizer": state.optimizer,
        "position": vars(state.position),
        "best": None if state.best is None else vars(state.best),
        "rng": state.rng,
    }
    write_file(path, lambda stream: torch.save(document, stream))


def load_state(path: Path) -> State:
    """Read what `save_state` wrote, onto the CPU. Raises InputError where none is, CheckpointError for another file."""
    if not path.is_file():
        raise InputError(f"--resume found no {path}, expected the state of a run. Leave --resume out to start one.")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as the state of a run ({reason}). Start anew elsewhere."
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.keys() != _KEYS:
        raise CheckpointError(
            f"{path} is not the state of a run of this version (format {FORMAT}). Start anew in another folder."
        )
    return State(
        settings={**_UNNAMED, **document["settings"]},
        parameters=document["parameters"],
        optimizer=document["optimizer"],
        position=Position(**document["position"]),
        best=None if document["best"] is None else Best(**document["best"]),
        rng=document["rng"],
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Raise InputError naming every setting that differs between a saved run and this one."""
    before, after = _flat(saved), _flat(now)
    absent = "nothing"
    differences = [
        f"{name} is {after.get(name, absent)} now and was {before.get(name, absent)}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, absent) != after.get(name, absent)
    ]
    if differences:
        raise InputError(
            f"{path} was saved by another run: {'; '.join(differences)}. Resume with the settings and data of before, "
            "or start anew in another folder."
        )


def restore(state: State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a saved state into a freshly built model and optimizer.

    Raises CheckpointError when the parameters are not the model's.
    """
    parameters = trained(model)
    odd = sorted(
        name
        for name in parameters.keys() | state.parameters.keys()
        if name not in parameters
        or name not in state.parameters
        or parameters[name].shape != state.parameters[name].shape
    )
    if odd:
        raise CheckpointError(
            f"the saved state does not fit the model: {len(odd)} parameters differ, such as {odd[0]}. It was saved by "
            "another version. Start anew in another folder."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state.parameters[name])
    optimizer.load_state_dict(state.optimizer)

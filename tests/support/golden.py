"""Reference outputs of the original, and the module that draws what went into them."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tempme_export.encoder.checkpoint import from_state_dict
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import Recipe, prepare
from tempme_export.encoder.schedule import MergePolicy

HERE = Path(__file__).parents[1] / "golden"
SHARED_GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


def _load_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """One case of the reference outputs: what goes in, and in `arrays` and `document` what came out."""

    name: str
    document: dict
    arrays: dict[str, np.ndarray]
    digests: dict[str, str]
    recipe: Recipe
    video: torch.Tensor
    video_mask: torch.Tensor
    text_ids: torch.Tensor

    def array(self, name):
        return torch.from_numpy(self.arrays[name])

    def with_merge(self, **changes):
        """The recipe with another merge policy, past every check; the schedule stays."""
        merge = dataclasses.replace(self.recipe.profile.merge, **changes)
        profile = dataclasses.replace(self.recipe.profile, merge=merge)
        return dataclasses.replace(self.recipe, profile=profile)


def _profile_of(document, text_length):
    settings = document["settings"]

    def numbers(key):
        return tuple(int(part) for part in settings[key].split("-"))

    cross, intra = numbers("merge_token_proportion")
    return Profile(
        name=document["name"],
        backbone=FROM_CHECKPOINT,
        frames=settings["max_frames"],
        text_length=text_length,
        merge=MergePolicy(
            image_r=settings["tome_r"],
            clip_layers=numbers("merge_layer"),
            clip_factors=numbers("merge_frame_num"),
            cross_percent=cross,
            intra_percent=intra,
            size_bias=bool(settings["prop_attn"]),
            clip_position=bool(settings["frame_pos"]),
        ),
        batch=BatchRange(1, 2, 8),
    )


def _golden_folder(name):
    folder = next((f for f in (HERE, SHARED_GOLDEN) if (f / f"{name}.json").is_file()), None)
    if folder is None:
        pytest.skip(f"{name} is not in tests/golden, and ../shared/golden is not beside this repository")
    return folder


@functools.cache
def _load_golden(name):
    folder = _golden_folder(name)
    maker = _load_module(HERE / "make_checkpoint.py")
    document = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as stored:
        arrays = {key: stored[key] for key in stored.files if key != "meta"}
    case = document["case"]
    settings = maker.settings(case["arch"], **{k: v for k, v in case.items() if k != "arch"})
    state = maker.make_state_dict(settings, case["seed"])
    inputs = dict(zip(("video", "video_mask", "text_ids"), maker.make_inputs(case)[:3], strict=True))
    digests = {key: maker.digest({key: value}) for key, value in inputs.items()}
    digests["checkpoint"] = maker.digest(state)
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
    checkpoint = from_state_dict(tensors, source=name)
    recipe = prepare(checkpoint, _profile_of(document, inputs["text_ids"].shape[1]))
    return GoldenCase(
        name=name,
        document=document,
        arrays=arrays,
        digests=digests,
        recipe=recipe,
        **{key: torch.from_numpy(value) for key, value in inputs.items()},
    )


@pytest.fixture(scope="session")
def golden_settings():
    """Loader of a reference case's document and profile by name, without its arrays."""

    def load(name):
        document = json.loads((_golden_folder(name) / f"{name}.json").read_text())
        return document, _profile_of(document, text_length=32)

    return load


@pytest.fixture(scope="session")
def golden_case():
    """Loader of a reference case by name, cached; skips where the full-size case is not at hand."""
    return _load_golden


@pytest.fixture(scope="session")
def checkpoint_maker():
    """The module that draws deterministic checkpoints and inputs."""
    return _load_module(HERE / "make_checkpoint.py")

"""A checkpoint of width 128 and the profile it was drawn for."""

import numpy as np
import pytest
import torch

from tempme_export.encoder.checkpoint import Checkpoint, from_state_dict
from tempme_export.encoder.conventions import Statement
from tempme_export.encoder.profile import FROM_CHECKPOINT, BatchRange, Profile
from tempme_export.encoder.recipe import prepare
from tempme_export.encoder.schedule import MergePolicy


@pytest.fixture(scope="session")
def tiny_state_dict(checkpoint_maker):
    """State dict in the layout of the original: 12 frames, 12 blocks of width 128, LoRA rank 8. Copy it."""
    state = checkpoint_maker.make_state_dict(checkpoint_maker.settings("tiny"), seed=7)
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_state_dict, tmp_path_factory):
    """Path of `tiny_state_dict` as the original saves it."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(tiny_state_dict, path)
    return path


@pytest.fixture(scope="session")
def tiny_profile():
    """The profile `tiny_checkpoint` was drawn for."""
    return Profile(
        name="tiny",
        backbone=FROM_CHECKPOINT,
        frames=12,
        text_length=32,
        merge=MergePolicy(1, (8, 9, 10), (2, 2, 3), 30, 10),
        batch=BatchRange(1, 2, 8),
    )


@pytest.fixture(scope="session")
def tiny_recipe(tiny_state_dict, tiny_profile):
    """`tiny_checkpoint` and `tiny_profile` brought together."""
    return prepare(from_state_dict(tiny_state_dict, source="tiny"), tiny_profile)


@pytest.fixture(scope="session")
def checkpoint_of():
    """Checkpoint with the right facts and no tensors, for tests that look at shapes alone."""

    def make(facts, activation=None):
        said = () if activation is None else (Statement("activation", activation, "the checkpoint's file"),)
        return Checkpoint("ckpt.pth", "0" * 64, {}, facts, said)

    return make

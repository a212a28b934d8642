"""What test_distributed.py runs in one process, or in each of several: `one_process.py FOLDER`.

FOLDER has clips/, mini.pth and small.toml. Every process writes FOLDER/SIZE-RANK.pt: what it found, by name.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tempme_export.data.annotations import open_data
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.encoder.recipe import prepare
from tempme_export.errors import InputError
from tempme_export.media.preprocess import Preprocess, preprocess_for
from tempme_export.progress import SILENT, Progress
from tempme_export.training import step
from tempme_export.training.batches import share
from tempme_export.training.config import TrainConfig
from tempme_export.training.distributed import join_world
from tempme_export.training.encoder import TrainableModel
from tempme_export.training.loop import train
from tempme_export.training.optimizer import make_optimizer
from tempme_export.training.split import open_split
from tempme_export.training.step import Stepper
from tempme_export.training.validate import evaluate

BATCH, STEPS = 5, 3  # an odd batch does not divide between two processes
RATE = 1e-3
INVALID = 1  # this row of every batch could not be read


class Towers(nn.Module):
    """Two towers in float64, with a parameter that no output hangs on and one that is frozen."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.visual = nn.Parameter(torch.randn(12, 4, generator=generator, dtype=torch.float64))
        self.words = nn.Embedding(50, 4, dtype=torch.float64)
        self.words.weight.data = torch.randn(50, 4, generator=generator, dtype=torch.float64)
        self.logit_scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.full((4,), 0.5, dtype=torch.float64), requires_grad=False)

    def forward(self, frames, token_ids):
        video = torch.tanh(frames.double().flatten(1) @ self.visual) + self.frozen
        return F.normalize(video, dim=-1), F.normalize(self.words(token_ids).sum(1), dim=-1)


class Kinds(Progress):
    """Keeps the names of the facts' types."""

    def __init__(self):
        self.kinds = []

    def tell(self, fact):
        self.kinds.append(type(fact).__name__)


def batches(frames, size, words, length):
    """STEPS batches of pixels, token ids and a mask, the same in every process."""
    rng = np.random.default_rng(7)
    for _ in range(STEPS):
        pixels = rng.integers(0, 256, (BATCH, frames, size, size, 3), np.uint8)
        token_ids = rng.integers(1, words - 1, (BATCH, length))
        token_ids[:, -1] = words - 1  # the end token
        valid = np.ones(BATCH, bool)
        valid[INVALID] = False
        yield torch.from_numpy(pixels), torch.from_numpy(token_ids), torch.from_numpy(valid)


def take_steps(model, world, preprocess, drawn):
    """Gradients of the first step before they are cut, all outcomes, of every step the longest gradient of a weight and
    Adam's second moments, and the weights after the last step."""
    optimizer = make_optimizer(model, 1e-2, 0.2)
    stepper, state = Stepper(model, optimizer, preprocess, world, "fp32", clip_norm=1e9), optimizer.state
    outcomes, gradients, largest, moments = [], {}, [], []
    for pixels, token_ids, valid in drawn:
        rows, present = share(np.arange(BATCH), world.rank, world.size)
        outcome = stepper(pixels[rows], token_ids[rows], valid[rows] & torch.from_numpy(present), RATE)
        outcomes.append(vars(outcome))
        if not gradients:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        stepper.clip_norm = 0.1
        largest.append(max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None))
        moments.append({n: state[p]["exp_avg_sq"].clone() for n, p in model.named_parameters() if p in state})
    return {
        "gradients": gradients,
        "outcomes": outcomes,
        "largest": largest,
        "moments": moments,
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
    }


def gathered(world):
    """Rows of all processes, and the gradient of a loss that every process computes from them."""
    rows = (torch.arange(6.0).reshape(3, 2) + 10 * world.rank).requires_grad_()
    together = world.gather(rows)
    together.pow(2).sum().backward()
    return {"rows": together.detach(), "gradient": rows.grad}


def told(world):
    """What the first process says to all, and an error of its own."""

    def refuse():
        raise InputError("the first process refuses")

    try:
        world.on_first(refuse)
        error = ""
    except InputError as refusal:
        error = str(refusal)
    return {"said": world.on_first(lambda: f"rank {world.rank}"), "error": error}


def evaluated(world, recipe, folder):
    """Evaluation of the initial weights."""
    split, _ = open_split(
        "val",
        open_data(folder / "clips" / "val.csv", "test"),
        recipe,
        world,
        TrainConfig(out=folder, cache=folder / f"cache-{world.size}", workers=0),
        SILENT,
    )
    model = TrainableModel(recipe, "lora", 2, 0)
    stepper = Stepper(model, make_optimizer(model, 1e-3, 0.2), preprocess_for(recipe), world, "fp32", 1.0)
    both, _, _ = evaluate(stepper, split, 0)
    return [vars(one) for one in both]


def meet_at(port):
    """Every meeting has a port of its own: whoever comes first to a second one at the same port may still find the
    store of the first, which is about to close, and wait for those who left."""
    os.environ["MASTER_PORT"] = port


def main(folder):
    torch.set_num_threads(1)
    ports = iter(os.environ["MEETING_PORTS"].split())
    step._BUCKET = 30  # several messages for one model
    recipe = prepare(load_checkpoint(folder / "mini.pth"), folder / "small.toml")
    frames, size = recipe.profile.frames, recipe.backbone.image_size
    meet_at(next(ports))
    with join_world("cpu") as world:
        name = f"{world.size}-{world.rank}"
        found = {
            "gathered": gathered(world),
            "told": told(world),
            "towers": take_steps(Towers(), world, Preprocess(2, (0.5,) * 3, (0.2,) * 3), batches(1, 2, 50, 3)),
            "evaluated": evaluated(world, recipe, folder),
        }
        step._BUCKET = 1 << 24
        model = TrainableModel(recipe, "lora", 2, 0)
        preprocess = Preprocess(size, recipe.backbone.mean, recipe.backbone.std)
        found["model"] = take_steps(model, world, preprocess, batches(frames, size, 49408, 12))
    data = open_data(folder / "clips" / "train.csv", "train")
    heard = Kinds()
    config = TrainConfig(
        out=folder / f"out-{world.size}",
        epochs=1,
        batch=BATCH,
        rank=2,
        workers=0,
        cache=folder / f"cache-{world.size}",
        augment="none",
        device="cpu",
        save_every=1,
        max_minutes=1e-9,
    )
    val = open_data(folder / "clips" / "val.csv", "test")
    meet_at(next(ports))
    first = train(config, recipe, data, val, heard)
    config = TrainConfig(**{**vars(config), "max_minutes": None, "resume": True})
    meet_at(next(ports))
    second = train(config, recipe, data, val, heard)
    found["run"] = {"first": first.to_dict(), "second": second.to_dict(), "told": heard.kinds}
    torch.save(found, folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What the tests of behaviour share: a command as a user runs it, a trained bundle, a world of clips.

Nothing here knows a module of the package: these tests hold whatever becomes of the code inside.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tempme_export

MINI = Path(__file__).parents[2] / "examples" / "mini.pth"


@pytest.fixture(scope="session")
def run():
    """Run an installed command: `run("tempme-export", "ckpt.pth", "--force")` -> CompletedProcess of text.

    Keywords are those of `subprocess.run`; `env` adds to the environment. A traceback fails the test, whatever the
    exit code.
    """

    def run_command(name, *arguments, env=(), may_crash=False, **options):
        tool = Path(sys.executable).with_name(name)
        command = [os.fspath(part) for part in (tool, *arguments)]
        environment = {**os.environ, **dict(env)}
        options = {"capture_output": True, "text": True, "errors": "surrogateescape", "timeout": 300} | options
        done = subprocess.run(command, env=environment, check=False, **options)
        assert may_crash or "Traceback" not in (done.stderr or ""), done.stderr
        return done

    return run_command


@pytest.fixture(scope="session")
def mini():
    """The small trained checkpoint."""
    return MINI


@pytest.fixture(scope="session")
def mini_bundle(tmp_path_factory):
    """`mini` as a bundle. Shared: copy it before changing it."""
    return tempme_export.export(MINI, out=tmp_path_factory.mktemp("mini") / "mini.tempme", batch=(1, 2, 3)).path


@pytest.fixture(scope="session")
def safe_clips(mini_bundle):
    """Clips of its self-test, uint8 [3, F, S, S, 3], all of whose decisions lie four of the steps apart to which
    similarities are rounded, so that no order of additions takes another."""
    import numpy as np

    with np.load(mini_bundle / "selftest.npz") as stored:
        safe = stored["clips"][stored["gaps"].min(axis=1) >= 4 * 2**-20]
    assert len(safe) >= 3
    return safe[:3]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder of seven rendered clips, `test/00000.mp4` and on, and `test.csv` that describes them."""
    from tempme_export.data.synthetic import write_world

    folder = tmp_path_factory.mktemp("worlds") / "world"
    write_world(folder, train_clips=1, test_clips=7, workers=1)
    return folder


class _Opened(Exception):
    """Ends an export as soon as its checkpoint is read."""


@pytest.fixture(scope="session")
def opened(recording):
    """The recipe that an export of a checkpoint would build, without building it. Refusals come through."""

    def stop(fact):
        raise _Opened(fact)

    def open_checkpoint(path, profile="mini-8f", **options):
        try:
            tempme_export.export(path, profile, progress=recording(stop), **options)
        except _Opened as done:
            return done.args[0]
        raise AssertionError("the export did not stop")

    return open_checkpoint


@pytest.fixture(scope="session")
def mini_state(mini):
    """The tensors of `mini` by CLIP's names, with nothing that says more. Copy it before changing it."""
    import torch

    stored = torch.load(mini, weights_only=True)["state_dict"]
    return {name.removeprefix("clip."): tensor for name, tensor in stored.items()}


@pytest.fixture(scope="session")
def hugging_face_names():
    """CLIP's tensors -> the same by Hugging Face's names, written from Hugging Face's documentation."""

    def convert(state):
        names = {
            "positional_embedding": "text_model.embeddings.position_embedding.weight",
            "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
            "ln_final.weight": "text_model.final_layer_norm.weight",
            "ln_final.bias": "text_model.final_layer_norm.bias",
            "visual.class_embedding": "vision_model.embeddings.class_embedding",
            "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
            "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
            "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
            "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
            "visual.ln_post.weight": "vision_model.post_layernorm.weight",
            "visual.ln_post.bias": "vision_model.post_layernorm.bias",
        }
        parts = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
        parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
        found = {}
        for name, tensor in state.items():
            if name in ("text_projection", "visual.proj"):
                other = "text_projection.weight" if name == "text_projection" else "visual_projection.weight"
                found[other] = tensor.t().contiguous()
            elif ".in_proj_" in name:
                block, kind = name.split(".attn.in_proj_")
                for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{_hugging_face_block(block)}.self_attn.{letter}_proj.{kind}"] = rows.clone()
            elif "resblocks" in name:
                block, part, kind = re.fullmatch(r"(.*resblocks\.\d+)\.(.+)\.(weight|bias)", name).groups()
                found[f"{_hugging_face_block(block)}.{parts[part]}.{kind}"] = tensor
            else:
                found[names.get(name, name)] = tensor
        return found

    return convert


def _hugging_face_block(block):
    tower = "vision_model" if block.startswith("visual.") else "text_model"
    return f"{tower}.encoder.layers.{block.rsplit('.', 1)[1]}"


@pytest.fixture(scope="session")
def scenes(world):
    """What the clips of `world` show: (pictures uint8 [12, 64, 64, 3], caption) each."""
    import av
    import numpy as np

    def pictures(path):
        with av.open(str(path)) as file:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])

    rows = [line.split(',"', 1) for line in (world / "test.csv").read_text().splitlines()[1:]]
    return [(pictures(world / name), caption.rpartition('"')[0]) for name, caption in rows]


@pytest.fixture(scope="session")
def write_film():
    """Write pictures as a video without loss, each file of one size as large as any other: (path, pictures, fps)."""
    import av

    def write(path, pictures, fps=6):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", format="avi") as file:
            stream = file.add_stream("rawvideo", rate=fps)
            stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "bgr24"
            for picture in pictures:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())

    return write


@pytest.fixture(scope="session")
def evaluate(mini_bundle):
    """`tempme-eval` of the mini bundle: evaluate("data", ...) -> its JSON document, what it said under "said", its exit
    code under "code". In this process, since the libraries take longest."""
    import contextlib
    import importlib.metadata
    import io
    import json
    from unittest import mock

    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="tempme-eval")
    main = entry.load()

    def evaluate(data, *options):
        words = ["tempme-eval", mini_bundle, "--data", data, "--json", "--workers", "0", *options]
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch("sys.argv", list(map(str, words))),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        return {**json.loads(out.getvalue() or "{}"), "said": err.getvalue(), "code": code}

    return evaluate

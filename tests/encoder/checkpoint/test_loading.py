"""Every layout that loads, and everything that is refused, with what the refusal says."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tempme_export.encoder.checkpoint import (
    ADAPTER,
    CLIP_POSITION,
    LORA_A,
    LORA_B,
    PROMPT,
    CheckpointFacts,
    from_state_dict,
    load_checkpoint,
)
from tempme_export.encoder.profile import load_profile
from tempme_export.errors import CheckpointError, InputError, ProfileError

SMALL = {
    "image": 16,
    "patch": 8,
    "width": 64,
    "layers": 2,
    "embed": 16,
    "text_width": 64,
    "text_layers": 1,
    "context": 9,
    "vocab": 50,
    "lora_dim": 3,
    "merge_layer": "0-1",
    "merge_frame_num": "2-3",
    "max_frames": 6,
}
FACTS = CheckpointFacts(
    image_size=16,
    patch=8,
    width=64,
    layers=2,
    embed=16,
    text_width=64,
    text_layers=1,
    context=9,
    vocab=50,
    lora_rank=3,
    clip_lengths=((0, 6), (1, 3)),
)
BLOCK = "visual.transformer.resblocks.1."


@pytest.fixture(scope="module")
def drawn(checkpoint_maker):
    state = checkpoint_maker.make_state_dict(checkpoint_maker.settings("tiny", **SMALL), seed=5)
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


@pytest.fixture
def state(drawn):
    """In the original's layout: every name begins with `clip.`."""
    return dict(drawn)


@pytest.fixture
def bare(drawn):
    return {name.removeprefix("clip."): tensor for name, tensor in drawn.items()}


@pytest.fixture
def plain(bare):
    """A CLIP state dict, without anything of TempMe."""
    return {name: tensor for name, tensor in bare.items() if "TVPt" not in name}


def saved(tmp_path, content, **options):
    path = tmp_path / "ckpt.pth"
    torch.save(content, path, **options)
    return path


def holds(checkpoint, expected):
    assert checkpoint.tensors.keys() == expected.keys()
    for name, tensor in checkpoint.tensors.items():
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
        torch.testing.assert_close(tensor, expected[name].float(), rtol=0, atol=0)


def refused(source, *messages):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(source)
    for message in messages:
        assert message in str(caught.value)
    return str(caught.value)


class TestLayouts:
    def test_of_the_original(self, state, bare, tmp_path):
        path = saved(tmp_path, state)
        checkpoint = load_checkpoint(path)
        holds(checkpoint, bare)
        assert checkpoint.facts == FACTS and not checkpoint.facts.is_plain_clip
        assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert checkpoint.source == str(path) and checkpoint.activation is None

    @pytest.mark.parametrize("prefix", ["", "clip.", "module.", "module.clip."])
    def test_prefixes(self, prefix, bare, tmp_path):
        path = saved(tmp_path, {prefix + name: tensor for name, tensor in bare.items()})
        holds(load_checkpoint(str(path)), bare)

    @pytest.mark.parametrize("key", ["state_dict", "model"])
    def test_wrapped(self, key, state, bare, tmp_path):
        path = saved(tmp_path, {"epoch": 5, "optimizer": {"lr": 0.1}, key: state})
        holds(load_checkpoint(path), bare)

    def test_safetensors(self, state, bare, tmp_path):
        save_file(state, tmp_path / "ckpt.safetensors")
        holds(load_checkpoint(tmp_path / "ckpt.safetensors"), bare)

    def test_the_files_of_old_pytorch(self, state, bare, tmp_path):
        holds(load_checkpoint(saved(tmp_path, state, _use_new_zipfile_serialization=False)), bare)

    def test_parameters(self, bare, tmp_path):
        parameters = {name: torch.nn.Parameter(tensor) for name, tensor in bare.items()}
        checkpoint = load_checkpoint(saved(tmp_path, parameters))
        holds(checkpoint, bare)
        assert not any(tensor.requires_grad for tensor in checkpoint.tensors.values())

    def test_plain_clip(self, plain, tmp_path):
        checkpoint = load_checkpoint(saved(tmp_path, plain))
        holds(checkpoint, plain)
        assert checkpoint.facts.is_plain_clip
        assert (checkpoint.facts.lora_rank, checkpoint.facts.clip_lengths) == (None, ())

    def test_lora_without_clip_positions(self, bare, tmp_path):
        lora = {name: tensor for name, tensor in bare.items() if CLIP_POSITION not in name}
        facts = load_checkpoint(saved(tmp_path, lora)).facts
        assert (facts.lora_rank, facts.clip_lengths, facts.is_plain_clip) == (3, (), False)

    def test_clip_positions_without_lora(self, bare, tmp_path):
        whole = {name: tensor for name, tensor in bare.items() if "LoRA" not in name}
        facts = load_checkpoint(saved(tmp_path, whole)).facts
        assert (facts.lora_rank, facts.clip_lengths, facts.is_plain_clip) == (None, FACTS.clip_lengths, False)

    def test_openai_scalars_are_checked_and_dropped(self, plain, tmp_path):
        scalars = {"input_resolution": 16, "context_length": 9, "vocab_size": 50}
        with_scalars = plain | {name: torch.tensor(value) for name, value in scalars.items()}
        holds(load_checkpoint(saved(tmp_path, with_scalars)), plain)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_become_float32(self, dtype, bare, tmp_path):
        narrowed = {name: tensor.to(dtype) for name, tensor in bare.items()}
        holds(load_checkpoint(saved(tmp_path, narrowed)), narrowed)

    def test_views_become_contiguous(self, bare, tmp_path):
        strided = {name: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor for name, tensor in bare.items()}
        assert not strided["visual.proj"].is_contiguous()
        holds(load_checkpoint(saved(tmp_path, strided)), bare)

    def test_in_memory(self, state, bare):
        checkpoint = from_state_dict(state, "memory", activation="gelu")
        holds(checkpoint, bare)
        assert (checkpoint.source, checkpoint.activation) == ("memory", "gelu")
        changed = dict(bare)
        changed["visual.proj"] = bare["visual.proj"].clone()
        changed["visual.proj"][0, 0] += 1
        assert checkpoint.sha256 == from_state_dict(bare, "other").sha256
        assert checkpoint.sha256 != from_state_dict(changed, "memory").sha256

    def test_what_is_loaded_is_not_changed(self, state):
        names = list(state)
        from_state_dict(state, "memory")
        assert list(state) == names


class TestNotACheckpoint:
    def test_no_such_file(self, tmp_path):
        message = refused(tmp_path / "none.pth", "none.pth does not exist", "open_clip:MODEL/PRETRAINED")
        assert "Errno" not in message

    def test_folder(self, tmp_path):
        refused(tmp_path, f"{tmp_path} is a folder, expected a checkpoint file")

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_empty(self, tmp_path, suffix):
        (tmp_path / f"e{suffix}").touch()
        refused(tmp_path / f"e{suffix}", f"e{suffix} is empty")

    def test_it_is_an_input_error(self, tmp_path):
        with pytest.raises(InputError) as caught:
            load_checkpoint(tmp_path)
        assert caught.value.exit_code == 3

    # Every place a download can break off: in the first header, the names, the numbers, the last header.
    @pytest.mark.parametrize("layout", ["zip", "old", "safetensors"])
    def test_truncated(self, layout, state, tmp_path):
        path = tmp_path / ("whole.safetensors" if layout == "safetensors" else "whole.pth")
        if layout == "safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=layout == "zip")
        load_checkpoint(path)
        whole = path.read_bytes()
        cuts = [1, 2, 3, 4, 7, 8, 9, 16, 33, 100, 500, 1000, 5000]
        cuts += [len(whole) * k // 7 for k in range(1, 7)] + [len(whole) - k for k in (1, 10, 22, 100, 1000)]
        cut = path.with_stem("cut")
        for length in cuts:
            cut.write_bytes(whole[:length])
            refused(cut, str(cut))

    def test_truncated_says_so(self, state, tmp_path):
        path = saved(tmp_path, state)
        path.write_bytes(path.read_bytes()[:-100])
        refused(path, "truncated")

    def test_broken_directory_of_an_archive(self, state, tmp_path):
        path = saved(tmp_path, state)
        data = bytearray(path.read_bytes())
        start = data.rindex(b"PK\x01\x02")
        data[start : start + 4] = b"XXXX"
        path.write_bytes(data)
        refused(path, str(path))

    @pytest.mark.parametrize(
        "content",
        [
            b"hello world\n",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 353976522\n",
            b"<!DOCTYPE html><html>404</html>",
            b'{"a": 1}',
            b"PK is how this text begins",
            b".",
            b"t",
            b"Good",
            b"cposix\nsystem\n(S'true'\ntR.",
            "été".encode(),
            b"\x93NUMPY\x01\x00v\x00{",
            b"\x00" * 100,
            b"\xff" * 100,
        ],
        ids=lambda content: repr(content[:8]),
    )
    def test_other_files(self, content, tmp_path):
        for suffix in (".pth", ".pt", "", ".safetensors"):
            path = tmp_path / f"other{suffix}"
            path.write_bytes(content)
            refused(path, f"{path} is not a PyTorch or safetensors file")

    def test_other_archives(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("folder/hello.txt", "hello")
        refused(tmp_path / "a.pt", "cannot be read")
        with tarfile.open(tmp_path / "b.pt", "w") as archive:
            archive.add(tmp_path / "a.pt", arcname="a.pt")
        refused(tmp_path / "b.pt", "b.pt is not a PyTorch or safetensors file")

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_damaged_pickles_of_every_kind(self, tmp_path):
        path = tmp_path / "damaged.pt"
        for opcode in range(256):
            path.write_bytes(b"\x80\x02" + bytes([opcode]) + b"\x01")
            refused(path, str(path))

    @pytest.mark.parametrize(
        "content, hint",
        [(b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"), (b"<!DOCTYPE", "web page")],
    )
    def test_what_downloads_leave_is_named(self, content, hint, tmp_path):
        (tmp_path / "clip.pt").write_bytes(content)
        refused(tmp_path / "clip.pt", hint)


class Runs:
    """Unpickling this makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


class TestCode:
    @pytest.mark.parametrize("layout", ["zip", "old", "pickle"])
    def test_is_refused_and_does_not_run(self, layout, state, tmp_path):
        marker, path = tmp_path / "ran", tmp_path / "ckpt.pth"
        content = state | {"clip.extra": Runs(marker)}
        if layout == "pickle":
            path.write_bytes(pickle.dumps(content["clip.extra"], protocol=2))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
        refused(path, "holds code or objects beside tensors", "Save the model's state_dict() alone")
        assert not marker.exists()
        if layout == "pickle":
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)
        assert marker.exists(), "this file does run code where it is let"

    def test_a_whole_module(self, tmp_path):
        refused(saved(tmp_path, torch.nn.Linear(2, 2)), "holds code or objects beside tensors")

    def test_numpy_arrays(self, state, tmp_path):
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        refused(saved(tmp_path, arrays), "holds code or objects beside tensors")

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_torchscript(self, tmp_path):
        path = tmp_path / "clip.pt"
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
        refused(path, "is a TorchScript archive", f"torch.save(torch.jit.load('{path}').state_dict()")


class TestContent:
    @pytest.mark.parametrize(
        "content, found",
        [([], "list"), ([1, 2], "list"), ({}, "dict"), (3, "int"), (torch.zeros(2), "Tensor"), ("x", "str")],
        ids=repr,
    )
    def test_no_state_dict(self, content, found, tmp_path):
        refused(saved(tmp_path, content), f"holds {found}, expected a state_dict of named tensors")

    def test_objects_among_the_tensors(self, state, tmp_path):
        content = state | {"epoch": 3, "args": [1, 2]}
        refused(saved(tmp_path, content), "args, epoch is not a named tensor", '{"state_dict": ...}')
        refused(saved(tmp_path, state | {7: torch.zeros(1)}), "7 is not a named tensor")

    def test_some_other_model(self, tmp_path):
        message = refused(saved(tmp_path, torch.nn.Linear(2, 2).state_dict()))
        assert "visual.conv1.weight is missing" in message and "such as bias, weight" in message

    def test_an_image_tower_alone(self, bare, tmp_path):
        visual = {name: tensor for name, tensor in bare.items() if name.startswith("visual.")}
        refused(saved(tmp_path, visual), "positional_embedding is missing")

    def test_a_resnet(self, plain, tmp_path):
        resnet = {name: t for name, t in plain.items() if not name.startswith("visual.")}
        resnet |= {
            "visual.conv1.weight": torch.zeros(32, 3, 3, 3),
            "visual.layer1.0.bn1.bias": torch.zeros(3),
        }
        refused(saved(tmp_path, resnet), "visual.positional_embedding is missing")

    def test_unknown_names_are_listed(self, state, tmp_path):
        message = refused(saved(tmp_path, state | {"clip.visual.extra": torch.zeros(3)}))
        assert "1 unknown: visual.extra." in message

    def test_names_outside_the_prefix(self, state, tmp_path):
        message = refused(saved(tmp_path, state | {"head.weight": torch.zeros(3)}))
        assert "1 unknown: head.weight." in message

    def test_missing_names_are_listed(self, state, tmp_path):
        del state[f"clip.{BLOCK}ln_1.bias"], state["clip.logit_scale"]
        refused(saved(tmp_path, state), f"2 missing: logit_scale, {BLOCK}ln_1.bias.")

    @pytest.mark.parametrize(
        "name", ["visual.conv1.weight", "visual.proj", "token_embedding.weight", "positional_embedding"]
    )
    def test_missing_anchors_are_named(self, name, state, tmp_path):
        del state[f"clip.{name}"]
        refused(saved(tmp_path, state), f" {name} is missing")

    @pytest.mark.parametrize("tower", ["visual.", ""])
    def test_a_missing_block(self, tower, bare, tmp_path):
        first = f"{tower}transformer.resblocks.0."
        rest = {name: tensor for name, tensor in bare.items() if not name.startswith(first)}
        expected = f"{first}attn.in_proj_bias" if tower else f"no tensor begins with {first}"
        refused(saved(tmp_path, rest), expected)

    def test_no_blocks(self, bare, tmp_path):
        rest = {name: t for name, t in bare.items() if not name.startswith("visual.transformer.")}
        refused(saved(tmp_path, rest), "no tensor begins with visual.transformer.resblocks.0.")

    def test_an_absurd_block_number(self, bare, tmp_path):
        name = "visual.transformer.resblocks.99999999999.ln_1.bias"
        refused(saved(tmp_path, bare | {name: torch.zeros(64)}), f"unknown: {name}")

    def test_misshapen_tensors_are_listed(self, state, tmp_path):
        state[f"clip.{BLOCK}mlp.c_fc.bias"] = torch.zeros(255)
        state["clip.logit_scale"] = torch.zeros(2)
        message = refused(saved(tmp_path, state))
        assert f"2 misshapen: logit_scale (2,) instead of (), {BLOCK}mlp.c_fc.bias (255,) instead of (256,)" in message

    def test_every_kind_of_problem_in_one_message(self, state, tmp_path):
        state["clip.new"] = torch.zeros(1)
        state["clip.ln_final.bias"] = torch.zeros(3)
        state["clip.visual.ln_pre.bias"] = torch.zeros(64, dtype=torch.int64)
        del state["clip.logit_scale"]
        refused(
            saved(tmp_path, state),
            "1 unknown: new",
            "1 missing: logit_scale",
            "1 misshapen: ln_final.bias (3,) instead of (64,)",
            "1 not dense floating point: visual.ln_pre.bias",
        )

    def test_long_lists_are_cut(self, state, tmp_path):
        extra = {f"clip.x{i:02}": torch.zeros(1) for i in range(20)}
        message = refused(saved(tmp_path, state | extra))
        assert "20 unknown: x00, x01, x02, x03, x04, x05, x06, x07 and 12 more" in message

    def test_grids_that_are_no_square(self, state, tmp_path):
        state["clip.visual.positional_embedding"] = torch.zeros(7, 64)
        refused(saved(tmp_path, state), "has 7 rows, expected 1 + a square number of patches")
        state["clip.visual.positional_embedding"] = torch.zeros(1, 64)
        refused(saved(tmp_path, state), "has 1 rows, expected 1 + a square number of patches")

    @pytest.mark.parametrize("name", ["visual.conv1.weight", "visual.proj", "token_embedding.weight"])
    def test_wrong_number_of_dimensions(self, name, state, tmp_path):
        state[f"clip.{name}"] = torch.zeros(3)
        refused(saved(tmp_path, state), f"{name} has shape (3,), expected")

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_not_finite(self, value, state, tmp_path):
        for name in (f"clip.{BLOCK}attn.out_proj.weight", "clip.visual.class_embedding"):
            state[name] = state[name].clone()
            state[name].view(-1)[-1] = value
        refused(
            saved(tmp_path, state),
            f"NaN or infinity in visual.class_embedding, {BLOCK}attn.out_proj.weight",
            "use an earlier checkpoint",
        )

    def test_not_finite_in_a_scalar(self, state, tmp_path):
        state["clip.logit_scale"] = torch.tensor(torch.nan)
        refused(saved(tmp_path, state), "NaN or infinity in logit_scale")

    def test_float64_beyond_float32(self, state, tmp_path):
        state["clip.visual.proj"] = torch.full((64, 16), 1e300, dtype=torch.float64)
        refused(saved(tmp_path, state), "NaN or infinity in visual.proj")

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
    def test_numbers_that_are_not_real(self, dtype, state, tmp_path):
        state["clip.visual.proj"] = torch.zeros(64, 16, dtype=dtype)
        refused(saved(tmp_path, state), "1 not dense floating point: visual.proj")

    @pytest.mark.filterwarnings("ignore:Validating sparse tensor")
    def test_sparse(self, state, tmp_path):
        state["clip.visual.proj"] = torch.eye(64, 16).to_sparse()
        refused(saved(tmp_path, state), "1 not dense floating point: visual.proj")

    @pytest.mark.parametrize(
        "name, value, says",
        [
            ("input_resolution", torch.tensor(224), "input_resolution says 224, the shapes say 16"),
            ("context_length", torch.tensor(77), "context_length says 77, the shapes say 9"),
            ("vocab_size", torch.tensor(49408), "vocab_size says 49408, the shapes say 50"),
            ("vocab_size", torch.tensor([50, 50]), "vocab_size says [50, 50], the shapes say 50"),
        ],
    )
    def test_openai_scalars_that_deny_the_shapes(self, name, value, says, plain, tmp_path):
        refused(saved(tmp_path, plain | {name: value}), says)


class TestProfile:
    """{"state_dict": ..., "profile": ...}, as a training leaves it."""

    def test_is_read(self, state, tmp_path):
        profile = load_profile("vit-b-32-12f")
        content = {"state_dict": state, "profile": profile.to_dict()}
        assert load_checkpoint(saved(tmp_path, content)).profile == profile
        assert load_checkpoint(saved(tmp_path, {"state_dict": state})).profile is None

    def test_is_wrong(self, state, tmp_path):
        refused(
            saved(tmp_path, {"state_dict": state, "profile": "vit-b-32-12f"}), "its profile is str", "expected a table"
        )
        table = {**load_profile("vit-b-32-12f").to_dict(), "speed": "high"}
        with pytest.raises(ProfileError, match=r"ckpt\.pth: profile: unknown key 'speed'"):
            load_checkpoint(saved(tmp_path, {"state_dict": state, "profile": table}))


class TestAdditions:
    """Adapters and prompts, which the original does not have."""

    @pytest.fixture
    def blocks(self, bare):
        return [name.removesuffix("attn.in_proj_bias") for name in bare if name.endswith("attn.in_proj_bias")]

    def test_adapters(self, bare, blocks, tmp_path):
        for block in blocks:
            width = len(bare[f"{block}ln_1.weight"])
            bare[f"{block}{ADAPTER}down.weight"], bare[f"{block}{ADAPTER}down.bias"] = (
                torch.ones(5, width),
                torch.ones(5),
            )
            bare[f"{block}{ADAPTER}up.weight"], bare[f"{block}{ADAPTER}up.bias"] = (
                torch.ones(width, 5),
                torch.ones(width),
            )
        facts = load_checkpoint(saved(tmp_path, bare)).facts
        assert (facts.adapter, facts.prompts) == (5, None)
        del bare[f"{blocks[0]}{ADAPTER}up.bias"]
        refused(saved(tmp_path, bare), f"1 missing: {blocks[0]}{ADAPTER}up.bias")

    def test_prompts(self, plain, blocks, tmp_path):
        for block in blocks:
            plain[f"{block}{PROMPT}"] = torch.ones(4, len(plain[f"{block}ln_1.weight"]))
        facts = load_checkpoint(saved(tmp_path, plain)).facts
        assert (facts.adapter, facts.prompts, facts.is_plain_clip) == (None, 4, False)
        plain[f"{block}{PROMPT}"] = torch.ones(5, len(plain[f"{block}ln_1.weight"]))
        refused(saved(tmp_path, plain), "numbers of prompt tokens differ between blocks: [4, 5]")


class TestLora:
    def test_ranks_that_differ(self, state, tmp_path):
        state[f"clip.{BLOCK}{LORA_A}"] = torch.zeros(5, 64)
        state[f"clip.{BLOCK}{LORA_B}"] = torch.zeros(192, 5)
        refused(saved(tmp_path, state), "LoRA ranks differ between blocks: [3, 5], expected one")

    @pytest.mark.parametrize("half", [LORA_A, LORA_B])
    def test_half_missing(self, half, state, tmp_path):
        del state[f"clip.{BLOCK}{half}"]
        refused(saved(tmp_path, state), f"1 missing: {BLOCK}{half}")

    def test_missing_in_the_text_tower(self, state, tmp_path):
        rest = {name: t for name, t in state.items() if not (name.startswith("clip.transformer.") and "LoRA" in name)}
        refused(saved(tmp_path, rest), f"2 missing: transformer.resblocks.0.{LORA_A}")

    def test_b_of_another_rank(self, state, tmp_path):
        state[f"clip.{BLOCK}{LORA_B}"] = torch.zeros(192, 4)
        refused(saved(tmp_path, state), f"{BLOCK}{LORA_B} (192, 4) instead of (192, 3)")

    def test_a_without_dimensions(self, state, tmp_path):
        state[f"clip.{BLOCK}{LORA_A}"] = torch.zeros(3)
        refused(saved(tmp_path, state), f"{BLOCK}{LORA_A} (3,) instead of (3, 64)")

    def test_clip_positions_of_another_width(self, state, tmp_path):
        state[f"clip.{BLOCK}{CLIP_POSITION}"] = torch.zeros(1, 3, 1, 65)
        refused(saved(tmp_path, state), f"{BLOCK}{CLIP_POSITION} (1, 3, 1, 65) instead of (1, 3, 1, 64)")

    def test_clip_positions_without_their_axes(self, state, tmp_path):
        state[f"clip.{BLOCK}{CLIP_POSITION}"] = torch.zeros(3, 64)
        refused(saved(tmp_path, state), f"1 unknown: {BLOCK}{CLIP_POSITION}")


REFUSED = """
import sys
import open_clip
from tempme_export.encoder.checkpoint import load_checkpoint
from tempme_export.errors import CheckpointError

for path in sys.argv[2:]:
    open_clip.add_model_config(path)
try:
    load_checkpoint(sys.argv[1])
except CheckpointError as error:
    print(error)
"""


def refused_elsewhere(source, environ, *configs):
    """What is said of a source in a process with another environment, and models of open_clip of its own."""
    command = [sys.executable, "-c", REFUSED, source, *configs]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


class TestOpenClip:
    @pytest.fixture
    def register(self, tmp_path):
        """Registers the open_clip model `tiny-test` with changes to its configuration."""
        import open_clip

        def register(**changes):
            config = {
                "embed_dim": 16,
                "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8},
                "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1},
            }
            (tmp_path / "tiny-test.json").write_text(json.dumps(config | changes))
            open_clip.add_model_config(tmp_path / "tiny-test.json")

        return register

    @pytest.mark.parametrize("quick", [True, False])
    def test_loads_with_its_activation(self, quick, register, tmp_path):
        import open_clip

        register(quick_gelu=quick)
        torch.manual_seed(3)
        module = open_clip.create_model("tiny-test")
        path = saved(tmp_path, module.state_dict())
        checkpoint = load_checkpoint(f"open_clip:tiny-test/{path}")
        holds(checkpoint, module.state_dict())
        assert checkpoint.facts.is_plain_clip and checkpoint.facts.width == 64
        assert checkpoint.activation == ("quickgelu" if quick else "gelu")
        told = {one.about: one.value for one in checkpoint.statements}
        assert (
            told["heads"] == 1
            and told["mean"] == (0.48145466, 0.4578275, 0.40821073)
            and told["interpolation"] == "bicubic"
        )
        assert checkpoint.source == f"open_clip:tiny-test/{path}"
        assert checkpoint.sha256 == from_state_dict(module.state_dict(), "x").sha256

    @pytest.mark.parametrize("source", ["open_clip:", "open_clip:ViT-B-32", "open_clip:ViT-B-32/", "open_clip:/openai"])
    def test_malformed(self, source):
        refused(source, f"{source} is not open_clip:MODEL/PRETRAINED, like open_clip:ViT-B-32-quickgelu/openai")

    def test_unknown_model(self):
        refused("open_clip:no-such-model/openai", "open_clip cannot load no-such-model with weights 'openai'")

    def test_unknown_weights(self):
        refused("open_clip:ViT-B-32/no-such-tag", "cannot load ViT-B-32 with weights 'no-such-tag'")

    def test_a_download_that_fails(self, tmp_path):
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
        said = refused_elsewhere("open_clip:ViT-B-32-quickgelu/openai", os.environ | offline)
        assert "cannot load ViT-B-32-quickgelu with weights 'openai'" in said and "check your connection" in said

    # open_clip itself loads these with a warning, and computes nonsense.
    @pytest.mark.parametrize(
        "wrong, right",
        [
            ("ViT-B-32/openai", "ViT-B-32-quickgelu/openai"),
            ("ViT-L-14/dfn2b", "ViT-L-14-quickgelu/dfn2b"),
        ],
    )
    def test_weights_trained_with_the_other_activation(self, wrong, right):
        refused(f"open_clip:{wrong}", "were trained with QuickGELU", f"Use open_clip:{right}.")

    def test_weights_trained_with_gelu(self, tmp_path):
        """No model of open_clip is so today: one whose configuration is replaced."""
        import open_clip

        changed = {**open_clip.get_model_config("ViT-B-32"), "quick_gelu": True}
        (tmp_path / "ViT-B-32.json").write_text(json.dumps(changed))
        said = refused_elsewhere("open_clip:ViT-B-32/laion2b_e16", os.environ, tmp_path / "ViT-B-32.json")
        assert "'laion2b_e16' were trained with GELU, but ViT-B-32 has QuickGELU" in said
        assert "Use open_clip:ViT-B-32/laion2b_e16." in said

    def test_convolutional_towers(self, register, tmp_path):
        import open_clip

        register(vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None})
        path = saved(tmp_path, open_clip.create_model("tiny-test").state_dict())
        refused(f"open_clip:tiny-test/{path}", "has no vision transformer of CLIP's kind")

"""The layouts in which frameworks leave a CLIP: prefixes of wrappers, dictionaries around it, Hugging Face's names."""

import itertools
import random

import pytest
import torch
from safetensors.torch import save_file

from tempme_export.errors import TempMeExportError

PARTS = ["_orig_mod", "module", "model", "_forward_module", "_checkpoint_wrapped_module", "clip"]
INSIDE = ["_orig_mod", "_checkpoint_wrapped_module", "module"]


def prefixes():
    """Every single part, every ordered pair, and some longer ones."""
    draw = random.Random(3)
    chosen = [list(one) for count in (1, 2) for one in itertools.permutations(PARTS, count)]
    return chosen + [draw.sample(PARTS, count) for count in (3, 4, 5, 6) for _ in range(4)]


@pytest.fixture
def same(mini_state, opened, tmp_path):
    """Asserts that a document holds the small model; returns what was remarked."""

    def check(document, expected=None, name="ckpt.pth"):
        torch.save(document, tmp_path / name)
        checkpoint = opened(tmp_path / name).checkpoint
        expected = mini_state if expected is None else expected
        assert checkpoint.tensors.keys() == expected.keys()
        assert all(torch.equal(checkpoint.tensors[name], tensor) for name, tensor in expected.items())
        return " ".join(checkpoint.remarks)

    return check


@pytest.fixture
def refused(opened, tmp_path):
    def check(document, *words):
        torch.save(document, tmp_path / "ckpt.pth")
        with pytest.raises(TempMeExportError) as caught:
            opened(tmp_path / "ckpt.pth")
        assert caught.value.exit_code == 3
        for word in words:
            assert word in str(caught.value)

    return check


@pytest.mark.parametrize("parts", prefixes(), ids=".".join)
def test_prefixes_in_any_order(parts, mini_state, same):
    same({".".join([*parts, name]): tensor for name, tensor in mini_state.items()})


def test_parts_within_names(mini_state, same):
    """torch.compile and checkpointing of single blocks, and of one tower."""
    draw = random.Random(9)
    document = {}
    for name, tensor in mini_state.items():
        words = name.split(".")
        if "resblocks" in words:
            words.insert(words.index("resblocks") + 2, INSIDE[int(words[words.index("resblocks") + 1]) % 3])
        if words[0] == "visual":
            words.insert(1, "_orig_mod")
        words.insert(0, draw.choice(PARTS))  # some tensors only have a further one
        document[".".join(words)] = tensor
    same(document)


def test_a_text_tower_that_is_a_model_of_its_own(mini_state, same):
    same({n if n.startswith("visual") or n == "logit_scale" else f"text.{n}": t for n, t in mini_state.items()})


def test_an_averaged_model(mini_state, same):
    averaged = {f"module.{name}": tensor for name, tensor in mini_state.items()}
    same({"ema": averaged | {"n_averaged": torch.tensor(7)}})


def test_two_tensors_of_one_name(mini_state, refused):
    refused(mini_state | {"module.visual.proj": mini_state["visual.proj"] + 1}, "visual.proj and module.visual.proj")


@pytest.mark.parametrize(
    "path",
    [
        *("state_dict", "model", "model_state_dict", "module", "ema", "model_ema", "state_dict_ema"),
        *("model.module", "ema.state_dict", "model.model_state_dict", "module.module.state_dict"),
    ],
)
def test_wrapped(path, mini_state, same):
    document = {f"module.{name}": tensor for name, tensor in mini_state.items()}
    for key in reversed(path.split(".")):
        document = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "decay": 0.999, key: document}
    assert repr(path) in same(document)


def test_of_several_the_one_that_is_taken_is_said(mini_state, same):
    other = {name: tensor + 1 for name, tensor in mini_state.items()}
    for first, second in (
        ("model", "ema"),
        ("model_state_dict", "ema"),
        ("state_dict", "model"),
        ("module", "model_ema"),
    ):
        for document in ({first: mini_state, second: other}, {second: other, first: mini_state}):
            said = same(document)
            assert f"weights taken from {first!r}" in said and f"also holds {second!r}, which is not used" in said


def test_settings_called_as_weights_are_passed_over(mini_state, same):
    assert "'ema'" in same({"model": {"name": "ViT", "layers": 4}, "module": {}, "ema": mini_state})


@pytest.mark.parametrize("shape", [(1,), (1, 1), ()])
def test_logit_scale_of_any_shape_with_one_value(shape, mini_state, same):
    same(mini_state | {"logit_scale": mini_state["logit_scale"].reshape(shape)})


def test_logit_scale_of_two(mini_state, refused):
    refused(mini_state | {"logit_scale": torch.ones(2)}, "logit_scale (2,) instead of ()")


def test_a_document_that_holds_itself(mini_state, same, refused):
    document = {"epoch": 1}
    document["model"] = document
    refused(document, "not a named tensor")
    document["state_dict"] = mini_state
    same(document)
    settings = {}
    settings["."] = settings
    same({"model": mini_state, "config": settings})


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    "name", ["vision_model.embeddings.position_ids", "input_resolution", "text_projection.weight", "logit_scale"]
)
def test_tensors_without_values(name, mini_state, refused):
    refused(mini_state | {name: torch.zeros(1, device="meta")}, "ckpt.pth")
    refused(mini_state | {name: torch.zeros(2, 2).to_sparse()}, "ckpt.pth")


class TestHuggingFace:
    @pytest.fixture
    def plain(self, mini_state):
        return {name: tensor for name, tensor in mini_state.items() if "TVPt" not in name}

    @pytest.mark.parametrize("prefix", ["", "clip.", "module.model."])
    def test_is_converted(self, prefix, plain, hugging_face_names, same):
        document = {prefix + name: tensor for name, tensor in hugging_face_names(plain).items()}
        assert "Hugging Face's names" in same(document, plain)

    def test_in_safetensors_with_its_buffers(self, plain, hugging_face_names, opened, tmp_path):
        buffers = {
            "text_model.embeddings.position_ids": torch.arange(24)[None],
            "vision_model.embeddings.position_ids": torch.arange(17)[None],
        }
        save_file(hugging_face_names(plain) | buffers, tmp_path / "pytorch_model.bin")
        tensors = opened(tmp_path / "pytorch_model.bin").checkpoint.tensors
        assert tensors.keys() == plain.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in plain.items())

    def test_positions_in_another_order(self, plain, hugging_face_names, refused):
        ids = torch.arange(24).flip(0)
        refused(hugging_face_names(plain) | {"text_model.embeddings.position_ids": ids}, "position_ids does not count")

    def test_a_projection_is_missing(self, plain, hugging_face_names, refused):
        document = hugging_face_names(plain)
        del document["text_model.encoder.layers.1.self_attn.k_proj.bias"]
        refused(document, "transformer.resblocks.1.attn.in_proj_bias", "k missing")

    def test_a_projection_of_another_shape(self, plain, hugging_face_names, refused):
        document = hugging_face_names(plain)
        document["vision_model.encoder.layers.0.self_attn.v_proj.weight"] = torch.ones(63, 64)
        refused(document, "visual.transformer.resblocks.0.attn.in_proj_weight", "(63, 64)")

    def test_one_tower_alone(self, plain, hugging_face_names, refused):
        document = hugging_face_names(plain)
        refused({n: t for n, t in document.items() if n.startswith("vision_model")}, "positional_embedding is missing")

    def test_adapters_of_peft_are_named(self, plain, hugging_face_names, refused):
        document = {
            name.replace("q_proj.weight", "q_proj.base_layer.weight"): tensor
            for name, tensor in hugging_face_names(plain).items()
        }
        refused({f"base_model.model.{n}": t for n, t in document.items()}, "merge_and_unload()")

"""Checkpoint and profile brought together: what is inferred, what contradicts, how LoRA is folded."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from tempme_export.encoder.checkpoint import CheckpointFacts, expected_shapes, from_state_dict, read_facts
from tempme_export.encoder.profile import BatchRange, Expect, Profile, load_profile, profile_folder, shipped_profiles
from tempme_export.encoder.recipe import folded_weights, infer_profile, prepare
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.errors import CheckpointError, ProfileError

CLIP_12 = ((8, 12), (9, 6), (10, 3))
B32 = CheckpointFacts(
    image_size=224,
    patch=32,
    width=768,
    layers=12,
    embed=512,
    text_width=512,
    text_layers=12,
    context=77,
    vocab=49408,
    lora_rank=8,
    clip_lengths=CLIP_12,
)
B16 = dataclasses.replace(B32, patch=16)
L14 = dataclasses.replace(
    B32,
    patch=14,
    width=1024,
    layers=24,
    embed=768,
    text_width=768,
    clip_lengths=((20, 12), (21, 6), (22, 3)),
)


def plain(facts):
    return dataclasses.replace(facts, lora_rank=None, clip_lengths=())


def full_size_layout():
    """Names and shapes of the original's ViT-B/32 checkpoint, as the table of spec section 7 has them."""
    shapes = {
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "logit_scale": (),
        "token_embedding.weight": (49408, 512),
        "ln_final.weight": (512,),
        "ln_final.bias": (512,),
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 32, 32),
    }
    for name in ("ln_pre", "ln_post"):
        shapes |= {f"visual.{name}.{kind}": (768,) for kind in ("weight", "bias")}
    for tower, d in (("visual.transformer", 768), ("transformer", 512)):
        for i in range(12):
            block = {
                "attn.in_proj_weight": (3 * d, d),
                "attn.in_proj_bias": (3 * d,),
                "attn.TVPt_LoRA_a": (8, d),
                "attn.TVPt_LoRA_b": (3 * d, 8),
                "attn.out_proj.weight": (d, d),
                "attn.out_proj.bias": (d,),
                "mlp.c_fc.weight": (4 * d, d),
                "mlp.c_fc.bias": (4 * d,),
                "mlp.c_proj.weight": (d, 4 * d),
                "mlp.c_proj.bias": (d,),
            } | {f"ln_{k}.{kind}": (d,) for k in (1, 2) for kind in ("weight", "bias")}
            shapes |= {f"{tower}.resblocks.{i}.{name}": shape for name, shape in block.items()}
    for i, clips in ((8, 12), (9, 6), (10, 3)):
        name = f"visual.transformer.resblocks.{i}.TVPt_Video_Positional_embedding"
        shapes[name] = (1, clips, 1, 768)
    return shapes


def test_facts_of_the_full_size_layout():
    shapes = full_size_layout()
    assert len(shapes) == 353
    values = sum(int(np.prod(shape)) for shape in shapes.values())
    trained = sum(int(np.prod(shape)) for name, shape in shapes.items() if "TVPt" in name)
    assert (round(values / 1e6, 2), round(trained / 1e6, 3)) == (151.78, 0.508)
    facts = read_facts({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert facts == B32
    assert expected_shapes(facts) == shapes


def remerged(name, **changes):
    """A shipped profile with another merge policy and no expectation."""
    profile = load_profile(name)
    merge = dataclasses.replace(profile.merge, **changes)
    return dataclasses.replace(profile, merge=merge, expect=Expect())


class TestInference:
    @pytest.mark.parametrize(
        "facts, name",
        [
            (B32, "vit-b-32-12f"),
            (dataclasses.replace(B32, clip_lengths=((8, 8), (9, 4), (10, 2))), "vit-b-32-8f"),
            (dataclasses.replace(B32, clip_lengths=((8, 64), (9, 16), (10, 4))), "vit-b-32-64f"),
            (dataclasses.replace(B32, lora_rank=None), "vit-b-32-12f"),
            (dataclasses.replace(B32, lora_rank=16), "vit-b-32-12f"),
            (B16, "vit-b-16-12f"),
            (L14, "vit-l-14-12f"),
        ],
    )
    def test_takes_the_one_candidate(self, checkpoint_of, facts, name):
        recipe = prepare(checkpoint_of(facts))
        assert recipe.profile == load_profile(name) and recipe.origin == "inferred"
        assert recipe.schedule == recipe.profile.schedule(recipe.backbone)
        assert recipe.backbone.name == recipe.profile.backbone

    @pytest.mark.parametrize(
        "facts, several",
        [
            (plain(B32), ["12f", "12f-none", "12f-tome", "64f", "8f"]),
            (dataclasses.replace(B32, clip_lengths=()), ["12f-none", "12f-tome"]),
        ],
        ids=["plain CLIP", "LoRA alone"],
    )
    def test_several_candidates_are_listed(self, checkpoint_of, facts, several):
        names = ", ".join(f"vit-b-32-{rest}" for rest in several)
        message = f"ckpt.pth fits {len(several)} profiles: {names}. Its shapes cannot tell which"
        with pytest.raises(ProfileError, match=re.escape(message)) as caught:
            prepare(checkpoint_of(facts))
        assert "--profile" in str(caught.value)

    @pytest.mark.parametrize(
        "changes",
        [
            {"image_size": 256},
            {"width": 832},
            {"vocab": 49409},
            {"clip_lengths": ((8, 10), (9, 5), (10, 1))},
            {"clip_lengths": ((7, 12), (8, 6), (9, 3))},
        ],
    )
    def test_no_candidate(self, checkpoint_of, changes):
        facts = dataclasses.replace(B32, **changes)
        with pytest.raises(ProfileError, match="fits no shipped profile") as caught:
            infer_profile(checkpoint_of(facts))
        message = str(caught.value)
        assert f"width {facts.width}, 12 blocks, image {facts.image_size}" in message
        assert str(dict(facts.clip_lengths)) in message
        assert all(name in message for name in shipped_profiles())

    def test_a_given_profile_is_not_inferred(self, checkpoint_of):
        for profile in ("vit-b-32-12f", profile_folder() / "vit-b-32-12f.toml", load_profile("vit-b-32-12f")):
            recipe = prepare(checkpoint_of(B32), profile)
            assert recipe.origin == "asked" and recipe.profile.name == "vit-b-32-12f"
            assert recipe.schedule.final_tokens == 97

    def test_heads_that_shapes_do_not_tell(self, checkpoint_of):
        """ViT-H divides its width by 80, not by 64; both come out even."""
        facts = dataclasses.replace(
            plain(B32), patch=14, width=1280, layers=32, embed=1024, text_width=1024, text_layers=24
        )
        policy = MergePolicy(0, (), (), 0, 0, size_bias=False, clip_position=False)
        profile = Profile("h", "checkpoint", 2, 32, policy, BatchRange(1, 1, 1))
        with pytest.raises(ProfileError, match=r"found backbone 'checkpoint'.*ViT-H's.*ViT-H-14-quickgelu, or another"):
            prepare(checkpoint_of(facts), profile)
        named = dataclasses.replace(profile, backbone="ViT-H-14-quickgelu")
        assert prepare(checkpoint_of(facts), named).backbone.heads == 16
        assert prepare(checkpoint_of(dataclasses.replace(facts, layers=31)), profile).backbone.heads == 20

    def test_the_checkpoint_s_own_profile_comes_before_its_shapes(self, checkpoint_of):
        own = dataclasses.replace(load_profile("vit-b-32-12f"), name="mine", text_length=20)
        checkpoint = dataclasses.replace(checkpoint_of(B32), profile=own)
        recipe = prepare(checkpoint)
        assert recipe.origin == "declared" and recipe.profile == own
        asked = prepare(checkpoint, "vit-b-32-12f")
        assert asked.origin == "asked" and asked.profile.text_length == 32

    @pytest.mark.parametrize("name", ["vit-b-32-12f", "vit-b-32-8f", "vit-b-32-12f-none", "vit-b-32-12f-tome"])
    def test_plain_clip_fits_where_it_is_told(self, checkpoint_of, name):
        assert prepare(checkpoint_of(plain(B32)), name).profile.name == name


class TestContradictions:
    def contradict(self, checkpoint, profile, *messages):
        with pytest.raises(ProfileError) as caught:
            prepare(checkpoint, profile)
        for message in ("contradict each other", *messages):
            assert message in str(caught.value)
        return str(caught.value)

    def test_b16_checkpoint_with_a_b32_profile(self, checkpoint_of):
        self.contradict(
            checkpoint_of(B16),
            "vit-b-32-12f",
            "checkpoint ckpt.pth and profile vit-b-32-12f",
            "patch is 16 in the checkpoint and 32 in ViT-B-32-quickgelu",
            "--profile",
        )

    def test_every_size_is_named(self, checkpoint_of):
        message = self.contradict(
            checkpoint_of(plain(L14)),
            "vit-b-32-12f",
            "patch is 14 in the checkpoint and 32 in ViT-B-32-quickgelu",
            "width is 1024 in the checkpoint and 768",
            "layers is 24 in the checkpoint and 12",
            "embed is 768 in the checkpoint and 512",
            "text_width is 768 in the checkpoint and 512",
        )
        assert "image_size" not in message and "vocab" not in message

    def test_frames(self, checkpoint_of):
        self.contradict(
            checkpoint_of(B32),
            "vit-b-32-8f",
            "are {8: 12, 9: 6, 10: 3} in the checkpoint and {8: 8, 9: 4, 10: 2} by the profile's frames",
        )

    @pytest.mark.parametrize(
        "changes, expected",
        [
            ({"clip_layers": (7, 9, 10)}, "{7: 12, 9: 6, 10: 3}"),
            ({"clip_factors": (3, 2, 2)}, "{8: 12, 9: 4, 10: 2}"),
            ({"clip_layers": (8, 9), "clip_factors": (2, 6)}, "{8: 12, 9: 6}"),
            ({"clip_position": False}, "{}"),
        ],
    )
    def test_clip_layers_and_factors(self, checkpoint_of, changes, expected):
        profile = remerged("vit-b-32-12f", **changes)
        self.contradict(checkpoint_of(B32), profile, f"are {{8: 12, 9: 6, 10: 3}} in the checkpoint and {expected}")

    def test_a_factor_of_one_has_no_clip_position(self, checkpoint_of):
        profile = remerged("vit-b-32-12f", clip_factors=(2, 2, 1))
        self.contradict(checkpoint_of(B32), profile, "and {8: 12, 9: 6} by the profile")

    def test_the_last_factor_cannot_be_told(self, checkpoint_of):
        facts = dataclasses.replace(B32, clip_lengths=((8, 64), (9, 16), (10, 4)))
        profile = remerged("vit-b-32-64f", clip_factors=(4, 4, 2))
        assert prepare(checkpoint_of(facts), profile).schedule.final_clips == 2

    def test_clip_positions_where_the_profile_has_none(self, checkpoint_of):
        self.contradict(checkpoint_of(B32), "vit-b-32-12f-tome", "in the checkpoint and {} by the profile")

    def test_lora_where_the_profile_wants_clip_positions(self, checkpoint_of):
        lora = dataclasses.replace(B32, clip_lengths=())
        self.contradict(checkpoint_of(lora), "vit-b-32-12f", "are {} in the checkpoint and {8: 12, 9: 6, 10: 3}")

    def test_activation(self, checkpoint_of):
        message = "activation is gelu by the checkpoint's file and quickgelu in ViT-B-32-quickgelu"
        self.contradict(checkpoint_of(B32, activation="gelu"), "vit-b-32-12f", message)
        assert prepare(checkpoint_of(B32, activation="quickgelu"), "vit-b-32-12f").schedule.final_tokens == 97

    def test_unknown_profile(self, checkpoint_of):
        with pytest.raises(ProfileError, match="no profile is called 'vit-b-32'"):
            prepare(checkpoint_of(B32), "vit-b-32")

    def test_b16_with_the_percentages_of_b32(self, tmp_path):
        """The mistake that the original loads without a word (spec section 7)."""
        text = (profile_folder() / "vit-b-16-12f.toml").read_text()
        for right, wrong in (
            ("cross_percent = 40", "cross_percent = 30"),
            ("intra_percent = 20", "intra_percent = 10"),
        ):
            assert right in text
            text = text.replace(right, wrong)
        (tmp_path / "wrong.toml").write_text(text)
        message = "profile vit-b-16-12f: expect.final_tokens = 127, but its settings give 321 on ViT-B-16-quickgelu"
        with pytest.raises(ProfileError, match=re.escape(message)):
            load_profile(tmp_path / "wrong.toml")


class TestSizesFromTheCheckpoint:
    """Profiles with backbone = "checkpoint"."""

    def test_takes_every_size(self, tiny_recipe):
        backbone = tiny_recipe.backbone
        assert (backbone.image_size, backbone.patch, backbone.width, backbone.heads) == (64, 16, 128, 2)
        assert (backbone.layers, backbone.embed, backbone.vocab, backbone.context) == (12, 32, 600, 77)
        assert (backbone.text_width, backbone.text_layers, backbone.text_heads) == (128, 2, 2)
        assert backbone.activation == "quickgelu" and backbone.tokenizer is None

    @pytest.mark.parametrize("changes", [{"width": 96}, {"text_width": 100}])
    def test_odd_widths(self, checkpoint_of, tiny_profile, changes):
        facts = dataclasses.replace(B32, **changes)
        ((name, value),) = changes.items()
        with pytest.raises(CheckpointError, match=f"^{name} = {value} is not a multiple of the head width 64"):
            prepare(checkpoint_of(facts), tiny_profile)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"clip_factors": (2, 2)}, "clip_layers has 3 entries and merge.clip_factors 2"),
            ({"clip_factors": (2, 2, 4)}, "cannot be joined by 4"),
            ({"clip_layers": (8, 9, 12)}, "the last block is 11"),
            ({"image_r": 30}, "image_r = 30 merges more tokens"),
        ],
    )
    def test_policies_are_checked_once_the_sizes_are_known(self, checkpoint_of, tiny_profile, changes, message):
        profile = dataclasses.replace(tiny_profile, merge=dataclasses.replace(tiny_profile.merge, **changes))
        with pytest.raises(ProfileError, match=message):
            prepare(checkpoint_of(B32), profile)

    def test_texts_longer_than_the_text_tower(self, checkpoint_of, tiny_profile):
        with pytest.raises(ProfileError, match="text_length = 78, but the text tower of checkpoint has 77"):
            prepare(checkpoint_of(B32), dataclasses.replace(tiny_profile, text_length=78))


@pytest.fixture
def weights_of(tiny_recipe):
    return {tower: folded_weights(tiny_recipe, tower, torch.float64) for tower in ("visual.", "")}


class TestFolding:
    @pytest.mark.parametrize("tower, blocks", [("visual.", 12), ("", 2)])
    def test_w_plus_b_times_a(self, tiny_state_dict, weights_of, sum_error, tower, blocks):
        for i in range(blocks):
            name = f"transformer.resblocks.{i}.attn."
            source = {
                part: tiny_state_dict[f"clip.{tower}{name}{part}"].numpy().astype(np.float64)
                for part in ("in_proj_weight", "TVPt_LoRA_a", "TVPt_LoRA_b")
            }
            added = np.einsum("or,ri->oi", source["TVPt_LoRA_b"], source["TVPt_LoRA_a"])
            folded = weights_of[tower][f"{name}in_proj_weight"].numpy()
            sizes = np.abs(source["TVPt_LoRA_b"]) @ np.abs(source["TVPt_LoRA_a"]) + np.abs(source["in_proj_weight"])
            limit = 2 * sum_error(source["TVPt_LoRA_a"].shape[0] + 1, torch.float64) * sizes
            assert (np.abs(folded - (source["in_proj_weight"] + added)) <= limit).all(), "two orders of addition"
            for third in np.split(added, 3):  # queries, keys and values each carry their share
                assert np.abs(third).max() > 1e-2

    def test_everything_else_is_copied(self, tiny_state_dict, weights_of):
        copied = {}
        for tower, weights in weights_of.items():
            for name, tensor in weights.items():
                if not name.endswith(("in_proj_weight", "clip_position")):
                    copied[f"clip.{tower}{name}"] = tensor
        changed = ("in_proj_weight", "TVPt_LoRA_a", "TVPt_LoRA_b", "TVPt_Video_Positional_embedding")
        assert copied.keys() == {name for name in tiny_state_dict if not name.endswith(changed)}
        for name, tensor in copied.items():
            torch.testing.assert_close(tensor, tiny_state_dict[name].double(), rtol=0, atol=0)

    def test_clip_positions(self, tiny_state_dict, weights_of):
        found = {name: t for name, t in weights_of["visual."].items() if name.endswith("clip_position")}
        assert found.keys() == {f"transformer.resblocks.{i}.clip_position" for i in (8, 9, 10)}
        for i, clips in ((8, 12), (9, 6), (10, 3)):
            stored = tiny_state_dict[f"clip.visual.transformer.resblocks.{i}.TVPt_Video_Positional_embedding"]
            position = found[f"transformer.resblocks.{i}.clip_position"]
            assert position.shape == (clips, 128)
            torch.testing.assert_close(position, stored.double().reshape(clips, 128), rtol=0, atol=0)

    def test_float32_is_rounded_once(self, tiny_recipe, weights_of):
        name = "transformer.resblocks.5.attn.in_proj_weight"
        narrow = folded_weights(tiny_recipe, "visual.", torch.float32)[name]
        torch.testing.assert_close(narrow, weights_of["visual."][name].float(), rtol=0, atol=0)
        half = folded_weights(tiny_recipe, "visual.", torch.float16)
        assert {tensor.dtype for tensor in half.values()} == {torch.float16}

    def test_plain_clip_gets_zero_clip_positions(self, tiny_state_dict, tiny_profile):
        rest = {name: tensor for name, tensor in tiny_state_dict.items() if "TVPt" not in name}
        recipe = prepare(from_state_dict(rest, "plain"), tiny_profile)
        weights = folded_weights(recipe, "visual.", torch.float32)
        for i, clips in ((8, 12), (9, 6), (10, 3)):
            position = weights[f"transformer.resblocks.{i}.clip_position"]
            assert position.shape == (clips, 128) and not position.any()
        name = "transformer.resblocks.5.attn.in_proj_weight"
        torch.testing.assert_close(weights[name], rest[f"clip.visual.{name}"], rtol=0, atol=0)

    def test_no_clip_positions_where_the_profile_has_none(self, tiny_state_dict):
        rest = {name: tensor for name, tensor in tiny_state_dict.items() if "Video" not in name}
        merge = MergePolicy(1, (8,), (2,), 30, 10, clip_position=False)
        profile = Profile("p", "checkpoint", 12, 32, merge, BatchRange(1, 1, 1))
        weights = folded_weights(prepare(from_state_dict(rest, "lora"), profile), "visual.", torch.float32)
        assert not [name for name in weights if "clip_position" in name]

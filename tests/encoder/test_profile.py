"""Shipped profiles hold what they claim, and everything wrong in a profile is said."""

import copy
import dataclasses
import tomllib

import pytest

from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.profile import (
    FROM_CHECKPOINT,
    BatchRange,
    Expect,
    load_profile,
    parse_profile,
    profile_folder,
    shipped_profiles,
)
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.errors import InputError, ProfileError

# name -> final tokens, GMACs: from the paper where it prints them, from spec sections 8 and 9 elsewhere.
FROM_PAPER = {
    "vit-b-32-12f": (97, 34.8),
    "vit-b-32-8f": (65, 23.2),
    "vit-b-32-64f": (500, 186.3),
    "vit-b-16-12f": (127, 121.4),
    "vit-b-32-12f-none": (50, 53.0),
    "vit-b-32-12f-tome": (26, 40.2),
    "vit-b-16-12f-none": (197, 211.3),
    "vit-b-16-12f-tome": (77, 144.4),
}


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        ((1, 8, 64), (1, 2, 4, 8, 16, 32, 64)),
        ((3, 5, 20), (3, 4, 5, 8, 16, 20)),
        ((1, 1, 1), (1,)),
        ((4, 4, 6), (4, 6)),
        ((1, 2, 3), (1, 2, 3)),
    ],
)
def test_few_batch_sizes_hold_any_batch_in_twice_its_size_at_most(batch, sizes):
    found = BatchRange(*batch).sizes
    assert found == sizes
    for rows in range(batch[0], batch[2] + 1):
        assert rows <= min(size for size in found if size >= rows) < 2 * rows


def test_what_is_shipped():
    names = set(shipped_profiles())
    for backbone in ("vit-b-32", "vit-b-16", "vit-l-14"):
        assert {f"{backbone}-12f", f"{backbone}-12f-none", f"{backbone}-12f-tome"} <= names
    for backbone in ("vit-b-32", "vit-b-16"):
        assert {f"{backbone}-8f", f"{backbone}-64f"} <= names
    assert names == {path.stem for path in profile_folder().glob("*.toml")}


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_profile(name):
    profile = load_profile(name)
    assert profile.name == name, "the name is the file's stem"
    assert profile.expect.final_tokens is not None and profile.expect.gmacs is not None
    schedule = profile.schedule(open_clip_backbone(profile.backbone))
    assert schedule.final_tokens == profile.expect.final_tokens
    if name in FROM_PAPER:
        assert (profile.expect.final_tokens, profile.expect.gmacs) == FROM_PAPER[name]
    if profile.merge.clip_layers:
        assert schedule.final_clips == 1 and profile.merge.size_bias and profile.merge.clip_position
    else:
        assert schedule.final_clips == profile.frames and not profile.merge.clip_position
    assert profile.text_length == (24 if name.startswith("mini") else 64 if profile.frames == 64 else 32)
    assert f"-{profile.frames}f" in name


def test_by_name_and_by_path_are_the_same():
    path = profile_folder() / "vit-b-32-12f.toml"
    assert load_profile("vit-b-32-12f") == load_profile(path) == load_profile(str(path))


@pytest.mark.parametrize("name", shipped_profiles())
def test_to_dict_is_the_document(name):
    profile = load_profile(name)
    document = tomllib.loads((profile_folder() / f"{name}.toml").read_text())
    assert profile.to_dict() == document
    assert parse_profile(profile.to_dict(), "again") == profile


def test_to_dict_leaves_out_what_is_not_expected():
    profile = dataclasses.replace(load_profile("vit-b-32-12f"), expect=Expect())
    assert "expect" not in profile.to_dict()
    assert parse_profile(profile.to_dict(), "again") == profile
    tokens_only = dataclasses.replace(profile, expect=Expect(final_tokens=97))
    assert tokens_only.to_dict()["expect"] == {"final_tokens": 97}


@pytest.fixture
def document():
    return load_profile("vit-b-32-12f").to_dict()


def put(document, key, value):
    """A copy of the document with `table.key` or `key` set."""
    changed = copy.deepcopy(document)
    *tables, last = key.split(".")
    place = changed
    for table in tables:
        place = place[table]
    place[last] = value
    return changed


def refused(document, message):
    with pytest.raises(ProfileError, match=message) as caught:
        parse_profile(document, "profile p.toml")
    assert str(caught.value).startswith("profile "), "it says which profile"
    assert isinstance(caught.value, InputError) and caught.value.exit_code == 3


def test_values_arrive(document):
    profile = parse_profile(document, "p")
    assert profile.merge == MergePolicy(2, (8, 9, 10), (2, 2, 3), 30, 10, True, True)
    assert profile.batch == BatchRange(1, 8, 64)
    assert (profile.backbone, profile.frames, profile.text_length) == ("ViT-B-32-quickgelu", 12, 32)


@pytest.mark.parametrize("key", ["framse", "merge.cross_precent", "shapes.batches", "expect.gflops"])
def test_unknown_keys(document, key):
    refused(put(document, key, 1), f"unknown key '{key.split('.')[-1]}'.*Known keys: ")


@pytest.mark.parametrize(
    "key",
    ["name", "backbone", "frames", "text_length", "merge", "shapes", "shapes.batch"]
    + [f"merge.{field.name}" for field in dataclasses.fields(MergePolicy)],
)
def test_missing_keys(document, key):
    *tables, last = key.split(".")
    del (document[tables[0]] if tables else document)[last]
    where = rf"\[{tables[0]}\]: " if tables else ""
    refused(document, f"p.toml: {where}missing key '{last}'")


def test_every_problem_of_a_table_is_listed(document):
    document = put(put(document, "frames", "12"), "colour", 1)
    del document["text_length"]
    refused(document, "unknown key 'colour'; missing key 'text_length'; frames = '12' is not a whole number")


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("name", 3, "a text"),
        ("backbone", ["ViT-B-32"], "a text"),
        ("frames", 12.0, "a whole number"),
        ("frames", True, "a whole number"),
        ("text_length", "32", "a whole number"),
        ("merge", 3, "a table"),
        ("shapes", [1, 8, 64], "a table"),
        ("expect", True, "a table"),
        ("merge.image_r", 2.0, "a whole number"),
        ("merge.image_r", False, "a whole number"),
        ("merge.clip_layers", 8, "a list of whole numbers"),
        ("merge.clip_layers", [8, 9, 10.0], "a list of whole numbers"),
        ("merge.clip_layers", [8, 9, "10"], "a list of whole numbers"),
        ("merge.clip_factors", [2, 2, True], "a list of whole numbers"),
        ("merge.cross_percent", "30", "a number"),
        ("merge.cross_percent", True, "a number"),
        ("merge.intra_percent", [10], "a number"),
        ("merge.size_bias", 1, "true or false"),
        ("merge.size_bias", "true", "true or false"),
        ("merge.clip_position", 0, "true or false"),
        ("shapes.batch", 8, "three whole numbers"),
        ("shapes.batch", [1.0, 8, 64], "three whole numbers"),
        ("expect.final_tokens", 97.0, "a whole number"),
        ("expect.final_tokens", True, "a whole number"),
        ("expect.gmacs", "34.8", "a number"),
    ],
)
def test_wrong_types(document, key, value, words):
    refused(put(document, key, value), rf"{key.split('.')[-1]} = .* is not {words}")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("frames", 0, "frames = 0 is below 1"),
        ("frames", -12, "frames = -12 is below 1"),
        ("text_length", 1, "text_length = 1 leaves no room"),
        ("text_length", 78, "text_length = 78, but the text tower of .* has 77 positions"),
        ("merge.image_r", -1, "image_r = -1 is negative"),
        ("merge.image_r", 25, r"image_r = 25 .* block 0 .* 50 tokens, 24 of them in set A"),
        ("merge.cross_percent", -0.5, r"cross_percent = -0\.5 is not within 0\.\.100"),
        ("merge.cross_percent", 101, r"cross_percent = 101 is not within 0\.\.100"),
        ("merge.intra_percent", float("nan"), r"intra_percent = nan is not within 0\.\.100"),
        ("merge.intra_percent", float("inf"), r"intra_percent = inf is not within 0\.\.100"),
        ("merge.clip_layers", [-1, 9, 10], r"clip_layers = \[-1, 9, 10\] has a negative"),
        ("merge.clip_layers", [8, 9, 12], r"clip_layers names \[12\], but the last block is 11"),
        ("merge.clip_layers", [9, 8, 10], r"must rise without repeats, found \[9, 8, 10\]"),
        ("merge.clip_layers", [8, 9], "clip_layers has 2 entries and merge.clip_factors 3"),
        ("merge.clip_factors", [2, 0, 3], r"clip_factors = \[2, 0, 3\]: at least 1"),
        ("merge.clip_factors", [2, 2, 4], "3 clips reach block 10 and cannot be joined by 4"),
        ("merge.clip_factors", [5, 2, 3], "12 clips reach block 8 and cannot be joined by 5"),
        ("shapes.batch", [], r"batch = \[\] must be three whole numbers"),
        ("shapes.batch", [1, 8], "must be three whole numbers"),
        ("shapes.batch", [1, 8, 64, 128], "must be three whole numbers"),
        ("shapes.batch", [0, 8, 64], r"batch = \[0, 8, 64\] is not min <= opt <= max from 1 up"),
        ("shapes.batch", [2, 1, 64], "is not min <= opt <= max"),
        ("shapes.batch", [1, 65, 64], "is not min <= opt <= max"),
        ("expect.final_tokens", 96, r"expect\.final_tokens = 96, but its settings give 97 on ViT-B-32"),
        ("expect.gmacs", 34.9, r"expect\.gmacs = 34\.9, but its settings give 34\.8 on ViT-B-32"),
    ],
)
def test_values_out_of_range(document, key, value, message):
    refused(put(document, key, value), message)


@pytest.mark.parametrize(
    "key, value",
    [
        ("merge.cross_percent", 30.0),
        ("merge.size_bias", False),
        ("shapes.batch", [4, 4, 4]),
        ("text_length", 77),
        ("text_length", 2),
    ],
)
def test_values_at_the_edge(document, key, value):
    assert parse_profile(put(document, key, value), "p").to_dict() == put(document, key, value)


def test_unknown_backbone_suggests(document):
    expected = "expected an open_clip model config"
    refused(put(document, "backbone", "ViT-B-32-quikgelu"), f"{expected}. Did you mean ViT-B-32-quickgelu")
    refused(
        put(document, "backbone", "zzzzzzzz"), rf"found backbone 'zzzzzzzz', {expected}. See open_clip\.list_models"
    )


@pytest.mark.parametrize(
    "name, reason",
    [
        ("EVA02-B-16", r"vision_cfg\.timm_model_name"),
        ("ViT-B-16-SigLIP", r"vision_cfg\.timm_model_name"),
        ("RN50", "a convolutional tower"),
        ("convnext_base", r"vision_cfg\.timm_model_name"),
        ("coca_ViT-B-32", "multimodal_cfg"),
        ("roberta-ViT-B-32", r"text_cfg\.hf_model_name"),
    ],
)
def test_backbones_that_are_no_plain_clip(document, name, reason):
    refused(put(document, "backbone", name), rf"{name}' is not a plain CLIP .*{reason}")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("ViT-B-32-quickgelu", (224, 32, 768, 12, 12, 512, 512, 12, 8, 77, 49408, "quickgelu")),
        ("ViT-B-16", (224, 16, 768, 12, 12, 512, 512, 12, 8, 77, 49408, "gelu")),
        ("ViT-L-14-quickgelu", (224, 14, 1024, 24, 16, 768, 768, 12, 12, 77, 49408, "quickgelu")),
        ("ViT-H-14", (224, 14, 1280, 32, 16, 1024, 1024, 24, 16, 77, 49408, "gelu")),
    ],
)
def test_backbone_sizes(name, expected):
    backbone = open_clip_backbone(name)
    sizes = dataclasses.astuple(backbone)
    assert sizes[:13] == (name, *expected) and backbone.tokenizer == name
    assert backbone.tokens_per_frame == (expected[0] // expected[1]) ** 2 + 1


def test_a_profile_for_any_checkpoint_waits_for_its_sizes(document):
    document = put(document, "backbone", FROM_CHECKPOINT)
    del document["expect"]
    profile = parse_profile(document, "p")
    assert profile.backbone == FROM_CHECKPOINT
    refused(put(document, "merge.cross_percent", 101), "is not within")


def test_a_plain_image_encoder_is_a_profile(document):
    document["frames"] = 1
    document["merge"] |= {"clip_layers": [], "clip_factors": []}
    document["expect"] = {"final_tokens": 26}
    schedule = parse_profile(document, "p").schedule(open_clip_backbone("ViT-B-32"))
    assert (schedule.final_clips, schedule.final_tokens) == (1, 26)


class TestFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(ProfileError, match=r"none\.toml is not a file\. Shipped profiles: .*vit-b-32-12f"):
            load_profile(tmp_path / "none.toml")

    def test_unknown_name(self):
        with pytest.raises(ProfileError, match=r"no profile is called 'vit-b-33'.*one of: .*vit-b-32-12f"):
            load_profile("vit-b-33")

    @pytest.mark.parametrize("name", ["", ".", "..", "../profiles/vit-b-32-12f"])
    def test_odd_names(self, name):
        with pytest.raises(ProfileError, match="no profile is called"):
            load_profile(name)

    def test_folder(self, tmp_path):
        (tmp_path / "p.toml").mkdir()
        with pytest.raises(ProfileError, match=r"p\.toml is not a file"):
            load_profile(tmp_path / "p.toml")
        with pytest.raises(ProfileError, match="no profile is called"):
            load_profile(tmp_path)

    @pytest.mark.parametrize(
        "content", [b"name = \n", b'{"name": "json"}', b"\xff\xfe\x00", b'name = "a"\nname = "b"\n']
    )
    def test_not_toml(self, tmp_path, content):
        path = tmp_path / "p.toml"
        path.write_bytes(content)
        with pytest.raises(ProfileError, match=r"p\.toml cannot be read as TOML: "):
            load_profile(path)

    def test_empty(self, tmp_path):
        path = tmp_path / "p.toml"
        path.write_bytes(b"")
        with pytest.raises(ProfileError, match=r"p\.toml: missing key 'name'"):
            load_profile(path)

    def test_errors_name_the_file(self, tmp_path):
        path = tmp_path / "mine.toml"
        path.write_text((profile_folder() / "vit-b-32-12f.toml").read_text().replace("frames = 12", "frames = 0"))
        with pytest.raises(ProfileError, match=r"profile mine\.toml: frames = 0 is below 1"):
            load_profile(path)

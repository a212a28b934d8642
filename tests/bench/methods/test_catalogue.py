"""Which methods there are, what each merges on a profile, and the paper's figures beside it."""

import dataclasses
import subprocess
import sys

import pytest

from tempme_export.bench import paper
from tempme_export.bench.methods.catalogue import METHODS, chosen
from tempme_export.bench.methods.derive import derive
from tempme_export.bench.methods.figures import paper_figures
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.schedule import MergePolicy
from tempme_export.errors import UsageError

KEYS = [method.key for method in METHODS]
NOT_DERIVED = ("diffrate", "sta", "testa")
TABLE_10 = ("clips-4-1", "clips-1", "clips-6-3", "clips-4", "layers-7-9-11", "layers-4-7-10", "layers-1-5-9")
# key, profile -> the paper's GFLOPs, clips and tokens per clip, videos per second; typed in from the paper's tables
PRINTED = {
    ("none", "vit-b-32-12f"): (53.0, (12, 50), None),
    ("none", "vit-b-16-12f"): (211.3, (12, 197), 30.6),
    ("tome", "vit-b-32-12f"): (40.2, (12, 26), None),
    ("tome", "vit-b-16-12f"): (144.4, (12, 77), 40.8),
    ("tempme", "vit-b-32-12f"): (34.8, (1, 97), None),
    ("tempme", "vit-b-16-12f"): (121.4, (1, 127), 45.1),
    ("temporal", "vit-b-32-12f"): (54.3, None, None),
    ("reduction", "vit-b-32-12f"): (34.7, None, None),
    ("clips-4-1", "vit-b-32-12f"): (35.4, None, None),
    ("clips-1", "vit-b-32-12f"): (37.0, None, None),
    ("clips-6-3", "vit-b-32-12f"): (35.4, None, None),
    ("clips-4", "vit-b-32-12f"): (36.8, None, None),
    ("layers-7-9-11", "vit-b-32-12f"): (31.9, None, None),
    ("layers-4-7-10", "vit-b-32-12f"): (25.8, None, None),
    ("layers-1-5-9", "vit-b-32-12f"): (18.1, None, None),
    ("evit", "vit-b-32-12f"): (37.2, None, None),
    ("diffrate", "vit-b-32-12f"): (36.8, (12, 20), None),
    ("diffrate", "vit-b-16-12f"): (138.5, (12, 49), 40.6),
    ("diffrate", "vit-b-32-64f"): (190.1, (64, 20), None),
    ("sta", "vit-b-32-12f"): (35.7, None, None),
    ("testa", "vit-b-32-12f"): (40.6, None, None),
}
POLICIES = {
    "none": MergePolicy(0, (), (), 0, 0, clip_position=False),
    "tome": MergePolicy(2, (), (), 0, 0, clip_position=False),
    "tempme": MergePolicy(2, (8, 9, 10), (2, 2, 3), 30, 10),
    "temporal": MergePolicy(0, (8, 9, 10), (2, 2, 3), 0, 0),
    "clips-4-1": MergePolicy(2, (8, 9), (3, 4), 30, 10),
    "clips-1": MergePolicy(2, (8,), (12,), 30, 10),
    "clips-6-3": MergePolicy(2, (8, 9), (2, 2), 30, 10),
    "clips-4": MergePolicy(2, (8,), (3,), 30, 10),
    "layers-7-9-11": MergePolicy(2, (6, 8, 10), (2, 2, 3), 30, 10),
    "layers-4-7-10": MergePolicy(2, (3, 6, 9), (2, 2, 3), 30, 10),
    "layers-1-5-9": MergePolicy(2, (0, 4, 8), (2, 2, 3), 30, 10),
}


def derived(key, profile="vit-b-32-12f", **changes):
    (method,) = chosen([key])
    settings = load_profile(profile)
    if changes:
        settings = dataclasses.replace(settings, merge=dataclasses.replace(settings.merge, **changes))
    return derive(method, settings, open_clip_backbone(settings.backbone))


def test_keys_are_unique_and_fit_a_shell():
    assert len(set(KEYS)) == len(KEYS)
    assert all(key.replace("-", "").isalnum() and key == key.lower() for key in KEYS)
    assert set(KEYS) == {*POLICIES, *NOT_DERIVED, "reduction", "evit"}


@pytest.mark.parametrize(("key", "profile"), PRINTED, ids="-".join)
def test_paper_prints(key, profile):
    figures = derived(key, profile).figures
    assert (figures.gflops, figures.tokens, figures.videos_per_s) == PRINTED[key, profile]


def test_every_figure_of_two_backbones_is_in_the_table_above():
    found = {(key, name) for key in KEYS for name in ("vit-b-32-12f", "vit-b-16-12f") if derived(key, name).figures}
    assert found == PRINTED.keys() - {("diffrate", "vit-b-32-64f")}


@pytest.mark.parametrize(("key", "profile"), [at for at in PRINTED if at[0] not in NOT_DERIVED], ids="-".join)
def test_our_count_is_the_papers(key, profile):
    row = derived(key, profile)
    gflops, tokens, _ = PRINTED[key, profile]
    assert abs(row.counted.gmacs - gflops) <= paper.TOLERANCE
    assert tokens in (None, (row.schedule.final_clips, row.schedule.final_tokens))


@pytest.mark.parametrize("key", POLICIES)
def test_policy_of_the_shipped_profile(key):
    assert derived(key).policy == POLICIES[key]


def test_rates_and_flags_are_the_profiles():
    changed = {"image_r": 1, "cross_percent": 44, "intra_percent": 7, "size_bias": False, "clip_position": False}
    assert derived("tome", **changed).policy == MergePolicy(1, (), (), 0, 0, False, False)
    assert derived("clips-1", **changed).policy == MergePolicy(1, (8,), (12,), 44, 7, False, False)
    assert derived("temporal", **changed).policy == MergePolicy(0, (8, 9, 10), (2, 2, 3), 0, 0, False, False)


def test_figures_stand_beside_the_papers_settings_only():
    assert derived("tome", image_r=1).figures is None
    assert derived("none", image_r=1).figures and derived("evit", image_r=1).figures


def test_misprinted_figures_say_why():
    row = derived("tempme", "vit-b-32-64f")
    assert row.figures.gflops == 180.3
    assert row.counted.gmacs - row.figures.gflops > 6
    assert "12 frames only" in paper.count(row.figures.claim).reason


@pytest.mark.parametrize("key", NOT_DERIVED)
def test_what_cannot_be_derived_has_no_schedule_and_says_why(key):
    row = derived(key)
    assert (row.schedule, row.policy, row.counted) == (None,) * 3
    assert row.reason.endswith(".")
    assert "the paper prints" in row.reason
    assert not row.runs and not row.method.runs and not row.method.exports


def test_token_reduction_is_counted_and_does_not_run():
    row = derived("reduction")
    assert row.schedule == derived("tempme").schedule
    assert row.policy is None
    assert row.counted.products < derived("tempme").counted.products
    assert not row.runs and not row.method.exports
    assert "does not say" in row.reason


def test_which_methods_run_where():
    assert {method.key for method in METHODS if method.exports} == POLICIES.keys()
    assert {method.key for method in METHODS if method.runs} == {*POLICIES, "evit"}


@pytest.mark.parametrize("key", TABLE_10)
def test_table_10_is_for_12_frames_and_12_blocks(key):
    for profile in ("vit-b-32-8f", "vit-b-32-64f", "vit-l-14-12f"):
        row = derived(key, profile)
        assert row.schedule is None and not row.runs
        assert "for 12 frames and 12 blocks" in row.reason
    assert derived(key, "vit-b-16-12f").runs


@pytest.mark.parametrize("key", ["tempme", "temporal", "reduction", *TABLE_10])
def test_profile_without_clips_has_nothing_of_tempme(key):
    row = derived(key, "vit-b-32-12f-tome")
    assert row.schedule is None
    assert "vit-b-32-12f-tome joins no clips" in row.reason


def test_factors_of_one_join_nothing():
    assert derived("tempme", clip_factors=(1, 1, 1)).schedule is None


def test_profile_without_a_rate_has_no_tome():
    row = derived("tome", "vit-b-32-12f-none")
    assert row.schedule is None
    assert "image_r = 0" in row.reason
    assert row.figures.gflops == 40.2


def test_rate_that_runs_out_of_tokens_is_a_reason():
    row = derived("tome", image_r=3, clip_layers=(2, 9, 10))
    assert row.schedule is not None
    row = derived("tome", image_r=12, clip_layers=(2, 9, 10))
    assert (row.schedule, row.counted, row.policy) == (None, None, None)
    assert "merge.image_r = 12" in row.reason


def test_evit_places_its_blocks_in_twelve():
    row = derived("evit", "vit-l-14-12f")
    assert row.schedule is None
    assert "blocks 4, 7, 10 of 12" in row.reason
    backbone = dataclasses.replace(open_clip_backbone("ViT-B-32-quickgelu"), layers=3)
    assert derive(chosen("evit")[0], load_profile("vit-b-32-12f"), backbone).schedule is None


def test_no_figures_without_a_printed_setting():
    (tome,) = chosen(["tome"])
    assert paper_figures(tome, "ViT-B-16-quickgelu", 64) is None
    assert paper_figures(tome, "checkpoint", 12) is None


def test_chosen():
    assert chosen(None) == chosen("all") == chosen(["all"]) == METHODS
    assert [method.key for method in chosen(["tome", "none", "tome"])] == ["tome", "none"]
    assert [method.key for method in chosen("evit")] == ["evit"]
    assert [method.key for method in chosen(["evit", "all"])] == ["evit", *(key for key in KEYS if key != "evit")]


@pytest.mark.parametrize("names", [["tome", "dynamicvit"], "dynamicvit"])
def test_unknown_method_is_refused(names):
    with pytest.raises(UsageError, match=r"'dynamicvit'.*none, tome, tempme.*or all"):
        chosen(names)


def test_no_method_is_refused():
    with pytest.raises(UsageError, match="found no name"):
        chosen([])


def test_loads_none_of_the_heavy_packages():
    code = (
        "import sys, tempme_export.bench.methods.derive; "
        "print({'torch', 'numpy', 'polars', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

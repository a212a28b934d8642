"""What shapes cannot tell is said, taken from who knows it, and refused where two contradict each other."""

import json

import pytest
import torch

import tempme_export
from tempme_export.errors import TempMeExportError

HALVES = [0.5, 0.5, 0.5]


@pytest.fixture
def folder(mini_state, tmp_path):
    """A folder with the bare tensors of the small model, ckpt.pth: nothing in it says the activation."""
    torch.save(mini_state, tmp_path / "ckpt.pth")
    return tmp_path


@pytest.fixture
def refused(opened):
    def check(path, *words, code=3, **options):
        with pytest.raises(TempMeExportError) as caught:
            opened(path, **options)
        assert caught.value.exit_code == code
        for word in words:
            assert word in str(caught.value)

    return check


def stated(recipe):
    """{about: (value, who says it)}, and those that are assumed."""
    told = {one.about: (one.value, one.source) for one in recipe.conventions}
    return told, {one.about for one in recipe.conventions if one.assumed}


@pytest.fixture(scope="session")
def gelu_bundle(mini_state, tmp_path_factory):
    """The small model as if it had been trained with plain GELU on pixels around 0.5."""
    folder = tmp_path_factory.mktemp("gelu")
    torch.save(mini_state, folder / "ckpt.pth")
    pixels = {"image_mean": HALVES, "image_std": [0.25, 0.5, 0.75], "resample": 3, "size": {"shortest_edge": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return tempme_export.export(folder / "ckpt.pth", "mini-8f", folder / "a.tempme", activation="gelu", batch=(1, 1, 2))


class TestExport:
    def test_the_artifacts_compute_gelu(self, gelu_bundle, mini_state, mini_rounding):
        """Against open_clip's own text tower, with torch's GELU and with QuickGELU."""
        import open_clip

        model = tempme_export.load(gelu_bundle)
        texts = ["a red square moves left", "two circles"]
        found = torch.from_numpy(model.encode_text(texts))
        ids = open_clip.get_tokenizer("ViT-B-32", context_length=24)(texts)
        expected = {}
        for quick in (False, True):
            clip = open_clip.model.CLIP(
                embed_dim=128,
                vision_cfg={"image_size": 64, "layers": 4, "width": 64, "patch_size": 16},
                text_cfg={"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
                quick_gelu=quick,
            )
            text = {name: t for name, t in mini_state.items() if not name.startswith("visual.")}
            assert not clip.load_state_dict(text, strict=False).unexpected_keys
            with torch.no_grad():
                expected[quick] = clip.encode_text(ids, normalize=True)
        limit = mini_rounding["text"].difference
        torch.testing.assert_close(found, expected[False], rtol=0, atol=limit)
        assert (found - expected[True]).abs().max() > 100 * limit

    def test_the_manifest_says_what_and_from_where(self, gelu_bundle):
        manifest = json.loads((gelu_bundle.path / "manifest.json").read_text())
        said = manifest["conventions"]
        assert manifest["backbone"]["activation"] == said["activation"]["value"] == "gelu"
        assert "--activation" in said["activation"]["source"] and not said["activation"]["assumed"]
        assert manifest["image"]["mean"] == said["mean"]["value"] == HALVES
        assert manifest["image"]["std"] == said["std"]["value"] == [0.25, 0.5, 0.75]
        assert "preprocessor_config.json" in said["std"]["source"]
        assert said["layer_norm_eps"]["assumed"] and said["heads"]["assumed"]

    def test_it_is_verified(self, gelu_bundle):
        tempme_export.verify(gelu_bundle.path)


class TestOnScreen:
    def test_what_is_assumed_and_what_was_taken(self, run, folder, mini_state):
        torch.save({"ema": mini_state, "model": mini_state}, folder / "ckpt.pth")
        done = run("tempme-export", folder / "ckpt.pth", "--profile", "mini-8f", "--dry-run", "--json")
        assert done.returncode == 0
        assert "weights taken from 'model' of the file; it also holds 'ema', which is not used" in done.stderr
        lines = {line.split()[0]: line for line in done.stderr.splitlines() if line.strip()}
        assert "quickgelu (assumed from profile mini-8f (its backbone tempme-mini)" in lines["activation"]
        assert "--activation gelu if" in lines["activation"]
        assert "mean 0.4815 0.4578 0.4082, std 0.2686 0.2613 0.2758 (assumed" in lines["pixels"]
        assert "layer norm eps 1e-05" in done.stderr and "text length 24" in done.stderr
        assert json.loads(done.stdout)["conventions"]["activation"]["assumed"]

    @pytest.mark.parametrize("command", ["tempme-eval", "tempme-bench", "tempme-train"])
    def test_every_command_that_reads_checkpoints_asks_the_same(self, command, run, folder, world, mini_state):
        torch.save({"state_dict": mini_state, "hyper_parameters": {"quick_gelu": True}}, folder / "said.pth")
        arguments = {
            "tempme-eval": [folder / "said.pth", "--data", f"synthetic:{world}"],
            "tempme-bench": [folder / "said.pth"],
            "tempme-train": ["--init", folder / "said.pth", "--data", f"synthetic:{world}", "--out", folder / "out"],
        }[command]
        done = run(command, *arguments, "--profile", "mini-8f", "--activation", "gelu")
        assert done.returncode == 3
        assert "activation is gelu by --activation, as asked and quickgelu by the checkpoint's file" in done.stderr


class TestWhoKnows:
    @pytest.mark.parametrize("name", ["relu", "QuickGELU", ""])
    def test_an_option_that_is_none(self, name, folder, refused):
        refused(
            folder / "ckpt.pth", f"activation: found {name!r}, expected one of quickgelu, gelu", code=2, activation=name
        )

    @pytest.mark.parametrize(
        "entries",
        [
            {"hyper_parameters": {"quick_gelu": False}},
            {"hyper_parameters": {"model": {"hidden_act": "gelu"}}},
            {"config": {"activation": "gelu"}},
            {"activation": "gelu"},
        ],
    )
    def test_settings_in_the_file(self, entries, folder, mini_state, opened, refused):
        path = folder / "said.pth"
        torch.save({"state_dict": mini_state} | entries, path)
        refused(path, "gelu by the checkpoint's file", "quickgelu in tempme-mini", "--activation gelu")
        refused(path, "quickgelu by --activation", "gelu by the checkpoint's file", activation="quickgelu")
        recipe = opened(path, activation="gelu")
        assert recipe.backbone.activation == "gelu" and stated(recipe)[0]["activation"][0] == "gelu"

    def test_two_settings_in_the_file(self, folder, mini_state, refused):
        torch.save({"model": mini_state, "activation": "gelu", "args": {"quick_gelu": True}}, folder / "said.pth")
        refused(folder / "said.pth", "(activation)", "(args.quick_gelu)", "expected one value")

    @pytest.mark.parametrize("name", ["relu", "gelu_new", 3, ["gelu"]])
    def test_other_activations(self, name, folder, mini_state, refused):
        torch.save({"model": mini_state, "config": {"hidden_act": name}}, folder / "said.pth")
        refused(folder / "said.pth", "config.hidden_act", repr(name))

    def test_settings_left_to_their_default_say_nothing(self, folder, mini_state, opened):
        torch.save({"model": mini_state, "args": {"activation": None, "force_quick_gelu": False}}, folder / "said.pth")
        assert "activation" in stated(opened(folder / "said.pth"))[1]

    def test_pixel_statistics_in_the_file(self, folder, mini_state, opened, refused):
        table = {"image_mean": (0.5, 0.4, 0.3), "image_std": [0.2, 0.3, 0.4]}
        torch.save({"model": mini_state, "config": table}, folder / "said.pth")
        recipe = opened(folder / "said.pth")
        assert (recipe.backbone.mean, recipe.backbone.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        table["image_mean"] = [123.675, 116.28, 103.53]
        torch.save({"model": mini_state, "config": table}, folder / "said.pth")
        refused(folder / "said.pth", "config.image_mean", "Divide")

    def test_the_profile_in_a_trained_file(self, mini, opened):
        told, assumed = stated(opened(mini, None))
        assert told["activation"] == ("quickgelu", "the checkpoint's file (its backbone tempme-mini)")
        assert "activation" not in assumed

    def test_a_trained_file_that_says_another(self, mini, folder, opened):
        """What a training with --activation leaves: the file's own word is more than its profile's backbone."""
        torch.save(torch.load(mini, weights_only=True) | {"activation": "gelu"}, folder / "said.pth")
        assert opened(folder / "said.pth", None).backbone.activation == "gelu"

    def test_openai_own_weights(self, folder, mini_state, opened, refused):
        plain = {name: tensor for name, tensor in mini_state.items() if "TVPt" not in name}
        scalars = {"input_resolution": 64, "context_length": 24, "vocab_size": 49408}
        torch.save(plain | {name: torch.tensor(value) for name, value in scalars.items()}, folder / "said.pth")
        assert "OpenAI" in stated(opened(folder / "said.pth"))[0]["activation"][1]
        refused(folder / "said.pth", "OpenAI", activation="gelu")


class TestConfigurationsInTheFolder:
    """config.json and preprocessor_config.json of Hugging Face, open_clip_config.json."""

    @staticmethod
    def config(**vision):
        sizes = {"hidden_size": 64, "num_hidden_layers": 4, "image_size": 64, "patch_size": 16}
        text = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 49408, "num_attention_heads": 1}
        both = {"hidden_act": vision.get("hidden_act", "gelu")}
        return {
            "model_type": "clip",
            "projection_dim": 128,
            "vision_config": sizes | {"num_attention_heads": 1} | both | vision,
            "text_config": text | both,
        }

    @staticmethod
    def write(folder, name, document):
        (folder / name).write_text(document if isinstance(document, str) else json.dumps(document))
        return folder / "ckpt.pth"

    def test_activation(self, folder, opened, refused):
        path = self.write(folder, "config.json", self.config())
        refused(path, "gelu by config.json beside it (vision_config.hidden_act)", "quickgelu in tempme-mini")
        refused(path, "config.json", activation="quickgelu")
        told, assumed = stated(opened(path, activation="gelu"))
        assert told["heads"][0] == 1 and "config.json" in told["heads"][1]
        assert told["layer_norm_eps"][0] == 1e-5 and not {"heads", "layer_norm_eps"} & assumed

    def test_the_default_of_hugging_face(self, folder, opened):
        config = self.config()
        for table in ("vision_config", "text_config"):
            del config[table]["hidden_act"]
        told, _ = stated(opened(self.write(folder, "config.json", config)))
        assert told["activation"][0] == "quickgelu" and "default" in told["activation"][1]

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"hidden_act": "gelu_new"}, ["vision_config.hidden_act", "'gelu_new'"]),
            ({"layer_norm_eps": 1e-6}, ["layer_norm_eps is 1e-06", "expected 1e-05"]),
            ({"hidden_size": 768}, ["hidden_size is 768", "shapes say 64", "Move the file away"]),
            ({"num_attention_heads": 2}, ["heads is 2 by config.json", "1 in tempme-mini"]),
            ({"num_attention_heads": "two"}, ["num_attention_heads is 'two'"]),
        ],
    )
    def test_what_is_not_built(self, changes, words, folder, refused):
        refused(self.write(folder, "config.json", self.config(**{"hidden_act": "quick_gelu"} | changes)), *words)

    def test_another_programs_config(self, folder, opened):
        assert "activation" in stated(opened(self.write(folder, "config.json", {"editor.fontSize": 12})))[1]

    def test_a_broken_one(self, folder, refused):
        refused(self.write(folder, "config.json", '{"model_type": '), "config.json", "JSON", "move it away")

    @pytest.mark.parametrize(
        "changes, words",
        [
            ({"resample": 2}, ["interpolation is bilinear", "expected bicubic"]),
            ({"size": {"height": 64, "width": 64}}, ["resize is squash", "expected shortest"]),
            ({"size": {"shortest_edge": 72}}, ["shortest_edge is 72"]),
            ({"do_normalize": False}, ["do_normalize"]),
            ({"image_std": [0, 1, 1]}, ["image_std"]),
            ({"image_mean": "none"}, ["image_mean"]),
        ],
    )
    def test_pixels_that_are_not_built(self, changes, words, folder, refused):
        pixels = {"image_mean": HALVES, "image_std": HALVES} | changes
        refused(self.write(folder, "preprocessor_config.json", pixels), *words)

    def test_open_clip(self, folder, opened, refused):
        model = {
            "embed_dim": 128,
            "vision_cfg": {"image_size": 64, "layers": 4, "width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
        }
        config = {"model_cfg": model, "preprocess_cfg": {"mean": HALVES, "std": HALVES, "interpolation": "bicubic"}}
        path = self.write(folder, "open_clip_config.json", config)
        refused(path, "gelu by open_clip_config.json beside it (model_cfg.quick_gelu)")
        model["quick_gelu"] = True
        recipe = opened(self.write(folder, "open_clip_config.json", config))
        assert recipe.backbone.mean == tuple(HALVES)
        assert "open_clip_config.json" in stated(recipe)[0]["activation"][1]

    def test_two_that_contradict_each_other(self, folder, refused):
        self.write(folder, "config.json", self.config())
        self.write(folder, "open_clip_config.json", {"model_cfg": {"embed_dim": 128, "quick_gelu": True}})
        refused(folder / "ckpt.pth", "by config.json", "by open_clip_config.json", "expected one value")

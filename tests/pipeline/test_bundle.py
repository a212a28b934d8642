"""A bundle appears whole or not at all, nothing else is touched, and no byte changes unnoticed."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tempme_export
from tempme_export.artifacts import bundle as bundle_module
from tempme_export.artifacts import registry
from tempme_export.artifacts.bundle import (
    FORMAT,
    MANIFEST,
    SELFTEST,
    Bundle,
    check_destination,
    open_bundle,
    publish,
    verify_files,
    write_manifest,
)
from tempme_export.artifacts.registry import TEXT_ONNX, VIDEO_ONNX
from tempme_export.encoder.profile import load_profile
from tempme_export.errors import BundleError, ExportError, ParityError, TempMeExportError, UsageError
from tempme_export.files import building, file_sha256
from tempme_export.pipeline import export as pipeline
from tempme_export.pipeline.spec import ExportSpec, default_output
from tempme_export.progress import Written

pytestmark = pytest.mark.usefixtures("one_thread")

FILES = [MANIFEST, SELFTEST, TEXT_ONNX.file, VIDEO_ONNX.file]


def contents(folder):
    """Everything below a folder: relative name -> bytes, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def export(small_checkpoint, small_profile, quick_export, recording):
    """Exports the small model to `out`, with graphs that were built before; `told` is what the last one told."""

    def run(out, **options):
        run.told = recording()
        return pipeline.export(small_checkpoint, small_profile, out, **options, progress=run.told)

    return run


class TestWhole:
    def test_files_and_manifest(self, small_bundle, small_checkpoint, small_profile, small_recipe):
        assert sorted(path.name for path in small_bundle.iterdir()) == FILES
        manifest = json.loads((small_bundle / MANIFEST).read_text())
        assert manifest["format"] == FORMAT
        assert manifest["tool_version"] == pipeline.tool_version()
        digest = file_sha256(small_checkpoint)
        assert manifest["checkpoint"] == {"path": str(small_checkpoint), "sha256": digest, "remarks": []}
        assert manifest["profile"] == load_profile(small_profile).to_dict()
        assert manifest["backbone"]["width"] == 128 and manifest["backbone"]["layers"] == 3
        assert [block["tokens_mlp"] for block in manifest["schedule"]["blocks"]] == [9, 12, 16]
        assert (manifest["precision"], manifest["frame_mask"], manifest["opset"]) == ("fp32", False, 18)
        assert manifest["logit_scale"] == pytest.approx(4.6052)
        assert manifest["image"] == {
            "size": 48,
            "mean": list(small_recipe.backbone.mean),
            "std": list(small_recipe.backbone.std),
        }
        assert {"python", "torch", "onnx", "onnxscript", "numpy"} <= manifest["versions"].keys()
        assert manifest["tolerances"]["cosine_distance"] == 1e-6
        assert [(r["artifact"], r["status"]) for r in manifest["parity"]] == [
            (VIDEO_ONNX.file, "passed"),
            (TEXT_ONNX.file, "passed"),
        ]
        batches = [check["name"] for check in manifest["parity"][0]["checks"] if check["name"].startswith("video")]
        assert [name.split(":")[0] for name in batches] == [f"video, batch {n}" for n in (6, 1, 3, 8)]
        assert manifest["files"] == {
            name: {"bytes": (small_bundle / name).stat().st_size, "sha256": file_sha256(small_bundle / name)}
            for name in FILES
            if name != MANIFEST
        }

    def test_facts_in_order(self, small_bundle, small_told):
        assert small_told.kinds == ["Recipe", "SelfTest", "Written", "Written", "Parity", "Bundle"]
        assert [fact.path.name for fact in small_told.of(Written)] == [VIDEO_ONNX.file, TEXT_ONNX.file]

    def test_everyone_may_read_it(self, small_bundle):
        assert small_bundle.stat().st_mode & 0o777 == 0o755

    def test_nothing_lies_beside_it(self, small_bundle):
        assert list(small_bundle.parent.iterdir()) == [small_bundle]

    def test_open_bundle_knows_profile_and_plan(self, small_bundle, small_recipe):
        bundle = open_bundle(str(small_bundle))
        assert bundle.profile == small_recipe.profile
        assert bundle.schedule == small_recipe.schedule

    def test_estimate_is_above_what_it_took(self, small_bundle, small_recipe):
        taken = sum(path.stat().st_size for path in small_bundle.iterdir())
        assert taken <= ExportSpec("").size(small_recipe) <= taken + 6 * 2**20

    def test_batch_of_the_caller_is_what_is_judged_and_written(self, export, tmp_path):
        bundle = export(tmp_path / "out", batch=(2, 2, 5))
        assert bundle.manifest["profile"]["shapes"]["batch"] == [2, 2, 5]
        names = {check["name"].split(":")[0] for check in bundle.manifest["parity"][0]["checks"]}
        assert {"video, batch 2", "video, batch 5"} <= names and "video, batch 1" not in names

    @pytest.mark.parametrize("batch", [(0, 1, 2), (3, 2, 5), (1, 9, 8)])
    def test_batch_out_of_order_is_refused_before_the_work(self, export, tmp_path, batch):
        with pytest.raises(UsageError, match="1 <= MIN <= OPT <= MAX"):
            export(tmp_path / "out", batch=batch)
        assert list(tmp_path.iterdir()) == []

    def test_unknown_precision_is_usage(self, export, tmp_path):
        with pytest.raises(UsageError, match="precision: found 'int4', expected one of fp32, fp16, bf16, int8"):
            export(tmp_path / "out", precision="int4")
        assert list(tmp_path.iterdir()) == []

    def test_default_output_lies_beside_the_checkpoint(self):
        assert default_output("a/b/ckpt.best.pt") == Path("a/b/ckpt.best.tempme")
        assert default_output("open_clip:ViT-B-32/openai") == Path("ViT-B-32-openai.tempme")


class Spoiling:
    """An exporter of the text tower that leaves its file and spoils what comes after it."""

    def __init__(self, spoil):
        self.spoil = spoil

    def __getattr__(self, name):
        return getattr(TEXT_ONNX.exporter, name)

    def build(self, artifact, making):
        (making.folder / artifact.file).write_bytes(b"no graph")
        return self.spoil(making.folder)


class TestNothingHalfDone:
    @pytest.mark.parametrize("fits", [[], [SELFTEST], [SELFTEST, TEXT_ONNX.file]])
    def test_a_full_disk_leaves_nothing(self, export, small_bundle, tmp_path, largest_file, fits):
        """It is full at the self-test, in the middle of the first graph, or at its end."""
        size = max((small_bundle / name).stat().st_size for name in fits) if fits else 1000
        assert size < (small_bundle / VIDEO_ONNX.file).stat().st_size
        with (
            largest_file(size),
            pytest.raises(
                ExportError, match=r"out could not be written: .*File too large.* Nothing was left"
            ) as caught,
        ):
            export(tmp_path / "out")
        assert caught.value.exit_code == 6
        assert list(tmp_path.iterdir()) == []

    def test_a_manifest_that_cannot_be_written(self, export, builds, registering, tmp_path):
        """A folder lies in its place; what verifies is content with anything."""
        builds.by(TEXT_ONNX, Spoiling(lambda folder: (folder / MANIFEST).mkdir()))
        registering(*(replace(one, verifies=False) for one in registry.BACKENDS))
        with pytest.raises(ExportError, match=r"out could not be written: .*manifest\.json.* Nothing was left"):
            export(tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("stage", ["building", "verifying"])
    @pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt(), ExportError("no")])
    def test_any_end_leaves_nothing_and_the_old_bundle(
        self, export, builds, registering, bundle_copy, tmp_path, stage, error
    ):
        def fail(*arguments):
            raise error

        if stage == "building":
            builds.failing(TEXT_ONNX, error)
        else:
            text = registry.text_backend()
            described = {name: getattr(text.runtime, name) for name in ("describe", "choose_device")}
            registering(replace(text, runner=SimpleNamespace(**described, open_runner=fail)))
        before = contents(tmp_path)
        with pytest.raises(type(error)):
            export(bundle_copy, force=True)
        assert contents(tmp_path) == before

    def test_a_file_size_limit_of_the_system(self, small_checkpoint, small_profile, tmp_path):
        """A real write that the system refuses half way, in a process of its own."""
        script = """
            import resource, sys
            from tempme_export.cli import export as cli

            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            sys.argv = ["tempme-export", *sys.argv[1:]]
            cli.main()
        """
        arguments = [str(small_checkpoint), "--profile", str(small_profile), "--out", str(tmp_path / "out")]
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 6, done.stderr
        assert "error: " in done.stderr and "File too large" in done.stderr
        assert "Traceback" not in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_is_seen_before_the_work(self, export, builds, tmp_path):
        """More is announced than any disk has."""
        announced = SimpleNamespace(**{name: getattr(TEXT_ONNX.exporter, name) for name in ("check", "check_recipe")})
        announced.size = lambda artifact, recipe, spec: 10**18
        announced.scratch = lambda artifact, recipe, spec: 0
        builds.by(TEXT_ONNX, announced)
        with pytest.raises(ExportError, match=r"GB free and the bundle needs about 1100000000\.01 GB"):
            export(tmp_path / "out")
        assert export.told.kinds == ["Recipe"] and list(tmp_path.iterdir()) == []


class TestWhatIsInTheWay:
    def test_an_existing_bundle_needs_force(self, export, bundle_copy, tmp_path):
        before = contents(tmp_path)
        with pytest.raises(BundleError, match=r"copy\.tempme exists\. Add --force") as caught:
            export(bundle_copy)
        assert caught.value.exit_code == 3 and export.told.kinds == ["Recipe"]
        assert contents(tmp_path) == before

    def test_force_replaces_it_whole(self, export, bundle_copy, tmp_path):
        (bundle_copy / "stale.plan").write_bytes(b"of an older build")
        (bundle_copy / VIDEO_ONNX.file).write_bytes(b"damaged")
        export(bundle_copy, force=True)
        assert sorted(path.name for path in bundle_copy.iterdir()) == FILES
        assert list(tmp_path.iterdir()) == [bundle_copy]
        verify_files(open_bundle(bundle_copy))

    def test_force_replaces_a_bundle_with_a_damaged_manifest(self, export, bundle_copy):
        (bundle_copy / MANIFEST).write_text("{")
        export(bundle_copy, force=True)
        verify_files(open_bundle(bundle_copy))
        assert sorted(path.name for path in bundle_copy.iterdir()) == FILES

    def test_force_is_not_needed_where_nothing_is(self, export, tmp_path):
        export(tmp_path / "out", force=True)
        verify_files(open_bundle(tmp_path / "out"))
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_an_empty_folder_needs_force_too(self, export, tmp_path):
        (tmp_path / "out").mkdir()
        with pytest.raises(BundleError, match="Add --force"):
            export(tmp_path / "out")
        export(tmp_path / "out", force=True)
        verify_files(open_bundle(tmp_path / "out"))

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize("kind", ["file", "folder", "foreign manifest", "dangling link"])
    def test_what_is_no_bundle_is_left_alone(self, export, tmp_path, kind, force):
        out = tmp_path / "out"
        if kind == "file":
            out.write_text("a thesis")
        elif kind == "dangling link":
            out.symlink_to(tmp_path / "nowhere")
        else:
            out.mkdir()
            (out / "thesis.tex").write_text("a thesis")
        if kind == "foreign manifest":  # browser extensions and web applications have one as well
            (out / MANIFEST).write_text('{"manifest_version": 3, "name": "thesis"}')
        before = contents(tmp_path)
        with pytest.raises(BundleError, match="is no bundle; it is left alone"):
            export(out, force=force)
        assert contents(tmp_path) == before and export.told.kinds == ["Recipe"]
        assert out.is_symlink() == (kind == "dangling link")

    def test_a_link_to_a_bundle_is_replaced_and_its_target_kept(self, export, bundle_copy, tmp_path):
        link = tmp_path / "current.tempme"
        link.symlink_to(bundle_copy)
        before = contents(bundle_copy)
        export(link, force=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.tempme", "current.tempme"]
        assert contents(bundle_copy) == before
        assert not link.is_symlink()
        verify_files(open_bundle(link))

    def test_the_parent_must_be_a_folder(self, export, tmp_path):
        (tmp_path / "file").write_text("")
        for parent in ("missing", "file"):
            with pytest.raises(ExportError, match=rf"{parent} is not a folder"):
                export(tmp_path / parent / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_parent_without_permission(self):
        """Asked of the system before the work, as somebody who is not root."""
        root = os.geteuid() == 0
        if root:
            os.setresuid(65534, 65534, 0)
        try:
            with pytest.raises(ExportError, match="/ cannot be written to") as caught:
                check_destination(Path("/out.tempme"), 0, False, "0" * 64)
        finally:
            if root:
                os.setresuid(0, 0, 0)
        assert caught.value.exit_code == 6

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a /proc where not even root can write")
    def test_a_parent_that_refuses_in_the_end(self, export):
        with pytest.raises(ExportError, match=r"/proc|cannot be written") as caught:
            export(Path("/proc/out.tempme"))
        assert caught.value.exit_code == 6

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
    def test_a_read_only_parent(self, export, tmp_path):
        (tmp_path / "parent").mkdir(mode=0o555)
        with pytest.raises(ExportError, match="cannot be written to"):
            export(tmp_path / "parent" / "out")

    def test_a_bundle_that_appears_during_the_build_is_replaced_only_if_it_is_one(self, tmp_path):
        out = tmp_path / "out"
        with pytest.raises(BundleError, match="left alone"), building(out) as work:
            (work / "new").write_text("new")
            out.write_text("came in between")
            publish(work, out, replace=True)
        assert contents(tmp_path) == {"out": b"came in between"}


class TestFailedParity:
    @pytest.fixture
    def wrong(self, quick_export, builds):
        """The text tower that comes out is another one."""
        builds.negated(TEXT_ONNX)

    def test_the_build_is_kept_aside_and_the_old_bundle_stays(self, export, wrong, bundle_copy, tmp_path):
        before = contents(bundle_copy)
        with pytest.raises(ParityError, match=r"text\.onnx: text, batch 8: 1 - cosine is 2, limit 1e-06") as caught:
            export(bundle_copy, force=True)
        assert caught.value.exit_code == 5
        failed = tmp_path / "copy.tempme.failed"
        assert str(failed) in str(caught.value)
        assert contents(bundle_copy) == before
        assert sorted(tmp_path.iterdir()) == [bundle_copy, failed]
        reports = open_bundle(failed).manifest["parity"]
        assert [report["status"] for report in reports] == ["passed", "failed"]
        assert [check["passed"] for check in reports[1]["checks"]] == [False, False, True]
        verify_files(open_bundle(failed))

    def test_a_second_failure_replaces_the_first(self, export, wrong, tmp_path):
        for _ in range(2):
            with pytest.raises(ParityError):
                export(tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]

    def test_something_else_under_that_name_is_left_alone(self, export, wrong, tmp_path):
        (tmp_path / "out.failed").write_text("a thesis")
        with pytest.raises(TempMeExportError):
            export(tmp_path / "out")
        assert contents(tmp_path) == {"out.failed": b"a thesis"}

    def test_verify_refuses_it(self, export, wrong, tmp_path):
        with pytest.raises(ParityError):
            export(tmp_path / "out")
        with pytest.raises(ParityError, match="does not compute here"):
            tempme_export.verify(tmp_path / "out.failed")


class TestEveryByte:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("where", [0.0, 0.37, 0.999])
    def test_a_flipped_byte(self, bundle_copy, name, where):
        path = bundle_copy / name
        data = bytearray(path.read_bytes())
        data[int(len(data) * where)] ^= 1
        path.write_bytes(data)
        with pytest.raises(BundleError, match=rf"{name}.*Export"):
            verify_files(open_bundle(bundle_copy))

    @pytest.mark.parametrize("change", [lambda text: text + "\n", lambda text: text.replace('": ', '":', 1), str.strip])
    def test_white_space_of_the_manifest(self, bundle_copy, change):
        path = bundle_copy / MANIFEST
        text = path.read_text()
        assert change(text) != text and json.loads(change(text)) == json.loads(text)
        path.write_text(change(text))
        with pytest.raises(BundleError, match=r"manifest\.json was changed"):
            verify_files(open_bundle(bundle_copy))

    @pytest.mark.parametrize("key", ["tool_version", "logit_scale", "precision", "sha256"])
    def test_a_value_of_the_manifest(self, bundle_copy, key):
        manifest = json.loads((bundle_copy / MANIFEST).read_text())
        manifest[key] = 3.5 if key == "logit_scale" else "0" * 64
        (bundle_copy / MANIFEST).write_bytes(bundle_module._dump(manifest))
        with pytest.raises(BundleError, match=r"manifest\.json was changed"):
            verify_files(open_bundle(bundle_copy))

    @pytest.mark.parametrize("name", FILES)
    def test_a_missing_file(self, bundle_copy, name):
        (bundle_copy / name).unlink()
        with pytest.raises(BundleError, match=rf"{name} is missing|no {name}"):
            verify_files(open_bundle(bundle_copy))

    @pytest.mark.parametrize("name", [SELFTEST, TEXT_ONNX.file, VIDEO_ONNX.file])
    def test_a_truncated_and_a_grown_file(self, bundle_copy, name):
        data = (bundle_copy / name).read_bytes()
        for changed in (data[:-1], data + b"\0", b""):
            (bundle_copy / name).write_bytes(changed)
            with pytest.raises(BundleError, match=rf"{name} was changed"):
                verify_files(open_bundle(bundle_copy))

    def test_files_that_do_not_belong(self, bundle_copy):
        (bundle_copy / ".DS_Store").write_bytes(b"")
        (bundle_copy / "more").mkdir()
        with pytest.raises(BundleError, match=r"\.DS_Store does not belong; more does not belong"):
            verify_files(open_bundle(bundle_copy))

    def test_every_problem_is_named(self, bundle_copy):
        (bundle_copy / TEXT_ONNX.file).unlink()
        (bundle_copy / VIDEO_ONNX.file).write_bytes(b"")
        with pytest.raises(BundleError, match=r"text\.onnx is missing; video\.onnx was changed"):
            verify_files(open_bundle(bundle_copy))

    def test_an_untouched_copy_is_fine(self, bundle_copy):
        verify_files(open_bundle(bundle_copy))


class TestDamagedManifest:
    def rewrite(self, folder, change):
        manifest = json.loads((folder / MANIFEST).read_text())
        change(manifest)
        (folder / MANIFEST).write_bytes(bundle_module._dump(manifest))

    @pytest.mark.parametrize("text", ["", "{", "\x00\x01", '{"format": 1'])
    def test_not_json(self, bundle_copy, text):
        (bundle_copy / MANIFEST).write_text(text)
        with pytest.raises(BundleError, match=r"manifest\.json is damaged.*Export the bundle again"):
            open_bundle(bundle_copy)

    def test_not_utf8(self, bundle_copy):
        (bundle_copy / MANIFEST).write_bytes(b'{"format": "\xff\xfe"}')
        with pytest.raises(BundleError, match="damaged"):
            open_bundle(bundle_copy)

    @pytest.mark.parametrize("text", ["[]", "null", "3", '"text"', "{}"])
    def test_other_json(self, bundle_copy, text):
        (bundle_copy / MANIFEST).write_text(text)
        with pytest.raises(BundleError, match="has format None, this version reads 1"):
            open_bundle(bundle_copy)

    def test_other_format(self, bundle_copy):
        self.rewrite(bundle_copy, lambda manifest: manifest.update(format=2))
        with pytest.raises(BundleError, match="has format 2, this version reads 1"):
            open_bundle(bundle_copy)

    @pytest.mark.parametrize("key", ["profile", "schedule", "files", "sha256", "logit_scale", "image"])
    def test_a_missing_key(self, bundle_copy, key):
        self.rewrite(bundle_copy, lambda manifest: manifest.pop(key))
        with pytest.raises(BundleError, match=f"lacks {key}"):
            open_bundle(bundle_copy)

    @pytest.mark.parametrize("key", ["profile", "schedule", "files", "image", "backbone"])
    @pytest.mark.parametrize("value", [None, [], "text"])
    def test_a_value_of_another_kind(self, bundle_copy, key, value):
        self.rewrite(bundle_copy, lambda manifest: manifest.update({key: value}))
        for use in (tempme_export.verify, tempme_export.load):
            with pytest.raises(BundleError, match=r"manifest\.json"):
                use(bundle_copy)

    def test_no_bundle_at_all(self, tmp_path):
        (tmp_path / "file").write_text("")
        for name, found in (("missing", "does not exist"), ("file", "is a file"), (".", "has no manifest.json")):
            with pytest.raises(BundleError, match=found):
                open_bundle(tmp_path / name)


def test_write_manifest_accounts_for_what_lies_there(tmp_path, small_bundle):
    content = {key: value for key, value in open_bundle(small_bundle).manifest.items() if key != "files"}
    (tmp_path / "a").write_bytes(b"abc")
    write_manifest(tmp_path, content)
    write_manifest(tmp_path, content)  # its own earlier self is not counted
    bundle = open_bundle(tmp_path)
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert bundle.manifest["files"] == {"a": {"bytes": 3, "sha256": sha}}
    verify_files(bundle)


def test_manifest_keeps_letters_beyond_ascii(tmp_path, small_bundle):
    content = dict(open_bundle(small_bundle).manifest)
    content["checkpoint"] = {"path": "modèle/模型.pt", "sha256": "0" * 64}
    write_manifest(tmp_path, {key: value for key, value in content.items() if key not in ("files", "sha256")})
    assert "modèle/模型.pt" in (tmp_path / MANIFEST).read_text(encoding="utf-8")
    verify_files(open_bundle(tmp_path))


def test_bundle_is_self_contained(small_bundle, tmp_path):
    """Moved elsewhere it still verifies: no path inside is used."""
    moved = shutil.copytree(small_bundle, tmp_path / "elsewhere" / "renamed")
    reports = tempme_export.verify(moved)
    assert [report.status for report in reports] == ["passed", "passed"]
    assert isinstance(open_bundle(moved), Bundle)
    assert np.isfinite(reports[0].checks[0].value)


def test_check_destination_accepts_a_free_name(tmp_path):
    check_destination(tmp_path / "new", needed_bytes=1, force=False)
    assert list(tmp_path.iterdir()) == []

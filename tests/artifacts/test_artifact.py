"""An artifact checks the facts that a manifest says of it before anything reads them, and what is needed to build it
before anything heavy is imported."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tempme_export.artifacts import bundle as bundles
from tempme_export.artifacts import registry
from tempme_export.artifacts.artifact import Artifact
from tempme_export.artifacts.bundle import MANIFEST, open_bundle
from tempme_export.artifacts.registry import PACKAGE
from tempme_export.errors import BundleError, UsageError

EARLIER = Path(__file__).parent / "earlier" / "bundle"
TOY = Artifact("video.toy", "video", "no.such.module", option="toy", states=("maker", "device"))


@pytest.mark.parametrize("facts", [None, {"maker": "a", "device": "cpu"}, {"maker": "", "device": "", "more": 1}])
def test_facts_that_fit(facts):
    assert TOY.misfits({"toy": facts}) == [] and TOY.misfits({}) == []


@pytest.mark.parametrize("facts", ["a", [], {}, 0, {"maker": "a"}, {"maker": "a", "device": None}])
def test_facts_that_do_not(facts):
    (words,) = TOY.misfits({"toy": facts})
    assert words.startswith(f"toy is {facts!r}") and "maker, device" in words


def test_one_that_states_nothing_is_not_asked():
    assert Artifact("a", "video", "b", option="toy").misfits({"toy": "anything"}) == []


@pytest.mark.parametrize("facts", ["cpu", {"device": 1}, {}])
def test_a_bundle_with_such_facts_is_refused(tmp_path, facts):
    folder = shutil.copytree(EARLIER, tmp_path / "spoilt")
    manifest = json.loads((folder / MANIFEST).read_text()) | {PACKAGE.option: facts}
    manifest["sha256"] = bundles._self_sha256(manifest)
    (folder / MANIFEST).write_bytes(bundles._dump(manifest))
    with pytest.raises(BundleError, match=r"pt2 is .* expected a table with the text device.*Export the bundle again"):
        open_bundle(folder)


def test_a_source_is_built_before_what_is_built_from_it():
    built = [one.file for one in registry.ARTIFACTS]
    assert registry.rebuilt()
    for one in registry.rebuilt():
        assert built.index(one.source) < built.index(one.file)


class Unfit:
    """Requirements that no machine meets."""

    def check_options(self, precision, workspace_gib):
        raise UsageError(f"not in {precision}")


def test_requirements_refuse_before_the_exporter_is_imported():
    demanding = Artifact("a.toy", "video", "no.such.module", option="toy", needs=Unfit())
    with registry.registered(demanding):
        assert registry.demanding({"toy"}) == (demanding,) and registry.demanding(set()) == ()
        with pytest.raises(UsageError, match="not in fp16"):
            demanding.check(SimpleNamespace(precision="fp16", workspace_gib=None, device="cpu"))

"""Facts of an artifact in a manifest are checked by the artifact, before anything reads them."""

import json
import shutil
from pathlib import Path

import pytest

from tempme_export.artifacts import bundle as bundles
from tempme_export.artifacts.artifact import Artifact
from tempme_export.artifacts.bundle import MANIFEST, open_bundle
from tempme_export.artifacts.registry import PACKAGE
from tempme_export.errors import BundleError

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

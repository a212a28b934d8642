"""Backbones that are known without open_clip are those of open_clip."""

import subprocess
import sys

from tempme_export.encoder import backbone

WITHOUT_OPEN_CLIP = """
import sys
sys.modules["open_clip"] = None
from tempme_export.encoder import backbone
from tempme_export.errors import BackendError

for name in backbone._KNOWN:
    print(backbone.open_clip_backbone(name))
try:
    backbone.open_clip_config("ViT-H-14")
except BackendError as error:
    print(error)
"""


def test_without_open_clip_the_known_ones_are_the_same_and_others_need_it():
    done = subprocess.run([sys.executable, "-c", WITHOUT_OPEN_CLIP], capture_output=True, text=True, check=True)
    *found, said = done.stdout.splitlines()
    assert found == [str(backbone.open_clip_backbone(name)) for name in backbone._KNOWN] and len(found) >= 2
    assert "'ViT-H-14' needs open_clip, which is not installed" in said

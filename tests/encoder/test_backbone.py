"""Backbones that are known without open_clip are those of open_clip."""

import pytest

from tempme_export.encoder import backbone
from tempme_export.errors import BackendError


@pytest.mark.parametrize("name", backbone._KNOWN)
def test_known_without_open_clip(monkeypatch, name):
    expected = backbone.open_clip_backbone(name)
    monkeypatch.setattr(backbone, "_config_folder", lambda: None)
    assert backbone.open_clip_backbone.__wrapped__(name) == expected


def test_others_need_open_clip(monkeypatch):
    monkeypatch.setattr(backbone, "_config_folder", lambda: None)
    with pytest.raises(BackendError, match="'ViT-H-14' needs open_clip, which is not installed"):
        backbone.open_clip_config("ViT-H-14")

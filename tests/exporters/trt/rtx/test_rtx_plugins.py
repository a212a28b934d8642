"""Checks of what TensorRT-RTX was handed; tests/system hands it over."""

import dataclasses

import pytest

from tempme_export.errors import BackendError, ExportError
from tempme_export.exporters import plugin_nodes as pn
from tempme_export.exporters.trt.plugin_launches import call_of, plugin_launches, units_of, value_at
from tempme_export.exporters.trt.rtx.plugins import HandedOver, check_launches, check_library

NODES = (*pn.match_clips(pn.Tokens(12, 7, 128, 3), 3, 5), pn.merge_norm(pn.Tokens(12, 17, 128), 1, 2, sized=True))
VIDEOS = (1, 3, 64)


def handed_over(nodes):
    """All that a builder is handed which computes our expressions rightly."""
    found = {}
    for call, node in nodes.items():
        for tactic, launch in enumerate(plugin_launches(call), start=1):
            for videos in VIDEOS:
                units = units_of(call, node.inputs[0].shape[0] * videos)
                grid = tuple(value_at(one, units) for one in launch.grid)
                scalars = tuple(value_at(one, units) for _, one in launch.scalars)
                found[call, videos, tactic] = HandedOver("kernel", "text", grid, (128, 1, 1), 0, scalars)
    return found


@pytest.fixture
def nodes():
    return {call_of(node, "fp16"): node for node in NODES}


def test_launches_as_they_should_be(nodes):
    check_launches(nodes, VIDEOS, handed_over(nodes))


@pytest.mark.parametrize("part", ["grid", "scalars"])
def test_another_launch_is_refused(nodes, part):
    found = handed_over(nodes)
    key = next(key for key in found if key[0].op_type == "ScoreRows" and key[1:] == (3, 2))
    found[key] = dataclasses.replace(found[key], **{part: (1, *getattr(found[key], part)[1:])})
    with pytest.raises(ExportError, match=r"ScoreRows, tactic 2, 3 videos: TensorRT-RTX was handed .*, expected grid"):
        check_launches(nodes, VIDEOS, found)


def test_a_node_that_was_not_asked_for_is_refused(nodes):
    found = handed_over(nodes)
    del found[next(key for key in found if key[0].op_type == "SelectRows" and key[1] == 64)]
    with pytest.raises(ExportError, match="SelectRows, tactic 1, 64 videos: TensorRT-RTX was handed None"):
        check_launches(nodes, VIDEOS, found)


def test_a_library_that_the_parser_would_not_find():
    """It would end the process."""

    def load(name, mode):
        raise OSError("cannot open shared object file")

    with pytest.raises(BackendError, match=r"libtensorrt_rtx\.so is not found by that name .*LD_LIBRARY_PATH"):
        check_library(load)
    opened = []
    check_library(lambda name, mode: opened.append(name))
    assert opened == ["libtensorrt_rtx.so"]

"""The first line of `tempme-doctor`: one command to run next."""

import pytest

from tempme_export.doctor.advice import Advice, advise
from tempme_export.doctor.machine import Host, ListedGpu, Machine
from tempme_export.doctor.rules import Capability, Diagnosis, names

H200 = ListedGpu("NVIDIA H200", "sm_90")


def machine(gpus=()):
    host = Host("3.11.7", "Linux x86_64", 8, 16 * 10**9, "0.1.0")
    return Machine(host, (), tuple(gpus), ())


def without(*broken, gpus=()):
    """A diagnosis in which all works but these, each mended by a command that names it."""
    one = {name: ({"part": "is broken"}, (f"get {name}",)) if name in broken else ({}, ()) for name in names()}
    capabilities = tuple(Capability(name, "", missing, install) for name, (missing, install) in one.items())
    return Diagnosis(machine(gpus), capabilities)


@pytest.mark.parametrize(
    ("diagnosis", "command", "said"),
    [
        (without("core", "cpu", "export"), "get core", "the core is broken (part)"),
        (without("cpu", "export", "trt", "gpu"), "get cpu", "ONNX Runtime"),
        (without("export", "trt", "gpu"), "tempme-export verify ckpt.tempme", "to make one: get export"),
        (without("export", "video"), "tempme-export verify ckpt.tempme", "get export; to read video files: get video"),
        (without(gpus=[H200]), "tempme-export ckpt.pt --trt", "engine for NVIDIA H200"),
        (without("trt", gpus=[H200]), "tempme-export ckpt.pt", "for an engine for NVIDIA H200: get trt"),
        (without("trt", "gpu", "video"), "tempme-export ckpt.pt", "to read video files: get video"),
        (without("trt", "gpu"), "tempme-export ckpt.pt", "wherever ONNX runs"),
    ],
)
def test_the_nearest_gap_comes_first(diagnosis, command, said):
    advice = advise(diagnosis)
    assert isinstance(advice, Advice)
    assert advice.command == command and said in advice.reason

"""Which packages a machine accepts. What a package computes is tested where one is compiled."""

import dataclasses
import json
import platform
import zipfile

import pytest
import torch

from tempme_export.errors import BackendError, BundleError
from tempme_export.runtime.pt2 import KEY, Here, PackageFacts, Pt2Runner, check_package, read_package_facts

CPU = torch.device("cpu")
FACTS = PackageFacts(
    torch="2.11.0+cu130",
    device="cpu",
    machine=platform.machine(),
    capability=torch.backends.cpu.get_cpu_capability(),
    precision="fp32",
    max_batch=8,
    inputs={"frames": ("float32", (None, 4, 3, 48, 48))},
)


def write(path, metadata):
    """A package with metadata and no code."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("video/data/aotinductor/model/c0.wrapper.cpp", "")
        archive.writestr("video/data/aotinductor/model/c0.wrapper_metadata.json", json.dumps(metadata))
    return path


def changed(**changes):
    return dataclasses.replace(FACTS, **changes)


class TestFacts:
    def test_round_trip(self, tmp_path):
        assert (
            read_package_facts(write(tmp_path / "video.pt2", {"AOTI_DEVICE_KEY": "cpu", **FACTS.to_metadata()}))
            == FACTS
        )

    def test_a_package_of_another_tool(self, tmp_path):
        with pytest.raises(BundleError, match="was not written by tempme-export"):
            read_package_facts(write(tmp_path / "video.pt2", {"AOTI_DEVICE_KEY": "cpu"}))

    @pytest.mark.parametrize(
        "stored", ["no json", "[]", "{}", json.dumps({**FACTS.to_dict(), "colour": "red"}), json.dumps({"inputs": {}})]
    )
    def test_facts_of_another_kind(self, tmp_path, stored):
        with pytest.raises(BundleError, match="Export the bundle again"):
            read_package_facts(write(tmp_path / "video.pt2", {KEY: stored}))

    def test_no_package(self, tmp_path):
        with pytest.raises(BundleError, match="no package that can be read"):
            read_package_facts(tmp_path / "missing.pt2")
        (tmp_path / "text.pt2").write_text("no archive")
        with pytest.raises(BundleError, match="no package that can be read"):
            Pt2Runner(tmp_path / "text.pt2")

    def test_code_that_is_not_there(self, tmp_path):
        path = write(tmp_path / "video.pt2", changed(torch=torch.__version__).to_metadata())
        with pytest.raises(BundleError, match=r"video\.pt2 cannot be loaded"):
            Pt2Runner(path)


class TestMachine:
    def test_the_same_machine(self):
        check_package(FACTS, CPU, "video.pt2")
        check_package(changed(torch=torch.__version__), CPU, "video.pt2")

    def test_an_older_torch(self):
        with pytest.raises(BackendError, match=r"compiled by torch 2\.11\.0, and torch 2\.9\.1 is installed"):
            check_package(FACTS, CPU, "video.pt2", Here("2.9.1+cpu", FACTS.capability))
        check_package(FACTS, CPU, "video.pt2", Here("2.11.0+cpu", FACTS.capability))

    def test_another_device(self):
        with pytest.raises(BackendError, match="compiled for cpu, and cuda was asked for") as caught:
            check_package(FACTS, torch.device("cuda"), "video.pt2")
        assert caught.value.exit_code == 4
        with pytest.raises(BackendError, match="compiled for cuda, and cpu was asked for"):
            check_package(changed(device="cuda", capability="sm_90"), CPU, "video.pt2")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
    def test_a_device_that_is_not_there(self, tmp_path):
        path = write(tmp_path / "video.pt2", changed(device="cuda", capability="sm_90").to_metadata())
        with pytest.raises(BackendError, match="torch sees 0 CUDA devices"):
            Pt2Runner(path)

    @pytest.mark.parametrize(
        ("built", "here", "runs"),
        [
            ("AVX2", "AVX512", True),
            ("DEFAULT", "AVX2", True),
            ("AVX512", "AVX2", False),
            ("AVX2", "DEFAULT", False),
            ("NEON", "NEON", True),
            ("SVE256", "NEON", False),
            ("sm_90", "sm_90", True),
            ("sm_90", "sm_80", False),
        ],
    )
    def test_instructions(self, built, here, runs):
        machine = Here(torch.__version__, here)
        if runs:
            check_package(changed(capability=built), CPU, "video.pt2", machine)
        else:
            with pytest.raises(BackendError, match=f"{built}, and this is .* {here}"):
                check_package(changed(capability=built), CPU, "video.pt2", machine)

    def test_another_architecture(self):
        with pytest.raises(BackendError, match="compiled for riscv"):
            check_package(changed(machine="riscv"), CPU, "video.pt2")

"""What is asked of the NVIDIA driver, against a stand-in for its libraries."""

import ctypes
from functools import partial

import pytest

from tempme_export.errors import BackendError
from tempme_export.runtime import nvidia
from tempme_export.runtime.nvidia import CUDA, NVML, Gpu, driver_release, find_gpu, gpu_index


class FakeCuda:
    """Two GPUs: an H100 and an RTX 3090; `fails` names the call that answers with error 999."""

    GPUS = (("NVIDIA H100 80GB HBM3", 9, 0), ("NVIDIA GeForce RTX 3090", 8, 6))

    def __init__(self, fails=None, version=12080):
        self.version = version
        if fails:
            setattr(self, fails, lambda *rest: 999)

    def cuInit(self, flags):
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.GPUS)
        return 0

    def cuDeviceGet(self, handle, index):
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, text, size, handle):
        text.value = self.GPUS[handle.value][0].encode()
        return 0

    def cuDeviceGetAttribute(self, number, attribute, handle):
        number._obj.value = self.GPUS[handle.value][{75: 1, 76: 2}[attribute]]
        return 0

    def cuDriverGetVersion(self, number):
        number._obj.value = self.version
        return 0


class FakeNvml:
    def __init__(self, release=b"570.86.10", code=0):
        self.release, self.code = release, code

    def nvmlInit_v2(self):
        return self.code

    def nvmlSystemGetDriverVersion(self, text, size):
        text.value = self.release
        return 0


class Libraries(dict):
    """Stand-ins by library name; a name that is not there does not load."""

    def __call__(self, name):
        if name not in self:
            raise OSError(f"{name}: cannot open shared object file")
        return self[name]


@pytest.fixture
def driver():
    """Both libraries of a driver, to be opened."""
    return Libraries({CUDA: FakeCuda(), NVML: FakeNvml()})


def test_a_gpu(driver):
    assert find_gpu("cuda", driver) == Gpu("NVIDIA H100 80GB HBM3", (9, 0), "570.86.10", (12, 8))
    second = find_gpu("cuda:1", driver)
    assert (second.name, second.capability) == ("NVIDIA GeForce RTX 3090", "sm_86")


def test_another_cuda_version(driver):
    driver[CUDA] = FakeCuda(version=13000)
    assert find_gpu("cuda", driver).cuda == (13, 0)


def test_no_driver(driver):
    del driver[CUDA]
    with pytest.raises(BackendError, match=r"no NVIDIA GPU: libcuda\.so\.1 does not load.*--gpus all") as caught:
        find_gpu("cuda", driver)
    assert caught.value.exit_code == 4


def test_fewer_gpus_than_asked_for(driver):
    with pytest.raises(BackendError, match="cuda:2 was asked for and the NVIDIA driver shows 2 GPUs"):
        find_gpu("cuda:2", driver)


@pytest.mark.parametrize(
    "name",
    ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDriverGetVersion"],
)
def test_a_driver_that_fails(driver, name):
    driver[CUDA] = FakeCuda(fails=name)
    with pytest.raises(BackendError, match=rf"{name} answers with error 999\. Run nvidia-smi"):
        find_gpu("cuda", driver)


@pytest.mark.parametrize("device", ["cpu", "cuda:x", "cuda:-1", "rocm"])
def test_other_devices(device):
    with pytest.raises(BackendError, match="is no NVIDIA GPU"):
        gpu_index(device)


def test_release_without_the_utilities(driver, tmp_path):
    del driver[NVML]
    said = partial(driver_release, driver, tmp_path / "version")
    assert said() == ""
    (tmp_path / "version").write_text("535.104.05\n")
    assert said() == "535.104.05"
    driver[NVML] = FakeNvml(code=9)  # the driver's parts are of different releases
    assert said() == "535.104.05"
    driver[NVML] = object()
    assert said() == "535.104.05"


def test_the_real_library_is_asked_for_by_name():
    with pytest.raises(OSError, match="no-such-library"):
        nvidia.open_library("libno-such-library.so.1")
    assert isinstance(nvidia.open_library("libc.so.6"), ctypes.CDLL)

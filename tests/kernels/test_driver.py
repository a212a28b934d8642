"""Kernels launched through the CUDA driver: what is passed, what is refused, and that results are Triton's."""

import ctypes

import pytest
import torch

from tempme_export.kernels import aot, driver
from tempme_export.kernels.launch import interpreting, recording

INVALID_PTX, OUT_OF_MEMORY = 218, 2
NAMES = {INVALID_PTX: (b"CUDA_ERROR_INVALID_PTX", b"a PTX JIT compilation failed"), OUT_OF_MEMORY: (None, None)}


class FakeLibcuda:
    """Notes every call; succeeds unless `failing` names the function. `context` is the current one."""

    def __init__(self, context=7, **failing):
        self.calls, self.context, self.failing, self.attribute = [], context, failing, None

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            return self.failing.get(name, 0)

        return call

    def cuCtxGetCurrent(self, context):
        context._obj.value = self.context
        return 0

    def cuModuleLoadDataEx(self, module, image, count, options, values):
        self.image = image
        assert list(options) == [5, 6] and count == 2
        ctypes.memmove(values[0], b"line 3: syntax error\0", 21)
        return self.failing.get("cuModuleLoadDataEx", 0)

    def cuModuleGetFunction(self, function, module, name):
        function._obj.value, self.name = 11, name
        return 0

    def cuFuncSetAttribute(self, function, attribute, value):
        self.attribute = (function.value, attribute, value)
        return 0

    def cuLaunchKernel(self, function, *rest):
        *sizes, stream, pointers, extra = rest
        self.sizes = [size.value for size in sizes]
        self.launched = (function.value, stream.value, extra)
        self.addresses = list(pointers)
        self.pointers = [ctypes.c_uint64.from_address(at).value for at in (pointers[0], pointers[3])]
        self.scalars = [ctypes.c_int32.from_address(at).value for at in pointers[1:3]]
        self.calls.append("cuLaunchKernel")
        return 0

    def cuGetErrorName(self, result, text):
        text._obj.value = NAMES[result][0]
        return 0

    def cuGetErrorString(self, result, text):
        text._obj.value = NAMES[result][1]
        return 0


PARAMETERS = ("u64", "u32", "u32", "u64")


def load(fake, image="ptx", shared=0, num_warps=4):
    return driver.load(
        image, "some_kernel", parameters=PARAMETERS, shared=shared, num_warps=num_warps, driver=driver.Driver(fake)
    )


def test_exactly_inputs_scalars_outputs_are_passed():
    fake, x, out = FakeLibcuda(), torch.zeros(3), torch.zeros(3)
    load(fake, shared=512, num_warps=8).launch((5, 6, 7), [x], [-3, 2**31 - 1], [out], stream=99)
    assert fake.name == b"some_kernel"
    assert fake.sizes == [5, 6, 7, 256, 1, 1, 512]
    assert fake.launched == (11, 99, None)
    assert len(fake.addresses) == 4
    assert fake.pointers == [x.data_ptr(), out.data_ptr()]
    assert fake.scalars == [-3, 2**31 - 1]


@pytest.mark.parametrize(("image", "passed"), [("ptx", b"ptx\0"), (b"\x7fELF", b"\x7fELF")], ids=["ptx", "cubin"])
def test_ptx_ends_in_a_null_and_cubin_stays(image, passed):
    fake = FakeLibcuda()
    load(fake, image)
    assert fake.image == passed


def test_more_than_48_kib_of_shared_memory_is_asked_for():
    fake = FakeLibcuda()
    load(fake, shared=48 * 1024)
    assert fake.attribute is None
    load(fake, shared=48 * 1024 + 1)
    assert fake.attribute == (11, 8, 48 * 1024 + 1)


@pytest.mark.parametrize(
    ("scalars", "said"),
    [
        ([1], "1 inputs, 1 scalars and 1 outputs are u64 u32 u64, but the kernel was built for u64 u32 u32 u64"),
        ([1, 2, 3], "u64 u32 u32 u32 u64, but"),
        ([1, 2**31], r"\[2147483648\] do not fit an int32"),
    ],
    ids=["few", "many", "wide"],
)
def test_other_arguments_are_refused_before_the_launch(scalars, said):
    fake = FakeLibcuda()
    function = load(fake)
    with pytest.raises(ValueError, match=said):
        function.launch((1, 1, 1), [torch.zeros(1)], scalars, [torch.zeros(1)], stream=0)
    assert "cuLaunchKernel" not in fake.calls


def test_a_missing_driver_says_what_to_do():
    with pytest.raises(driver.DriverError, match=r"libno_such_driver.so.1 cannot be loaded .* install that"):
        driver.open_library("libno_such_driver.so.1")


def test_a_thread_without_context_is_refused():
    with pytest.raises(driver.DriverError, match="no CUDA context is current"):
        load(FakeLibcuda(context=None))


def test_a_refused_image_shows_the_error_and_the_log():
    with pytest.raises(driver.DriverError) as caught:
        load(FakeLibcuda(cuModuleLoadDataEx=INVALID_PTX))
    assert str(caught.value).splitlines() == [
        "cuModuleLoadDataEx failed: CUDA_ERROR_INVALID_PTX (218), a PTX JIT compilation failed.",
        "line 3: syntax error",
    ]


def test_a_result_that_the_driver_cannot_name_keeps_its_number():
    with pytest.raises(driver.DriverError, match=r"cuInit failed: unknown \(2\), unknown"):
        driver.Driver(FakeLibcuda(cuInit=OUT_OF_MEMORY))


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def launch_by_driver(operation, target):
    """What `operation` returns, its kernels built ahead of time for `target` and launched without Triton."""
    with recording() as calls:
        outputs = operation()
    assert calls
    for call in calls:
        launch, passed = aot.describe(call), aot.arguments(call)
        built = aot.compile(launch.variant, target)
        function = driver.load(
            built.ptx if target == aot.UNIVERSAL else built.binary,
            built.name,
            parameters=built.parameters,
            shared=built.resources.shared,
            num_warps=built.num_warps,
        )
        stream = torch.cuda.current_stream().cuda_stream
        function.launch(launch.grid, passed.inputs, passed.scalars, passed.outputs, stream)
    torch.cuda.synchronize()
    return outputs


OPERATIONS = (
    *("match_keys", "match_keys_many", "match_clips", "merge_within", "merge_first", "merge_across"),
    *("add_norm", "layer_norm", "attention", "attention_bias", "attention_match"),
)
HEADS = 2
# From sm_90 on, half precision is multiplied by instructions that sm_80 lacks and that add up in another order.
HALF_TOLERANCE = {dtype: 2 * torch.finfo(dtype).eps for dtype in (torch.float16, torch.bfloat16)}  # four roundings
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or interpreting(), reason="needs a CUDA device, and TRITON_INTERPRET unset"
)


def own_target():
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    if target not in aot.TARGETS:
        pytest.skip(f"no builds are made for {target}")
    return target


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
class TestOnGpu:
    def test_the_build_for_this_gpu_equals_triton_bit_for_bit(self, kernel_calls, name, dtype):
        operation = kernel_calls(dtype, "cuda", HEADS)[name]
        equal(launch_by_driver(operation, own_target()), operation())

    def test_the_universal_build_equals_triton(self, kernel_calls, name, dtype):
        operation = kernel_calls(dtype, "cuda", HEADS)[name]
        found, expected = launch_by_driver(operation, aot.UNIVERSAL), operation()
        found, expected = (one if isinstance(one, tuple) else (one,) for one in (found, expected))
        for one, other in zip(found, expected, strict=True):
            if name.startswith("attention") and one.dtype in HALF_TOLERANCE:
                torch.testing.assert_close(one, other, rtol=HALF_TOLERANCE[dtype], atol=HALF_TOLERANCE[dtype])
            else:
                equal(one, other)


def test_every_operation_is_launched(kernel_calls):
    assert set(OPERATIONS) == set(kernel_calls(torch.float16, "meta", HEADS))

"""Engines as Runners against a stand-in that reads and writes the very addresses it is given.

torch's streams and graphs are stand-ins too: copies are immediate, and a graph replays what was enqueued while it was
captured.
"""

import contextlib
import copy
import ctypes
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tempme_export.errors import BackendError, BundleError, InputError
from tempme_export.runtime.engine_facts import ENGINE, EngineFacts
from tempme_export.runtime.nvidia import Gpu
from tempme_export.runtime.tensorrt import Host, TensorRtRunner, check_engine

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), "580.65.06", (13, 0))
FACTS = EngineFacts(
    tensorrt="11.4.0.106",
    gpu=H100.name,
    capability="sm_90",
    driver="580.65.06",
    precision="fp16",
    batch=(2, 3, 4),
    inputs={"frames": ("float32", (None, 2, 3)), "frame_mask": ("bool", (None, 2))},
    outputs={"video_embedding": ("float32", (None, 3))},
    target="sm_90",
    plugins={"MergeNorm": 1},
    engine_plugins=1,
    layers={"fp16": 2},
    products={"fp16": 1},
    attentions=0,
    seconds=1.0,
)


SCRATCH = 512  # bytes between the layers


def expected(inputs):
    """What the stand-in computes: the frames that the mask keeps, summed."""
    return {"video_embedding": (inputs["frames"] * inputs["frame_mask"][..., None]).sum(axis=1)}


def at(address, shape, kind):
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind).reshape(shape)


class FakeContext:
    """It leaks at every change of shape, so it refuses one; `runs` are those of all contexts."""

    def __init__(self, trt, log):
        self.trt, self.log, self.shapes, self.addresses, self.memory = trt, log, {}, {}, None

    def set_device_memory(self, memory, size):
        assert size == SCRATCH
        self.memory = memory

    def set_input_shape(self, name, shape):
        assert name not in self.shapes, "a context keeps its shape"
        smallest, _, largest = self.trt.profile
        if not smallest <= shape[0] <= largest:
            self.log("Severity.ERROR", f"{shape[0]} is not in the profile")
            return False
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name, memory):
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        assert stream_handle == FakeStream.cuda_stream, "the engine runs on the runner's own stream"
        batch = self.shapes["frames"][0]
        if FakeGraph.capturing is not None and batch == self.trt.cannot_capture:
            return False
        if self.trt.fails:
            self.log("Severity.ERROR", "illegal memory access")
            return False
        self.trt.runs.append(batch)
        FakeGraph.record(lambda: self.compute(batch))
        return True

    def compute(self, batch):
        frames = at(self.addresses["frames"], (batch, 2, 3), np.float32)
        mask = at(self.addresses["frame_mask"], (batch, 2), np.bool_)
        out = at(self.addresses["video_embedding"], (batch, 3), np.float32)
        out[:] = expected({"frames": frames, "frame_mask": mask})["video_embedding"]


class FakeStream:
    cuda_stream = 7

    def __init__(self, wait=lambda: None):
        self.synchronize = wait

    def wait_stream(self, other):
        pass


class FakeGraph:
    """Collects what is enqueued while one is captured; outside of a capture that happens at once."""

    capturing, replayed = None, 0

    def __init__(self):
        self.work, self.replays = [], 0

    @classmethod
    def record(cls, work):
        if cls.capturing is None:
            work()
        else:
            cls.capturing.work.append(work)

    @classmethod
    @contextlib.contextmanager
    def capture(cls, graph, stream, capture_error_mode):
        cls.capturing = graph
        try:
            yield
        finally:
            cls.capturing = None

    def replay(self):
        self.replays += 1
        FakeGraph.replayed += 1
        for work in self.work:
            work()


class FakeTrt:
    __version__ = "11.4.0.106"

    class ILogger:
        def __init__(self):
            pass

    class ExecutionContextAllocationStrategy:
        STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)

    def __init__(self):
        self.loads, self.with_context, self.fails, self.cannot_capture = True, True, False, None
        self.profile, self.contexts, self.runs = FACTS.batch, [], []
        self.tensors = ["frames", "frame_mask", "video_embedding"]

    def Runtime(self, logger):
        def load(plan):
            if not self.loads:
                logger.log("Severity.ERROR", "magic tag does not match")
                return None
            return SimpleNamespace(
                num_io_tensors=len(self.tensors),
                get_tensor_name=lambda index: self.tensors[index],
                device_memory_size_v2=SCRATCH,
                create_execution_context=lambda strategy: self.make_context(strategy, logger),
            )

        self.contexts, self.runs = [], []

        return SimpleNamespace(deserialize_cuda_engine=load)

    def make_context(self, strategy, logger):
        assert strategy == self.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.with_context:
            return None
        self.contexts.append(FakeContext(self, logger.log))
        return self.contexts[-1]


class Event:
    """The device's clock ticks 3 ms with every run."""

    def __init__(self, trt):
        self.trt = trt

    def record(self, stream):
        self.runs = len(self.trt.runs) + FakeGraph.replayed

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 3.0 * (other.runs - self.runs)


class FakeHost(Host):
    """TensorRT and a GPU, both stand-ins. `wait` is called where the GPU is waited for."""

    def __init__(self):
        self.trt, self.found, self.wait = FakeTrt(), H100, lambda: None

    def tensorrt(self):
        return self.trt

    def gpu(self, device):
        return self.found

    def device(self, name):
        return torch.device("cpu")

    @property
    def cuda(self):
        return SimpleNamespace(
            device=lambda device: contextlib.nullcontext(),
            stream=lambda stream: contextlib.nullcontext(),
            current_stream=lambda device: FakeStream(),
            Stream=lambda device: FakeStream(lambda: self.wait()),
            CUDAGraph=FakeGraph,
            graph=FakeGraph.capture,
            Event=lambda enable_timing: Event(self.trt),
        )

    def __deepcopy__(self, memo):
        return self


@pytest.fixture
def host():
    return FakeHost()


@pytest.fixture
def trt(host):
    """The host's TensorRT."""
    return host.trt


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "ckpt.tempme" / ENGINE
    path.parent.mkdir()
    path.write_bytes(b"an engine")
    return path


@pytest.fixture
def runner(host, engine):
    with TensorRtRunner(engine, FACTS, host=host) as loaded:
        yield loaded


def draw(batch, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "frames": rng.standard_normal((batch, 2, 3), np.float32),
        "frame_mask": rng.integers(0, 2, (batch, 2)).astype(np.bool_),
    }


class TestRunning:
    @pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 8, 11])
    def test_any_batch(self, runner, batch):
        """1 is below the engine's smallest, 5, 8 and 11 are above its largest: 5 ends in a part of one."""
        inputs = draw(batch)
        found = runner.infer(inputs)
        assert found.keys() == {"video_embedding"} and found["video_embedding"].dtype == np.float32
        np.testing.assert_array_equal(found["video_embedding"], expected(inputs)["video_embedding"])

    def test_parts_and_padding(self, runner, trt):
        runner.infer(draw(9))
        graphs = runner.opened().graphs
        assert {size: graph.replays for size, graph in graphs.items()} == {2: 1, 3: 0, 4: 2}
        one = draw(1)
        runner.infer(one)
        padded = at(trt.contexts[0].addresses["frames"], (2, 2, 3), np.float32)
        np.testing.assert_array_equal(padded, one["frames"].repeat(2, axis=0))

    def test_a_context_for_each_of_few_sizes(self, host, trt, engine):
        """Smallest, usual, largest and powers of two between: whatever is asked for, no shape changes after opening."""
        trt.profile = (1, 3, 11)
        with TensorRtRunner(engine, dataclasses.replace(FACTS, batch=trt.profile), host=host) as runner:
            for batch in (1, 2, 3, 5, 7, 9, 11, 4, 13, 1):
                inputs = draw(batch, seed=batch)
                found = runner.infer(inputs)["video_embedding"]
                np.testing.assert_array_equal(found, expected(inputs)["video_embedding"])
            assert [one.shapes["frames"][0] for one in trt.contexts] == [1, 2, 3, 4, 8, 11]
        assert len({one.memory for one in trt.contexts}) == 1, "they run one after another and share what they may"
        for name in ("frames", "frame_mask", "video_embedding"):
            assert len({one.addresses[name] for one in trt.contexts}) == 1

    def test_results_are_the_callers_own(self, runner):
        first, second = draw(3, seed=1), draw(3, seed=2)
        found = runner.infer(first)
        runner.infer(second)
        np.testing.assert_array_equal(found["video_embedding"], expected(first)["video_embedding"])

    def test_every_thread_gets_its_own_results(self, runner, host):
        """While one waits for the GPU, another must not fill its buffers."""
        host.wait = lambda: time.sleep(1e-4)

        def run(i):
            inputs = draw(2 + i % 3, seed=i)
            alone = expected(inputs)["video_embedding"]
            return all(np.array_equal(runner.infer(inputs)["video_embedding"], alone) for _ in range(20))

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(run, range(8))) == [True] * 8

    def test_every_thread_gets_its_own_tensors(self, runner):
        """What is returned stays when another thread runs the engine."""
        drawn = [draw(2 + i % 3, seed=i) for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda inputs: runner.run_tensors(*map(torch.from_numpy, inputs.values())), drawn * 20)
        for inputs, tensors in zip(drawn * 20, found, strict=True):
            np.testing.assert_array_equal(tensors["video_embedding"].numpy(), expected(inputs)["video_embedding"])

    def test_copied(self, runner):
        inputs = draw(3)
        again = copy.deepcopy(runner)
        runner.close()
        np.testing.assert_array_equal(again.infer(inputs)["video_embedding"], expected(inputs)["video_embedding"])

    def test_inputs_that_are_not_contiguous(self, runner):
        inputs = draw(6)
        inputs = {name: array[::2] for name, array in inputs.items()}
        np.testing.assert_array_equal(runner.infer(inputs)["video_embedding"], expected(inputs)["video_embedding"])

    def test_the_contract(self, runner):
        assert runner.inputs["frames"] == (np.dtype(np.float32), (None, 2, 3))
        with pytest.raises(InputError, match="expected frame_mask, frames"):
            runner.infer({"frames": draw(2)["frames"]})

    def test_on_the_gpu(self, runner):
        inputs = draw(3)
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        for _ in range(3):
            found = runner.run_tensors(*tensors)["video_embedding"]
            np.testing.assert_array_equal(found.numpy(), expected(inputs)["video_embedding"])
        found = runner.run_tensors(*(tensor[:1] for tensor in tensors))["video_embedding"]
        np.testing.assert_array_equal(found.numpy(), expected(inputs)["video_embedding"][:1])

    def test_a_batch_that_lies_on_the_gpu(self, runner):
        inputs = draw(3)
        found = runner.resident(inputs)()["video_embedding"]
        np.testing.assert_array_equal(found.numpy(), expected(inputs)["video_embedding"])

    def test_a_run_that_fails(self, host, trt, engine):
        with TensorRtRunner(engine, FACTS, graphs=False, host=host) as runner:
            trt.fails = True
            with pytest.raises(BackendError, match=r"could not run the engine: illegal memory access"):
                runner.infer(draw(2))
            trt.fails = False
            inputs = draw(2)
            found = runner.infer(inputs)["video_embedding"]
            np.testing.assert_array_equal(found, expected(inputs)["video_embedding"])

    def test_an_engine_that_does_not_run_does_not_open(self, host, trt, engine):
        trt.fails = True
        with pytest.raises(BackendError, match=r"could not run the engine: illegal memory access"):
            TensorRtRunner(engine, FACTS, host=host)

    def test_a_gpu_that_fails_while_it_is_waited_for(self, runner, host):
        def fail():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        host.wait = fail
        with pytest.raises(BackendError, match="the GPU failed: CUDA error: an illegal"):
            runner.infer(draw(2))

    def test_a_batch_that_tensorrt_refuses(self, host, engine):
        """The manifest promises more than the engine takes."""
        with pytest.raises(BackendError, match="refuses a batch of 6: 6 is not in the profile"):
            TensorRtRunner(engine, dataclasses.replace(FACTS, batch=(2, 3, 6)), host=host)


class TestGraphs:
    def test_every_size_runs_once_is_captured_and_then_replays(self, runner, trt):
        assert trt.runs == [2, 3, 4, 2, 3, 4], "once to set up, once to capture"
        for seed in range(4):
            inputs = draw(2 + seed % 3, seed)
            np.testing.assert_array_equal(runner.infer(inputs)["video_embedding"], expected(inputs)["video_embedding"])
        assert len(trt.runs) == 6 and runner.graphs
        assert [graph.replays for graph in runner.opened().graphs.values()] == [2, 1, 1]

    def test_without_graphs(self, host, trt, engine):
        with TensorRtRunner(engine, FACTS, graphs=False, host=host) as runner:
            for _ in range(3):
                runner.infer(draw(2))
            assert not runner.graphs and trt.runs == [2, 3, 4, 2, 2, 2]

    @pytest.mark.parametrize("size", FACTS.batch)
    def test_an_engine_that_cannot_be_captured_runs_without(self, host, trt, engine, size):
        trt.cannot_capture = size
        with TensorRtRunner(engine, FACTS, host=host) as runner:
            assert not runner.graphs
            for seed in range(3):
                inputs = draw(3, seed)
                found = runner.infer(inputs)["video_embedding"]
                np.testing.assert_array_equal(found, expected(inputs)["video_embedding"])


class TestLoading:
    def test_another_gpu_tensorrt_or_driver(self):
        here = "11.4.0.106"
        path = Path("out/ckpt.tempme") / ENGINE
        check_engine(FACTS, H100, here, path)
        again = r"Build it again here: tempme-export rebuild out/ckpt\.tempme"
        with pytest.raises(BackendError, match=rf"sm_90\), and this is A100 \(sm_80\)\. {again}") as caught:
            check_engine(FACTS, dataclasses.replace(H100, name="A100", compute=(8, 0)), here, path)
        assert caught.value.exit_code == 4
        with pytest.raises(BackendError, match=r"for NVIDIA H100 80GB HBM3 .*, and this is NVIDIA H100 PCIe"):
            check_engine(FACTS, dataclasses.replace(H100, name="NVIDIA H100 PCIe"), here, path)
        with pytest.raises(BackendError, match=rf"by TensorRT 11\.4\.0\.106, and 10\.16\.1\.11 is installed\. {again}"):
            check_engine(FACTS, H100, "10.16.1.11", path)
        with pytest.raises(
            BackendError, match=rf"with NVIDIA driver 580\.65\.06, and 570\.86\.10 is installed\. {again}"
        ):
            check_engine(FACTS, dataclasses.replace(H100, driver="570.86.10"), here, path)

    @pytest.mark.parametrize("driver", ["580.65.06", "590.1", "1000.0", ""])
    def test_drivers_that_are_new_enough_or_unknown(self, driver):
        check_engine(FACTS, dataclasses.replace(H100, driver=driver), "11.4.0.106", Path(ENGINE))
        check_engine(
            dataclasses.replace(FACTS, driver=""), dataclasses.replace(H100, driver=driver), "11.4.0.106", Path(ENGINE)
        )

    def test_all_differences_are_named(self):
        with pytest.raises(BackendError, match=r"for NVIDIA .*; by TensorRT .*; with NVIDIA driver"):
            check_engine(FACTS, Gpu("A100", (8, 0), "535.1", (12, 2)), "10.15.1.29", Path(ENGINE))

    def test_it_is_checked_before_loading(self, host, trt, engine):
        host.found = Gpu("A100", (8, 0), "", (13, 0))
        trt.loads = False
        with pytest.raises(BackendError, match="this is A100"):
            TensorRtRunner(engine, FACTS, host=host)

    def test_a_damaged_file(self, host, trt, engine):
        trt.loads = False
        with pytest.raises(
            BundleError, match=r"cannot be loaded: magic tag does not match\. .*tempme-export rebuild .*ckpt\.tempme"
        ):
            TensorRtRunner(engine, FACTS, host=host)

    def test_no_file(self, host, trt, engine):
        engine.unlink()
        with pytest.raises(BundleError, match=r"video\.plan cannot be read"):
            TensorRtRunner(engine, FACTS, host=host)

    def test_tensors_that_the_manifest_does_not_know(self, host, trt, engine):
        trt.tensors.remove("frame_mask")
        with pytest.raises(
            BundleError, match="has the inputs and outputs frames, video_embedding, and its manifest says"
        ):
            TensorRtRunner(engine, FACTS, host=host)

    def test_no_memory(self, host, trt, engine):
        trt.with_context = False
        with pytest.raises(BackendError, match="cannot make a context: TensorRT gives no reason"):
            TensorRtRunner(engine, FACTS, host=host)

    def test_no_memory_for_the_largest_batch(self, host, engine):
        """What no machine has is asked for."""
        facts = dataclasses.replace(FACTS, batch=(2, 3, 10**15))
        with pytest.raises(BackendError, match=r"no memory for 1000000000000000 videos: .*smaller largest batch"):
            TensorRtRunner(engine, facts, host=host)

    def test_a_runtime_that_does_not_start(self, host, engine):
        class Broken(FakeTrt):
            def Runtime(self, logger):
                raise TypeError("pybind11::init(): factory function returned nullptr")

        host.trt = Broken()
        with pytest.raises(BackendError, match=r"TensorRT's Runtime does not start: pybind11.*nvidia-smi"):
            TensorRtRunner(engine, FACTS, host=host)

    def test_without_tensorrt_or_gpu(self, engine):
        with pytest.raises(BackendError, match=r"TensorRT|GPU"):
            TensorRtRunner(engine, dataclasses.replace(FACTS, gpu="a GPU that nobody has"))

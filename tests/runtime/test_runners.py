"""The contract of every backend, and how ONNX Runtime and PyTorch keep it."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from tempme_export.encoder.model import TextEncoder, VideoEncoder
from tempme_export.encoder.reference import ReferenceText, ReferenceVideo
from tempme_export.errors import BackendError, BundleError, InputError, PrecisionError
from tempme_export.quantization.products import WEIGHT_STEPS
from tempme_export.runtime import ort as ort_module
from tempme_export.runtime.base import Runner
from tempme_export.runtime.devices import torch_device
from tempme_export.runtime.openvino import OpenVinoRunner
from tempme_export.runtime.ort import OrtRunner
from tempme_export.runtime.pytorch import TorchRunner


class Fake(Runner):
    """Takes `x` float32 [batch, 3] and `keep` bool [batch, 2]; counts what reaches it."""

    name = "fake"
    inputs = {"x": (np.dtype(np.float32), (None, 3)), "keep": (np.dtype(np.bool_), (None, 2))}  # noqa: RUF012

    def __init__(self, max_batch=None):
        self.calls, self.closed, self.max_batch = 0, False, max_batch
        self.batches = []

    def _infer(self, inputs):
        self.calls += 1
        self.batches.append([len(array) for array in inputs.values()])
        return {"y": inputs["x"].sum(axis=1), "kept": inputs["keep"]}

    def close(self):
        self.closed = True


def good(batch=2):
    return {"x": np.ones((batch, 3), np.float32), "keep": np.ones((batch, 2), np.bool_)}


class TestContract:
    def test_right_inputs_reach_the_backend(self):
        runner = Fake()
        np.testing.assert_array_equal(runner.infer(good(5))["y"], np.full(5, 3.0))
        assert runner.calls == 1

    @pytest.mark.parametrize(
        ("max_batch", "batches"), [(None, [7]), (1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (8, [7])], ids=str
    )
    def test_a_larger_batch_is_run_in_parts(self, max_batch, batches):
        runner, inputs = Fake(max_batch), good(7)
        inputs["x"] *= np.arange(7, dtype=np.float32)[:, None]
        inputs["keep"][::2] = False
        found = runner.infer(inputs)
        assert runner.batches == [[batch, batch] for batch in batches], "all inputs are cut alike"
        np.testing.assert_array_equal(found["y"], 3.0 * np.arange(7))
        np.testing.assert_array_equal(found["kept"], inputs["keep"])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda i: i.pop("keep"), r"fake: found inputs x, expected keep, x\."),
            (lambda i: i.clear(), r"found inputs none, expected keep, x\."),
            (lambda i: i.update(z=i["x"]), r"found inputs keep, x, z, expected keep, x\."),
            (lambda i: i.update(x=i["x"].astype(np.float64)), r"x is float64 \[2, 3\], expected float32 \[batch, 3\]"),
            (lambda i: i.update(keep=i["keep"].astype(np.uint8)), r"keep is uint8 \[2, 2\], expected bool"),
            (lambda i: i.update(x=i["x"][:, :2]), r"x is float32 \[2, 2\], expected float32 \[batch, 3\]"),
            (lambda i: i.update(x=i["x"][0]), r"x is float32 \[3\], expected"),
            (lambda i: i.update(x=i["x"][None]), r"x is float32 \[1, 2, 3\], expected"),
            (lambda i: i.update(x=i["x"][:1]), r"batch sizes are \[1, 2\], expected one size"),
            (lambda i: i.update(x=i["x"][:0], keep=i["keep"][:0]), r"batch sizes are \[0\], expected .* at least 1"),
        ],
    )
    def test_wrong_inputs_do_not(self, change, message):
        runner, inputs = Fake(), good()
        change(inputs)
        with pytest.raises(InputError, match=message) as caught:
            runner.infer(inputs)
        assert runner.calls == 0 and caught.value.exit_code == 3

    def test_context_manager_closes(self):
        with Fake() as runner:
            assert not runner.closed
        assert runner.closed
        with pytest.raises(RuntimeError), Fake() as runner:
            raise RuntimeError
        assert runner.closed


def graph_file(path, kind=TensorProto.FLOAT, opset=18, operator="Add", domain=""):
    """y = x + x over [batch, 3], with the named value `middle` = x + x before it is copied to y."""
    x = helper.make_tensor_value_info("x", kind, ["batch", 3])
    y = helper.make_tensor_value_info("y", kind, ["batch", 3])
    nodes = [
        helper.make_node(operator, ["x", "x"], ["middle"], domain=domain),
        helper.make_node("Neg", ["middle"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y])
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.fixture
def graph(tmp_path):
    return graph_file(tmp_path / "graph.onnx")


class TestOrt:
    def test_inputs_and_outputs(self, graph):
        with OrtRunner(graph, threads=1, name="mine") as runner:
            assert runner.inputs == {"x": (np.dtype(np.float32), (None, 3))}
            for batch in (1, 4):
                x = np.arange(3.0 * batch, dtype=np.float32).reshape(batch, 3)
                found = runner.infer({"x": x})
                assert found.keys() == {"y"}
                np.testing.assert_array_equal(found["y"], -2 * x)
            with pytest.raises(InputError, match="mine: x is float64"):
                runner.infer({"x": np.ones((1, 3))})

    def test_expose_names_values_inside(self, graph):
        before = graph.read_bytes()
        with OrtRunner(graph, extra_outputs=["middle"]) as runner:
            found = runner.infer({"x": np.ones((2, 3), np.float32)})
        np.testing.assert_array_equal(found["middle"], np.full((2, 3), 2.0))
        np.testing.assert_array_equal(found["y"], np.full((2, 3), -2.0))
        assert graph.read_bytes() == before

    def test_integers_and_flags(self, tmp_path):
        ids = graph_file(tmp_path / "ids.onnx", TensorProto.INT64)
        with OrtRunner(ids) as runner:
            assert runner.inputs["x"][0] == np.int64
            np.testing.assert_array_equal(runner.infer({"x": np.full((1, 3), 2**40)})["y"], np.full((1, 3), -(2**41)))

    @pytest.mark.parametrize("extra_outputs", [(), ("middle",)])
    @pytest.mark.parametrize(
        "content",
        [b"", b"no ONNX at all", b"\x08\x0a" * 40, None, "truncated"],
        ids=["empty", "text", "no graph", "missing", "truncated"],
    )
    def test_what_is_no_model(self, graph, content, extra_outputs):
        if content is None:
            graph.unlink()
        else:
            graph.write_bytes(graph.read_bytes()[:-40] if content == "truncated" else content)
        with pytest.raises(BundleError, match=r"graph\.onnx cannot be loaded") as caught:
            OrtRunner(graph, extra_outputs=extra_outputs)
        assert caught.value.exit_code == 3

    def test_a_value_that_is_not_there(self, graph):
        with pytest.raises(BundleError, match=r"graph\.onnx cannot be loaded"):
            OrtRunner(graph, extra_outputs=["assign_00"])

    def test_foreign_operator(self, tmp_path):
        path = graph_file(tmp_path / "graph.onnx", operator="MatchTokens", domain="tempme")
        with pytest.raises(BundleError, match=r"graph\.onnx cannot be loaded by ONNX Runtime: .*MatchTokens"):
            OrtRunner(path)

    def test_kernels_that_are_missing_are_the_backends_lack(self, tmp_path):
        """The CPU provider has no bfloat16 Add."""
        path = graph_file(tmp_path / "graph.onnx", TensorProto.BFLOAT16)
        with pytest.raises(PrecisionError, match=r"ONNX Runtime on cpu cannot run graph\.onnx") as caught:
            OrtRunner(path)
        assert caught.value.exit_code == 4

    @pytest.mark.parametrize("device", ["tpu", "", "CPU", "mps"])
    def test_unknown_device(self, graph, device):
        with pytest.raises(BackendError, match=rf"device '{device}' is not supported by ONNX Runtime"):
            OrtRunner(graph, device)

    @pytest.mark.skipif(
        "CUDAExecutionProvider" in ort_module.import_onnxruntime().get_available_providers(),
        reason="this ONNX Runtime has CUDA",
    )
    @pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
    def test_missing_provider_is_not_replaced_by_another(self, graph, device):
        with pytest.raises(BackendError, match=r"CUDAExecutionProvider.*onnxruntime-gpu") as caught:
            OrtRunner(graph, device)
        assert caught.value.exit_code == 4

    def test_missing_package(self, graph, run_python, not_installed):
        code = f"""
            from pathlib import Path
            from tempme_export.errors import BackendError
            from tempme_export.runtime.ort import OrtRunner
            try:
                OrtRunner(Path({str(graph)!r}))
            except BackendError as error:
                print(error)
        """
        said = run_python(code, {"onnxruntime": not_installed("onnxruntime")})
        assert "pip install 'tempme-export[cpu]'" in said


class TestTorch:
    @pytest.mark.parametrize(
        ("tower", "module", "name", "shape"),
        [
            ("video", VideoEncoder, "frames", (12, 3, 64, 64)),
            ("video", ReferenceVideo, "frames", (12, 3, 64, 64)),
            ("text", TextEncoder, "token_ids", (32,)),
            ("text", ReferenceText, "token_ids", (32,)),
        ],
    )
    def test_runs_either_tower(self, tiny_recipe, tower, module, name, shape):
        rng = np.random.default_rng(4)
        if tower == "video":
            inputs = rng.standard_normal((2, *shape)).astype(np.float32)
        else:
            inputs = rng.integers(0, 600, (2, *shape))
        encoder = module(tiny_recipe)
        with TorchRunner(encoder, tiny_recipe, "eager", tower) as runner:
            assert runner.inputs == {name: (inputs.dtype, (None, *shape))}
            found = runner.infer({name: inputs})
        assert found.keys() == {f"{tower}_embedding"}
        embedding = found[f"{tower}_embedding"]
        assert embedding.dtype == np.float32
        with torch.inference_mode():
            np.testing.assert_array_equal(embedding, encoder(torch.from_numpy(inputs)).numpy())

    def test_takes_arrays_that_are_not_contiguous(self, tiny_recipe):
        ids = np.random.default_rng(4).integers(0, 600, (32, 3)).T
        runner = TorchRunner(TextEncoder(tiny_recipe), tiny_recipe, "eager", "text")
        turned, straight = (runner.infer({"token_ids": x})["text_embedding"] for x in (ids, ids.copy()))
        np.testing.assert_array_equal(turned, straight)

    def test_returns_float32_from_lower_precision(self, tiny_recipe):
        ids = np.random.default_rng(4).integers(0, 600, (1, 32))
        runner = TorchRunner(TextEncoder(tiny_recipe, torch.bfloat16), tiny_recipe, "bf16", "text")
        assert runner.infer({"token_ids": ids})["text_embedding"].dtype == np.float32

    def test_wrong_inputs(self, tiny_recipe):
        runner = TorchRunner(TextEncoder(tiny_recipe), tiny_recipe, "eager", "text")
        with pytest.raises(InputError, match=r"eager: token_ids is int32 \[1, 32\], expected int64 \[batch, 32\]"):
            runner.infer({"token_ids": np.zeros((1, 32), np.int32)})

    def test_devices(self):
        assert torch_device("cpu") == torch.device("cpu")
        for device in ("tpu", "", "cuda:x"):
            with pytest.raises(BackendError, match="is not one torch knows"):
                torch_device(device)
        with pytest.raises(BackendError, match="'meta' is not supported"):
            torch_device("meta")

    @pytest.mark.parametrize(("count", "fine", "missing"), [(0, [], ["cuda", "cuda:0"]), (2, ["cuda:1"], ["cuda:2"])])
    def test_cuda_devices_are_counted(self, count, fine, missing):
        cuda = SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count)
        for device in fine:
            assert torch_device(device, cuda) == torch.device(device)
        for device in missing:
            with pytest.raises(BackendError, match=rf"torch sees {count} CUDA devices") as caught:
                torch_device(device, cuda)
            assert caught.value.exit_code == 4


@pytest.mark.parametrize("runner", [OrtRunner, OpenVinoRunner])
def test_int8_products_do_not_saturate(tmp_path, sum_error, runner):
    """Largest activations and weights of an int8 bundle: sums of two products just fit the 16 bits in which processors
    without int8 dot products hold them."""
    rows, depth, columns, step = 3, 64, 8, 1 / 255
    weight = np.full((depth, columns), WEIGHT_STEPS, np.int8)
    weight[:, 1::2] *= -1
    constants = {
        "scale": np.float32(step),
        "zero": np.uint8(0),
        "weight": weight,
        "weight_scale": np.full(columns, 0.5, np.float32),
        "weight_zero": np.zeros(columns, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["steps"]),
        helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=1),
        helper.make_node("MatMul", ["rounded", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", depth])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with runner(path) as running:
        found = running.infer({"x": np.ones((rows, depth), np.float32)})["y"]
    expected = 0.5 * weight.astype(np.float32).sum(axis=0)
    # In whole numbers exact; as floats, rounded once for either scale, 64 terms of one sign in any order.
    np.testing.assert_allclose(found, np.tile(expected, (rows, 1)), rtol=sum_error(depth + 2), atol=0)

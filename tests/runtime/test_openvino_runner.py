import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tempme_export.errors import BackendError, BundleError, InputError, UsageError
from tempme_export.runtime.openvino import OpenVinoRunner

pytest.importorskip("openvino")


@pytest.fixture
def graph(tmp_path):
    """y = -x over [batch, 3], and keep as it came, over [batch, 2]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    keep = helper.make_tensor_value_info("keep", TensorProto.BOOL, ["batch", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    kept = helper.make_tensor_value_info("kept", TensorProto.BOOL, ["batch", 2])
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Identity", ["keep"], ["kept"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x, keep], [y, kept]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    onnx.save(model, tmp_path / "graph.onnx")
    return tmp_path / "graph.onnx"


def test_inputs_and_outputs_by_name_at_any_batch(graph):
    with OpenVinoRunner(graph, threads=1, name="mine") as runner:
        assert runner.inputs == {
            "x": (np.dtype(np.float32), (None, 3)),
            "keep": (np.dtype(np.bool_), (None, 2)),
        }
        for batch in (1, 4, 2):
            x = np.arange(3.0 * batch, dtype=np.float32).reshape(batch, 3)
            keep = np.arange(2 * batch).reshape(batch, 2) % 3 == 0
            found = runner.infer({"x": x, "keep": keep})
            np.testing.assert_array_equal(found["y"], -x)
            np.testing.assert_array_equal(found["kept"], keep)


def test_what_was_returned_stays_when_the_next_batch_comes(graph):
    with OpenVinoRunner(graph) as runner:
        keep = np.ones((1, 2), np.bool_)
        first = runner.infer({"x": np.ones((1, 3), np.float32), "keep": keep})["y"]
        runner.infer({"x": np.full((1, 3), 7, np.float32), "keep": keep})
        np.testing.assert_array_equal(first, -np.ones((1, 3)))


def test_wrong_inputs(graph):
    with OpenVinoRunner(graph, name="mine") as runner, pytest.raises(InputError, match="mine: found inputs x"):
        runner.infer({"x": np.ones((1, 3), np.float32)})


def test_float32_is_asked_for(run_python):
    """Left alone, a processor with bfloat16 computes in that; most have none, so a stand-in says what it is asked."""
    stand_in = """
class Core:
    def read_model(self, path):
        return self
    inputs = outputs = ()
    def compile_model(self, model, device, settings):
        print(device, settings["INFERENCE_PRECISION_HINT"], settings.get("INFERENCE_NUM_THREADS"))
        return self
    def create_infer_request(self):
        return self
"""
    code = """
        from pathlib import Path
        from tempme_export.runtime.openvino import OpenVinoRunner
        OpenVinoRunner(Path("graph.onnx"), threads=3)
    """
    assert run_python(code, packages={"openvino": stand_in}) == "CPU f32 3\n"


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "video.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"video\.onnx cannot be loaded by OpenVINO"):
        OpenVinoRunner(tmp_path / "video.onnx")


def test_only_the_cpu(graph):
    with pytest.raises(BackendError, match="cuda was asked for") as caught:
        OpenVinoRunner(graph, "cuda")
    assert caught.value.exit_code == 4


def test_without_the_package(run_python, not_installed):
    code = """
        from tempme_export.errors import BackendError
        from tempme_export.runtime.openvino import import_openvino
        try:
            import_openvino()
        except BackendError as error:
            print(error)
    """
    said = run_python(code, {"openvino": not_installed("openvino")})
    assert "pip install 'tempme-export[openvino]'" in said


def test_an_input_that_is_cast_at_once_keeps_its_name(tmp_path):
    """As half precision graphs begin: OpenVINO then knows the input by two names."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    nodes = [
        helper.make_node("Cast", ["x"], ["a_half"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["a_half", "a_half"], ["twice"]),
        helper.make_node("Cast", ["twice"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "half.onnx"
    )
    with OpenVinoRunner(tmp_path / "half.onnx") as runner:
        assert runner.inputs.keys() == {"x"}
        np.testing.assert_array_equal(runner.infer({"x": np.ones((2, 3), np.float32)})["y"], np.full((2, 3), 2.0))


def test_every_thread_gets_its_own_outputs(graph):
    with OpenVinoRunner(graph, threads=1) as runner:

        def run(i):
            x = np.full((500 + i, 3), i, np.float32)
            keep = np.full((500 + i, 2), i % 2 == 0)
            return all(
                np.array_equal(found["y"], -x) and np.array_equal(found["kept"], keep)
                for found in (runner.infer({"x": x, "keep": keep}) for _ in range(20))
            )

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(run, range(8))) == [True] * 8


def test_pickled_and_copied(graph):
    inputs = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "keep": np.ones((2, 2), np.bool_)}
    with OpenVinoRunner(graph, threads=1) as runner:
        for again in (pickle.loads(pickle.dumps(runner)), copy.copy(runner)):
            np.testing.assert_array_equal(again.infer(inputs)["y"], -inputs["x"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_is_refused(graph):
    program = f"""
import os, sys
from pathlib import Path
import numpy as np
from tempme_export.errors import BackendError
from tempme_export.runtime.openvino import OpenVinoRunner
runner = OpenVinoRunner(Path({str(graph)!r}), threads=2)
inputs = {{"x": np.ones((2, 3), np.float32), "keep": np.ones((2, 2), np.bool_)}}
runner.infer(inputs)
pid = os.fork()
if pid == 0:
    try:
        runner.infer(inputs)
    except BackendError as error:
        os._exit(7 if "spawn" in str(error) else 3)
    os._exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


@pytest.mark.parametrize("threads", [0, -2, 1.5])
def test_what_is_no_number_of_threads(graph, threads):
    with pytest.raises(UsageError, match="threads"):
        OpenVinoRunner(graph, threads=threads)

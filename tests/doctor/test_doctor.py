"""`tempme-doctor`: probes that crash, hang or lie, what follows from what was found, screen, JSON and exit codes."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tempme_export.artifacts.backend import Library
from tempme_export.artifacts.registry import find_backend
from tempme_export.cli.doctor import doctor
from tempme_export.cli.entry import entry
from tempme_export.doctor import probes, process, rules
from tempme_export.doctor.machine import (
    PACKAGE,
    Disk,
    Host,
    Machine,
    Part,
    Source,
    examine,
    floors,
    own_floors,
    probe_disk,
)
from tempme_export.doctor.process import ask_probe
from tempme_export.doctor.rules import diagnose
from tempme_export.runtime import probing

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
SOURCES = {
    "crashing": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "speaking": "import os, signal, sys\nsys.stderr.write('first\\nlast words\\n')\nsys.stderr.flush()\n"
    "os.kill(os.getpid(), signal.SIGABRT)",
    "hanging": "import time\ntime.sleep(600)",
    "leaving": "import os\nos._exit(3)",
    "raising": "raise RuntimeError('no such symbol')",
    "noisy": "import os\nprint('{\"report\": 1}')\nos.write(1, b'from C')\n__version__ = '1.2'",
    "unlinked": "import sys\nsys.stderr.write('x.cc:7 error: libcublasLt.so.13: cannot open shared object file: No')\n"
    "raise RuntimeError('provider')",
    "lacking": "import module_that_nobody_has",
}


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Modules that misbehave on import, where probes find them."""
    for name, source in SOURCES.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("modules")
class TestAskProbe:
    @pytest.mark.parametrize(
        ("module", "problem"),
        [
            ("crashing", "its process ended by SIGSEGV"),
            ("speaking", "its process ended by SIGABRT: last words"),
            ("leaving", "its process ended with code 3 and no answer"),
            ("raising", "RuntimeError: no such symbol"),
            ("unlinked", "RuntimeError: provider; libcublasLt.so.13 cannot be loaded"),
            ("lacking", "needs the module module_that_nobody_has, which is not installed"),
        ],
    )
    def test_a_part_that_breaks_is_a_finding(self, module, problem):
        assert ask_probe("module", module) == {"problem": problem}

    def test_one_that_hangs_is_left(self):
        assert ask_probe("module", "hanging", limit=1.5) == {"problem": "did not answer within 1.5 s"}

    def test_what_a_library_prints_is_no_answer(self):
        assert ask_probe("module", "noisy") == {"report": {"version": "1.2", "notes": []}}

    def test_no_interpreter(self, monkeypatch):
        monkeypatch.setenv("TEMPME_TEST_LONG", "x" * 2**20)  # more than the system passes on
        assert "could not be started" in ask_probe("module", "json")["problem"]

    def test_a_process_that_cannot_be_killed_is_not_waited_for(self):
        class Stuck:
            killed = False

            def kill(self):
                self.killed = True

            def wait(self, seconds):
                raise subprocess.TimeoutExpired("probe", seconds)

        stuck = Stuck()
        process._end(stuck)
        assert stuck.killed


class TestProbes:
    def test_the_graph_is_what_it_says(self):
        model = onnx.load_from_string(probing.DOUBLE)
        onnx.checker.check_model(model, full_check=True)
        (found,) = ReferenceEvaluator(model).run(None, {"x": np.array([1.5, -2.5], np.float32)})
        assert found.tolist() == [3.0, -5.0] and len(probing.DOUBLE) == 63

    def test_onnxruntime_on_the_cpu(self):
        pytest.importorskip("onnxruntime")
        report = ask_probe("onnxruntime")["report"]
        assert report["version"] == importlib.metadata.version("onnxruntime") and CPU in report["providers"]
        assert "report" in ask_probe("provider", "onnxruntime", CPU)

    def test_a_silent_fallback_is_a_problem(self):
        ort = pytest.importorskip("onnxruntime")
        if CUDA in ort.get_available_providers():
            pytest.skip("this ONNX Runtime has the CUDA provider")
        assert "fell back to CPUExecutionProvider" in ask_probe("provider", "onnxruntime", CUDA)["problem"]

    def test_wrong_results_are_a_problem(self):
        probing.check_double(lambda x: x + x)
        with pytest.raises(probing.ProbeError, match=r"computed \[3.0, 5.0\] for 2 \* \[1.5, -2.5\], expected"):
            probing.check_double(lambda x: abs(x + x))

    def test_no_driver(self):
        if Path("/proc/driver/nvidia").exists():
            pytest.skip("this machine has an NVIDIA driver")
        problem = ask_probe("driver")["problem"]
        assert "libcuda.so.1" in problem and "Install" not in problem

    @pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler to build a stand-in for the driver")
    def test_two_gpus(self, tmp_path, monkeypatch):
        """Through the loader, as the real driver: a library of the same name that knows two GPUs."""
        (tmp_path / "cuda.c").write_text(
            "#include <string.h>\n"
            "int cuInit(int flags) { return 0; }\n"
            "int cuDeviceGetCount(int *n) { *n = 2; return 0; }\n"
            "int cuDeviceGet(int *device, int n) { *device = n; return 0; }\n"
            'int cuDeviceGetName(char *s, int n, int d) { strcpy(s, d ? "Second" : "First"); return 0; }\n'
            "int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 + d : 0; return 0; }\n"
            "int cuDriverGetVersion(int *v) { *v = 13020; return 0; }\n"
        )
        subprocess.run(["gcc", "-shared", "-fPIC", "cuda.c", "-o", "libcuda.so.1"], cwd=tmp_path, check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        report = ask_probe("driver")["report"]
        assert [(gpu["name"], gpu["capability"]) for gpu in report["gpus"]] == [("First", "sm_80"), ("Second", "sm_90")]
        assert report["cuda"] == "13.2" and report["notes"] == ["runs CUDA up to 13.2"]

    def test_a_compiler_that_fails(self, tmp_path, monkeypatch):
        broken = tmp_path / "c++"
        broken.write_text("#!/bin/sh\necho 'fatal error: vector: No such file' >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", str(broken))
        assert "fatal error: vector" in ask_probe("cxx")["problem"]
        monkeypatch.setenv("CXX", "compiler-that-nobody-has")
        assert ask_probe("cxx") == {"problem": "compiler-that-nobody-has is not installed"}

    def test_tensorrt_that_is_too_old(self, tmp_path, monkeypatch):
        """The package's own words about it, without the advice."""
        (tmp_path / "tensorrt.py").write_text("__version__ = '10.8.0.43'\nBuilder = OnnxParser = Runtime = None")
        monkeypatch.syspath_prepend(str(tmp_path))
        problem = ask_probe("tensorrt", "no")["problem"]
        assert "10.8.0.43" in problem and "pip install" not in problem

    @pytest.mark.parametrize(("version", "said"), [("11.0.0.114", ["better >=11.1"]), ("11.1.0.100", [])])
    def test_tensorrt_that_times_one_launch(self, tmp_path, monkeypatch, version, said):
        package = tmp_path / "tensorrt"
        package.mkdir()
        (package / "__init__.py").write_text(f"__version__ = {version!r}\nBuilder = OnnxParser = Runtime = None")
        (package / "plugin.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        _, *further = ask_probe("tensorrt", "no")["report"]["notes"]
        assert len(further) == len(said) and all(part in note for part, note in zip(said, further, strict=True))


PARTS = (
    *("driver", "open_clip_torch", "torch", "onnxscript", "openvino", "matplotlib", "polars", "onnx", "triton"),
    *("onnxruntime", "av", "numpy", "safetensors", "pillow", "tokenizers", "ftfy", "C++ compiler", "C compiler"),
    *("torch on GPU", "fused kernels", CPU, CUDA, "tensorrt"),
)


def machine_without(*broken, absent=()):
    """A machine on which everything works but these parts."""
    parts = [Part(name, "9.9", (), "is broken" if name in broken else None) for name in PARTS if name not in absent]
    host = Host("3.11.7", "Linux x86_64", 8, 16 * 10**9, "0.1.0")
    return Machine(host, (Disk("/tmp", 10**9),), (), tuple(parts))


class TestDiagnose:
    def test_everything_works(self):
        diagnosis = diagnose(machine_without())
        assert all(one.works and not one.install for one in diagnosis.capabilities)
        assert diagnosis.missing(rules.names()) == ()

    @pytest.mark.parametrize(
        ("broken", "capabilities"),
        [
            ("torch", {"export", "pt2"}),
            ("onnxscript", {"export"}),
            ("tokenizers", {"core"}),
            ("ftfy", {"core"}),
            ("onnxruntime", {"cpu", "ort-gpu"}),
            (CPU, {"cpu"}),
            (CUDA, {"ort-gpu"}),
            ("av", {"video"}),
            ("openvino", {"openvino"}),
            ("matplotlib", {"plot"}),
            ("C++ compiler", {"pt2", "ort-ops"}),
            ("C compiler", {"kernels"}),
            ("triton", {"kernels", "trt"}),
            ("torch on GPU", {"gpu", "kernels", "trt"}),
            ("fused kernels", {"kernels"}),
            ("driver", {"gpu", "kernels", "ort-gpu", "trt"}),
            ("tensorrt", {"trt"}),
        ],
    )
    def test_what_each_part_is_needed_for(self, broken, capabilities):
        found = {one.name: one for one in diagnose(machine_without(broken)).capabilities}
        assert {name for name, one in found.items() if not one.works} == capabilities
        for name in capabilities:
            assert found[name].missing == {broken: "is broken"} and len(found[name].install) == 1

    def test_only_the_cause_is_named(self):
        """Without a driver nothing is tried on a GPU, and that is not a second problem."""
        machine = machine_without("driver", absent=("torch on GPU", "fused kernels"))
        kernels = next(one for one in diagnose(machine).capabilities if one.name == "kernels")
        assert kernels.missing == {"driver": "is broken"}

    def test_nothing_found_is_nothing_proven(self):
        machine = machine_without(absent=("fused kernels",))
        kernels = next(one for one in diagnose(machine).capabilities if one.name == "kernels")
        assert kernels.missing == {"fused kernels": "was not probed"}

    def test_the_core_is_always_required(self):
        diagnosis = diagnose(machine_without("polars", "av", "tensorrt"))
        assert [one.name for one in diagnosis.missing()] == ["core"]
        assert [one.name for one in diagnosis.missing(["trt"])] == ["core", "trt"]

    def test_every_command_names_an_extra_that_exists(self):
        extras = set(importlib.metadata.metadata(PACKAGE).get_all("Provides-Extra") or ())
        named = re.findall(
            r"tempme-export\[(\w+)\]", " ".join(c for rule in rules.rules() for c in rule.parts.values())
        )
        assert set(named) <= extras and {"export", "cpu", "gpu", "trt", "video"} <= set(named)


class Answers:
    """Answers probes without a process: those in `broken` with a problem, the rest well. Keeps what was asked."""

    def __init__(self, *broken, providers=(CPU,), **reports):
        self.broken, self.providers, self.reports, self.asked = broken, providers, reports, []

    def __call__(self, probe, *arguments):
        self.asked.append((probe, *arguments))
        if probe in self.broken or (probe, *arguments) in self.broken:
            return {"problem": "is broken"}
        gpus = [{"name": "NVIDIA H100", "capability": "sm_90", "compute": [9, 0]}]
        more = {"driver": {"gpus": gpus}, "onnxruntime": {"providers": list(self.providers)}}.get(probe, {})
        return {"report": {"version": None, "notes": [], **more, **self.reports.get(probe, {})}}


def examined(answers, absent=(), lowest=None):
    """The machine that these answers make; every package can be found but the absent."""
    return examine(Source(answers, lambda module: module not in absent, lowest or {}))


class TestExamine:
    def test_a_machine_with_everything(self):
        answers = Answers(providers=(CPU, CUDA))
        machine = examined(answers)
        assert {part.name for part in machine.parts} == set(PARTS)
        assert len(machine.parts) == len(PARTS) == len(set(answers.asked))
        assert [(gpu.name, gpu.capability) for gpu in machine.gpus] == [("NVIDIA H100", "sm_90")]
        assert ("tensorrt", "yes") in answers.asked
        assert all(one.works for one in diagnose(machine).capabilities)

    def test_without_a_gpu_none_is_tried(self):
        answers = Answers("driver")
        machine = examined(answers)
        assert not {("torch_gpu",), ("kernels",)} & set(answers.asked) and ("tensorrt", "no") in answers.asked
        assert machine.gpus == () and machine.part(CUDA).problem == "this onnxruntime was built without it"

    @pytest.mark.parametrize("broken", [("torch_gpu",), ("module", "triton"), ("cc",)])
    def test_kernels_wait_for_what_they_stand_on(self, broken):
        answers = Answers(broken)
        assert examined(answers).part("fused kernels") is None and ("kernels",) not in answers.asked

    def test_a_provider_may_need_the_libraries_of_torch(self):
        answers = Answers(("provider", "onnxruntime", CUDA), providers=(CPU, CUDA))
        assert examined(answers).part(CUDA).problem is None
        assert ("provider_after_torch", "onnxruntime", CUDA) in answers.asked
        broken = Answers(
            ("provider", "onnxruntime", CUDA),
            ("provider_after_torch", "onnxruntime", CUDA),
            ("provider", "onnxruntime", CPU),
            providers=(CPU, CUDA),
        )
        machine = examined(broken)
        assert machine.part(CUDA).problem == machine.part(CPU).problem == "is broken"
        assert ("provider_after_torch", "onnxruntime", CPU) not in broken.asked

    def test_without_onnxruntime_there_are_no_providers(self):
        machine = examined(Answers("onnxruntime"))
        assert machine.part(CPU) is None and machine.part(CUDA) is None
        cpu = next(one for one in diagnose(machine).capabilities if one.name == "cpu")
        assert cpu.missing == {"onnxruntime": "is broken"}

    def test_a_version_below_the_floor(self):
        lowest = {"torch": "2.11", "onnxruntime_gpu": "1.23"}
        machine = examined(Answers(torch={"version": "2.9.1+cu130"}, onnxruntime={"version": "1.22.0"}), lowest=lowest)
        assert machine.part("torch").problem == "version 2.9.1+cu130 is installed, 2.11 or newer is needed"
        assert "1.23 or newer" in machine.part("onnxruntime").problem
        machine = examined(Answers(torch={"version": "2.11.0"}, onnxruntime={"version": "1.23.2"}), lowest=lowest)
        assert machine.part("torch").problem is None and machine.part("onnxruntime").problem is None


def test_a_runtime_that_is_registered_is_probed_by_its_own_module(registering, tmp_path, monkeypatch):
    (tmp_path / "toy_probe.py").write_text(
        "from tempme_export.runtime.probing import report\ndef probe(gpu): return report('1.5', f'a GPU: {gpu}')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registering(replace(find_backend("ort"), name="toy", library=Library("toy", ("toy",), "toy_probe", on_gpu=True)))
    answers = Answers("driver")
    machine = examined(answers)
    assert ("toy", "no") in answers.asked and machine.part("toy").problem is None
    assert probes._asked("toy", ["no"]) == {"report": {"version": "1.5", "notes": ["a GPU: no"]}}


def test_a_package_that_is_not_there_is_not_asked_for():
    answers = Answers()
    machine = examined(answers, absent=("av", "tensorrt"))
    assert machine.part("av").problem == machine.part("tensorrt").problem == "is not installed"
    assert not {"av", "tensorrt"} & {probe for probe, *_ in answers.asked}


def test_floors_are_read_from_requirement_lines():
    lines = [
        "torch>=2.11",
        "open_clip_torch>=3.2",
        'tensorrt!=11.0.*,>=10.15; extra == "trt"',
        'x; python_version>="3"',
    ]
    assert floors(lines) == {"torch": "2.11", "open_clip_torch": "3.2", "tensorrt": "10.15"}
    assert "torch" in own_floors()


def test_a_disk_that_is_gone(tmp_path):
    assert probe_disk(tmp_path / "gone") == Disk(str(tmp_path / "gone"), None)
    assert probe_disk(tmp_path).free > 0


@pytest.fixture
def tempme_doctor(run_command):
    """Run the command on a machine that is handed in; returns exit code, stdout and stderr."""

    def run(machine, *arguments):
        return run_command(entry(doctor(lambda limit: machine)), *arguments)

    return run


class TestCommand:
    def test_a_missing_option_is_no_failure(self, tempme_doctor):
        code, out, err = tempme_doctor(machine_without("tensorrt"))
        assert code == 0 and out == ""
        assert "missing    tensorrt: is broken" in err and "to get     trt: pip install 'tempme-export[trt]'" in err
        assert "build and run TensorRT engines" in err and "error" not in err

    def test_unless_it_is_required(self, tempme_doctor):
        machine = machine_without("driver", "tensorrt")
        code, out, err = tempme_doctor(machine, "--require", "trt", "--require", "gpu")
        assert code == 4 and out == ""
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        assert line.startswith("error: gpu, trt cannot be done") and line.count("driver: is broken") == 1
        assert "pip install 'tempme-export[trt]'" in line

    def test_required_and_there(self, tempme_doctor):
        assert tempme_doctor(machine_without("tensorrt"), "--require", "gpu", "--require", "cpu")[0] == 0

    def test_a_broken_core(self, tempme_doctor):
        code, _, err = tempme_doctor(machine_without("tokenizers"))
        assert code == 4 and "core cannot be done on this machine: tokenizers: is broken" in err

    def test_an_unknown_name(self, tempme_doctor):
        code, _, err = tempme_doctor(machine_without(), "--require", "tpu")
        assert (
            code == 2
            and "--require: found tpu, expected some of core, export, cpu" in err
            and "Did you mean gpu?" in err
        )

    @pytest.mark.parametrize("arguments", [(), ("--require", "trt")])
    def test_json(self, tempme_doctor, arguments):
        code, out, _ = tempme_doctor(machine_without("tensorrt"), "--json", *arguments)
        assert code == (4 if arguments else 0)
        document = json.loads(out)
        assert document["required"] == list(arguments[1:])
        assert document["next"]["command"] == "tempme-export ckpt.pt"
        assert document["capabilities"]["core"] == {
            "works": True,
            "enables": "use bundles, given a runtime",
            "missing": {},
            "install": [],
        }
        assert document["capabilities"]["trt"]["missing"] == {"tensorrt": "is broken"}
        assert document["machine"]["host"]["cores"] == 8 and len(document["machine"]["parts"]) == len(PARTS)

    def test_the_next_command_comes_first(self, tempme_doctor):
        _, _, err = tempme_doctor(machine_without("onnxruntime"))
        first, second, *_ = err.splitlines()
        assert first == "next       pip install 'tempme-export[cpu]'" and second.startswith("why        ONNX Runtime")

    def test_the_screen_is_one(self, tempme_doctor):
        """With everything missing that can be, in the lines of a usual terminal."""
        broken = [name for name in PARTS if name != "numpy"]
        _, _, err = tempme_doctor(machine_without(*broken))
        assert len(err.splitlines()) <= 60

    def test_brackets_are_text(self, tempme_doctor):
        machine = machine_without()
        strange = replace(machine, parts=(*machine.parts, Part("x", "1", ("[red]y[/]",))))
        assert "[red]y[/]" in tempme_doctor(strange)[2]


def test_this_machine():
    """For real, in a process of its own: the core works wherever these tests run, and stdout is one document."""
    command = [sys.executable, "-m", "tempme_export.cli.doctor", "--json", "--timeout", "120"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["capabilities"]["core"]["works"] and document["capabilities"]["cpu"]["works"]
    parts = {part["name"]: part for part in document["machine"]["parts"]}
    for name in ("torch", "onnx", "polars", "open_clip_torch", "tokenizers", "ftfy"):
        assert parts[name]["version"].split("+")[0] == importlib.metadata.version(name).split("+")[0]
    assert document["machine"]["host"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(disk["free"] for disk in document["machine"]["disks"])


def test_the_command_loads_nothing_heavy():
    code = (
        "import sys, tempme_export.cli.doctor\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'triton', 'av', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ, timeout=60
    )
    assert done.stdout.strip() == "[]"

"""A model repository: configs that the server's schema takes and that fit the graphs, files, refusals."""

import dataclasses
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from tempme_export.artifacts.registry import TEXT_ONNX, VIDEO_ONNX
from tempme_export.errors import BundleError, ExportError
from tempme_export.runtime.engine_facts import ENGINE, KEY, EngineFacts
from tempme_export.serving.model_config import model_config, served_models
from tempme_export.serving.repository import write_repository

FACTS = EngineFacts(
    tensorrt="11.2.0.33",
    gpu="NVIDIA H100",
    capability="sm_90",
    driver="580.65.06",
    precision="fp16",
    batch=(1, 4, 16),
    inputs={"frames": ("float32", (None, 4, 3, 48, 48)), "frame_mask": ("bool", (None, 4))},
    outputs={"video_embedding": ("float32", (None, 128))},
    target="sm_90",
    plugins={"MatchKeys": 2},
    engine_plugins=4,
    layers={"fp16": 10},
    products={"fp16": 4},
    attentions=2,
    seconds=1.5,
)
ONNX_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(bool)": "TYPE_BOOL", "tensor(int64)": "TYPE_INT64"}


@pytest.fixture(scope="module")
def schema():
    """The server's published schema: the module that protoc made of it, in a client that need not be importable."""
    spec = importlib.util.find_spec("tritonclient")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the published schema comes with tritonclient: pip install tritonclient")
    file = Path(spec.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(schema):
    """Text of a config.pbtxt -> ModelConfig; unknown fields and ill-typed values are errors."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    return lambda text: text_format.Parse(text, schema.ModelConfig())


@pytest.fixture
def with_engine(make_bundle):
    """A bundle that holds an engine of these facts."""

    def make(facts=FACTS, **changes):
        return make_bundle(files={ENGINE: b"plan"}, **{KEY: facts.to_dict()}, **changes)

    return make


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestConfig:
    def test_the_schema_takes_every_field(self, parse, schema, with_engine):
        bundle = with_engine()
        video, text, engine = (parse(model_config(model)) for model in served_models(bundle))
        assert [config.name for config in (video, text, engine)] == ["video", "text", "video_trt"]
        assert [config.platform for config in (video, text, engine)] == [
            "onnxruntime_onnx",
            "onnxruntime_onnx",
            "tensorrt_plan",
        ]
        assert [config.max_batch_size for config in (video, text, engine)] == [6, 6, 16]
        assert list(video.dynamic_batching.preferred_batch_size) == [3, 6]
        assert list(engine.dynamic_batching.preferred_batch_size) == [2, 4, 8, 16], "few sizes, for one shape each"
        group = schema.ModelInstanceGroup
        assert [config.instance_group[0].kind for config in (video, text, engine)] == [
            group.KIND_AUTO,
            group.KIND_AUTO,
            group.KIND_GPU,
        ]
        for config in (video, text, engine):
            assert config.instance_group[0].count == 1 and config.version_policy.latest.num_versions == 1
            assert config.parameters["bundle_sha256"].string_value == bundle.manifest["sha256"]

    def test_a_field_that_does_not_exist_is_found(self, parse, make_bundle):
        """The schema test would be worth nothing if its parser took anything."""
        text = model_config(served_models(make_bundle())[0])
        with pytest.raises(Exception, match="no field named"):
            parse(text.replace("max_batch_size", "max_batchsize"))
        with pytest.raises(Exception, match="TYPE_FLOAT"):
            parse(text.replace("TYPE_FP32", "TYPE_FLOAT"))

    @pytest.mark.parametrize(("model", "artifact"), [("video", VIDEO_ONNX.file), ("text", TEXT_ONNX.file)])
    def test_it_fits_the_graph(self, parse, schema, make_bundle, graphs, model, artifact):
        """What the server's backend checks on loading: names, types and axes, every input, only outputs that exist."""
        ort = pytest.importorskip("onnxruntime")
        bundle = make_bundle(graphs=graphs)
        config = parse(next(model_config(m) for m in served_models(bundle) if m.name == model))
        session = ort.InferenceSession(str(bundle.path / artifact), providers=["CPUExecutionProvider"])
        types = schema.DataType
        inputs = {v.name: (types.Value(ONNX_TYPES[v.type]), list(v.shape[1:])) for v in session.get_inputs()}
        outputs = {v.name: (types.Value(ONNX_TYPES[v.type]), list(v.shape[1:])) for v in session.get_outputs()[:1]}
        assert {t.name: (t.data_type, list(t.dims)) for t in config.input} == inputs
        assert {t.name: (t.data_type, list(t.dims)) for t in config.output} == outputs
        assert all(isinstance(v.shape[0], str) for v in [*session.get_inputs(), *session.get_outputs()])

    def test_the_listed_outputs_run_at_the_largest_batch(self, parse, schema, make_bundle, graphs):
        """As the server does: bind what the config lists, leave the graph's other outputs alone."""
        ort = pytest.importorskip("onnxruntime")
        bundle = make_bundle(graphs=graphs)
        config = parse(model_config(served_models(bundle)[0]))
        session = ort.InferenceSession(str(bundle.path / VIDEO_ONNX.file), providers=["CPUExecutionProvider"])
        assert len(session.get_outputs()) > 1, "the graph was exported with its merges"
        dtypes = {schema.DataType.Value("TYPE_FP32"): np.float32, schema.DataType.Value("TYPE_BOOL"): np.bool_}
        binding = session.io_binding()
        for tensor in config.input:
            array = np.ones((config.max_batch_size, *tensor.dims), dtypes[tensor.data_type])
            binding.bind_cpu_input(tensor.name, array)
        for tensor in config.output:
            binding.bind_output(tensor.name)
        session.run_with_iobinding(binding)
        (embedding,) = binding.copy_outputs_to_cpu()
        assert embedding.shape == (6, *config.output[0].dims) and np.isfinite(embedding).all()

    def test_without_a_mask_there_is_none(self, make_bundle):
        video = served_models(make_bundle(frame_mask=False))[0]
        assert [tensor.name for tensor in video.inputs] == ["frames"]

    def test_bfloat16_graphs_need_a_gpu(self, make_bundle):
        assert [model.kind for model in served_models(make_bundle(precision="bf16"))] == ["KIND_GPU", "KIND_GPU"]

    def test_int8_graphs_stay_on_processors(self, make_bundle):
        assert [model.kind for model in served_models(make_bundle(precision="int8"))] == ["KIND_CPU", "KIND_CPU"]

    @pytest.mark.parametrize(
        ("batch", "preferred"), [((1, 1, 1), ()), ((1, 1, 8), (8,)), ((2, 8, 8), (8,)), ((1, 4, 32), (4, 32))]
    )
    def test_preferred_sizes(self, parse, make_bundle, batch, preferred):
        model = served_models(make_bundle(batch=batch))[0]
        config = parse(model_config(model))
        assert tuple(config.dynamic_batching.preferred_batch_size) == model.preferred == preferred
        assert config.HasField("dynamic_batching") == bool(preferred)
        assert config.max_batch_size == batch[2]

    def test_the_engine_speaks_for_itself(self, parse, schema, with_engine):
        """It may have been built for other batches than the profile's, and with other types."""
        facts = dataclasses.replace(FACTS, outputs={"video_embedding": ("float16", (None, 128))})
        engine = parse(model_config(served_models(with_engine(facts))[2]))
        assert engine.output[0].data_type == schema.DataType.Value("TYPE_FP16")
        assert [(t.name, list(t.dims)) for t in engine.input] == [("frames", [4, 3, 48, 48]), ("frame_mask", [4])]


class TestEngineRefusals:
    def test_more_outputs(self, with_engine):
        facts = dataclasses.replace(FACTS, outputs={**FACTS.outputs, "assign_00": ("int32", (None, 9))})
        with pytest.raises(BundleError, match=r"also returns assign_00.*tempme-export rebuild"):
            served_models(with_engine(facts))

    def test_a_type_the_server_is_not_told_of(self, with_engine):
        facts = dataclasses.replace(FACTS, inputs={"frames": ("complex64", (None, 4))})
        with pytest.raises(BundleError, match="complex64"):
            served_models(with_engine(facts))

    def test_no_facts(self, make_bundle):
        with pytest.raises(BundleError, match=r"does not describe video\.plan"):
            served_models(make_bundle(files={ENGINE: b"plan"}))


class TestRepository:
    def test_the_layout(self, with_engine, tmp_path):
        bundle, folder = with_engine(), tmp_path / "models"
        written = write_repository(bundle, folder)
        assert sorted(str(path.relative_to(folder)) for path in written) == sorted(
            [
                "README.md",
                *("video/config.pbtxt", "video/1/model.onnx"),
                *("text/config.pbtxt", "text/1/model.onnx"),
                *("video_trt/config.pbtxt", "video_trt/1/model.plan"),
            ]
        )
        found = content(folder)
        assert len(found) == len(written)
        for artifact, name in ((VIDEO_ONNX.file, "video/1/model.onnx"), (TEXT_ONNX.file, "text/1/model.onnx")):
            assert found[name] == (bundle.path / artifact).read_bytes()
        assert found["video_trt/1/model.plan"] == b"plan"
        for model in served_models(bundle):
            assert found[f"{model.name}/config.pbtxt"].decode() == model_config(model)

    def test_no_engine_no_model(self, make_bundle, tmp_path):
        write_repository(make_bundle(), tmp_path / "models")
        assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["README.md", "text", "video"]

    def test_models_are_links(self, make_bundle, tmp_path):
        bundle = make_bundle()
        write_repository(bundle, tmp_path / "models")
        assert os.path.samefile(bundle.path / VIDEO_ONNX.file, tmp_path / "models/video/1/model.onnx")

    def test_or_copies(self, make_bundle, other_file_system):
        """Links and renames do not leave a file system: what is put together lies beside where it goes."""
        bundle, folder = make_bundle(), other_file_system / "models"
        write_repository(bundle, folder)
        copy = folder / "video/1/model.onnx"
        assert copy.read_bytes() == (bundle.path / VIDEO_ONNX.file).read_bytes()
        assert not os.path.samefile(bundle.path / VIDEO_ONNX.file, copy)
        assert list(other_file_system.iterdir()) == [folder]

    def test_a_linked_file_of_a_bundle(self, make_bundle, tmp_path):
        """A hard link to a symbolic link would point nowhere inside a container."""
        bundle = make_bundle()
        (bundle.path / VIDEO_ONNX.file).rename(tmp_path / "elsewhere.onnx")
        (bundle.path / VIDEO_ONNX.file).symlink_to(tmp_path / "elsewhere.onnx")
        write_repository(bundle, tmp_path / "models")
        assert not (tmp_path / "models/video/1/model.onnx").is_symlink()

    def test_the_readme(self, with_engine, tmp_path):
        facts = dataclasses.replace(FACTS, batch=(2, 4, 16))
        write_repository(with_engine(facts), tmp_path / "models")
        text = (tmp_path / "models/README.md").read_text()
        for words in (
            "`frames` TYPE_FP32 [B, 4, 3, 48, 48]",
            "`frame_mask` belongs to every request",
            "merges that `video.onnx` also returns are not served",
            "NVIDIA H100",
            "TensorRT 11.2.0.33",
            "B from 2 to 16",
            "Smaller batches than 2",
            "exponential of 4.6",
        ):
            assert words in text

    def test_a_plain_readme(self, make_bundle, tmp_path):
        write_repository(make_bundle(frame_mask=False, trace=False), tmp_path / "models")
        text = (tmp_path / "models/README.md").read_text()
        for words in ("frame_mask", "merges", "TensorRT", "Smaller", "processors"):
            assert words not in text

    def test_an_int8_readme(self, make_bundle, tmp_path):
        write_repository(make_bundle(precision="int8"), tmp_path / "models")
        assert "models are for processors" in (tmp_path / "models/README.md").read_text()


class TestDestination:
    def test_an_empty_folder_is_filled(self, make_bundle, tmp_path):
        (tmp_path / "models").mkdir()
        write_repository(make_bundle(), tmp_path / "models")
        assert (tmp_path / "models/video/config.pbtxt").is_file()

    def test_a_repository_is_replaced_by_force_only(self, make_bundle, with_engine, tmp_path):
        write_repository(with_engine(name="a.tempme"), tmp_path / "models")
        before = content(tmp_path / "models")
        plain = make_bundle("b.tempme", precision="bf16")
        with pytest.raises(ExportError, match="--force"):
            write_repository(plain, tmp_path / "models")
        assert content(tmp_path / "models") == before
        write_repository(plain, tmp_path / "models", force=True)
        assert "KIND_GPU" in (tmp_path / "models/video/config.pbtxt").read_text()
        assert not (tmp_path / "models/video_trt").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tempme", "b.tempme", "models"]

    @pytest.mark.parametrize("strange", ["other/config.pbtxt", "video/config.pbtxt", "README.md", "video/1/model.onnx"])
    def test_what_others_wrote_stays(self, make_bundle, tmp_path, strange):
        file = tmp_path / "models" / strange
        file.parent.mkdir(parents=True)
        file.write_text('name: "theirs"')
        with pytest.raises(ExportError, match=f"{Path(strange).parts[0]}, which tempme-export did not write"):
            write_repository(make_bundle(), tmp_path / "models", force=True)
        assert content(tmp_path / "models") == {strange: b'name: "theirs"'}

    def test_a_file_in_the_way(self, make_bundle, tmp_path):
        (tmp_path / "models").write_text("x")
        with pytest.raises(ExportError, match="is a file"):
            write_repository(make_bundle(), tmp_path / "models", force=True)

    def test_no_parent(self, make_bundle, tmp_path):
        with pytest.raises(ExportError, match="is not a folder"):
            write_repository(make_bundle(), tmp_path / "a/b")

    def test_not_inside_the_bundle(self, make_bundle):
        bundle = make_bundle()
        before = content(bundle.path)
        with pytest.raises(BundleError, match="lies in the bundle"):
            write_repository(bundle, bundle.path / "models")
        assert content(bundle.path) == before

    def test_a_link_to_a_folder_stays_a_link(self, make_bundle, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "models").symlink_to(tmp_path / "real")
        write_repository(make_bundle(), tmp_path / "models")
        assert (tmp_path / "models").is_symlink() and (tmp_path / "real/video/config.pbtxt").is_file()

    @pytest.mark.parametrize("there", [False, True])
    def test_nothing_is_left_of_a_failure(self, make_bundle, tmp_path, largest_file, there):
        bundle = make_bundle()
        if there:
            write_repository(bundle, tmp_path / "models")
        before = content(tmp_path / "models")
        with largest_file(100), pytest.raises(ExportError, match="File too large"):
            write_repository(bundle, tmp_path / "models", force=True)
        assert content(tmp_path / "models") == before
        assert (tmp_path / "models").exists() == there
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class TestBundle:
    def test_a_changed_file(self, make_bundle, tmp_path):
        bundle = make_bundle()
        (bundle.path / TEXT_ONNX.file).write_bytes(b"x")
        with pytest.raises(BundleError, match=r"text\.onnx was changed"):
            write_repository(bundle, tmp_path / "models")
        assert not (tmp_path / "models").exists()

    @pytest.mark.parametrize(
        "changes",
        [
            {"parity": [{"artifact": VIDEO_ONNX.file, "status": "failed"}]},
            {"gate": {"reports": [{"artifact": VIDEO_ONNX.file, "status": "failed"}]}},
        ],
    )
    def test_one_that_failed(self, make_bundle, tmp_path, changes):
        with pytest.raises(BundleError, match=r"video\.onnx did not agree"):
            write_repository(make_bundle(**changes), tmp_path / "models")
        assert not (tmp_path / "models").exists()

    def test_one_that_was_not_run_here(self, make_bundle, tmp_path):
        write_repository(make_bundle(parity=[{"artifact": VIDEO_ONNX.file, "status": "not run"}]), tmp_path / "models")
        assert (tmp_path / "models").is_dir()

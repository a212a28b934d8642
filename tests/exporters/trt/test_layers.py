"""Reading the engine inspector's report, and the proof of an engine's precision and plugins.

The entries have the form and the wordings that builders report: those of TensorRT 10 (one field for format and type),
of 11 (a type of its own), and sentences, which older layers still have.
"""

import json

import pytest

from tempme_export.errors import ExportError
from tempme_export.exporters.trt.layers import EngineLayers, prove, read_layers

TYPES = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16"}


def tensor(word, dimensions=(-1, 50, 64), key="Datatype"):
    return {"Name": "x", "Dimensions": list(dimensions), key: word, "Format": "(Linear) Row major linear format"}


def entry(name, kind, inputs=(), outputs=(), tactic="", metadata="", constants=()):
    return {
        "Name": name,
        "LayerType": kind,
        "Inputs": list(inputs),
        "Constants": list(constants),
        "Outputs": list(outputs),
        "TacticName": tactic,
        "StreamId": 0,
        "Metadata": metadata,
    }


def gemm(word, outputs=None, tactic="__myelin_CASK_STUB", name="node_linear_3_myl0_2"):
    """A product as Myelin reports it: two factors, and scalars in float32 whatever the product."""
    scalars = [tensor("Float", (1,)), tensor("Float", (1,))]
    weight = tensor(word, (768, 3072))
    return entry(
        name, "gemm", [tensor(word, (-1, 768))], [tensor(outputs or word)], tactic, constants=[weight, *scalars]
    )


def attention(word):
    """Fused attention takes its size bias in float32."""
    bias = tensor("Float", (-1, 1, 1, 48))
    inputs = [tensor(word), tensor(word), bias, tensor(word)]
    metadata = "[ONNX Layer: node_matmul_8]\x1f[ONNX Layer: node_softmax_1]\x1f[ONNX Layer: node_matmul_7]"
    return entry("_gemm_mha_v2_myl0_44", "kgen", inputs, [tensor(word)], "_gemm_mha_v2_0x69b1", metadata)


def pointwise(word="Float"):
    return entry(
        "__myl_CastMeanSubMulSqrtDivMulAddCast_myl0_7", "kgen", [tensor(word)], [tensor(word)], "__myl_Cast_0x2"
    )


def plugin(word, kind="PluginV3", name="node__symbolic_multi_out_1__3"):
    return entry(name, kind, [tensor(word), tensor("Int32", (-1, 50))], [tensor(word), tensor("Float", (-1, 40))])


def read(*entries, plugin_nodes=()):
    return read_layers(json.dumps({"Layers": list(entries), "I/O Tensors": []}), plugin_nodes)


def engine(precision):
    """One of everything, in a precision."""
    word = TYPES[precision]
    return [gemm(word), attention(word), pointwise(), plugin(word), entry("__mye1_0_myl0_0", "shape_call")]


class TestReading:
    @pytest.mark.parametrize(
        ("word", "name"),
        [
            ("Half", "fp16"),
            ("Float", "fp32"),
            ("BFloat16", "bf16"),
            ("BF16", "bf16"),
            ("kHALF", "fp16"),
            ("FP32", "fp32"),
            ("Int8", "int8"),
            ("FP8", "fp8"),
            ("Row major linear FP16 format", "fp16"),
            ("Row major linear BFloat16 format (kLINEAR)", "bf16"),
            ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
            ("Int32", "none"),
            ("Bool", "none"),
            ("Int64", "none"),
            ("N/A due to dynamic shapes", "none"),
        ],
    )
    @pytest.mark.parametrize("key", ["Format/Datatype", "Datatype", "DataType"])
    def test_wordings(self, word, name, key):
        found = read(entry("a", "kgen", [tensor(word, key=key)], [tensor("Int32", key=key)]))
        assert found.by_precision == {name: 1}

    def test_a_format_alone_tells_the_type(self):
        described = {"Name": "x", "Dimensions": [8, 8], "Format": "Row major linear FP16 format (kLINEAR)"}
        assert read(entry("a", "Reformat", [described])).by_precision == {"fp16": 1}

    def test_scalars_do_not_count(self):
        layer = read(gemm("Half")).layers[0]
        assert layer.product_precision == "fp16" and set(layer.operands) == {"fp16"}
        assert read(entry("a", "gemm", [tensor("Half", (1,))])).layers[0].operands == ()
        assert read(entry("a", "gemm", [tensor("Half", ())])).layers[0].operands == ("fp16",)

    def test_weights_of_an_older_layer(self):
        conv = {**entry("c", "CaskConvolution", [tensor("Half")]), "Weights": {"Type": "Int8", "Count": 131072}}
        assert read(conv).layers[0].product_precision == "int8"
        assert read({**conv, "Weights": {"Type": "Int8", "Count": 0}}).layers[0].product_precision == "fp16"

    def test_counts(self):
        found = read(*engine("fp16"), gemm("Half"))
        assert found.by_precision == {"fp16": 4, "fp32": 1, "none": 1}
        assert found.products == {"fp16": 3}
        assert (found.plugins, found.attentions) == (1, 1)

    @pytest.mark.parametrize(
        ("name", "kind", "tactic"),
        [
            ("node_matmul_2_myl0_10", "gemm", "__myelin_CASK_STUB"),
            ("__myl_FcAdd_myl0_4", "runtime_fusion", ""),
            ("__myl_ReshFcAdd_myl0_4", "kgen", ""),
            ("node_linear", "MatrixMultiply", "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize64"),
            ("node_linear", "fusion", "sm90_xmma_gemm_f16f16"),
            ("conv1", "CaskConvolution", "sm80_xmma_fprop_implicit_gemm"),
            ("__mye8037_gemm_mha_v2", "kgen", ""),
            ("attention", "kgen", "fmha_v2_flash_attention_fp16_S_40"),
        ],
    )
    def test_products(self, name, kind, tactic):
        assert read(entry(name, kind, [tensor("Half")], tactic=tactic)).products == {"fp16": 1}

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("__myl_CastMeanSub_myl0_7", "kgen"),
            ("__myl_FclAdd_myl0_1", "kgen"),
            ("node_topk", "TopK"),
            ("convert", "ConvertFormat"),
            ("Reformatting CopyNode", "Reformat"),
        ],
    )
    def test_no_products(self, name, kind):
        assert read(entry(name, kind, [tensor("Half")])).products == {}

    def test_a_plugin_is_known_by_its_type_or_as_the_node_it_was(self):
        names = {"node__symbolic_multi_out_1__3"}
        unknown = plugin("Half", kind="kgen", name="node__symbolic_multi_out_1__3_myl0_9")
        assert read(unknown).plugins == 0
        assert read(unknown, plugin_nodes=names).plugins == 1
        told = {**unknown, "Name": "__mye7", "Metadata": "[ONNX Layer: node__symbolic_multi_out_1__3]"}
        assert read(told, plugin_nodes=names).plugins == 1
        fused = {**told, "Metadata": told["Metadata"] + "\x1f[ONNX Layer: node_add_3]"}
        assert read(fused, plugin_nodes=names).plugins == 0
        assert read(plugin("Half", kind="plugin"), plugin("Half", kind="PluginV3")).plugins == 2

    def test_control_characters_and_lists_are_read(self):
        text = '[{"Name": "a", "LayerType": "kgen", "Metadata": "[ONNX Layer: x]\x1f[ONNX Layer: y]"}]'
        assert len(read_layers(text).layers) == 1

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("no json", "is no JSON"),
            ("{}", "reports no layers"),
            ('{"Layers": []}', "reports no layers"),
            ("3", "reports no layers"),
            ('{"Layers": ["node_linear", "node_add"]}', "names of layers alone.*detailed profiling verbosity"),
        ],
    )
    def test_other_reports(self, text, said):
        with pytest.raises(ExportError, match=said) as caught:
            read_layers(text)
        assert caught.value.exit_code == 6


class TestProof:
    @pytest.mark.parametrize("precision", TYPES)
    def test_each_precision(self, precision):
        prove(read(*engine(precision)), precision)

    @pytest.mark.parametrize("precision", TYPES)
    @pytest.mark.parametrize("other", TYPES)
    def test_an_engine_of_another_precision(self, precision, other):
        if precision == other:
            return
        with pytest.raises(ExportError, match=f"not in {precision}: 2 of its 2 matrix products") as caught:
            prove(read(*engine(other)), precision)
        assert caught.value.exit_code == 6

    @pytest.mark.parametrize("precision", TYPES)
    def test_one_product_of_another_precision_is_enough(self, precision):
        wrong = gemm("Half" if precision == "fp32" else "Float", name="node_linear_9_myl0_70")
        with pytest.raises(
            ExportError, match=r"1 of its 3 matrix products[^\n]*\n  fp\d\d +node_linear_9_myl0_70 \(gemm\)$"
        ):
            prove(read(*engine(precision), wrong), precision)

    def test_tf32_is_not_float32(self):
        tactic = "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize64x64x64"
        with pytest.raises(ExportError, match=r"1 of its 3.*\n  tf32"):
            prove(read(*engine("fp32"), gemm("Float", tactic=tactic)), "fp32")
        prove(read(*engine("fp16"), gemm("Half", tactic=tactic)), "fp16")

    def test_a_float32_product_that_writes_half(self):
        with pytest.raises(ExportError, match="not in fp32"):
            prove(read(*engine("fp32"), gemm("Float", outputs="Half")), "fp32")

    def test_wider_results_are_fine(self):
        prove(read(*engine("fp16"), gemm("Half", outputs="Float")), "fp16")

    def test_a_product_of_two_narrow_types(self):
        mixed = entry("a", "gemm", [tensor("Half"), tensor("BFloat16")])
        for precision in ("fp16", "bf16"):
            with pytest.raises(ExportError, match="not in"):
                prove(read(*engine(precision), mixed), precision)

    def test_integers(self):
        with pytest.raises(ExportError, match="int8"):
            prove(read(*engine("fp16"), gemm("Int8", outputs="Half")), "fp16")

    def test_a_product_that_tells_no_type(self):
        with pytest.raises(ExportError, match=r"cannot be proven to be.*\n  unknown"):
            prove(read(*engine("fp16"), entry("a", "gemm")), "fp16")

    def test_no_products(self):
        with pytest.raises(ExportError, match=r"reports 2 layers and no matrix product"):
            prove(read(pointwise(), plugin("Half")), "fp16")
        with pytest.raises(ExportError, match="no matrix product"):
            prove(EngineLayers(()), "fp16")

    @pytest.mark.parametrize("precision", TYPES)
    def test_no_plugin(self, precision):
        entries = [one for one in engine(precision) if one["LayerType"] != "PluginV3"]
        with pytest.raises(ExportError, match="holds none of our plugins among its 4 layers") as caught:
            prove(read(*entries), precision)
        assert caught.value.exit_code == 6

    def test_many_wrong_layers_are_counted(self):
        wrong = [gemm("Float", name=f"node_{k}_myl0_{k}") for k in range(11)]
        with pytest.raises(ExportError, match="11 of its 13") as caught:
            prove(read(*engine("fp16"), *wrong), "fp16")
        assert str(caught.value).count("\n") == 9 and str(caught.value).endswith("and 3 more")

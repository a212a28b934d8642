"""What plugins launch, as functions of the batch, against what the launchers launch at that batch."""

import dataclasses
import functools

import pytest
import torch

from tempme_export.errors import BackendError, ExportError
from tempme_export.exporters import plugin_nodes as pn
from tempme_export.exporters.trt import plugin_builds as builds
from tempme_export.exporters.trt import plugin_launches as launches
from tempme_export.exporters.trt.plugin_operations import OPERATIONS
from tempme_export.kernels import aot, launch, match, merge

VIDEOS = (1, 8, 64)
WIDTH, HEADS = 128, 2
# Joined clips of three: the ratio of items to clips is no power of two. 12 positions go round in every video.
JOINED, WITHIN, LARGE = pn.Tokens(12, 7, WIDTH, 3), pn.Tokens(12, 17, WIDTH), pn.Tokens(2, 301, WIDTH)
NODES = (
    *pn.match_keys(WITHIN, HEADS, 1, 2),
    *pn.match_keys(LARGE, HEADS, 2, 40),
    *pn.match_clips(JOINED, 3, 5),
    pn.merge_norm(WITHIN, 1, 2, sized=False),
    pn.merge_norm(WITHIN, 1, 2, sized=True),
    pn.merge_norm(JOINED, 3, 5, sized=False, positions=12),
    pn.merge_norm(JOINED, 3, 5, sized=True, positions=12),
)
every_node = pytest.mark.parametrize("node", NODES, ids=[f"{node.op_type}-{k}" for k, node in enumerate(NODES)])
every_precision = pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])


def at(quantities, units):
    return tuple(launches.value_at(one, units) for one in quantities)


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def test_every_operation_has_a_node_here():
    assert {node.op_type for node in NODES} == set(OPERATIONS)


@every_precision
@every_node
def test_expressions_give_what_the_launcher_launches_at_any_batch(node, precision):
    call = launches.call_of(node, precision)
    found = launches.plugin_launches(call)
    for videos in VIDEOS:
        clips = node.inputs[0].shape[0] * videos
        units = launches.units_of(call, clips)
        recorded = launches.record(call, clips)
        assert len(recorded) == len(found)
        for one, expected in zip(found, recorded, strict=True):
            assert one.variant == expected.variant
            assert at(one.grid, units) == expected.grid
            assert [(name, launches.value_at(value, units)) for name, value in one.scalars] == list(expected.scalars)
            for shape, operand in zip(one.outputs, expected.outputs, strict=True):
                assert torch.Size(at(shape, units)).numel() == torch.Size(operand.shape).numel()


@every_precision
@every_node
def test_a_node_is_launched_with_its_own_inputs_and_outputs(node, precision):
    """Types and shapes of the kernel's pointers are those of the node, in its order; between them int32 alone."""
    types = {"T": launches.DTYPES[precision], "float16": torch.float16, "float32": torch.float32, "int32": torch.int32}
    call = launches.call_of(node, precision)
    videos = 8
    clips = node.inputs[0].shape[0] * videos
    units = launches.units_of(call, clips)

    def sizes(values):
        return [(types[one.kind], torch.Size(one.shape).numel() * (videos if one.batched else 1)) for one in values]

    for found, recorded in zip(launches.plugin_launches(call), launches.record(call, clips), strict=True):
        assert [(one.dtype, torch.Size(one.shape).numel()) for one in recorded.inputs] == sizes(node.inputs)
        assert [(one.dtype, torch.Size(one.shape).numel()) for one in recorded.outputs] == sizes(node.outputs)
        shapes = [at(shape, units) for shape in found.outputs]
        assert shapes == [(one.shape[0] * videos, *one.shape[1:]) for one in node.outputs]
        passed = ("u64",) * len(node.inputs) + ("u32",) * len(found.scalars) + ("u64",) * len(node.outputs)
        assert found.variant.parameters == passed


@pytest.mark.parametrize("op_type", OPERATIONS)
def test_attributes_are_in_the_order_of_both_the_plugin_and_the_alphabet(op_type):
    assert sorted(OPERATIONS[op_type].attributes) == list(OPERATIONS[op_type].attributes)


@every_node
def test_declared_outputs_are_those_of_the_node(node):
    declared = OPERATIONS[node.op_type].outputs
    assert [one.name for one in declared] == [one.name for one in node.outputs]
    assert [one.rank for one in declared] == [len(one.shape) for one in node.outputs]
    names = {None: "T", torch.float16: "float16", torch.float32: "float32", torch.int32: "int32"}
    assert [names[one.dtype] for one in declared] == [one.kind for one in node.outputs]


def merge_names(node):
    (recorded, *_) = launches.record(launches.call_of(node, "fp32"), node.inputs[0].shape[0])
    return [one.name for one in recorded.inputs]


@pytest.mark.parametrize(
    "node", [node for node in NODES if node.op_type.startswith("MergeNorm")], ids=lambda n: n.op_type
)
def test_a_merge_takes_its_inputs_by_the_kernels_names(node):
    assert merge_names(node) == [one.name for one in node.inputs]


def chain(*nodes):
    found = []
    for node in nodes:
        call = launches.call_of(node, "bf16")
        found.append(launches.record(call, node.inputs[0].shape[0])[0])
    return found


def test_a_chain_over_clips_launches_what_the_launcher_does():
    x = empty(12, 7, WIDTH, dtype=torch.bfloat16)
    assert chain(*pn.match_clips(JOINED, 3, 5)) == list(aot.launches_of(lambda: match.match_clips(x, x, 3, 3, 5)))


@pytest.mark.parametrize(("tokens", "n_cls", "r"), [(WITHIN, 1, 2), (LARGE, 2, 40)], ids=["resident", "streamed"])
def test_nodes_over_keys_launch_what_the_launcher_does(tokens, n_cls, r):
    """Keys are a tensor of their own and no longer a part of qkv: of all arguments, strides alone differ."""
    qkv = empty(tokens.clips, tokens.tokens, 3 * WIDTH, dtype=torch.bfloat16)
    first, *others = chain(*pn.match_keys(tokens, HEADS, n_cls, r))
    expected, *rest = aot.launches_of(lambda: match.match_keys(qkv, HEADS, n_cls, r))
    assert others == rest
    assert (first.variant.constants, first.grid) == (expected.variant.constants, expected.grid)
    assert first.outputs == expected.outputs
    outer = next(name for name, _ in expected.scalars if name in ("stride_item", "stride_clip"))
    strides = {outer: tokens.tokens * WIDTH, "stride_part": WIDTH // HEADS, "stride_token": WIDTH}
    assert dict(first.scalars) == dict(expected.scalars) | strides


def test_a_merge_launches_what_the_launcher_does():
    x, size = empty(12, 7, WIDTH, dtype=torch.bfloat16), empty(12, 7)
    assign, position, weight = empty(4, 21, dtype=torch.int32), empty(12, WIDTH, dtype=torch.bfloat16), empty(WIDTH)
    node = pn.merge_norm(JOINED, 3, 5, sized=True, positions=12)
    expected = aot.launches_of(lambda: merge.merge_norm(x, x, size, assign, position, weight, weight, 3, 3, 5))
    assert chain(node) == list(expected)


def test_numbers_of_one_node_by_hand():
    """8 videos of 12 clips, joined by three: 32 items of 21 tokens, of which 16 rows are left."""
    call = launches.call_of(pn.merge_norm(JOINED, 3, 5, sized=True, positions=12), "fp16")
    first, second = launches.plugin_launches(call)
    assert launches.units_of(call, 96) == 32
    assert at(first.grid, 32) == at(second.grid, 32) == (32, 16, 1)
    assert dict(first.scalars) == {
        **{"n_tokens": 21, "n_cls": 3, "r": 5, "n_positions": 12, "size_clip": 7},
        **{f"{name}_clip": 7 * WIDTH for name in ("stride", "delta")},
        **{f"{name}_token": WIDTH for name in ("stride", "delta")},
    }
    assert [at(shape, 32) for shape in first.outputs] == [(32, 16, WIDTH), (32, 16, WIDTH), (32, 16), (32, 16)]
    assert (first.variant.num_warps, second.variant.num_warps) == (1, 2)


def test_what_scales_with_the_batch_by_hand():
    """A split counts clips, seven rows each; a score too, and three clips are one item; a selection counts items."""
    split, score, select = pn.match_clips(JOINED, 3, 5)
    (found,) = launches.plugin_launches(launches.call_of(split, "fp32"))
    assert found.grid == (launches.Scaled(7), 1, 1)
    assert dict(found.scalars)["n_rows"] == launches.Scaled(7) and dict(found.scalars)["tokens"] == 7
    assert found.outputs[0] == (launches.Scaled(1), 7, WIDTH)
    found, _ = launches.plugin_launches(launches.call_of(score, "fp32"))
    assert found.grid == (launches.Scaled(1, 3), 1, 1) and dict(found.scalars) == {"n_tokens": 21, "n_cls": 3}
    assert found.outputs == ((launches.Scaled(1, 3), 9),) * 2
    (found,) = launches.plugin_launches(launches.call_of(select, "fp32"))
    assert found.grid == (launches.Scaled(1), 1, 1) and found.outputs == ((launches.Scaled(1), 21),)


def test_a_divided_count_is_rounded_up():
    assert [launches.value_at(launches.Scaled(7, 4), units) for units in (1, 2, 4, 5)] == [2, 4, 7, 9]
    assert launches.value_at(5, 100) == 5


@pytest.mark.parametrize(("items", "config"), [(1, 0), (launch.MANY_PROGRAMS, 1)], ids=["few", "many"])
def test_the_tactics_of_a_match_are_the_launchers_choices(items, config):
    node = pn.match_keys(WITHIN, HEADS, 1, 2)[0]
    chosen = launch.match_config(node.attributes["n_a"], WIDTH // HEADS, items, plain=True)
    found = launches.plugin_launches(launches.call_of(node, "fp32"))[config].variant
    assert found.num_warps == chosen.num_warps
    assert dict(found.constants)["BLOCK_A"] == chosen.block_a


def test_equal_configurations_are_one_tactic():
    real = OPERATIONS[KEYS.op_type]
    same = dataclasses.replace(real, configurations=lambda *given: 2 * real.configurations(*given)[:1])
    recorder = functools.partial(launches.record, operation=same)
    assert len(launches.plugin_launches(launches.call_of(KEYS, "fp32"), recorder)) == 1


def test_the_first_merge_configuration_is_the_launchers():
    for node in NODES:
        if node.op_type.startswith("MergeNorm"):
            best, *others = launches.plugin_launches(launches.call_of(node, "fp32"))
            n_a = launch.check_counts(
                node.attributes["tokens"] * node.attributes["factor"],
                *(node.attributes[name] for name in ("n_cls", "r")),
            )
            config = launch.rows_config(WIDTH, n_a)
            assert best.variant.num_warps == config.num_warps
            assert dict(best.variant.constants)["BLOCK_ROWS"] == config.block_rows
            assert [one.variant.num_warps for one in others] == [2 * config.num_warps]


def test_builds_are_listed_once():
    """Two blocks whose tokens differ share their builds, and so do matches of joined and of split clips."""
    twice = [*NODES, pn.merge_norm(pn.Tokens(12, 15, WIDTH), 1, 2, sized=True)]
    found = launches.plugin_variants(twice, "fp16")
    assert found == launches.plugin_variants(NODES, "fp16")
    assert len(set(found)) == len(found)
    rows = {f"{step}_rows_kernel" for step in ("split", "score", "select")}
    assert {one.name for one in found} == {"match_keys_kernel", "merge_kernel", *rows}
    assert {one.dtype for one in found if one.name != "select_rows_kernel"} == {"fp16"}


def changed(node, **changes):
    return dataclasses.replace(node, **changes)


KEYS = pn.match_keys(WITHIN, HEADS, 1, 2)[0]


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (changed(KEYS, op_type="MatchQueries"), "MatchQueries has no plugin. Expected one of MatchKeys, SplitKeys"),
        (changed(KEYS, attributes={"heads": 2}), r"lacks attributes \['n_cls', 'r'\]"),
        (changed(KEYS, inputs=KEYS.inputs * 2), r"its plugin takes \[\('keys', True\)\]"),
        (
            changed(KEYS, inputs=(pn.PluginValue("keys", "T", (12, 17, WIDTH), batched=False),)),
            "a fault of the exporter",
        ),
    ],
    ids=["type", "attributes", "inputs", "parameter"],
)
def test_a_node_that_its_plugin_does_not_take_is_refused(node, said):
    with pytest.raises(ExportError, match=said):
        launches.call_of(node, "fp32")


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"heads": HEADS, "n_cls": 1, "r": 9}, r"MatchKeys cannot be launched: r = 9 of 17 tokens"),
        ({"heads": 3, "n_cls": 1, "r": 2}, "width 128 are not those of 3 heads"),
    ],
    ids=["r", "heads"],
)
def test_what_the_kernel_cannot_take_is_refused(attributes, said):
    call = launches.call_of(changed(KEYS, attributes=attributes), "fp32")
    with pytest.raises(ExportError, match=said):
        launches.plugin_launches(call)


def test_a_match_too_large_for_one_program_names_the_chain():
    inputs = (pn.PluginValue("keys", "T", (2, 301, WIDTH)),)
    with pytest.raises(ExportError, match=r"\|A\| = 150 .* too large for one program. Use SplitKeys, ScoreRows and S"):
        launches.plugin_launches(launches.call_of(changed(KEYS, inputs=inputs), "fp32"))


def test_what_does_not_scale_with_the_batch_is_refused():
    def uneven(call, clips):
        return tuple(dataclasses.replace(one, grid=(clips * clips, 1, 1)) for one in launches.record(call, clips))

    with pytest.raises(ExportError, match=r"the grid of match_keys_kernel is .* follows no rule"):
        launches.plugin_launches(launches.call_of(KEYS, "fp32"), uneven)


def test_a_build_that_depends_on_the_batch_is_refused():
    def uneven(call, clips):
        return tuple(
            dataclasses.replace(one, variant=dataclasses.replace(one.variant, num_warps=clips))
            for one in launches.record(call, clips)
        )

    with pytest.raises(ExportError, match="match_keys_kernel would be another build for another batch"):
        launches.plugin_launches(launches.call_of(KEYS, "fp32"), uneven)


def test_without_triton_the_package_is_named(run_python, not_installed):
    code = """
        from tempme_export.errors import BackendError
        from tempme_export.exporters import plugin_nodes
        from tempme_export.exporters.trt import plugin_launches
        node = plugin_nodes.match_keys(plugin_nodes.Tokens(12, 17, 128), 2, 1, 2)[0]
        try:
            plugin_launches.record(plugin_launches.call_of(node, "fp32"), 12)
        except BackendError as error:
            print(error)
    """
    assert "No module named 'triton'. Install" in run_python(code, {"triton": not_installed("triton")})


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ((8, 0), "sm_80"),
        ((8, 7), "sm_80"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_80"),
        ((12, 0), "sm_120"),
    ],
)
def test_a_gpu_gets_its_own_build_or_the_universal_one(capability, target):
    assert builds.ptx_target(capability) == target


def test_a_gpu_that_is_too_old_is_refused():
    with pytest.raises(BackendError, match=r"compute capability 7\.5; .* need 8\.0"):
        builds.ptx_target((7, 5))


def variant():
    (first, *_) = launches.plugin_variants([KEYS], "fp32")
    return first


@pytest.mark.parametrize("error", [RuntimeError("ptxas refused"), ValueError("no builds are made")], ids=repr)
def test_a_build_that_fails_names_kernel_and_target(error):
    def fail(variant, target):
        raise error

    with pytest.raises(ExportError, match=f"match_keys_kernel could not be compiled for sm_90: {error}"):
        builds.build(variant(), "sm_90", fail)


def test_more_shared_memory_than_a_plugin_may_take_is_refused():
    resources = aot.Resources(32, 0, 0, builds.MAX_SHARED + 1)
    built = aot.Compiled("match_keys_kernel", "sm_80", "", b"", 4, (), resources)
    with pytest.raises(ExportError, match="takes 49153 bytes of shared memory, more than the 49152"):
        builds.build(variant(), "sm_80", lambda variant, target: built)

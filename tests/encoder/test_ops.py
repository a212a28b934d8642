"""The operators: contracts, refusals, and what tracing and export make of them."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tempme_export.encoder import ops
from tempme_export.encoder.model import VideoEncoder
from tempme_export.kernels import dense, launch
from tempme_export.kernels.reference import match_tokens_ref, merge_tokens_ref

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MATCH, MERGE = torch.ops.tempme.match_tokens.default, torch.ops.tempme.merge_tokens.default


@dataclasses.dataclass
class Inputs:
    x: torch.Tensor
    size: torch.Tensor
    n_cls: int
    r: int

    @property
    def assign(self):
        return match_tokens_ref(self.x, self.n_cls, self.r)


def inputs(dtype=torch.float32, rows=2, n_cls=2, n_tokens=21, r=5):
    torch.manual_seed(42)
    x = torch.randn(rows, n_tokens, 16).to(dtype)
    size = torch.randint(1, 9, (rows, n_tokens)).to(torch.promote_types(dtype, torch.float32))
    return Inputs(x, size, n_cls, r)


class MergeOnce(torch.nn.Module):
    def __init__(self, n_cls, r):
        super().__init__()
        self.n_cls, self.r = n_cls, r

    def forward(self, x, size):
        assign = ops.match_tokens(x, self.n_cls, self.r)
        return assign, *ops.merge_tokens(x, size, assign, self.n_cls, self.r)


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def draw(*shape, dtype=torch.float32, device="cpu", seed=42):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def every_call(dtype=torch.float32, device="cpu", clips=4, tokens=21, heads=2, factor=2, r=5):
    """{name of an operator: (operator, arguments)}, with and without what may be absent."""
    width, wide = 64 * heads, torch.promote_types(dtype, torch.float32)
    x, delta = (draw(clips, tokens, width, dtype=dtype, device=device, seed=seed) for seed in (1, 2))
    qkv = draw(clips, tokens, 3 * width, dtype=dtype, device=device, seed=3) / 4
    weight, bias = (draw(width, dtype=wide, device=device, seed=seed) for seed in (4, 5))
    position = draw(factor, width, dtype=dtype, device=device, seed=6)
    size = (draw(clips, tokens, seed=7).square().round() + 1).to(device, wide)
    plain = match_tokens_ref(draw(clips, tokens, 8), 1, r).to(device)
    joint = match_tokens_ref(draw(clips // factor, tokens * factor, 8), factor, r).to(device)
    o = torch.ops.tempme
    return {
        "match_tokens": (o.match_tokens.default, (x, 1, r)),
        "match_keys": (o.match_keys.default, (qkv, heads, 1, r)),
        "match_clips": (o.match_clips.default, (x, delta, factor, factor, r)),
        "match_clips alone": (o.match_clips.default, (x, None, factor, factor, r)),
        "merge_tokens": (o.merge_tokens.default, (x, size, plain, 1, r)),
        "merge_tokens alone": (o.merge_tokens.default, (x, None, plain, 1, r)),
        "merge_norm": (
            o.merge_norm.default,
            (x, delta, size, joint, position, weight, bias, factor, factor, r),
        ),
        "merge_norm alone": (o.merge_norm.default, (x, None, None, plain, None, weight, bias, 1, 1, r)),
        "add_norm": (o.add_norm.default, (x, delta, weight, bias)),
        "layer_norm": (o.layer_norm.default, (x, weight, bias)),
        "attention": (o.attention.default, (qkv, size.log(), heads)),
        "attention alone": (o.attention.default, (qkv, None, heads)),
        "attention_match": (o.attention_match.default, (qkv, size.log(), heads, 1, r)),
        "attention_match alone": (o.attention_match.default, (qkv, None, heads, 1, r)),
    }


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


@pytest.fixture(scope="module")
def same_but_for_rounding(step_error):
    """Asserts that whole numbers are alike, and floating rows [..., D] but for the rounding of one step."""

    def check(found, expected):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        if not found.is_floating_point():
            equal(found.cpu(), expected.cpu())
            return
        error = (found.double().cpu() - expected.double().cpu()).norm(dim=-1)
        assert (error <= step_error(found.dtype) * expected.double().cpu().norm(dim=-1)).all()

    return check


CALLS = tuple(every_call())
every_operator = pytest.mark.parametrize("name", CALLS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class EveryOperator(torch.nn.Module):
    """[B, 2, 21, 64 * heads]: one clip layer and one block, every operator once or more, fed by others."""

    def __init__(self, heads=1, dtype=torch.float32, device="cpu"):
        super().__init__()
        width, wide = 64 * heads, torch.promote_types(dtype, torch.float32)
        self.heads = heads
        for seed, (name, shape, of) in enumerate(
            (("weight", (width,), wide), ("bias", (width,), wide), ("position", (2, width), dtype))
        ):
            self.register_buffer(name, draw(*shape, dtype=of, device=device, seed=seed))
        self.register_buffer("project", draw(width, 3 * width, dtype=dtype, device=device) / width**0.5)

    def forward(self, x):
        x = x.flatten(0, 1)
        h = ops.layer_norm(x, self.weight, self.bias)
        x, h = ops.add_norm(x, h, self.weight, self.bias)
        assign = ops.match_tokens(h, 1, 2)
        x, size = ops.merge_tokens(x, None, assign, 1, 2)
        across = ops.match_clips(x, None, 2, 2, 9)
        x, h, size, log_size = ops.merge_norm(x, None, size, across, self.position, self.weight, self.bias, 2, 2, 9)
        qkv = h @ self.project
        keys = ops.match_keys(qkv, self.heads, 2, 3)
        out = ops.attention(qkv, log_size, self.heads)
        delta, intra = ops.attention_match(qkv, log_size, self.heads, 2, 3)
        x, h, size, _ = ops.merge_norm(x, delta, size, intra, None, self.weight, self.bias, 1, 2, 3)
        return x, h, size, out, assign, across, keys, intra


@every_dtype
@pytest.mark.parametrize("n_cls", [1, 2])
def test_they_are_what_the_reference_is(same_but_for_rounding, dtype, n_cls):
    given = inputs(dtype, n_cls=n_cls)
    assign = ops.match_tokens(given.x, n_cls, 5)
    equal(assign, given.assign)
    merged, total = ops.merge_tokens(given.x, given.size, assign, n_cls, 5)
    expected, sizes = merge_tokens_ref(given.x, given.size, assign, 16)
    assert merged.dtype == dtype
    equal(total, sizes)
    same_but_for_rounding(merged, expected)


def test_no_sizes_are_sizes_of_one(same_but_for_rounding):
    given = inputs()
    merged, total = ops.merge_tokens(given.x, None, given.assign, 2, 5)
    expected, sizes = ops.merge_tokens(given.x, torch.ones_like(given.size), given.assign, 2, 5)
    equal(total, sizes)
    same_but_for_rounding(merged, expected)


@pytest.mark.parametrize(
    "dtype, n_cls, r", [(torch.float32, 1, 1), (torch.float32, 3, 9)] + [(dtype, 2, 5) for dtype in DTYPES], ids=str
)
def test_opcheck(dtype, n_cls, r):
    given = inputs(dtype, n_cls=n_cls, r=r)
    torch.library.opcheck(MATCH, (given.x, n_cls, r))
    torch.library.opcheck(MERGE, (given.x, given.size, given.assign, n_cls, r))
    torch.library.opcheck(MERGE, (given.x, None, given.assign, n_cls, r))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in CALLS if name.split()[0] not in ("match_tokens", "merge_tokens")])
def test_opcheck_of_every_operator(name, dtype):
    operator, arguments = every_call(dtype)[name]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    whole = dtype == torch.float32 and "alone" not in name  # tracing takes seconds
    torch.library.opcheck(operator, arguments, **({} if whole else {"test_utils": checks}))


def test_opcheck_of_strided_inputs():
    given = inputs()
    x = given.x.mT.contiguous().mT
    torch.library.opcheck(MATCH, (x, 2, 5))
    torch.library.opcheck(MERGE, (x, given.size.t().contiguous().t(), given.assign, 2, 5))


def test_an_empty_batch():
    assign = ops.match_tokens(torch.zeros(0, 21, 4), 2, 5)
    assert assign.shape == (0, 21) and assign.dtype == torch.int32
    merged, total = ops.merge_tokens(torch.zeros(0, 21, 4), None, assign, 2, 5)
    assert merged.shape == (0, 16, 4) and total.shape == (0, 16)


class TestRefusals:
    def refused(self, message, operator, *args):
        with pytest.raises(ValueError, match=message):
            operator(*args)

    @pytest.mark.parametrize("shape", [(21, 16), (1, 2, 21, 16), ()])
    def test_metric_dimensions(self, shape):
        message = rf"metric must be floating \[B, N, D\], found torch\.float32 {shape}".replace("(", r"\(")
        self.refused(message.replace(")", r"\)"), ops.match_tokens, torch.zeros(shape), 2, 5)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64], ids=str)
    def test_dtypes(self, dtype):
        given = inputs()
        x = torch.zeros(2, 21, 16, dtype=dtype)
        self.refused(f"metric must be floating .* found {dtype}", ops.match_tokens, x, 2, 5)
        self.refused(f"x must be floating .* found {dtype}", ops.merge_tokens, x, None, given.assign, 2, 5)

    # 21 tokens: with 2 class tokens |A| is 10, with 3 it is 9.
    @pytest.mark.parametrize("n_cls, r, available", [(2, 0, 10), (2, -1, 10), (2, 11, 10), (3, 10, 9)])
    def test_r(self, n_cls, r, available):
        given = inputs()
        message = rf"r = {r} of 21 tokens with {n_cls} class tokens: expected 1 <= r <= \|A\| = {available}"
        self.refused(message, ops.match_tokens, given.x, n_cls, r)
        self.refused(message, ops.merge_tokens, given.x, given.size, given.assign, n_cls, r)

    def test_the_largest_r_is_fine(self):
        given = inputs()
        assert ops.match_tokens(given.x, 2, 10).max() == 10
        assert ops.match_tokens(given.x, 3, 9).max() == 11

    @pytest.mark.parametrize("n_tokens, n_cls", [(3, 2), (2, 1), (1, 1), (12, 12)])
    def test_nothing_to_merge(self, n_tokens, n_cls):
        x = torch.zeros(1, n_tokens, 4)
        self.refused(r"\|B\| >= 1", ops.match_tokens, x, n_cls, 1)
        assign = torch.zeros(1, n_tokens, dtype=torch.int32)
        self.refused(r"\|B\| >= 1", ops.merge_tokens, x, None, assign, n_cls, 1)

    def test_shapes_that_do_not_belong_together(self):
        given = inputs()
        short = given.size[:, :20]
        self.refused(
            r"size must be \(2, 21\) like x, found \(2, 20\)",
            ops.merge_tokens,
            given.x,
            short,
            given.assign,
            2,
            5,
        )
        wrong = given.assign[:1]
        self.refused(
            r"assign must be \(2, 21\) like x, found \(1, 21\)",
            ops.merge_tokens,
            given.x,
            given.size,
            wrong,
            2,
            5,
        )
        self.refused(r"x must be floating \[B, N, D\]", ops.merge_tokens, given.x[0], None, given.assign, 2, 5)

    def test_assign_of_another_type(self):
        given = inputs()
        self.refused(
            "assign must be int32 as the match operators return it, found torch.int64",
            ops.merge_tokens,
            given.x,
            None,
            given.assign.long(),
            2,
            5,
        )

    def refused_with(self, message, name, place, argument):
        """The call as it is, with one argument changed."""
        operator, arguments = every_call()[name]
        operator(*arguments)
        self.refused(message, operator, *arguments[:place], argument, *arguments[place + 1 :])

    @pytest.mark.parametrize(
        "argument, found",
        [
            (torch.zeros(21, 384), r"torch\.float32 \(21, 384\)"),
            (torch.zeros(4, 21, 384, dtype=torch.int32), "torch.int32"),
        ],
        ids=["2-D", "int32"],
    )
    @every_operator
    def test_tokens(self, name, argument, found):
        called = "metric" if name == "match_tokens" else "qkv" if "keys" in name or "attention" in name else "x"
        self.refused_with(rf"{called} must be floating \[B, N, D\], found {found}", name, 0, argument)

    @pytest.mark.parametrize("name", ["match_clips", "merge_norm", "add_norm"])
    def test_a_delta_unlike_x(self, name):
        for delta in (torch.zeros(4, 20, 128), torch.zeros(1, 21, 128), torch.zeros(4, 21)):
            self.refused_with(r"delta must be \(4, 21, 128\) like x, found", name, 1, delta)

    @pytest.mark.parametrize("name, place", [("merge_tokens", 1), ("merge_norm", 2)])
    def test_a_size_unlike_x(self, name, place):
        self.refused_with(r"size must be \(4, 21\) like x, found \(4, 20\)", name, place, torch.ones(4, 20))

    @pytest.mark.parametrize("name", ["attention", "attention_match"])
    def test_a_bias_unlike_qkv(self, name):
        self.refused_with(r"bias must be \(4, 21\) like x, found \(4, 21, 1\)", name, 1, torch.ones(4, 21, 1))

    @pytest.mark.parametrize("name, place", [("merge_tokens", 2), ("merge_norm", 3)])
    def test_an_assign_of_another_type(self, name, place):
        assign = every_call()[name][1][place]
        self.refused_with("assign must be int32 .*, found torch.int64", name, place, assign.long())

    @pytest.mark.parametrize("heads", [0, -1, 5])
    @pytest.mark.parametrize("name, place", [("match_keys", 1), ("attention", 2), ("attention_match", 2)])
    def test_heads(self, name, place, heads):
        self.refused_with(f"qkv of width 384 does not hold .* of {heads} heads", name, place, heads)

    @pytest.mark.parametrize("factor", [0, -1, 3])
    @pytest.mark.parametrize("name, place", [("match_clips", 2), ("merge_norm", 7)])
    def test_factors(self, name, place, factor):
        self.refused_with(f"2 class tokens .*: not a multiple of the factor {factor}", name, place, factor)

    # 21 tokens with a class token, or 42 with two where clips are joined.
    @pytest.mark.parametrize(
        "name, n_a", [("match_keys", 10), ("match_clips", 20), ("merge_norm", 20), ("attention_match", 10)]
    )
    def test_counts(self, name, n_a):
        for r in (0, -1, n_a + 1):
            place = len(every_call()[name][1]) - 1
            self.refused_with(rf"r = {r} of .*: expected 1 <= r <= \|A\| = {n_a}", name, place, r)

    @every_operator
    def test_gradients(self, name):
        operator, arguments = every_call()[name]
        outputs = as_tuple(operator(arguments[0].requires_grad_(), *arguments[1:]))
        floating = [one for one in outputs if one.is_floating_point()]
        for one in floating:
            with pytest.raises(RuntimeError, match="autograd"):
                one.sum().backward()

    def test_backward(self):
        given = inputs()
        x = given.x.requires_grad_()
        merged, _ = ops.merge_tokens(x, None, given.assign, 2, 5)
        with pytest.raises(RuntimeError, match="autograd"):
            merged.sum().backward()


class TestTracing:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("sized", [True, False])
    def test_compile(self, dtype, sized):
        given = inputs(dtype)
        size = given.size if sized else None
        module = MergeOnce(2, 5)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        for found, expected in zip(compiled(given.x, size), module(given.x, size), strict=True):
            equal(found, expected)

    def test_export_keeps_the_operators_and_the_batch_free(self):
        given = inputs(rows=3)
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(MergeOnce(2, 5), (given.x, given.size), dynamic_shapes=({0: batch}, {0: batch}))
        targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert targets.count(MATCH) == 1 and targets.count(MERGE) == 1
        for rows in (1, 3, 8):
            given = inputs(rows=rows)
            found = program.module()(given.x, given.size)
            for one, other in zip(found, MergeOnce(2, 5)(given.x, given.size), strict=True):
                equal(one, other)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
    def test_shapes_and_dtypes_without_data(self, dtype):
        given = inputs(dtype)
        real = MergeOnce(2, 5)(given.x, given.size)
        fake = MergeOnce(2, 5)(given.x.to("meta"), given.size.to("meta"))
        for one, other in zip(fake, real, strict=True):
            assert one.is_meta and (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())

    @every_dtype
    def test_compile_of_every_operator(self, dtype):
        module, x = EveryOperator(dtype=dtype), draw(2, 2, 21, 64, dtype=dtype)
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        for found, expected in zip(compiled(x), module(x), strict=True):
            equal(found, expected)

    def test_inductor(self, same_but_for_rounding):
        given = inputs()
        found = torch.compile(MergeOnce(2, 5), fullgraph=True)(given.x, given.size)
        assign, merged, size = MergeOnce(2, 5)(given.x, given.size)
        equal(found[0], assign)
        same_but_for_rounding(found[1], merged)
        equal(found[2], size)

    @pytest.fixture(scope="class")
    def exported(self):
        """Every operator with a free batch, and what was exported."""
        module, batch = EveryOperator(), torch.export.Dim("batch", min=1, max=1024)
        return torch.export.export(module, (draw(2, 2, 21, 64),), dynamic_shapes=({0: batch},)), module

    def test_export_of_every_operator(self, exported):
        program, module = exported
        targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
        assert set(ops.DENSE_FORMS) <= targets
        for batch in (1, 2, 5):
            x = draw(batch, 2, 21, 64)
            for found, expected in zip(program.module()(x), module(x), strict=True):
                equal(found, expected)

    def test_export_in_dense_forms(self, same_but_for_rounding, exported):
        """What becomes of the operators where none of ours exist: standard ones remain, with the same results."""
        program, module = exported
        program = program.run_decompositions(ops.DENSE_FORMS)
        targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert targets and not any("tempme" in target for target in targets)
        x = draw(3, 2, 21, 64)
        for found, expected in zip(program.module()(x), module(x), strict=True):
            same_but_for_rounding(found, expected)


def fake_cuda(module):
    """Its buffers on a GPU that need not exist; call inside a FakeTensorMode."""
    for part in module.modules():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_strided(
                    buffer.shape, buffer.stride(), dtype=buffer.dtype, device="cuda"
                )
    return module


def launched(module, *inputs):
    """Names of the kernels that a module launches."""
    with launch.recording() as calls, torch.no_grad():
        module(*inputs)
    return {call.kernel.__name__ for call in calls}


class TestTracingForAGpu:
    """Without one: launchers are traced on fake tensors, and their batch stays free beyond what any heuristic asks."""

    def check_free(self, program):
        (bounds,) = program.range_constraints.values()
        assert (bounds.lower, bounds.upper) == (1, 4096)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    def test_every_operator(self, dtype):
        with FakeTensorMode(allow_non_fake_inputs=True):
            module, x = fake_cuda(EveryOperator(dtype=dtype)), torch.empty(2, 2, 21, 64, dtype=dtype, device="cuda")
            kernels = launched(module, x)
        batch = torch.export.Dim("batch", min=1, max=4096)
        program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
        targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
        assert set(ops.DENSE_FORMS) <= targets
        rows = {f"{step}_rows" for step in ("split", "score", "select")}
        others = {"match_keys", "merge", "add_norm", "attention", "attention_match"}
        assert kernels == {f"{name}_kernel" for name in rows | others}
        self.check_free(program)

    def test_the_encoder(self, tiny_recipe):
        size, frames = tiny_recipe.backbone.image_size, tiny_recipe.profile.frames
        encoder = VideoEncoder(tiny_recipe, torch.float16)
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake_cuda(encoder)
            videos = torch.empty(2, frames, 3, size, size, device="cuda")
            kernels = launched(encoder, videos)
        batch = torch.export.Dim("batch", min=1, max=4096)
        program = torch.export.export(encoder, (videos,), dynamic_shapes=({0: batch},))
        assert {"attention_match_kernel", "select_rows_kernel", "merge_kernel"} <= kernels
        self.check_free(program)


def test_every_registered_operator_has_a_dense_form():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("tempme::")}
    assert {operator.name() for operator in ops.DENSE_FORMS} == registered
    assert {name.split()[0] for name in CALLS} == {name.removeprefix("tempme::") for name in registered}


@every_operator
@every_dtype
def test_the_cpu_runs_the_dense_forms(name, dtype):
    operator, arguments = every_call(dtype)[name]
    before = [one.clone() if isinstance(one, torch.Tensor) else one for one in arguments]
    found, expected = operator(*arguments), ops.DENSE_FORMS[operator](*arguments)
    for one, other in zip(as_tuple(found), as_tuple(expected), strict=True):
        equal(one, other)
    for one, other in zip(arguments, before, strict=True):
        if isinstance(one, torch.Tensor):
            equal(one, other)


@pytest.mark.parametrize("sized", [True, False])
def test_the_cpu_runs_the_dense_form(sized):
    given = inputs()
    size = given.size if sized else None
    equal(ops.match_tokens(given.x, 2, 5), dense.match_tokens(given.x, 2, 5))
    found, expected = (module.merge_tokens(given.x, size, given.assign, 2, 5) for module in (ops, dense))
    for one, other in zip(found, expected, strict=True):
        equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or launch.interpreting(), reason="needs a CUDA device, and TRITON_INTERPRET unset"
)
class TestOnGpu:
    HALVES = (torch.float16, torch.bfloat16)

    @every_operator
    @pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
    def test_by_triton_and_as_the_dense_form_in_float64(self, same_but_for_rounding, name, dtype):
        operator, arguments = every_call(dtype, "cuda")[name]
        found = as_tuple(operator(*arguments))
        assert launched(operator, *arguments)
        wide = [one.cpu() if isinstance(one, torch.Tensor) else one for one in arguments]
        wide = [one.double() if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in wide]
        for one, other in zip(found, as_tuple(ops.DENSE_FORMS[operator](*wide)), strict=True):
            same_but_for_rounding(one, other.to(one.dtype))

    @every_operator
    def test_float64_is_dense(self, name):
        operator, arguments = every_call(torch.float64, "cuda")[name]
        for one, other in zip(
            as_tuple(operator(*arguments)), as_tuple(ops.DENSE_FORMS[operator](*arguments)), strict=True
        ):
            equal(one, other)
        assert not launched(operator, *arguments)

    @every_operator
    @pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
    def test_opcheck(self, name, dtype):
        operator, arguments = every_call(dtype, "cuda")[name]
        torch.library.opcheck(operator, arguments)

    @pytest.fixture(params=[torch.float32, *HALVES], ids=str)
    def encoder_and_videos(self, tiny_recipe, request):
        size, frames = tiny_recipe.backbone.image_size, tiny_recipe.profile.frames
        encoder = VideoEncoder(tiny_recipe, request.param).cuda()
        return encoder, draw(2, frames, 3, size, size, device="cuda")

    @torch.inference_mode()
    def test_a_graph_replays_what_eager_computes(self, encoder_and_videos):
        encoder, videos = encoder_and_videos
        other = videos.flip(0, 1).contiguous()
        expected = [encoder(videos), encoder(other)]
        given, graph = videos.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = encoder(given)
        for batch, embedding in zip((videos, other, videos), (*expected, expected[0]), strict=True):
            given.copy_(batch)
            graph.replay()
            equal(captured, embedding)

    @torch.inference_mode()
    def test_compile_of_the_encoder(self, encoder_and_videos):
        encoder, videos = encoder_and_videos
        compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
        equal(compiled(videos), encoder(videos))

    @torch.inference_mode()
    def test_inductor_of_the_encoder(self, tiny_recipe):
        size, frames = tiny_recipe.backbone.image_size, tiny_recipe.profile.frames
        encoder, videos = VideoEncoder(tiny_recipe).cuda(), draw(2, frames, 3, size, size, device="cuda")
        found, expected = torch.compile(encoder, fullgraph=True)(videos), encoder(videos)
        assert (1 - torch.cosine_similarity(found.double(), expected.double()) <= 1e-6).all()

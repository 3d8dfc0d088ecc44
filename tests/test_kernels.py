"""The fast forms of attention and of linear layers against plain ones written out here."""

import ctypes
import os
import subprocess
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_text_model, tiny_tokenizer
from torch.utils.checkpoint import checkpoint

from rtd_hf import kernels
from rtd_hf.kernels import fast_linears, gather_nodes, packed_attention, padded_attention, varlen_attention
from rtd_hf.models import CLIPTextModelForRTD
from rtd_hf.packing import pack_rows
from rtd_hf.prompts import PromptTokenizer


HEADS, WIDTH = 3, 12
EOS = 9
ENDS = pytest.mark.parametrize("only_ends", [False, True], ids=["all", "ends"])
needs_onednn = pytest.mark.skipif(not kernels._has_onednn(), reason="this build of torch has no oneDNN product")


def packed_rows(*, share=True, lengths=(1, 2, 2, 5, 5, 6, 8, 9, 9, 13, 30, 77, 90)):
    """Rows of two tokens at random, so that many begin alike."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 3, size=(len(lengths), max(lengths)))
    tokens[3:, :4] = 1
    tokens[range(len(lengths)), np.array(lengths) - 1] = EOS
    rows = pack_rows(tokens, np.array(lengths), share_prefixes=share)
    assert (rows.num_nodes < rows.num_tokens) == share
    return rows


def attention_by_hand(query, key, value, rows, *, num_heads, only_ends=False):
    """One softmax for every node and head, over the path up to the node."""
    offsets, own = rows.key_offsets.tolist(), rows.query_offsets.tolist()
    width = query.shape[1] // num_heads
    lines = []
    for row, (start, end) in enumerate(zip(offsets, offsets[1:], strict=False)):
        path = rows.paths[start:end].tolist()
        new = own[row + 1] - own[row]
        for column in range(len(path) - (1 if only_ends else new), len(path)):
            asked = query[row if only_ends else path[column]]
            before, heads = path[: column + 1], []
            for head in range(num_heads):
                part = slice(head * width, (head + 1) * width)
                chances = (key[before, part] @ asked[part] / width**0.5).softmax(dim=0)
                heads.append(chances @ value[before, part])
            lines.append(torch.cat(heads))
    return torch.stack(lines)


def inputs_for(rows, *, only_ends=False, dtype=torch.float32, device="cpu", width=WIDTH, scale=2.0):
    number = len(rows.ends) if only_ends else rows.num_nodes
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(n, width, generator=generator) * scale for n in (number, rows.num_nodes, rows.num_nodes)]
    return [part.to(device=device, dtype=dtype).requires_grad_() for part in drawn]


def results_of(attention, inputs, rows, *, num_heads=HEADS, **options):
    """The output and the gradients of query, key and value."""
    output = attention(*inputs, rows, num_heads=num_heads, **options)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [output, *torch.autograd.grad((output * direction).sum(), inputs)]


# Attention


@ENDS
@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
def test_attention_over_paths_is_the_softmax_by_hand(only_ends, share):
    rows = packed_rows(share=share)
    inputs = inputs_for(rows, only_ends=only_ends)
    ours = results_of(padded_attention, inputs, rows, only_ends=only_ends)
    theirs = results_of(attention_by_hand, inputs, rows, only_ends=only_ends)
    assert len(ours[0]) == (len(rows.ends) if only_ends else rows.num_nodes)
    for one, other in zip(ours, theirs, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@ENDS
def test_attention_in_bfloat16_is_near_that_of_its_rounded_inputs(only_ends):
    rows = packed_rows()
    inputs = inputs_for(rows, only_ends=only_ends, dtype=torch.bfloat16, scale=1.0)
    exact = [part.detach().float().requires_grad_() for part in inputs]
    ours = results_of(padded_attention, inputs, rows, only_ends=only_ends)
    theirs = results_of(attention_by_hand, exact, rows, only_ends=only_ends)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        assert 0 < (one.float() - other).abs().max() < 0.02 * other.abs().max()


def test_attention_in_float64_is_exact():
    rows = packed_rows(lengths=(1, 3, 5, 6, 9))
    inputs = inputs_for(rows, dtype=torch.float64)
    ours, theirs = (results_of(form, inputs, rows) for form in (padded_attention, attention_by_hand))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@ENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_cpu_never_asks_for_varlen(only_ends, dtype, monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("asked for varlen")

    monkeypatch.setattr(kernels, "varlen_attention", refuse)
    monkeypatch.setattr(kernels, "_varlen_works", refuse)
    rows = packed_rows()
    inputs = inputs_for(rows, only_ends=only_ends, dtype=dtype)
    options = {"num_heads": HEADS, "only_ends": only_ends}
    assert torch.equal(packed_attention(*inputs, rows, **options), padded_attention(*inputs, rows, **options))


@pytest.fixture
def untried(monkeypatch):
    kernels._varlen_works.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    kernels._varlen_works.cache_clear()


@pytest.mark.parametrize("wrong", [None, "off", "nan", ImportError, TypeError, RuntimeError, NotImplementedError])
def test_varlen_is_tried_before_it_is_used(wrong, untried):
    def other(query, key, value, rows, **options):
        if isinstance(wrong, type):
            raise wrong("no such kernel")
        output = padded_attention(query, key, value, rows, **options)
        return output if wrong is None else output * {"off": 1.2, "nan": float("nan")}[wrong]

    untried.setattr(kernels, "varlen_attention", other)
    assert kernels._varlen_works(torch.device("cpu"), torch.bfloat16, 8) is (wrong is None)


def test_a_mask_that_ignores_the_shared_prefix_is_found_out(untried):
    """Some kernels take the queries of a row for its first tokens instead of its last ones."""

    def from_the_start(query, key, value, rows, *, num_heads, only_ends=False):
        lines = []
        for row in range(len(rows.ends)):
            path = rows.paths[rows.key_offsets[row] : rows.key_offsets[row + 1]]
            own = path[-int(rows.lengths[0, row]) :]
            for column, node in enumerate(own.tolist()):
                seen = path[: column + 1]
                chances = (key[seen].float() @ query[node].float() / query.shape[1] ** 0.5).softmax(dim=0)
                lines.append((chances @ value[seen].float()).to(query.dtype))
        return torch.stack(lines)

    untried.setattr(kernels, "varlen_attention", from_the_start)
    assert not kernels._varlen_works(torch.device("cpu"), torch.bfloat16, 8)


@pytest.mark.parametrize("reentrant", [False, True])
def test_varlen_may_be_tried_first_inside_a_checkpoint(reentrant, untried):
    """As in the first step over several packs with anchors computed ahead: nothing has run the encoder before."""
    untried.setattr(kernels, "varlen_attention", padded_attention)
    inputs = torch.randn(3, requires_grad=True)

    def layer(values):
        assert kernels._varlen_works(torch.device("cpu"), torch.bfloat16, 8)
        return values.sin().cos()

    checkpoint(layer, inputs, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close(inputs.grad, -inputs.detach().sin().sin() * inputs.detach().cos())


@pytest.mark.gpu
@ENDS
@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_varlen_equals_the_plain_form(only_ends, share, dtype):
    cuda = torch.device("cuda")
    if not kernels._varlen_works(cuda, dtype, 64):
        pytest.skip("this build or card has no varlen attention")
    rows = packed_rows(share=share)
    host = inputs_for(rows, only_ends=only_ends, dtype=dtype, width=HEADS * 64, scale=1.0)
    inputs = [part.detach().to(cuda).requires_grad_() for part in host]
    exact = [part.detach().float().requires_grad_() for part in host]
    theirs = results_of(attention_by_hand, exact, rows, only_ends=only_ends)
    for form in (varlen_attention, packed_attention, padded_attention):
        ours = results_of(form, inputs, rows.to(cuda), only_ends=only_ends)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == dtype
            assert (one.float().cpu() - other).abs().max() < 0.02 * other.abs().max()


@pytest.mark.gpu
def test_a_gpu_uses_varlen_in_half_precision_only(monkeypatch):
    if not kernels._varlen_works(torch.device("cuda", torch.cuda.current_device()), torch.bfloat16, 64):
        pytest.skip("this build or card has no varlen attention")
    used = []
    monkeypatch.setattr(
        kernels, "varlen_attention", lambda *a, **k: used.append(a[0].dtype) or varlen_attention(*a, **k)
    )
    rows = packed_rows().to("cuda")
    for dtype in (torch.float32, torch.bfloat16):
        inputs = inputs_for(rows, dtype=dtype, device="cuda", width=HEADS * 64)
        results_of(packed_attention, inputs, rows)
    assert used == [torch.bfloat16]


@pytest.mark.gpu
def test_a_first_step_over_several_packs_in_half_precision(untried):
    model = tiny_text_model(CLIPTextModelForRTD, hidden_size=256).cuda().train()
    prompts = PromptTokenizer(tiny_tokenizer())
    texts = [["a red dog", "a dog"], ["a cat on the grass"]]
    packs = [prompts.encode(part, packed=True)["packed_rows"].to("cuda") for part in texts]
    gradients = []
    for _ in range(2):
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            embeds = model(packed_rows=packs).text_embeds
        (embeds @ embeds.T).float().log_softmax(dim=-1).diagonal().sum().backward()
        gradients.append(model.text_projection.weight.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0.02, atol=0.02)


# Gathering


def test_gathered_lines_are_those_of_the_matrix():
    matrix, index = torch.randn(5, 4, requires_grad=True), torch.tensor([3, 0, 3, 3, 4])
    gathered = gather_nodes(matrix, index)
    assert torch.equal(gathered, matrix[index])
    grad = torch.randn(5, 4)
    (ours,) = torch.autograd.grad(gathered, matrix, grad)
    (theirs,) = torch.autograd.grad(matrix[index], matrix, grad)
    torch.testing.assert_close(ours, theirs)
    assert not ours[1].any() and not ours[2].any()


def test_the_gradient_of_a_node_on_many_paths_is_summed_in_float32():
    matrix = torch.randn(2, 3).bfloat16().requires_grad_()
    index = torch.zeros(4096, dtype=torch.int64)
    ones = torch.ones(4096, 3, dtype=torch.bfloat16)
    (ours,) = torch.autograd.grad(gather_nodes(matrix, index), matrix, ones)
    assert ours.dtype == torch.bfloat16
    assert ours.tolist() == [[4096.0] * 3, [0.0] * 3]
    (plain,) = torch.autograd.grad(matrix[index], matrix, ones)
    assert plain[0, 0] == 256  # where adding one no longer changes a bfloat16


def test_the_gradient_of_float64_lines_is_not_rounded():
    matrix, index = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.tensor([1, 1, 2])
    ours, theirs = (
        torch.autograd.grad(f(matrix).sin().sum(), matrix)[0]
        for f in (lambda lines: gather_nodes(lines, index), lambda lines: lines[index])
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


# Linear layers


@pytest.fixture
def products(monkeypatch):
    """The threads in which oneDNN was asked for a product, one entry a product; it is for small ones too."""
    monkeypatch.setattr(kernels, "_ONEDNN_FROM", 0)
    threads, product = [], kernels._onednn_product

    def counted(*operands):
        threads.append(threading.get_ident())
        return product(*operands)

    monkeypatch.setattr(kernels, "_onednn_product", counted)
    return threads


def operands(*shape, bias=True, out=6, dtype=torch.float32):
    inputs = torch.randn(*shape, 8, dtype=dtype)
    return [inputs, torch.randn(out, 8, dtype=dtype), *([torch.randn(out, dtype=dtype)] if bias else [])]


def linear_and_gradients(arguments, inside, *, reduce=None):
    """The output and the gradients of the arguments that require them, inside of `fast_linears` or outside."""
    arguments = [part.detach().requires_grad_(part.requires_grad) for part in arguments]
    with fast_linears(torch.zeros(1)) if inside else nullcontext():
        output = F.linear(*arguments)
    reduce = reduce or (lambda output: (output * torch.arange(output.numel()).sin().view(output.shape)).sum())
    if any(part.requires_grad for part in arguments):
        reduce(output).backward()
    return [output.detach(), *(part.grad for part in arguments)]


def check_linear(arguments, products, *, number, **options):
    ours, theirs = (linear_and_gradients(arguments, inside, **options) for inside in (True, False))
    assert len(products) == number
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
            assert one.stride() == other.stride() or one.is_contiguous()


@needs_onednn
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (1,), ()], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_linear_layers_and_their_gradients_are_the_same(shape, bias, products):
    check_linear([part.requires_grad_() for part in operands(*shape, bias=bias)], products, number=3)


@needs_onednn
@pytest.mark.parametrize(
    "wanted", [tuple(bool(number >> bit & 1) for bit in range(3)) for number in range(8)], ids=str
)
def test_only_the_gradients_that_are_wanted_are_computed(wanted, products):
    arguments = [part.requires_grad_(want) for part, want in zip(operands(3, 4), wanted, strict=True)]
    check_linear(arguments, products, number=1 + wanted[0] + wanted[1])


@needs_onednn
@needs_onednn
def test_small_products_are_left_to_torch(products, monkeypatch):
    monkeypatch.setattr(kernels, "_ONEDNN_FROM", 4 * 8 * 6)
    with fast_linears(torch.zeros(1)):
        F.linear(*operands(3))
        assert len(products) == 0
        F.linear(*operands(4))
        assert len(products) == 1
        F.linear(*operands(2, 2))
        assert len(products) == 2


def test_none_for_a_bias_is_none():
    inputs, weight = operands(5, bias=False)
    with fast_linears(inputs):
        torch.testing.assert_close(F.linear(inputs, weight, None), inputs @ weight.T)


@needs_onednn
@pytest.mark.parametrize(
    "reduce",
    [lambda output: output.sum(), lambda output: output[..., :1].expand(*output.shape[:-1], 7).sin().sum()],
    ids=["all", "one-column"],
)
def test_expanded_gradients(reduce, products):
    """The gradient of a sum is one number in every place, with strides of zero."""
    check_linear([part.requires_grad_() for part in operands(3, 4)], products, number=3, reduce=reduce)


@needs_onednn
def test_transposed_gradients(products):
    arguments = [part.requires_grad_() for part in operands(3, 4)]
    weights = torch.randn(6, 4, 3)
    check_linear(arguments, products, number=3, reduce=lambda output: (output.permute(2, 1, 0) * weights).sum())


@needs_onednn
@pytest.mark.parametrize("kind", ["columns", "transposed", "expanded", "sliced-weight", "transposed-weight", "offset"])
def test_operands_that_do_not_lie_in_one_piece(kind, products):
    inputs, weight, bias = operands(3, 4)
    inputs = {
        "columns": torch.randn(3, 4, 16)[..., ::2],
        "transposed": torch.randn(8, 4, 3).permute(2, 1, 0),
        "expanded": torch.randn(1, 4, 8).expand(3, 4, 8),
        "offset": torch.randn(3, 5, 9)[:, 1:, 1:],
    }.get(kind, inputs)
    weight = {"sliced-weight": torch.randn(6, 16)[:, ::2], "transposed-weight": torch.randn(8, 6).T}.get(kind, weight)
    assert not (inputs.is_contiguous() and weight.is_contiguous())
    with torch.no_grad():
        expected = torch.einsum("abi,oi->abo", inputs, weight) + bias
        with fast_linears(inputs):
            torch.testing.assert_close(F.linear(inputs, weight, bias), expected, rtol=1e-5, atol=1e-5)
    products.clear()
    check_linear([inputs.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()], products, number=3)


@needs_onednn
def test_wrong_shapes_are_still_errors():
    inputs, weight, bias = operands(5)
    with fast_linears(inputs):
        for wrong in ((inputs, weight[:, :-1]), (inputs, weight, bias[:-1]), (inputs[:, 1:], weight)):
            with pytest.raises(RuntimeError):
                F.linear(*wrong)


@needs_onednn
def test_an_optimizer_step_between_the_passes_is_noticed():
    """A weight changed in place after the forward pass would give a wrong gradient."""
    inputs, weight, bias = [part.requires_grad_() for part in operands(5)]
    with fast_linears(inputs):
        output = F.linear(inputs, weight, bias)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_precisions_are_left_alone(dtype, products):
    arguments = operands(5, dtype=dtype)
    assert isinstance(fast_linears(arguments[0]), nullcontext)
    with fast_linears(torch.zeros(1)):  # also where they come in between
        assert torch.equal(F.linear(*arguments), F.linear(*arguments))
        assert F.linear(*arguments).dtype == dtype
    assert not products


def test_autocast_is_left_alone(products):
    arguments = operands(5)
    with torch.autocast("cpu", torch.bfloat16):
        with fast_linears(arguments[0]):
            output = F.linear(*arguments)
        assert output.dtype == torch.bfloat16 and torch.equal(output, F.linear(*arguments))
    assert not products


def test_other_devices_and_compilation_are_left_alone(monkeypatch):
    with torch.backends.mkldnn.flags(enabled=False):
        assert isinstance(fast_linears(torch.zeros(1)), nullcontext)
    assert isinstance(fast_linears(torch.zeros(1, device="meta")), nullcontext)
    assert isinstance(fast_linears(torch.eye(2).to_sparse()), nullcontext)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert isinstance(fast_linears(torch.zeros(1)), nullcontext)


def test_without_onednn_nothing_changes(monkeypatch, products):
    arguments = operands(5)
    expected = F.linear(*arguments)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    kernels._has_onednn.cache_clear()
    try:
        assert isinstance(fast_linears(arguments[0]), nullcontext)
        with fast_linears(arguments[0]):
            assert torch.equal(F.linear(*arguments), expected)
    finally:
        monkeypatch.undo()
        kernels._has_onednn.cache_clear()
    assert not products


@needs_onednn
def test_other_functions_and_named_arguments_are_the_usual_ones(products):
    inputs, weight, bias = operands(5)
    layer = torch.nn.Linear(8, 6)
    with fast_linears(inputs), torch.no_grad():
        assert torch.equal(
            F.linear(inputs, weight=weight, bias=bias), F.linear(input=inputs, weight=weight, bias=bias)
        )
        inner = [inputs @ weight.T, F.gelu(inputs), F.layer_norm(inputs, (8,)), torch.addmm(bias, inputs, weight.T)]
        assert not products
        layer(inputs)
    assert len(products) == 1
    outer = [inputs @ weight.T, F.gelu(inputs), F.layer_norm(inputs, (8,)), torch.addmm(bias, inputs, weight.T)]
    assert all(map(torch.equal, inner, outer))


@needs_onednn
def test_within_each_other(products):
    arguments = operands(5)
    with fast_linears(arguments[0]):
        with fast_linears(arguments[0]):
            inner = F.linear(*arguments)
        outer = F.linear(*arguments)
    assert len(products) == 2 and torch.equal(inner, outer)
    F.linear(*arguments)
    assert len(products) == 2


@needs_onednn
def test_an_error_ends_it(products):
    arguments = operands(5)
    with pytest.raises(ZeroDivisionError), fast_linears(arguments[0]):
        raise ZeroDivisionError
    F.linear(*arguments)
    assert not products


@needs_onednn
def test_it_holds_in_its_own_thread_only(products):
    arguments, inside, done = operands(5), threading.Event(), threading.Event()
    results = {}

    def within():
        with fast_linears(arguments[0]):
            inside.set()
            done.wait(timeout=60)
            results["inside"] = F.linear(*arguments)

    thread = threading.Thread(target=within)
    thread.start()
    assert inside.wait(timeout=60)
    results["outside"] = F.linear(*arguments)
    assert not products
    done.set()
    thread.join()
    assert products == [thread.ident]
    torch.testing.assert_close(results["inside"], results["outside"])


# The encoder


def packed_step(model, texts=("a red dog", "a dog on the grass")):
    model.zero_grad()
    embeds = model(**PromptTokenizer(tiny_tokenizer()).encode(list(texts), packed=True)).text_embeds
    embeds.square().mean().backward()


@needs_onednn
def test_the_encoders_layers_use_it(products):
    model = tiny_text_model(CLIPTextModelForRTD).train()
    with torch.no_grad():
        model(**PromptTokenizer(tiny_tokenizer()).encode(["a dog"], packed=True))
    layers = 2 * 6 + 1
    assert len(products) == layers
    products.clear()
    packed_step(model)
    assert len(products) == 3 * layers
    assert model.text_model.encoder.layers[0].mlp.fc1.weight.grad.abs().max() > 1e-3


@needs_onednn
def test_adapters_use_it_too(products):
    peft = pytest.importorskip("peft")
    model = tiny_text_model(CLIPTextModelForRTD)
    config = peft.LoraConfig(target_modules=list(model.lora_target_modules), init_lora_weights=False, r=2)
    model = peft.get_peft_model(model, config).train()
    with torch.no_grad():
        model(**PromptTokenizer(tiny_tokenizer()).encode(["a dog"], packed=True))
    assert len(products) == 2 * 6 * 3 + 1
    with torch.no_grad(), model.disable_adapter():
        products.clear()
        model(**PromptTokenizer(tiny_tokenizer()).encode(["a dog"], packed=True))
    assert len(products) == 2 * 6 + 1


def test_an_encoder_in_half_precision_or_under_autocast_does_without(products):
    packed_step(tiny_text_model(CLIPTextModelForRTD).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        packed_step(tiny_text_model(CLIPTextModelForRTD))
    assert not products


SHAPES = """
import ctypes, os, torch, rtd_hf.kernels as kernels

class Malloc(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd usm fsm used free keep".split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Malloc
weight, used = torch.ones(512, 512, requires_grad=True), []
for rows in range(256, 656):
    with kernels.fast_linears(weight):
        torch.nn.functional.linear(torch.ones(rows, 512, requires_grad=True), weight).sum().backward()
    weight.grad = None
    used.append(mallinfo().used)
print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], used[-1] - used[99])
"""


@needs_onednn
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc")
def test_numbers_of_rows_do_not_pile_up():
    kept, grown = _shapes_kept(remove=("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"))
    usual, piled = _shapes_kept(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    assert (kept, usual) == (16, 1024)  # what a user sets is kept
    assert grown < 2**20 < 8 * 2**20 < piled, (grown, piled)


def _shapes_kept(remove=(), **environment: str) -> list[int]:
    inherited = {name: value for name, value in os.environ.items() if name not in remove}
    told = subprocess.run(
        [sys.executable, "-c", SHAPES], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return [int(word) for word in told.stdout.split()]

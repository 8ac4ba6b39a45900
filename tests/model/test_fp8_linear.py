"""fp8 products on the CPU, which computes the same: error, shared quantization, refusals."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model.kernels import fp8_linear as fp8
from colossal_llama.model.kernels.fp8_cast import E4M3, E5M2, amax, quantize
from colossal_llama.model.kernels.grouped_linear import SharedInput

# A relative rounding error is at most 2^-4 with 3 bits of mantissa and 2^-3 with 2, its mean square
# a third of that; two factors.
E4M3_ERROR, E5M2_ERROR = 2**-4 * (2 / 3) ** 0.5, 2**-3 * (2 / 3) ** 0.5


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    found, exact = found.detach().float(), exact.detach().float()
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("tokens", [(3, 37), (64,)], ids=["padded", "multiple of 16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_product_and_gradients_are_as_close_as_eight_bits_allow(tokens, dtype):
    torch.manual_seed(0)
    hidden, weight = torch.randn(*tokens, 64), torch.randn(48, 64) * 0.02
    gradient = torch.randn(*tokens, 48) * 1e-2
    results = []
    for way in ("exact", "fp8"):
        inputs = [t.to(dtype).float() if way == "exact" else t.to(dtype) for t in (hidden, weight, gradient)]
        x, w = inputs[0].requires_grad_(), inputs[1].requires_grad_()
        y = x @ w.t() if way == "exact" else fp8.fp8_linear(x, w, shared=SharedInput(1))
        y.backward(inputs[2])
        results.append((y, x.grad, w.grad))
    (y, dx, dw), (y8, dx8, dw8) = results
    assert 0 < error(y8, y) < E4M3_ERROR
    assert 0 < error(dx8, dx) < E5M2_ERROR
    assert 0 < error(dw8, dw) < E5M2_ERROR
    assert y8.dtype == dx8.dtype == dw8.dtype == dtype
    assert (y8.shape, dx8.shape, dw8.shape) == (y.shape, dx.shape, dw.shape)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_non_finite_input_gives_a_non_finite_output(bad):
    """A non-finite step must be detected as one."""
    hidden = torch.ones(16, 32, dtype=torch.bfloat16)
    hidden[3, 5] = bad
    output = fp8.fp8_linear(hidden, torch.ones(16, 32, dtype=torch.bfloat16), shared=SharedInput(1))
    assert not output[3].isfinite().any()


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_both_layouts_hold_the_same_values(dtype):
    matrix = torch.randn(21, 32, dtype=torch.bfloat16)
    both = quantize(matrix, amax(matrix), dtype)
    assert both.rows.shape == (32, 32)
    assert not both.rows[21:].float().any()
    assert torch.equal(both.rows.float().t(), both.transposed.float())
    assert error(both.rows[:21].float() * both.scale, matrix) < E5M2_ERROR
    assert float(both.rows.float().abs().max()) == torch.finfo(dtype).max


def small_model(**settings: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**{**sizes, "vocab_size": 100, "num_key_value_heads": 2, **settings})
    return LlamaForCausalLM(config).to(torch.bfloat16)


def gradients_of(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 100, (3, 21), generator=torch.Generator().manual_seed(1))
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_models_gradients_point_the_same_way():
    exact, model = gradients_of(small_model()), small_model()
    fp8.use_fp8(model)
    for name, gradient in gradients_of(model).items():
        assert torch.cosine_similarity(gradient.float().flatten(), exact[name].float().flatten(), dim=0) > 0.97, name


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_layers_give_the_same_gradients(reentrant):
    kept, recomputed = small_model(), small_model()
    for model in (kept, recomputed):
        fp8.use_fp8(model)
    recomputed.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    expected = gradients_of(kept)
    for name, gradient in gradients_of(recomputed).items():
        assert torch.equal(gradient, expected[name]), name


class HandedThrough(torch.autograd.Function):
    """As Gemini does with arguments of operations: the same memory in another tensor object."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize("plugin", ["zero2", "gemini"])
def test_an_input_is_quantized_once_for_the_layers_that_share_it(monkeypatch, plugin):
    model, calls, linear = small_model(), [], fp8.fp8_linear
    if plugin == "gemini":
        monkeypatch.setattr(fp8, "fp8_linear", lambda x, w, **settings: linear(HandedThrough.apply(x), w, **settings))

    def counted(matrix, *arguments, **settings):
        calls.append(tuple(matrix.shape))
        return quantize(matrix, *arguments, **settings)

    monkeypatch.setattr(fp8, "quantize", counted)
    fp8.use_fp8(model)
    gradients_of(model)
    tokens = 3 * 21
    inputs_and_gradients = [shape for shape in calls if shape[0] == tokens]
    # A layer quantizes 4 inputs (for q k v, o, gate up, down) and 7 gradients.
    assert len(inputs_and_gradients) == 2 * (4 + 7)


def test_an_input_of_the_same_tensor_object_with_new_values_is_quantized_again():
    shared, tensor, scales = SharedInput(1), torch.ones(16, 32, dtype=torch.bfloat16), []
    for _ in range(2):
        scales.append(float(shared.result(0, tensor, lambda: quantize(tensor, amax(tensor))).scale))
        tensor.mul_(2)
    assert scales[1] == pytest.approx(2 * scales[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--mixed_precision", "fp32"), "--fp8 quantizes half-precision"),
        (("--plugin", "3d", "--tp", "2"), "--fp8 needs whole layers"),
        (("--lora_rank", "8"), "--fp8 and --lora_rank"),
        ((), "--fp8 needs a GPU"),
    ],
)
def test_what_cannot_be_is_refused(options, says, capsys):
    from colossal_llama.training.command_line import parse_arguments

    words = ["--pretrained", "absent", "--benchmark", "--mixed_precision", "bf16", "--plugin", "zero2", "--fp8"]
    with pytest.raises(SystemExit) as exit_:
        parse_arguments([*words, *options], has_gpu=False, world_size=2)
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err


def test_a_width_that_the_units_do_not_take_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(fp8.importlib.util, "find_spec", lambda name: object())
    config = small_model(hidden_size=64, intermediate_size=100).config
    assert "multiples of 16, and it has 100" in fp8.fp8_unavailable_reason(torch.device("cuda"), config)

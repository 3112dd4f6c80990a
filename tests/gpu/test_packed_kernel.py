"""torch's variable-length kernel behind the packed row, against the same in fp32 on the CPU."""

import pytest
import torch

from farstep_model.load import load_base_model
from farstep_model.packed import Packing, enable_packing, packed_attention
from tests.support.tiny_models import VOCAB, write_model

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LENGTHS = (24, 1, 9, 130, 1, 1, 12, 257)
# Of the largest number: bf16 keeps 8 bits of each factor and of the result, fp16 keeps 11.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


def pack(lengths, device):
    return Packing.of(lengths, upload=lambda array: torch.from_numpy(array).to(device)).arguments


def attend(states, device, dtype, window):
    """The output, and the gradients of queries, keys and values."""
    inputs = [tensor.to(device, dtype).requires_grad_() for tensor in states]
    arguments = {"scaling": 0.2, "sliding_window": window, **pack(LENGTHS, device)}
    out, _ = packed_attention(torch.nn.Module(), *inputs, None, **arguments)
    weights = torch.linspace(-1, 1, out.numel(), device=device).view_as(out)
    return [tensor.float().cpu() for tensor in (out, *torch.autograd.grad((out.float() * weights).sum(), inputs))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 1, 4, 1000])
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (6, 1)])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_the_kernel_is_the_loop(dtype, window, heads, head_dim):
    generator = torch.Generator().manual_seed(0)
    states = [
        torch.randn(1, heads[index], sum(LENGTHS), head_dim, generator=generator).to(dtype).float()
        for index in (0, 1, 1)
    ]
    expected = attend(states, CPU, torch.float32, window)
    found = attend(states, CUDA, dtype, window)
    for name, one, other in zip(("out", "query", "key", "value"), found, expected, strict=True):
        error = (one - other).abs().max() / other.abs().max()
        assert error < TOLERANCE[dtype], (name, error)


@pytest.mark.parametrize("kind", ["wide_llama", "wide_mistral"])
def test_a_packed_row_is_its_sequences(kind, tmp_path):
    write_model(kind, tmp_path)
    base = load_base_model(str(tmp_path), device="cuda", dtype=torch.bfloat16)
    plain = load_base_model(str(tmp_path), device="cpu", dtype=torch.float32)
    enable_packing(base)
    generator = torch.Generator().manual_seed(1)
    lengths = (60, 1, 33, 7)
    tokens = [torch.randint(3, VOCAB, (length,), generator=generator) for length in lengths]
    hidden = base.hidden_states(torch.cat(tokens)[None].to(CUDA), **pack(lengths, CUDA))[0]
    expected = torch.cat([plain.hidden_states(sequence[None])[0] for sequence in tokens])
    error = (hidden.float().cpu() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 0.1
    assert error.mean() < 0.02

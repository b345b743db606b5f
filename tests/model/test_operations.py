import torch

from clip_hba_behavior.model.operations import Bfloat16Operations, NativeOperations


def test_frozen_products_alone_are_rounded_and_their_gradients_with_them() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(5, 8, requires_grad=True)
    weight, bias = torch.randn(6, 8), torch.randn(6)
    (found,) = Bfloat16Operations().frozen(inputs, (weight, bias))
    expected = torch.nn.functional.linear(inputs.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert found.dtype == torch.float32
    assert found.equal(expected.float())
    (found.sum() / 3).backward()
    assert inputs.grad is not None
    gradient = torch.full((5, 6), 1 / 3).bfloat16() @ weight.bfloat16()
    assert inputs.grad.dtype == torch.float32
    assert inputs.grad.equal(gradient.float())
    learns = weight.requires_grad_()
    plain = NativeOperations().linear(inputs, learns, bias)
    assert Bfloat16Operations().linear(inputs, learns, bias).equal(plain)

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcnn.model.structures import all_finite, pack, to_host, unpack

DTYPES = (torch.float32, torch.int64, torch.bool, torch.float64, torch.uint8, torch.bfloat16)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)), min_size=1, max_size=6))
def test_tensors_of_any_shape_and_dtype_are_packed_and_unpacked(kinds: list[tuple[torch.dtype, list[int]]]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [(torch.randn(shape, generator=generator) * 9).to(dtype) for dtype, shape in kinds]
    tensors = [tensor.transpose(0, -1) if tensor.dim() else tensor for tensor in tensors]
    packed = pack(tensors)
    assert packed.dtype == torch.uint8
    for found, expected in zip(unpack(packed, tensors), tensors, strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found, expected)


def test_tensors_on_the_host_are_returned_unchanged() -> None:
    tensors = [torch.rand(2, 3), torch.ones(2, dtype=torch.bool)]
    assert all(found is tensor for found, tensor in zip(to_host(tensors), tensors, strict=True))


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_numbers_of_an_image_are_finite_or_not_wherever_they_are(number):
    parts = [torch.full((3, 4), 1e38), torch.full((3, 2, 2), -1e38)]
    assert all_finite(*parts).tolist() == [True, True, True]
    parts[1][1, 1, 0] = number
    assert all_finite(*parts).tolist() == [True, False, True]
    parts[0][2, 3] = number
    assert all_finite(*parts).tolist() == [True, False, False]

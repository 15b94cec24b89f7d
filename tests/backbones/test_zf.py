import torch

from rcnn.backbones.zf import WithinChannelNorm, zf


def test_parameters_are_those_of_the_paper():
    with torch.device("meta"):
        assert sum(p.numel() for p in zf().parameters()) == 3_726_464


def test_pooling_rounds_up_as_in_the_paper():
    with torch.device("meta"):
        trunk = zf()
        for (height, width), cells in {(600, 1000): (39, 64), (224, 224): (15, 15)}.items():
            (found,) = trunk(torch.empty(1, 3, height, width))
            assert found.shape == (1, 256, *cells)


def test_norm_agrees_with_a_loop_over_cells():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64) * 100
    expected = torch.empty_like(x)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        window = x[b, c, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
        expected[b, c, i, j] = x[b, c, i, j] / (1 + 5e-5 / 9 * float((window**2).sum())) ** 0.75
    torch.testing.assert_close(WithinChannelNorm()(x), expected)

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.ops.misc import Conv2dNormActivation

import rcnn.backbones.norm as norm_file
from rcnn.backbones.norm import (
    FrozenBatchNorm2d,
    FrozenNormConv2d,
    fold_batch_norm,
    freeze_batch_norm,
    scale_and_shift,
)


def randomise(module: nn.Module) -> nn.Module:
    """Give batch norms random numbers, as after training."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
            nn.init.normal_(layer.running_mean, std=0.3)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return module


def block() -> nn.Sequential:
    """Convolution, batch norm, ReLU; twice, the second depthwise."""
    first = Conv2dNormActivation(3, 8, 3, 2)
    return nn.Sequential(first, Conv2dNormActivation(8, 8, 3, groups=8))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def run(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output and the gradients of trained parameters."""
    out = module(x)
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    return out, {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("make", [block, resnet18])
def test_frozen_norm_gives_outputs_and_gradients_of_eval_mode(make, affine: bool):
    plain = randomise(make()).double().eval()
    frozen = copy.deepcopy(plain)
    freeze_batch_norm(frozen, affine=affine)
    x = torch.randn(2, 3, 33, 40, dtype=torch.float64)
    expected, expected_gradients = run(plain, x)
    found, gradients = run(frozen.train(), x)
    torch.testing.assert_close(found, expected)
    others = {name for name, gradient in expected_gradients.items() if gradient.ndim == 4 or name.startswith("fc.")}
    assert gradients.keys() == (expected_gradients.keys() if affine else others)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name])


def test_frozen_norm_keeps_names_and_has_nothing_to_train():
    plain, frozen = resnet18(), resnet18()
    freeze_batch_norm(frozen)
    assert list(frozen.state_dict()) == list(plain.state_dict())
    assert not any("bn" in name for name, _ in frozen.named_parameters())
    frozen.load_state_dict(randomise(plain).state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(frozen(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


def test_frozen_statistics_stay_in_training_mode():
    module = randomise(block())
    freeze_batch_norm(module)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    run(module.train(), torch.randn(2, 3, 16, 16))
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_a_copy_has_its_own_norm():
    module = block()
    freeze_batch_norm(module)
    twin = copy.deepcopy(module)
    x = torch.randn(1, 3, 16, 16)
    before = module(x)
    for norm in (m for m in twin.modules() if isinstance(m, FrozenBatchNorm2d)):
        norm.running_mean.add_(1)
    assert torch.equal(module(x), before)
    assert not torch.equal(twin(x), before)


def test_only_named_parts_are_frozen():
    net = resnet18()
    freeze_batch_norm(net, ["conv1", "bn1", "layer1"])
    frozen = {name for name, module in net.named_modules() if isinstance(module, FrozenBatchNorm2d)}
    assert frozen == {"bn1", *(f"layer1.{block}.bn{i}" for block in (0, 1) for i in (1, 2))}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("make", [block, resnet18])
def test_folding_gives_the_same_outputs_without_any_norm(make, frozen: bool):
    module = randomise(make()).eval()
    if frozen:
        freeze_batch_norm(module)
    folded = copy.deepcopy(module)
    fold_batch_norm(folded)
    assert not any(isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d | FrozenNormConv2d) for m in folded.modules())
    x = torch.randn(2, 3, 33, 40)
    with torch.no_grad():
        expected = module(x)
        assert (folded(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_folding_respects_a_convolutions_own_bias():
    module = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    folded = copy.deepcopy(module)
    fold_batch_norm(folded)
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(folded(x), module(x))


def test_modules_that_refuse_are_not_folded():
    module = block().eval()
    module[0].foldable = False  # type: ignore[assignment]
    fold_batch_norm(module)
    assert isinstance(module[0][1], nn.BatchNorm2d)
    assert isinstance(module[1][1], nn.Identity)


def test_frozen_norm_is_one_graph_and_exports():
    module = randomise(block()).eval()
    freeze_batch_norm(module)
    x = torch.randn(2, 3, 16, 16)
    expected, gradients = run(module, x)
    module.zero_grad()
    found, compiled = run(torch.compile(module, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(found, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(compiled[f"_orig_mod.{name}"], gradient)
    exported = torch.export.export(module, (x,))
    torch.testing.assert_close(exported.module()(x), expected)


def test_scale_and_shift_are_computed_once_until_the_norm_changes(monkeypatch: pytest.MonkeyPatch):
    module = randomise(block())
    freeze_batch_norm(module)
    calls: list[nn.Module] = []

    def counted(norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
        calls.append(norm)
        return scale_and_shift(norm)

    monkeypatch.setattr(norm_file, "scale_and_shift", counted)
    x = torch.randn(1, 3, 16, 16)

    def fresh(net: nn.Module) -> Tensor:
        """Return the output of a copy, which recomputes both."""
        calls.clear()
        out = copy.deepcopy(net)(x)
        assert len(calls) == 2
        calls.clear()
        return out

    with torch.inference_mode():
        module(x)
    assert len(calls) == 2
    run(module, x)  # with gradients of weights that are multiplied by cached results of a prediction
    assert torch.equal(module(x), fresh(module))
    module(x)
    assert not calls

    other = randomise(block()).state_dict()
    changes = (
        lambda: module.load_state_dict(other),
        lambda: [tensor.copy_(other[name] * 2) for name, tensor in module.state_dict().items()],
        lambda: module.load_state_dict({name: tensor * 3 for name, tensor in other.items()}, assign=True),
        lambda: setattr(module[0][1], "running_mean", torch.full((8,), 0.5)),
        lambda: module[1][1].running_var.mul_(2),
    )
    for change in changes:
        before = module(x)
        change()
        found = module(x)
        assert not torch.equal(found, before)
        assert torch.equal(found, fresh(module))
    x = x.double()
    assert torch.equal(module.double()(x), fresh(module))

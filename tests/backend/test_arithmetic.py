"""float32 means float32: products, their verification and Krylov vectors, whatever PyTorch's settings allow."""

import pytest
import torch
from cases import batches, cnn, labels
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hesspec
from hesspec.backend.arithmetic import ON_CPU, ON_CUDA, float32_sums, full_float32

aten = torch.ops.aten
BILINEAR = {aten.mm, aten.addmm, aten.addmm_, aten.bmm, aten.baddbmm, aten.mv, aten.addmv_, aten.convolution}
BILINEAR |= {aten.convolution_backward, torch.ops.mkldnn._linear_pointwise}
# Settings that round float32: of CUDA, TF32; of CPUs with bfloat16, that as well.
ROUNDED = {"tf32", "bf16"}


def settings():
    return [backend.fp32_precision for backend in (*ON_CPU, *ON_CUDA)]


@pytest.fixture
def rounded(monkeypatch):
    """A caller who allows rounding everywhere, on a machine whose CUDA is in use."""
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    before = settings()
    for backend in (*ON_CPU, *ON_CUDA):
        backend.fp32_precision = "tf32" if backend in ON_CUDA else "bf16"
    yield settings()
    for backend, value in zip((*ON_CPU, *ON_CUDA), before, strict=True):
        backend.fp32_precision = value


class Watched(TorchDispatchMode):
    """Operations in float32 that ran while a setting allowed them to round."""

    def __init__(self):
        super().__init__()
        self.seen, self.rounded = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in BILINEAR and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.float32 for each in args
        ):
            self.seen += 1
            if ROUNDED & set(settings()):
                self.rounded.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["traced", "double backward"])
def test_nothing_in_float32_is_rounded_from_the_model_to_the_spectrum(mode, rounded):
    data = batches((1, 4, 4), labels(4))
    with Watched() as watched:
        operator = hesspec.GaussNewton(cnn().float(), nn.CrossEntropyLoss(), data, mode=mode)
        hesspec.spectrum(operator, steps=12, probes=2)
    assert watched.seen > 50
    assert not watched.rounded
    assert settings() == rounded


def test_krylov_vectors_of_another_operator_are_not_rounded(rounded):
    matrix = torch.diag(torch.cat([torch.linspace(-0.1, 0.1, 300), torch.tensor([5.0, 9.0])]))
    with Watched() as watched:
        hesspec.spectrum(matrix, steps=20, probes=2)
        hesspec.spectrum(matrix, steps=4, trace=0.5)
        hesspec.solve(matrix, torch.ones(302), damping=0.5)
    assert watched.seen > 50
    assert not watched.rounded
    assert settings() == rounded


@pytest.mark.parametrize("tf32", [False, True])
def test_settings_are_restored_after_an_error(tf32, rounded):
    def fail():
        with full_float32(tf32=tf32):
            assert not ROUNDED & {backend.fp32_precision for backend in ON_CPU}
            assert {backend.fp32_precision for backend in ON_CUDA} == {"tf32" if tf32 else "ieee"}
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert settings() == rounded


@pytest.fixture(params=["default", "highest", "high", "medium", "newer ieee", "newer tf32", "older False"])
def caller(request, monkeypatch):
    """Settings that callers have, in PyTorch's newer and older way, on a machine whose CUDA is in use."""
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    before, product = settings(), torch.get_float32_matmul_precision()
    if request.param.startswith("newer"):
        for backend in ON_CUDA:
            backend.fp32_precision = request.param.removeprefix("newer ")
    elif request.param == "older False":
        torch.backends.cudnn.allow_tf32 = False
    elif request.param != "default":
        torch.set_float32_matmul_precision(request.param)
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision(product)
    for backend, value in zip((*ON_CPU, *ON_CUDA), before, strict=True):
        backend.fp32_precision = value


def older():
    found = []
    for read in (torch.get_float32_matmul_precision, lambda: torch.backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append("disagrees")
    return found


@pytest.mark.parametrize("tf32", [False, True])
def test_older_switches_can_be_read_in_products(tf32, caller, request):
    before, switches = settings(), older()
    with full_float32(tf32=tf32):
        assert not ROUNDED & {backend.fp32_precision for backend in ON_CPU}
        assert {backend.fp32_precision == "tf32" for backend in ON_CUDA} == {tf32}
        # As in the forward pass of models with RNNs, for their second derivatives.
        with torch.backends.cudnn.flags(enabled=False):
            pass
        if switches[0] != "disagrees":
            assert (torch.get_float32_matmul_precision() != "highest") == tf32
        assert {backend.fp32_precision == "tf32" for backend in ON_CUDA} == {tf32}
    assert older() == switches
    if switches[1] != "disagrees":
        assert settings() == before


def test_second_derivatives_of_rnns_run_where_cuda_is_in_use(caller):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    torch.manual_seed(0)
    data = [(torch.randn(6, 5, 3), torch.arange(6) % 2)]
    hessian = hesspec.Hessian(Last().eval(), nn.CrossEntropyLoss(), data)
    assert (hessian @ torch.ones(hessian.shape[0])).isfinite().all()


@pytest.mark.parametrize("before", [(True, True), (False, True), (False, False)])
def test_sums_of_bfloat16_products_are_in_float32(before):
    matmul = torch.backends.cuda.matmul

    def setting():
        return (
            matmul.allow_bf16_reduced_precision_reduction,
            matmul.allow_bf16_reduced_precision_reduction_split_k,
        )

    default = setting()
    matmul.allow_bf16_reduced_precision_reduction = before
    try:
        with float32_sums():
            assert not matmul.allow_bf16_reduced_precision_reduction
        assert setting() == before
    finally:
        matmul.allow_bf16_reduced_precision_reduction = default

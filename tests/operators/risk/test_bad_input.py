"""Bad input gets a sentence: what, which value, what to do."""

import functools

import numpy as np
import pytest
import torch
from cases import Unused, batches, labels, mlp, seeded
from torch import nn

import hesspec

CE = nn.CrossEntropyLoss()


def data(**options):
    return batches((5,), labels(4), **options)


def product(model, loss=CE, batch_list=None, **options):
    operator = hesspec.Hessian(model, loss, data() if batch_list is None else batch_list, **options)
    return operator @ torch.ones(operator.shape[0], dtype=operator.dtype)


def test_batch_norm_in_training_mode_is_named():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"active in 1 \(batch statistics\).*model\.eval\(\)"):
        product(model.train())


def test_batch_norm_without_running_statistics_is_refused_in_evaluation_mode_too():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="track_running_stats=True"):
        product(model)


def test_active_dropout_is_named():
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.3)).train()
    with pytest.raises(ValueError, match=r"active in 1 \(p=0\.3\).*model\.eval\(\)"):
        product(model)


def test_dropout_that_no_module_shows_is_found_in_the_trace():
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(self.linear(x), 0.5, training=True)

    with pytest.raises(ValueError, match=r"draws random numbers.*model\.eval\(\)"):
        product(Hidden().eval())


def test_a_generator_is_refused():
    with pytest.raises(ValueError, match=r"generator, which can be iterated only once.*list\(data\)"):
        product(mlp(), batch_list=(batch for batch in data()))


def test_empty_data_is_refused():
    with pytest.raises(ValueError, match="data is empty"):
        product(mlp(), batch_list=[])


def test_a_tensor_as_data_is_refused():
    with pytest.raises(ValueError, match=r"data is a Tensor.*\[\(inputs, targets\)\]"):
        product(mlp(), batch_list=torch.ones(3, 5))


def test_batches_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match=r"Batch 0 of data is a tuple of 3 items.*pair \(inputs, targets\)"):
        product(mlp(), batch_list=[(torch.ones(3, 5), torch.zeros(3, dtype=torch.long), 1)])


def test_a_single_batch_without_list_is_refused():
    with pytest.raises(ValueError, match="Batch 0 of data is a Tensor"):
        product(mlp(), batch_list=data()[0])


def test_augmented_data_is_refused():
    class Augmented:
        def __init__(self) -> None:
            self.generator = torch.Generator().manual_seed(0)

        def __iter__(self):
            return iter([(x + 0.1 * torch.randn(x.shape, generator=self.generator), y) for x, y in data()])

    with pytest.raises(ValueError, match="changed between passes: batch 0 has other values.*augmentation"):
        product(mlp(), batch_list=Augmented())


def test_a_flip_of_an_image_is_seen():
    class Flipping:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(x.flip(1) if self.passes > 1 else x, y) for x, y in data()])

    with pytest.raises(ValueError, match="changed between passes"):
        product(mlp(), batch_list=Flipping())


def test_shuffled_data_is_refused_with_the_cause():
    class Rotating:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self):
            self.passes += 1
            batch_list = data(sizes=(4, 4, 4))
            return iter(batch_list[self.passes % 3 :] + batch_list[: self.passes % 3])

    with pytest.raises(ValueError, match="batch 0 has the content of another batch; set shuffle=False"):
        product(mlp(), batch_list=Rotating())


@pytest.mark.parametrize(("later", "seen"), [(1, "now has 1"), (5, "now has more")])
def test_another_number_of_batches_is_refused(later, seen):
    class Growing:
        def __init__(self) -> None:
            self.count = 3

        def __iter__(self):
            batch_list = data(sizes=(4,) * 6)[: self.count]
            self.count = later
            return iter(batch_list)

    with pytest.raises(ValueError, match=f"had 3 batches in the first pass, and {seen}"):
        product(mlp(), batch_list=Growing())


def test_only_ignored_targets_are_refused():
    with pytest.raises(ValueError, match=r"The loss has no terms.*ignored index"):
        product(mlp(), batch_list=[(torch.ones(3, 5), torch.full((3,), -100))])


def test_a_batch_of_ignored_targets_adds_nothing():
    extra = (torch.ones(3, 5), torch.full((3,), -100))
    assert torch.equal(product(mlp(), batch_list=[*data(), extra]), product(mlp()))


def test_a_non_finite_loss_names_the_batch():
    batch_list = data()
    batch_list[1][0][2, 3] = torch.nan
    with pytest.raises(hesspec.NonFiniteError, match="loss of batch 1 is nan"):
        product(mlp(), batch_list=batch_list)


class RootGradient(nn.Module):
    """Finite loss, infinite gradient: sqrt at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale.abs().sqrt() * x[:, :4] + self.shift


def test_a_non_finite_gradient_names_batch_and_parameter():
    with pytest.raises(hesspec.NonFiniteError, match=r"gradient of 'scale' is not finite in batch 0"):
        product(RootGradient())


def test_a_non_finite_matvec_names_batch_and_parameter():
    model = mlp()
    with torch.no_grad():
        model[2].weight.mul_(10)
    operator = hesspec.Hessian(model, CE, data())
    with pytest.raises(hesspec.NonFiniteError, match=r"not finite in batch 0, parameter '0\.weight'; loss and"):
        _ = operator @ torch.full((operator.shape[0],), 1e38)


def test_a_non_finite_vector_is_told_apart():
    operator = hesspec.Hessian(mlp(), CE, data())
    with pytest.raises(hesspec.NonFiniteError, match="vector contains NaN or infinity"):
        _ = operator @ torch.full((operator.shape[0],), torch.nan)


def test_unused_parameters_are_listed_once_and_have_zero_curvature():
    operator = hesspec.Hessian(seeded(Unused), CE, batches((4,), labels(3)))
    with pytest.warns(UserWarning, match=r"zero: idle\.weight, idle\.bias") as caught:
        result = operator @ torch.ones(operator.shape[0])
        _ = operator @ torch.ones(operator.shape[0])
    assert len(caught) == 1
    named = operator.to_named(result)
    assert not named["idle.weight"].any()
    assert named["used.weight"].any()


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.ones(7), r"takes shapes \(64,\) and \(64, k\), not \(7,\)"),
        (torch.ones(64, dtype=torch.float64), "torch.float32 on cpu, the vector torch.float64"),
        ([1.0] * 64, r"takes tensors, not list.*to_scipy"),
    ],
)
def test_wrong_vectors_are_refused(vector, message):
    operator = hesspec.Hessian(mlp(), CE, data())
    with pytest.raises(ValueError, match=message):
        _ = operator @ vector


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("0.wieght", "did you mean '0.weight'"),
        (["conv*"], "no parameter or pattern 'conv\\*'"),
        (nn.Linear(2, 2), "parameters that are not the model's"),
        ([3], "params contains an int"),
    ],
)
def test_wrong_parameters_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        hesspec.Hessian(mlp(), CE, data(), params=params)


def test_a_model_without_gradients_is_refused():
    with pytest.raises(ValueError, match=r"No parameter is selected.*params=\[\.\.\.\]"):
        hesspec.Hessian(mlp().requires_grad_(False), CE, data())


def test_mixed_dtypes_are_refused():
    model = mlp()
    model[2].double()
    with pytest.raises(ValueError, match="differ in dtype: '0.weight' has torch.float32, '2.weight' has torch.float64"):
        hesspec.Hessian(model, CE, data())


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match=r"torch\.bfloat16.*model\.float\(\)"):
        hesspec.Hessian(mlp().to(torch.bfloat16), CE, data())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "reduction 'none'"),
        ("ce", "loss_fn is a str"),
        (lambda f, y: f.sum(1), r"tensor of shape \(5,\).*scalar"),
        (lambda f, y: 3.0, "returned float"),
    ],
)
def test_wrong_losses_are_refused(loss, message):
    with pytest.raises(ValueError, match=message):
        product(mlp(), loss=loss)


def test_partial_functional_losses_keep_their_options():
    partial = functools.partial(nn.functional.cross_entropy, ignore_index=1)
    expected = product(mlp(), loss=nn.CrossEntropyLoss(ignore_index=1))
    assert torch.equal(product(mlp(), loss=partial), expected)


def test_a_model_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="model is a function"):
        hesspec.Hessian(lambda x: x, CE, data())


def test_errors_of_the_model_itself_are_not_hidden():
    with pytest.raises(ValueError, match="Batch 0: the model raised RuntimeError: mat1 and mat2") as caught:
        product(mlp(), batch_list=[(torch.ones(3, 6), torch.zeros(3, dtype=torch.long))])
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_flat_and_named_conversion_names_what_is_wrong():
    operator = hesspec.Hessian(mlp(), CE, data())
    named = operator.to_named(torch.ones(64))
    with pytest.raises(ValueError, match="did you mean '0.weight'"):
        operator.to_flat({**named, "0.wieght": torch.ones(1)})
    with pytest.raises(ValueError, match="'2.bias' is missing"):
        operator.to_flat({name: tensor for name, tensor in named.items() if name != "2.bias"})
    with pytest.raises(ValueError, match=r"has shape \(4,\), not \(5,\)"):
        operator.to_flat({**named, "2.bias": torch.ones(5)})
    with pytest.raises(ValueError, match=r"shape \(64,\), not \(3,\)"):
        operator.to_named(torch.ones(3))


class Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        raise NotImplementedError("there is no backward on this device\nsome advice")


class Inference(torch.autograd.Function):
    """As kernels that refuse tensors which require a gradient."""

    @staticmethod
    def forward(ctx, x):
        if torch.is_tensor(x) and ctx.needs_input_grad[0]:
            raise RuntimeError("there is no backward on this device")
        return torch.tanh(x)


@pytest.mark.parametrize("function", [Forward.apply, Inference.apply])
@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton", "Residual"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_without_a_gradient_is_refused_with_what_pytorch_says(function, matrix, dtype):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return function(self.linear(x))

    data = [(torch.randn(5, 4).to(dtype), torch.arange(5) % 3)]

    def product():
        operator = getattr(hesspec, matrix)(Model().to(dtype), nn.CrossEntropyLoss(), data)
        return operator @ torch.ones(operator.shape[0], dtype=dtype)

    with pytest.raises(
        ValueError, match=r"Batch 0: the gradient .* cannot be computed \((NotImp|Run).*there is no back"
    ):
        product()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((CE, mlp(), data()), {}, r"model is CrossEntropyLoss\(\), a loss\. The order of arguments"),
        ((mlp(), data(), CE), {}, "loss_fn is a list.*The order of arguments"),
        ((nn.Linear, CE, data()), {}, "model is the class Linear; pass an instance"),
        ((mlp().parameters, CE, data()), {}, "model is a method; it must be a torch.nn.Module"),
        ((nn.ReLU(), CE, data()), {}, "the model has none .*quantised"),
        ((mlp(), CE, data()), {"params": 0}, "params is 0; it accepts names"),
        ((mlp(), CE, data()), {"params": []}, "params is empty"),
        ((mlp(), CE, data()), {"terms": 7}, "terms is 7; it must be a function"),
        ((mlp(), CE, [(torch.ones(2, 5, device="meta"), torch.zeros(2))]), {}, "on the meta device, of shape"),
    ],
)
def test_what_is_given_in_a_wrong_place_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        hesspec.Hessian(*arguments, **options)


def test_a_model_in_place_of_an_operator_is_named():
    with pytest.raises(ValueError, match=r"a Sequential, a model; pass hesspec\.Hessian\(model, loss_fn, data\)"):
        hesspec.spectrum(mlp())


def test_a_mode_that_is_not_possible_is_named():
    class Reads(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1 if self.weight.detach().sum().item() < 1e9 else 2)

    operator = hesspec.Hessian(seeded(lambda: Reads(5, 4)), CE, data(), mode="traced")
    with pytest.raises(ValueError, match=r"mode='traced' is not possible here: DataDependent.*mode='auto' takes"):
        operator @ torch.ones(operator.shape[0])


# The graph of the first one can be used once only, and that of the last ones any number of times.
@pytest.mark.parametrize("function", [lambda w: w * w, lambda w: 2 * w, lambda w: w.t().t()])
def test_tensors_computed_from_parameters_before_the_forward_pass_are_explained(function):
    class Stale(nn.Linear):
        def __init__(self):
            super().__init__(5, 4)
            self.doubled = function(self.weight)

        def forward(self, x):
            return nn.functional.linear(x, self.doubled, self.bias)

    with pytest.raises(ValueError, match="in the forward pass, not in __init__"):
        product(seeded(Stale))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_batches_without_samples_weigh_nothing(reduction):
    model, loss = mlp(), nn.CrossEntropyLoss(reduction=reduction)
    empty = [(x[:0], y[:0]) for x, y in data()[:1]]
    expected = product(model, loss)
    for batch_list in (empty + data(), data() + empty):
        torch.testing.assert_close(product(model, loss, batch_list), expected)
    with pytest.raises(ValueError, match="all 0 samples"):
        product(model, loss, empty)


def test_products_with_no_vectors_are_none():
    operator = hesspec.Hessian(mlp(), CE, data())
    assert (operator @ torch.ones(operator.shape[0], 0)).shape == (operator.shape[0], 0)


def test_integers_of_numpy_are_sizes_of_memory():
    torch.testing.assert_close(product(mlp(), memory=np.int64(10**8)), product(mlp(), memory=10**8))

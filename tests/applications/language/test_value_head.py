"""Value heads: where they read, soft labels, and the exact spectra of their losses."""

import pytest
import torch
import transformers
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call

import hesspec
from hesspec import language

BCE = nn.BCEWithLogitsLoss()
MATRICES = (hesspec.Hessian, hesspec.GaussNewton, hesspec.Residual)


class Recurrent(nn.Module):
    """Hidden states (N, T, 4) that depend on all tokens up to their own."""

    def __init__(self):
        super().__init__()
        self.tokens, self.mix = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, tokens):
        return torch.tanh(self.mix(self.tokens(tokens).cumsum(1)))


def made(**options):
    torch.manual_seed(0)
    return language.ValueHead(Recurrent(), 4, **options).double().eval()


def dense(operator):
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


@pytest.mark.parametrize(("at", "place"), [("last", -1), ("first", 0)])
def test_padding_on_either_side_does_not_change_the_logit(at, place):
    model = made(at=at, padding=0)
    sequences = [[3, 5, 7], [4], [8, 1, 2, 6]]
    right = torch.tensor([row + [0] * (5 - len(row)) for row in sequences])
    for logit, row in zip(model(right), sequences, strict=True):
        hidden = model.backbone(torch.tensor([row]))[:, place]
        torch.testing.assert_close(logit, model.head(hidden)[0, 0])
    # The embedding of padding is part of what a model without a mask sees before tokens, but not the place read.
    left = torch.tensor([[0] * (5 - len(row)) + row for row in sequences])
    hidden, first = model.backbone(left), [5 - len(row) for row in sequences]
    for number, logit in enumerate(model(left)):
        torch.testing.assert_close(logit, model.head(hidden[number, -1 if at == "last" else first[number]])[0])


def test_mean_is_over_real_tokens_and_masks_may_have_gaps():
    model, tokens = made(at="mean"), torch.randint(9, (3, 4))
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]])
    hidden = model.backbone(tokens)
    for row, logit in enumerate(model(tokens, attention_mask=mask)):
        torch.testing.assert_close(logit, model.head(hidden[row][mask[row] == 1].mean(0))[0])
    torch.testing.assert_close(model(tokens), model.head(hidden.mean(1)).squeeze(1))


def test_a_sequence_without_real_tokens_is_not_taken_for_a_number():
    tokens = torch.tensor([[3, 0], [0, 0]])
    assert made(padding=0)(tokens).isnan().tolist() == [False, True]
    with pytest.raises(hesspec.NonFiniteError, match="loss of batch 0 is nan"):
        hesspec.spectrum(hesspec.Hessian(made(padding=0), BCE, [(tokens, torch.ones(2).double())]), steps=2)


def test_features_of_rows_and_models_of_transformers_are_read():
    rows = language.ValueHead(nn.Linear(3, 4), 4)
    assert rows(torch.randn(5, 3)).shape == (5,)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    torch.manual_seed(0)
    model = language.ValueHead(transformers.BertModel(config), at="mean", padding=0).eval()
    tokens = torch.tensor([[5, 6, 7], [8, 9, 0]])
    # The mask reaches the attention of the backbone: padding changes nothing.
    torch.testing.assert_close(model(input_ids=tokens)[1:], model(tokens[1:, :2]))
    torch.testing.assert_close(model(tokens, attention_mask=tokens != 0), model(tokens))


@pytest.mark.parametrize("mode", ["traced", "double backward"])
def test_matrices_of_padded_batches_are_the_dense_ones(mode):
    model = made(padding=0)
    tokens = torch.tensor([[3, 5, 7, 0], [4, 0, 0, 0], [8, 1, 2, 6], [2, 2, 0, 0]])
    shares = torch.tensor([0.3, 1.0, 0.0, 0.6], dtype=torch.float64)
    data = [(tokens[:2], shares[:2]), (tokens[2:], shares[2:])]
    found = dense(hesspec.Hessian(model, BCE, data, mode=mode))
    names, values = zip(*model.named_parameters(), strict=True)
    sizes, shapes = [v.numel() for v in values], [v.shape for v in values]

    def risk(flat):
        parts = (part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True))
        return BCE(functional_call(model, dict(zip(names, parts, strict=True)), tokens), shares)

    torch.testing.assert_close(
        found, hessian(risk, torch.cat([v.detach().reshape(-1) for v in values])), rtol=1e-10, atol=1e-12
    )


def test_a_soft_label_is_its_hard_labels_and_g_does_not_see_labels():
    model, tokens = made(padding=0), torch.tensor([[3, 5, 7], [4, 2, 0]])
    counts = torch.tensor([20, 3])
    soft = [(tokens, counts.double() / 30)]
    hard = torch.cat([torch.arange(30) < count for count in counts]).double()
    copies = [(tokens.repeat_interleave(30, 0), hard)]
    graphs = hesspec.GraphCache()
    for kind in MATRICES:
        one, other = (dense(kind(model, BCE, data, graphs=graphs)) for data in (soft, copies))
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    newton = dense(hesspec.GaussNewton(model, BCE, soft, graphs=graphs))
    flipped = dense(hesspec.GaussNewton(model, BCE, [(tokens, 1 - counts.double() / 30)], graphs=graphs))
    assert (newton - flipped).abs().max() < 1e-17


def test_one_logit_is_a_softmax_of_two_of_which_one_is_zero():
    model, tokens = made(), torch.tensor([[3, 5, 7], [4, 2, 1]])
    shares = torch.tensor([0.2, 0.9], dtype=torch.float64)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            logits = self.model(x)
            return torch.stack([torch.zeros_like(logits), logits], 1)

    for kind in (hesspec.Hessian, hesspec.GaussNewton):
        one = dense(kind(model, BCE, [(tokens, shares)]))
        two = dense(kind(Two(), nn.CrossEntropyLoss(), [(tokens, torch.stack([1 - shares, shares], 1))]))
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)


def test_spectrum_of_a_head_on_frozen_features_at_zero_weights():
    features = torch.zeros(4, 3, dtype=torch.float64)
    features[:3] = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    model = language.ValueHead(nn.Identity(), 3).double()
    for value in model.parameters():
        nn.init.zeros_(value)
    for labels in (torch.zeros(4), torch.rand(4)):
        found = hesspec.spectrum(hesspec.Hessian(model, BCE, [(features, labels.double())]), steps=4)
        expected = [0.6590133266459082, 0.32504218094275866, 0.11948163785932915, 0.02146285455200397]
        assert found.eigenvalues.tolist() == pytest.approx(expected, rel=1e-14)
    residual = hesspec.Residual(model, BCE, [(features, labels.double())])
    assert (dense(residual) == 0).all()


def test_bias_of_the_head_has_the_brier_score_in_the_second_moment():
    model, tokens = made(), torch.randint(9, (6, 4))
    labels = torch.tensor([0.0, 1, 1, 0, 1, 0], dtype=torch.float64)
    share = torch.sigmoid(model(tokens)).detach()
    data, one = [(tokens, labels)], torch.ones(1, dtype=torch.float64)
    entry = {
        kind: float(kind(model, BCE, data, params="head.bias") @ one) for kind in (*MATRICES, hesspec.SecondMoment)
    }
    assert entry[hesspec.Hessian] == pytest.approx(float((share * (1 - share)).mean()), rel=1e-13)
    found = language.calibration(share, labels, bins=2)
    assert entry[hesspec.SecondMoment] == pytest.approx(found.brier, rel=1e-13)
    assert entry[hesspec.GaussNewton] == pytest.approx(found.variance, rel=1e-13)
    moment = hesspec.SecondMoment(model, BCE, data, params="head.bias")
    assert float(moment.mean_gradient[0]) == pytest.approx(found.bias, rel=1e-12)


class LanguageModel(nn.Module):
    def forward(self, tokens):
        return transformers.modeling_outputs.CausalLMOutput(logits=tokens.float()[..., None])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: language.ValueHead("gpt2"), "backbone is a str"),
        (lambda: language.ValueHead(Recurrent()), "width of the hidden states of a Recurrent is not known"),
        (lambda: language.ValueHead(Recurrent(), 4, at="end"), 'at is \'end\'; .* "last", "first" or "mean"'),
        (lambda: language.ValueHead(Recurrent(), 4, padding="x"), "padding is 'x'"),
        (lambda: language.ValueHead(Recurrent(), 0), "features is 0"),
        (
            lambda: language.ValueHead(Recurrent(), 5)(torch.ones(2, 3).long()),
            "returned Tensor .* head of 5|ValueHead of 5",
        ),
        (lambda: language.ValueHead(LanguageModel(), 4)(torch.ones(2, 3).long()), "a head of its own. .*base_model"),
        (lambda: language.ValueHead(nn.LSTM(4, 4, batch_first=True), 4)(torch.randn(2, 3, 4)), "returned tuple"),
        (lambda: made()(torch.ones(2, 3).long(), attention_mask=torch.ones(2, 4)), r"mask has shape \(2, 4\)"),
        (lambda: made()(torch.ones(2, 3).long(), labels=torch.ones(2)), "takes no labels"),
        (lambda: language.ValueHead(nn.Identity(), 4, padding=0)(torch.randn(2, 3, 4)), "padding is found in tokens"),
    ],
)
def test_bad_input_is_answered_with_a_sentence(build, words):
    with pytest.raises(ValueError, match=words):
        build()

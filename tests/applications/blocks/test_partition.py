"""Names and entries of blocks, of the families of transformers and of other networks, and what is refused."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import hesspec
from hesspec.applications.blocks.attention import attentions
from hesspec.applications.blocks.measuring import diagonal_blocks
from hesspec.applications.blocks.partition import KINDS, blocks_of, rest_of

WIDTH, TOKENS, WORDS = 16, 6, 11
COMMON = {"attn_implementation": "eager"}


def gpt2():
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    size = {"n_layer": 2, "n_embd": WIDTH, "n_head": 2, "vocab_size": WORDS, "n_positions": TOKENS}
    return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0, use_cache=False, **none, **COMMON))


def llama():
    size = {"num_hidden_layers": 2, "hidden_size": WIDTH, "intermediate_size": 24, "vocab_size": WORDS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**size, **heads, use_cache=False, max_position_embeddings=TOKENS, **COMMON))


def bert():
    size = {"num_hidden_layers": 2, "hidden_size": WIDTH, "intermediate_size": 24, "vocab_size": WORDS}
    return BertForSequenceClassification(
        BertConfig(**size, num_attention_heads=2, max_position_embeddings=TOKENS, **COMMON)
    )


def vit():
    size = {"num_hidden_layers": 2, "hidden_size": WIDTH, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
    return ViTForImageClassification(ViTConfig(**size, num_attention_heads=2, num_labels=3, **COMMON))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, dropout=0.0, batch_first=True)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.head(self.encoder(self.embedding(x)))


FAMILIES = {"GPT-2": gpt2, "Llama": llama, "BERT": bert, "ViT": vit, "MultiheadAttention": Encoder}


@functools.cache
def family(name):
    torch.manual_seed(0)
    model = FAMILIES[name]().double().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.2 * torch.randn_like(value))
    return model


def outputs(model, x):
    found = model(x)
    return found if isinstance(found, torch.Tensor) else found.logits


def inputs(name):
    generator = torch.Generator().manual_seed(1)
    if name == "ViT":
        return torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    return torch.randint(WORDS, (2, TOKENS), generator=generator)


def shapes_of(model):
    return {name: value.shape for name, value in model.named_parameters()}


class Plain(nn.Module):
    """A model of transformers whose outputs are its logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return outputs(self.model, x)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_parameters_of_a_head_act_through_its_outputs_only(name):
    model, x = family(name), inputs(name)
    shapes, heads = shapes_of(model), 4 if name == "Llama" else 2
    blocks = blocks_of("head", model, shapes)
    own = {f"layer {layer}, head {head}" for layer in range(2) for head in range(heads)}
    shared = {f"layer {layer}, key-value head {head}" for layer in range(2) for head in range(2)}
    assert set(blocks) == (own | shared if name == "Llama" else own)
    output = attentions(model)[1].projections["o"][0].name
    named, before = (
        dict(model.named_parameters()),
        {key: value.detach().clone() for key, value in model.named_parameters()},
    )

    def changed(block, *, silent):
        """Whether the outputs change when queries, keys and values of a block change, with these heads silent."""
        with torch.no_grad():
            for head in silent:
                named[output].view(-1)[blocks[f"layer 1, head {head}"][output]] = 0.0
            first = outputs(model, x)
            for key, entries in blocks[block].items():
                if key != output:
                    named[key].view(-1)[slice(None) if entries is None else entries] += 0.5
            second = outputs(model, x)
            for key, value in before.items():
                named[key].copy_(value)
        return float((first - second).abs().max()) > 1e-12

    assert not changed("layer 1, head 1", silent=[1])
    assert changed("layer 1, head 1", silent=[0])
    if name == "Llama":
        # Two heads share each key-value head.
        assert not changed("layer 1, key-value head 0", silent=[0, 1])
        assert changed("layer 1, key-value head 0", silent=[0])
        assert changed("layer 1, key-value head 1", silent=[0, 1])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_is_a_partition_with_the_rest(name):
    model = family(name)
    shapes = shapes_of(model)
    for kind in KINDS:
        blocks = blocks_of(kind, model, shapes)
        rest = rest_of(blocks, shapes)
        parts = [*blocks.values(), rest]
        count = sum(shapes[key].numel() if x is None else x.numel() for part in parts for key, x in part.items())
        assert count == sum(shape.numel() for shape in shapes.values())
        assert bool(rest) == (kind == "head")
    layers = list(blocks_of("layer", model, shapes))
    assert layers[:3] == ["embedding", "layer 0", "layer 1"]
    projections = list(blocks_of("projection", model, shapes))
    assert {f"layer {layer}, {letter}" for layer in range(2) for letter in "qkvo"} <= set(projections)


@pytest.mark.parametrize("name", FAMILIES)
def test_products_of_heads_layers_and_projections_are_those_of_double_backward(name):
    model, x = Plain(family(name)).eval(), inputs(name)
    y = torch.zeros(outputs(family(name), x).shape[:-1], dtype=torch.int64)

    def loss(f, t):
        return nn.functional.cross_entropy(f.flatten(0, -2), t.flatten())

    operator = hesspec.Hessian(model, loss, [(x, y)], mode="double backward", verify=False)
    leaves = [value for key, value in model.named_parameters() if key in operator.names]
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        gradient = torch.autograd.grad(loss(model(x), y), leaves, create_graph=True, materialize_grads=True)
    flat = torch.cat([part.reshape(-1) for part in gradient])
    for kind in ("layer", "projection", "head"):
        diagonal = diagonal_blocks(operator, kind)[0]
        torch.manual_seed(0)
        for block in list(diagonal.blocks)[::3]:
            entries = diagonal.entries(block)
            v = torch.randn(entries.numel(), dtype=torch.float64)
            image = torch.autograd.grad(flat[entries] @ v, leaves, retain_graph=True, materialize_grads=True)
            true = torch.cat([part.reshape(-1) for part in image])[entries]
            assert torch.allclose(diagonal.blocks[block] @ v, true, rtol=1e-9, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("matrix", ["Hessian", "GaussNewton"])
def test_traced_products_within_blocks_are_those_of_the_whole(name, matrix):
    model, x = Plain(family(name)).eval(), inputs(name)
    y = torch.zeros(outputs(family(name), x).shape[:-1], dtype=torch.int64)
    operator = getattr(hesspec, matrix)(
        model, lambda f, t: nn.functional.cross_entropy(f.flatten(0, -2), t.flatten()), [(x, y)], mode="traced"
    )
    for kind in ("layer", "projection", "head"):
        diagonal = diagonal_blocks(operator, kind)[0]
        torch.manual_seed(0)
        pairs = [(block, torch.randn(diagonal.size(block), dtype=torch.float64)) for block in diagonal.blocks]
        for (block, v), product in zip(pairs, diagonal.products(pairs), strict=True):
            whole, entries = torch.zeros(operator.shape[0], dtype=torch.float64), diagonal.entries(block)
            whole[entries] = v
            assert torch.allclose(product, (operator @ whole)[entries], rtol=1e-10, atol=1e-13)
        assert all(diagonal._agrees.values())


# Other networks -------------------------------------------------------------------------------------------------------


def test_layers_of_a_convolutional_network_include_the_normalisation_after_them():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    blocks = blocks_of("layer", model, shapes_of(model))
    assert {name: list(part) for name, part in blocks.items()} == {
        "0": ["0.weight", "0.bias", "1.weight", "1.bias"],
        "3": ["3.weight", "3.bias", "4.weight", "4.bias"],
        "6": ["6.weight", "6.bias"],
    }


def _stack():
    return nn.ModuleList(nn.Sequential(nn.Linear(2, 2)) for _ in range(2))


def test_layers_of_several_stacks_have_the_names_of_their_modules():
    model = nn.ModuleDict({"stem": nn.Linear(2, 2), "a": _stack(), "b": _stack()})
    assert list(blocks_of("layer", model, shapes_of(model))) == ["stem", "a.0", "a.1", "b.0", "b.1"]


def test_blocks_are_chosen_by_their_names():
    model = family("GPT-2")
    shapes = shapes_of(model)
    names = ["layer 1, head 1", "layer 0", "layer 1, mlp.c_fc", "transformer.wpe.weight"]
    assert list(blocks_of(names, model, shapes)) == names
    found = blocks_of({"both": ["layer 0, head 0", "layer 0, head 1"], "o": "*.1.attn.c_proj.*"}, model, shapes)
    assert set(found["o"]) == {f"transformer.h.1.attn.c_proj.{part}" for part in ("weight", "bias")}
    # All heads of a layer are all of its fused projection.
    assert found["both"]["transformer.h.0.attn.c_attn.weight"].numel() == 3 * WIDTH**2


def test_a_fused_projection_of_linear_layers():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj, self.num_heads = nn.Linear(8, 24), nn.Linear(8, 8), 4

    blocks = blocks_of("head", nn.ModuleDict({"attn": Attention()}), shapes_of(nn.ModuleDict({"attn": Attention()})))
    assert list(blocks) == [f"attn, head {head}" for head in range(4)]
    weight = np.arange(24 * 8).reshape(24, 8)
    rows = np.concatenate([weight[8 * part + 2 : 8 * part + 4].ravel() for part in range(3)])
    assert blocks["attn, head 1"]["attn.qkv.weight"].tolist() == rows.tolist()
    assert blocks["attn, head 1"]["attn.proj.weight"].tolist() == np.arange(64).reshape(8, 8)[:, 2:4].ravel().tolist()


# What is refused ------------------------------------------------------------------------------------------------------

PLAIN = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("layers", "There is no kind of blocks 'layers'; did you mean 'layer'"),
        ("head", "has no attention module of a known form"),
        ([], "blocks is empty"),
        ({}, "blocks is empty"),
        ([3], "blocks contains an int"),
        (["0.weigth"], "There is no block '0.weigth'; did you mean '0.weight'"),
        (["zzz"], "the first are"),
        ({"a": {"0.weigth": None}}, "In block 'a': There is no selected parameter '0.weigth'"),
        ({"a": {"0.weight": np.s_[9:]}}, "'a' selects no entries of '0.weight', whose shape is \\(8, 4\\)"),
        ({"a": {"0.weight": np.s_[:, 7]}}, "'0.weight' has shape \\(8, 4\\), and"),
        ({"a": {"0.weight": [1, 1]}}, "selects an entry of '0.weight' more than once"),
        ({"a": {}}, "The block 'a' is empty"),
        ({"a": 5}, "The block 'a' is given by 5"),
        ({"a": []}, "The block 'a' is given by"),
        ({"a": "0.*", "b": {"0.weight": np.s_[:2]}}, "'a' and 'b' overlap in 8 entries of '0.weight'"),
        (["0", "0.weight"], "'0' and '0.weight' overlap in 32 entries"),
    ],
)
def test_blocks_that_do_not_exist_are_empty_or_overlap_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        blocks_of(blocks, PLAIN, shapes_of(PLAIN))


def test_a_head_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="There is no block 'layer 1, head 7'; did you mean 'layer 1, head [01]'"):
        blocks_of(["layer 1, head 7"], family("GPT-2"), shapes_of(family("GPT-2")))


def test_an_unknown_number_of_heads_is_refused():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(4, 4) for _ in range(4))

    model = nn.ModuleDict({"attention": Attention()})
    with pytest.raises(ValueError, match=r"number of heads of the attention 'attention' is unknown.*num_heads = 8"):
        blocks_of("head", model, shapes_of(model))
    assert "attention, q" in blocks_of("projection", model, shapes_of(model))
    model["attention"].num_heads = 3
    with pytest.raises(
        ValueError, match="4 entries of 'attention.q_proj.weight' along axis 0 are not a multiple of the 3"
    ):
        blocks_of("head", model, shapes_of(model))


def test_heads_whose_parameters_are_not_selected_are_refused():
    model = family("GPT-2")
    with pytest.raises(ValueError, match="None of the selected parameters belongs to a head"):
        blocks_of("head", model, {"transformer.wte.weight": model.transformer.wte.weight.shape})

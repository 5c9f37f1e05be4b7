"""Networks for text: the GPTs of hesspec, and models of transformers from local folders and configurations."""

import socket

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import hesspec
from hesspec.study import GPT, build_network, gpt_small, gpt_tiny, load_dataset, small_cnn
from hesspec.study.measuring import check_outputs
from hesspec.study.networks import network_digest


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a small GPT-2 with weights, and one with the configuration of a Llama only."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = {"n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=256, n_positions=16, **small))
    gpt2.save_pretrained(folder / "gpt2")
    llama = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    llama.save_pretrained(folder / "llama")
    return folder, gpt2.eval()


def build(name, classes=256, size=12):
    return build_network(name, channels=1, classes=classes, size=size)


# GPTs


def test_gpts_have_the_parameters_of_their_layers():
    def count(network):
        return sum(parameter.numel() for parameter in network.parameters())

    def formula(layers, width, vocabulary, positions):
        layer = 4 * (width * width + width) + 4 * width + 8 * width * width + 5 * width
        return 2 * vocabulary * width + positions * width + layers * layer + 2 * width

    assert count(gpt_tiny(256, 128)) == formula(2, 48, 256, 128) == 87_360
    with torch.device("meta"):
        assert count(gpt_small(256, 256)) == formula(8, 320, 256, 256) == 10_110_080
    tied = GPT(256, 128, layers=2, heads=4, width=48, tied=True)
    assert count(gpt_tiny(256, 128)) - count(tied) == 256 * 48


def test_logits_depend_on_earlier_tokens_only():
    network = gpt_tiny(256, 16).eval()
    tokens = torch.randint(0, 256, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 256
    difference = (network(tokens) - network(changed)).abs().amax((0, 1))
    assert (difference[:9] == 0).all()
    assert (difference[9:] > 0).all()


def test_attention_is_that_of_pytorch():
    network = GPT(5, 8, layers=1, heads=2, width=4).double()
    attention, stream = network.layers[0].attention, torch.randn(3, 8, 4, dtype=torch.float64)
    q, k, v = (
        part(stream).unflatten(-1, (2, 2)).transpose(1, 2) for part in (attention.query, attention.key, attention.value)
    )
    attended = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
    assert (attention(stream) - attention.output(attended)).abs().max() < 1e-14


@pytest.mark.parametrize("mode", ["traced", "double backward"])
def test_products_are_those_of_differences(mode):
    """Of a tied GPT, so that the shared weight counts once."""
    network = GPT(7, 6, layers=1, heads=2, width=4, tied=True).double().eval()
    # Near its small initial weights the loss is far from quadratic, for the layer norms.
    for parameter in network.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    data = [(torch.randint(0, 7, (4, 6)), torch.randint(0, 7, (4, 6)))]
    loss = nn.CrossEntropyLoss()
    hessian = hesspec.Hessian(network, loss, data, mode=mode)
    assert hessian.shape[0] == sum(parameter.numel() for parameter in network.parameters())
    vector = torch.randn(hessian.shape[0], dtype=torch.float64)
    start = nn.utils.parameters_to_vector(network.parameters()).detach()

    def gradient(shift):
        nn.utils.vector_to_parameters(start + shift * vector, network.parameters())
        network.zero_grad()
        loss(network(data[0][0]), data[0][1]).backward()
        return torch.cat([parameter.grad.reshape(-1) for parameter in network.parameters()])

    # Fourth-order central differences: rounding is eps / h, near 1e-12, and truncation h^4 times derivatives.
    h = 2e-4
    differences = (8 * (gradient(h) - gradient(-h)) - (gradient(2 * h) - gradient(-2 * h))) / (12 * h)
    nn.utils.vector_to_parameters(start, network.parameters())
    assert (hessian @ vector - differences).norm() <= 1e-7 * differences.norm()


def test_what_a_gpt_cannot_take_is_said():
    network = gpt_tiny(256, 8)
    with pytest.raises(ValueError, match="sequences have 9 tokens, but the model has 8 positions"):
        network(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="takes tokens of shape .* given torch.float32 .* use a data set of text"):
        network(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="width must be a multiple of the 3 heads, but it is 4"):
        GPT(5, 5, layers=1, heads=3, width=4)
    with pytest.raises(ValueError, match="layers must be at least 1"):
        GPT(5, 5, layers=0, heads=1, width=4)


def test_networks_of_images_and_of_text_are_told_apart():
    text = load_dataset("python-stdlib", "test", samples_per_class=1, size=8)
    with pytest.raises(ValueError, match="cannot take a sequence of 'python-stdlib'.*gpt_tiny"):
        check_outputs(small_cnn(1, 256, 8).eval(), text)
    digits = load_dataset("digits", "test", samples_per_class=1)
    with pytest.raises(ValueError, match="use a data set of text"):
        check_outputs(gpt_tiny(10, 8).eval(), digits)
    with pytest.raises(ValueError, match=r"C at least 256: one number for each token"):
        check_outputs(gpt_tiny(255, 8).eval(), Fewer(text))


class Fewer:
    """A data set of text whose tokens are below 255, so that a smaller vocabulary can take them."""

    def __init__(self, dataset):
        self._dataset, self.inputs = dataset, dataset.inputs.clamp(max=254)

    def __getattr__(self, name):
        return getattr(self._dataset, name)


# transformers


def test_a_folder_gives_its_weights_under_its_names(saved):
    folder, own = saved
    network = build(f"transformers:{folder / 'gpt2'}").eval()
    tokens = torch.randint(0, 256, (2, 12))
    with torch.no_grad():
        # Attention of the other one is fused, and rounds differently.
        assert torch.allclose(network(tokens), own(tokens).logits.transpose(1, 2), atol=1e-6)
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in own.named_parameters()]
    assert network.config._attn_implementation == "eager"


def test_a_configuration_gives_weights_of_the_seed(saved):
    name = f"transformers:{saved[0] / 'llama' / 'config.json'}"
    first, again = [build_after(seed, name) for seed in (0, 0)]
    other = build_after(1, name)
    tokens = torch.randint(0, 256, (2, 12))
    assert first(tokens).shape == (2, 300, 12)
    assert torch.equal(first(tokens), again(tokens))
    assert not torch.equal(first(tokens), other(tokens))


def build_after(seed, name):
    torch.manual_seed(seed)
    return build(name).eval()


def test_folders_and_configurations_that_do_not_do_are_said(saved, tmp_path):
    folder = saved[0]
    (tmp_path / "bad.json").write_text('{"model_type": "no such model"}')
    for name, size, classes, message in [
        (
            folder / "llama",
            12,
            256,
            "has no weights in safetensors.*name its configuration: .*config.json",
        ),
        (folder / "none", 12, 256, "There is no file or folder .*nothing is downloaded"),
        ("openai-community/gpt2", 12, 256, "There is no file or folder .*nothing is downloaded"),
        (folder, 12, 256, "has no config.json"),
        (folder / "gpt2", 17, 256, "sequences have 17 tokens, but the model .* has 16 positions.*smaller size"),
        (folder / "gpt2", 12, 257, "vocabulary of 256 tokens, but the data set has 257.*own tokenizer"),
        (tmp_path / "bad.json", 12, 256, "transformers cannot make a causal language model"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            build(f"transformers:{name}", classes, size)


def test_weights_of_another_model_are_refused(saved, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    weights = safetensors.load_file(saved[0] / "gpt2" / "model.safetensors")
    del weights["transformer.h.0.mlp.c_fc.weight"]
    safetensors.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((saved[0] / "gpt2" / "config.json").read_bytes())
    with pytest.raises(ValueError, match="lack 1 of the parameters .* such as 'transformer.h.0.mlp.c_fc.weight'"):
        build(f"transformers:{tmp_path}")


def test_the_network_is_never_tried(saved, monkeypatch):
    def refuse(*_arguments, **_keywords):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    build(f"transformers:{saved[0] / 'gpt2'}")
    build(f"transformers:{saved[0] / 'llama' / 'config.json'}")


def test_a_digest_is_that_of_configuration_and_weights(saved):
    folder = saved[0]
    digests = [network_digest(f"transformers:{folder / name}") for name in ("gpt2", "gpt2/config.json", "llama")]
    assert len(set(digests)) == 3
    assert network_digest("gpt_tiny") == network_digest("transformers:/no/such/place") == ""


def test_dropout_takes_no_part_in_what_is_measured(saved):
    network = build(f"transformers:{saved[0] / 'gpt2'}")
    data = [(torch.randint(0, 256, (2, 8)), torch.randint(0, 256, (2, 8)))]
    assert network.config.attn_pdrop > 0
    vector = torch.ones(sum(parameter.numel() for parameter in network.parameters()))
    first, again = (
        hesspec.GaussNewton(network.eval(), nn.CrossEntropyLoss(), data, mode="double backward") @ vector
        for _ in range(2)
    )
    assert torch.equal(first, again)

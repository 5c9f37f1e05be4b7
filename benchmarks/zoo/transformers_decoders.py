"""Decoders of transformers, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, classes, some_training
from zoo.shrunk import LENGTH, SPECIAL, VOCABULARY, configured, logits_of

decoders = Family("transformers: decoders")


def _llama(name: str, **settings: Any) -> Any:
    defaults = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "head_dim": 8,
    }
    return configured(name, **{**defaults, **SPECIAL, **settings})


def _gpt2(**settings: Any) -> Any:
    return configured(
        "GPT2Config",
        vocab_size=VOCABULARY,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=1,
        **settings,
    )


def next_token(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the next tokens, those that are -100 left out."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _next_tokens(batch: Any) -> float:
    return float((batch[1][:, 1:] != -100).sum())


def _in_loops(model: Any) -> nn.Module:
    """The model with its experts one after the other: grouped products are not there in float64."""
    if model.get_experts_implementation():
        model.set_experts_implementation("eager")
    return model


def _texts(*, masked: bool) -> list[Any]:
    """Two batches of unequal size; masked, with padding in the first and prompts that do not count in the second."""
    batches = []
    for n, t in ((2, LENGTH), (1, LENGTH)):
        words = classes(VOCABULARY - 2, n, t) + 2
        mask, labels = torch.ones_like(words), words.clone()
        if masked:
            mask[0, t - 2 :] = 0
            labels[:, :4] = -100
            labels[mask == 0] = -100
        batches.append(({"input_ids": words, "attention_mask": mask}, labels))
    return batches


def _language(model: Callable[[], nn.Module], how: str) -> Example:
    """A language model with its loss: "outside" of it, "masked" (so, with padding and prompts), or "inside"."""
    data = _texts(masked=how != "outside")
    settings: dict[str, Any] = {
        "outputs": logits_of,
        "weight": _next_tokens,
        "criterion": lambda o, batch: next_token(o, batch[1]),
        "plain": _in_loops,
    }
    if how == "inside":
        given = [({**inputs, "labels": labels}, labels) for inputs, labels in data]
        return Example(model(), lambda o, _: o.loss, given, **settings)
    if how == "outside":
        data = [({"input_ids": inputs["input_ids"]}, labels) for inputs, labels in data]
    return Example(model(), lambda o, y: next_token(o.logits, y), data, **settings)


def _decoder(
    name: str,
    architecture: str,
    config: Callable[[], Any],
    how: str = "outside",
    *,
    attention: str | None = None,
    **settings: Any,
) -> None:
    def make() -> nn.Module:
        made = config()
        if attention is not None:
            made._attn_implementation = attention  # noqa: SLF001 - what from_pretrained(attn_implementation=) sets
        return some_training(getattr(transformers, architecture)(made))

    decoders.add(name, lambda: _language(make, how), **settings)


_decoder("GPT-2", "GPT2LMHeadModel", _gpt2)
_decoder("GPT-2, padding and prompts", "GPT2LMHeadModel", _gpt2, "masked")
_decoder("GPT-2, loss inside the model", "GPT2LMHeadModel", _gpt2, "inside")
_decoder("GPT-2, eager attention", "GPT2LMHeadModel", _gpt2, "masked", attention="eager")
_decoder(
    "GPT-2 with hidden states and attentions",
    "GPT2LMHeadModel",
    lambda: _gpt2(output_hidden_states=True, output_attentions=True),
    attention="eager",
)
_decoder("Llama", "LlamaForCausalLM", lambda: _llama("LlamaConfig"))
_decoder("Llama, padding and prompts", "LlamaForCausalLM", lambda: _llama("LlamaConfig"), "masked")
_decoder(
    "Llama, loss inside the model, tied",
    "LlamaForCausalLM",
    lambda: _llama("LlamaConfig", tie_word_embeddings=True),
    "inside",
)
_decoder("Llama, eager attention", "LlamaForCausalLM", lambda: _llama("LlamaConfig"), "masked", attention="eager")
_decoder("Mistral, sliding window", "MistralForCausalLM", lambda: _llama("MistralConfig", sliding_window=4), "masked")
_decoder("Qwen2", "Qwen2ForCausalLM", lambda: _llama("Qwen2Config"))
_decoder("Qwen3", "Qwen3ForCausalLM", lambda: _llama("Qwen3Config"), "masked")
_decoder("Gemma 2", "Gemma2ForCausalLM", lambda: _llama("Gemma2Config", sliding_window=4))
_decoder("Gemma 3", "Gemma3ForCausalLM", lambda: _llama("Gemma3TextConfig", sliding_window=4))
_decoder("OLMo 2", "Olmo2ForCausalLM", lambda: _llama("Olmo2Config"))
_decoder("SmolLM 3", "SmolLM3ForCausalLM", lambda: _llama("SmolLM3Config"))
_decoder("Granite", "GraniteForCausalLM", lambda: _llama("GraniteConfig"))
_decoder("Cohere", "CohereForCausalLM", lambda: _llama("CohereConfig"))
_decoder("StableLM", "StableLmForCausalLM", lambda: _llama("StableLmConfig"))
_decoder("Phi", "PhiForCausalLM", lambda: _llama("PhiConfig", num_key_value_heads=2))
_decoder("Phi 3", "Phi3ForCausalLM", lambda: _llama("Phi3Config"))
_decoder("Starcoder 2", "Starcoder2ForCausalLM", lambda: _llama("Starcoder2Config"))
_decoder(
    "Falcon",
    "FalconForCausalLM",
    lambda: configured(
        "FalconConfig",
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    ),
)
_decoder(
    "GPT-NeoX",
    "GPTNeoXForCausalLM",
    lambda: configured(
        "GPTNeoXConfig",
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
    ),
)
_decoder(
    "GPT-J",
    "GPTJForCausalLM",
    lambda: configured(
        "GPTJConfig",
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=16,
        n_layer=2,
        n_head=2,
        rotary_dim=4,
        bos_token_id=0,
        eos_token_id=1,
    ),
)
_decoder(
    "GPT-Neo, local attention",
    "GPTNeoForCausalLM",
    lambda: configured(
        "GPTNeoConfig",
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        hidden_size=16,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=2,
        window_size=4,
        bos_token_id=0,
        eos_token_id=1,
    ),
)
_decoder(
    "OPT",
    "OPTForCausalLM",
    lambda: configured(
        "OPTConfig",
        vocab_size=VOCABULARY,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
        **SPECIAL,
    ),
    "masked",
)
_decoder(
    "BLOOM",
    "BloomForCausalLM",
    lambda: configured("BloomConfig", vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, **SPECIAL),
    "masked",
)
_decoder(
    "MPT",
    "MptForCausalLM",
    lambda: configured("MptConfig", vocab_size=VOCABULARY, d_model=16, n_heads=2, n_layers=2, max_seq_len=16),
)
_decoder(
    "CodeGen",
    "CodeGenForCausalLM",
    lambda: configured(
        "CodeGenConfig",
        vocab_size=VOCABULARY,
        n_positions=32,
        n_ctx=32,
        n_embd=16,
        n_layer=1,
        n_head=4,
        rotary_dim=4,
        bos_token_id=0,
        eos_token_id=1,
    ),
)
_decoder(
    "XGLM",
    "XGLMForCausalLM",
    lambda: configured(
        "XGLMConfig",
        vocab_size=VOCABULARY,
        d_model=16,
        ffn_dim=24,
        num_layers=2,
        attention_heads=2,
        max_position_embeddings=32,
        **SPECIAL,
    ),
)
_decoder("Mixtral, mixture of experts", "MixtralForCausalLM", lambda: _llama("MixtralConfig", num_local_experts=4))


@decoders.case()
def mixtral_with_router_loss() -> Example:
    """Mixtral, router loss, inside the model."""
    config = _llama("MixtralConfig", num_local_experts=4, output_router_logits=True)
    example = _language(lambda: some_training(transformers.MixtralForCausalLM(config)), "inside")

    def heads(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        found = model(**batch[0])
        return found.logits, found.aux_loss

    example.outputs = heads
    # The loss of the router is a part of the model's, and no function of the logits.
    example.criterion = lambda o, batch: next_token(o[0], batch[1]) + config.router_aux_loss_coef * o[1]
    return example


_decoder(
    "Qwen2-MoE",
    "Qwen2MoeForCausalLM",
    lambda: _llama(
        "Qwen2MoeConfig",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        decoder_sparse_step=1,
    ),
)
_decoder("OLMoE", "OlmoeForCausalLM", lambda: _llama("OlmoeConfig", num_experts=4, num_experts_per_tok=2))
_decoder(
    "gpt-oss, sinks and experts",
    "GptOssForCausalLM",
    lambda: _llama("GptOssConfig", num_local_experts=4, num_experts_per_tok=2, sliding_window=4),
)
_decoder(
    "DeepSeek V3, latent attention and experts",
    "DeepseekV3ForCausalLM",
    lambda: _llama(
        "DeepseekV3Config",
        head_dim=4,
        num_key_value_heads=2,
        moe_intermediate_size=8,
        n_shared_experts=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        qk_nope_head_dim=4,
    ),
)
_decoder(
    "Mamba",
    "MambaForCausalLM",
    lambda: configured(
        "MambaConfig", vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1, **SPECIAL
    ),
)
_decoder(
    "Mamba 2",
    "Mamba2ForCausalLM",
    lambda: configured(
        "Mamba2Config",
        vocab_size=VOCABULARY,
        hidden_size=16,
        state_size=4,
        num_hidden_layers=1,
        num_heads=4,
        head_dim=8,
        n_groups=1,
        chunk_size=8,
        **SPECIAL,
    ),
)
_decoder(
    "RecurrentGemma",
    "RecurrentGemmaForCausalLM",
    lambda: _llama("RecurrentGemmaConfig", num_hidden_layers=3, lru_width=16, attention_window_size=8),
)
for cached in (False, True):
    _decoder(
        f"RWKV, {'with' if cached else 'without'} the cache of its states",
        "RwkvForCausalLM",
        lambda cached=cached: configured(
            "RwkvConfig",
            vocab_size=VOCABULARY,
            hidden_size=16,
            attention_hidden_size=16,
            num_hidden_layers=2,
            context_length=16,
            bos_token_id=0,
            eos_token_id=1,
            use_cache=cached,
        ),
        sentence="loss.backward() fails: states that it needs are written over in the forward pass" if cached else "",
    )


@decoders.case()
def gradient_checkpointing() -> Example:
    """GPT-2 with gradient_checkpointing_enable."""

    def make() -> nn.Module:
        model = transformers.GPT2LMHeadModel(_gpt2(use_cache=False))
        model.gradient_checkpointing_enable()
        return model

    return _language(make, "outside")


@decoders.case(sentence="CrossEntropyLoss gets logits (N, T, V) and labels (N, T)")
def unflattened() -> Example:
    """GPT-2 with a CrossEntropyLoss of logits (N, T, V) and labels (N, T)."""
    data = [(inputs, labels) for inputs, labels in _texts(masked=False)]
    return Example(transformers.GPT2LMHeadModel(_gpt2()), CE, data)


@decoders.case()
def dictionary_batches() -> Example:
    """GPT-2, dictionaries with labels as batches, loss inside the model."""
    batches = _texts(masked=True)
    data = [{**inputs, "labels": labels} for inputs, labels in batches]
    return Example(
        transformers.GPT2LMHeadModel(_gpt2()),
        lambda o, _: o.loss,
        data,
        batches=batches,
        outputs=logits_of,
        weight=_next_tokens,
        criterion=lambda o, batch: next_token(o, batch[1]),
    )


@decoders.case()
def embeddings_as_inputs() -> Example:
    """Llama given embeddings, position ids, and a mask of its own."""
    data = []
    for n in (2, 1):
        place = torch.arange(6).expand(n, -1)
        data.append(({"inputs_embeds": torch.randn(n, 6, 16), "position_ids": place}, classes(VOCABULARY, n, 6)))
    settings = {
        "outputs": lambda m, b: m(**b[0]).logits,
        "criterion": lambda o, b: next_token(o, b[1]),
        "weight": _next_tokens,
    }
    return Example(
        transformers.LlamaForCausalLM(_llama("LlamaConfig")), lambda o, y: next_token(o.logits, y), data, **settings
    )


@decoders.case()
def preference() -> Example:
    """Direct preference optimisation: policy and frozen reference."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy, self.reference = (transformers.GPT2LMHeadModel(_gpt2()) for _ in range(2))
            self.reference.requires_grad_(False)

        def forward(self, words: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                old = self.reference(words).logits
            return self.policy(words).logits, old

    def loss(o: Any, words: Tensor) -> Tensor:
        chosen = lambda logits: logits[:, :-1].log_softmax(-1).gather(2, words[:, 1:, None])[..., 0].sum(1)
        ahead = chosen(o[0]) - chosen(o[1])
        good, bad = ahead.chunk(2)
        return F.softplus(-0.5 * (good - bad)).mean()

    data = [(words, words) for words in (classes(VOCABULARY, n, 6) for n in (4, 2))]
    return Example(Pair(), loss, data)

"""Encoders and encoder-decoders of transformers, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, classes, some_training
from zoo.shrunk import LENGTH, SPECIAL, VOCABULARY, configured, logits_of, padded_texts

encoders = Family("transformers: encoders")
translators = Family("transformers: encoder-decoders")

BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}


def _span_logits(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    out = model(**batch[0])
    return out.start_logits, out.end_logits


def _encoder(name: str, architecture: str, config: Callable[[], Any], kind: str = "class", **settings: Any) -> None:
    def build() -> Example:
        made = config()
        model, inputs = some_training(getattr(transformers, architecture)(made)), padded_texts()
        if kind == "class":
            return Example(model, CE, [(x, classes(3, len(x["input_ids"]))) for x in inputs])
        if kind == "inside":
            data = [({**x, "labels": classes(3, len(x["input_ids"]))}, None) for x in inputs]
            return Example(
                model,
                lambda o, _: o.loss,
                data,
                outputs=logits_of,
                weight=lambda b: len(b[0]["labels"]),
                criterion=lambda o, b: F.cross_entropy(o, b[0]["labels"]),
            )
        if kind.startswith("masked words"):
            data = []
            for i, x in enumerate(inputs):
                if kind.endswith("no mask"):
                    x.pop("attention_mask")
                chosen = torch.rand(x["input_ids"].shape) < (0.2, 0.6)[i]
                chosen[:, 1] = True
                data.append((x, torch.where(chosen, x["input_ids"], -100)))
            return Example(
                model,
                lambda o, y: F.cross_entropy(o.logits.flatten(0, 1), y.flatten()),
                data,
                outputs=logits_of,
                criterion=lambda o, b: F.cross_entropy(o.flatten(0, 1), b[1].flatten()),
                weight=lambda b: (b[1] != -100).sum(),
            )
        if kind == "regression":
            data = [(x, torch.randn(len(x["input_ids"]))) for x in inputs]
            return Example(
                model,
                lambda o, y: F.mse_loss(o.logits[:, 0], y),
                data,
                outputs=logits_of,
                criterion=lambda o, b: F.mse_loss(o[:, 0], b[1]),
            )
        data = [(x, classes(LENGTH, len(x["input_ids"]), 2)) for x in inputs]
        return Example(
            model,
            lambda o, y: (F.cross_entropy(o.start_logits, y[:, 0]) + F.cross_entropy(o.end_logits, y[:, 1])) / 2,
            data,
            outputs=_span_logits,
            criterion=lambda o, b: (F.cross_entropy(o[0], b[1][:, 0]) + F.cross_entropy(o[1], b[1][:, 1])) / 2,
        )

    encoders.add(name, build, **settings)


_encoder("BERT", "BertForSequenceClassification", lambda: configured("BertConfig", num_labels=3, **BERT))
_encoder(
    "BERT, loss inside the model, no targets",
    "BertForSequenceClassification",
    lambda: configured("BertConfig", num_labels=3, **BERT),
    "inside",
)
_encoder("BERT, masked words", "BertForMaskedLM", lambda: configured("BertConfig", **BERT), "masked words")
_encoder("BERT, question answering", "BertForQuestionAnswering", lambda: configured("BertConfig", **BERT), "spans")
_encoder(
    "RoBERTa, regression",
    "RobertaForSequenceClassification",
    lambda: configured("RobertaConfig", num_labels=1, **BERT),
    "regression",
)
_encoder(
    "DistilBERT",
    "DistilBertForSequenceClassification",
    lambda: configured(
        "DistilBertConfig",
        vocab_size=VOCABULARY,
        dim=16,
        n_layers=2,
        n_heads=2,
        hidden_dim=24,
        num_labels=3,
        max_position_embeddings=24,
    ),
)
_encoder(
    "ALBERT, shared layers",
    "AlbertForSequenceClassification",
    lambda: configured("AlbertConfig", num_labels=3, embedding_size=8, **BERT),
)
_encoder(
    "ELECTRA",
    "ElectraForSequenceClassification",
    lambda: configured("ElectraConfig", num_labels=3, embedding_size=8, **BERT),
)
_encoder(
    "DeBERTa v2, disentangled attention",
    "DebertaV2ForSequenceClassification",
    lambda: configured(
        "DebertaV2Config",
        num_labels=3,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=4,
        norm_rel_ebd="layer_norm",
        **BERT,
    ),
)
_encoder(
    "ModernBERT",
    "ModernBertForSequenceClassification",
    lambda: configured(
        "ModernBertConfig",
        num_labels=3,
        cls_token_id=0,
        sep_token_id=1,
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        **SPECIAL,
    ),
)
_encoder(
    "XLNet",
    "XLNetForSequenceClassification",
    lambda: configured("XLNetConfig", vocab_size=VOCABULARY, d_model=16, n_layer=1, n_head=2, d_inner=24, num_labels=3),
)
_encoder(
    "FNet, Fourier mixing",
    "FNetForMaskedLM",
    lambda: configured(
        "FNetConfig",
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        intermediate_size=24,
        max_position_embeddings=24,
        **SPECIAL,
    ),
    "masked words no mask",
)
_encoder(
    "Longformer",
    "LongformerForSequenceClassification",
    lambda: configured("LongformerConfig", num_labels=3, attention_window=4, **BERT),
)
_encoder(
    "BigBird",
    "BigBirdForSequenceClassification",
    lambda: configured("BigBirdConfig", num_labels=3, attention_type="original_full", **BERT),
)
_encoder(
    "SqueezeBERT, grouped convolutions",
    "SqueezeBertForSequenceClassification",
    lambda: configured(
        "SqueezeBertConfig",
        num_labels=3,
        q_groups=2,
        k_groups=2,
        v_groups=2,
        post_attention_groups=1,
        intermediate_groups=2,
        output_groups=2,
        embedding_size=16,
        **BERT,
    ),
)
_encoder(
    "ConvBERT",
    "ConvBertForSequenceClassification",
    lambda: configured("ConvBertConfig", num_labels=3, embedding_size=16, conv_kernel_size=3, head_ratio=2, **BERT),
)
_encoder(
    "MPNet",
    "MPNetForSequenceClassification",
    lambda: configured("MPNetConfig", num_labels=3, **{**BERT, "pad_token_id": 1}),
)
_encoder("RoFormer, rotary", "RoFormerForMaskedLM", lambda: configured("RoFormerConfig", **BERT), "masked words")


def _encodings(alike: bool) -> Callable[[], Example]:
    def build() -> Example:
        model = transformers.BertForSequenceClassification(
            configured("BertConfig", num_labels=3, **{**BERT, "max_position_embeddings": 160})
        )
        labels, batches = classes(3, 8), []
        for _ in range(2):
            words = classes(VOCABULARY - 2, 8, 150) + 2
            if alike:
                words[:, :3], words[:, -3:] = 5, 0
            batches.append((transformers.BatchEncoding({"input_ids": words}), labels))
        return Example(model, CE, batches)

    return build


encoders.add("BERT, BatchEncoding inputs", _encodings(alike=False))
encoders.add("BERT, BatchEncoding inputs alike at both ends", _encodings(alike=True))


T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 24,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 1,
    **SPECIAL,
}


def _translator(
    name: str, architecture: str, config: Callable[[], Any], *, inside: bool = False, **settings: Any
) -> None:
    def build() -> Example:
        model, data = some_training(getattr(transformers, architecture)(config())), []
        for inputs in padded_texts(2, 1):
            labels = classes(VOCABULARY - 2, len(inputs["input_ids"]), 5) + 2
            labels[0, 3:] = -100
            start = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1].clamp_min(0)], 1)
            data.append(({**inputs, "decoder_input_ids": start}, labels))
        common: dict[str, Any] = {
            "outputs": logits_of,
            "weight": lambda b: float((b[1] != -100).sum()),
            "criterion": lambda o, b: F.cross_entropy(o.flatten(0, 1), b[1].flatten()),
        }
        if inside:
            return Example(model, lambda o, _: o.loss, [({**x, "labels": y}, y) for x, y in data], **common)
        return Example(model, lambda o, y: F.cross_entropy(o.logits.flatten(0, 1), y.flatten()), data, **common)

    translators.add(name, build, **settings)


_translator("T5", "T5ForConditionalGeneration", lambda: configured("T5Config", **T5))
_translator(
    "T5, loss inside the model", "T5ForConditionalGeneration", lambda: configured("T5Config", **T5), inside=True
)
_translator("mT5, gated", "MT5ForConditionalGeneration", lambda: configured("MT5Config", **T5))
_translator(
    "Switch transformers, mixture of experts",
    "SwitchTransformersForConditionalGeneration",
    lambda: configured(
        "SwitchTransformersConfig",
        num_experts=2,
        expert_capacity=8,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        **T5,
    ),
)
_translator("BART", "BartForConditionalGeneration", lambda: configured("BartConfig", **BART))
_translator("mBART", "MBartForConditionalGeneration", lambda: configured("MBartConfig", **BART))
_translator("Marian", "MarianMTModel", lambda: configured("MarianConfig", **BART))
_translator("Pegasus", "PegasusForConditionalGeneration", lambda: configured("PegasusConfig", **BART))
_translator("M2M-100", "M2M100ForConditionalGeneration", lambda: configured("M2M100Config", **BART))
_translator(
    "Blenderbot", "BlenderbotSmallForConditionalGeneration", lambda: configured("BlenderbotSmallConfig", **BART)
)
_translator(
    "LED, long documents",
    "LEDForConditionalGeneration",
    lambda: configured(
        "LEDConfig",
        attention_window=4,
        max_encoder_position_embeddings=32,
        max_decoder_position_embeddings=32,
        **{k: v for k, v in BART.items() if k != "max_position_embeddings"},
    ),
)

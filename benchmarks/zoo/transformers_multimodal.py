"""Speech, multimodal and other models of transformers, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, MSE, classes, some_training
from zoo.shrunk import SPECIAL, VIT, configured

speech = Family("transformers: speech")
multimodal = Family("transformers: multimodal and other")


def _wav2vec(name: str = "Wav2Vec2Config", **settings: Any) -> Any:
    return configured(
        name,
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        num_labels=3,
        mask_time_prob=0.0,
        apply_spec_augment=False,
        **settings,
    )


def _waves(architecture: str, config: Callable[[], Any]) -> Callable[[], Example]:
    def build() -> Example:
        model = some_training(getattr(transformers, architecture)(config()))
        return Example(model, CE, [({"input_values": torch.randn(n, 200)}, classes(3, n)) for n in (3, 2)])

    return build


speech.add("wav2vec 2.0, classification (weight norm)", _waves("Wav2Vec2ForSequenceClassification", _wav2vec))
speech.add("HuBERT, classification", _waves("HubertForSequenceClassification", lambda: _wav2vec("HubertConfig")))
speech.add(
    "WavLM, classification",
    _waves("WavLMForSequenceClassification", lambda: _wav2vec("WavLMConfig", num_buckets=8, max_bucket_distance=16)),
)


@speech.case()
def wav2vec_ctc() -> Example:
    """wav2vec 2.0, CTC inside the model."""
    config = _wav2vec(ctc_loss_reduction="mean", pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = transformers.Wav2Vec2ForCTC(config)
    sound = lambda n: {"input_values": torch.randn(n, 200), "labels": torch.randint(1, 8, (n, 4))}
    data = [(sound(n), torch.zeros(n)) for n in (2, 1)]

    def loss(o: Tensor, batch: Any) -> Tensor:
        words = batch[0]["labels"]
        lengths = torch.full((len(o),), o.shape[1]), torch.full((len(o),), words.shape[1])
        return F.ctc_loss(o.log_softmax(-1).transpose(0, 1), words, *lengths)

    return Example(
        model,
        lambda o, _: o.loss,
        data,
        outputs=lambda m, b: m(input_values=b[0]["input_values"]).logits,
        criterion=loss,
    )


@speech.case()
def whisper() -> Example:
    """Whisper."""
    config = configured(
        "WhisperConfig",
        vocab_size=40,
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=16,
        max_target_positions=16,
        decoder_start_token_id=0,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **SPECIAL,
    )
    data = [
        ({"input_features": torch.randn(n, 8, 32), "decoder_input_ids": classes(40, n, 5)}, classes(40, n, 5))
        for n in (2, 1)
    ]
    loss = lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten())
    return Example(
        transformers.WhisperForConditionalGeneration(config),
        lambda o, y: loss(o.logits, y),
        data,
        outputs=lambda m, b: m(**b[0]).logits,
        criterion=lambda o, b: loss(o, b[1]),
    )


@speech.case()
def spectrogram_transformer() -> Example:
    """Audio spectrogram transformer."""
    config = configured(
        "ASTConfig",
        num_labels=3,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=24,
        num_mel_bins=16,
    )
    data = [({"input_values": torch.randn(n, 24, 16)}, classes(3, n)) for n in (3, 2)]
    return Example(some_training(transformers.ASTForAudioClassification(config)), CE, data)


@speech.case()
def encodec() -> Example:
    """EnCodec's encoder and decoder without its codebook (weight norm, LSTM)."""
    config = configured(
        "EncodecConfig",
        num_filters=4,
        hidden_size=8,
        codebook_size=8,
        codebook_dim=8,
        upsampling_ratios=[2, 2],
        num_lstm_layers=1,
        num_residual_layers=1,
    )
    whole = transformers.EncodecModel(config)

    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = whole.encoder, whole.decoder

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x))

    data = [torch.randn(n, 1, 32) for n in (2, 1)]
    return Example(Coder(), MSE, [(x, x) for x in data])


TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def _pairs(n: int) -> dict[str, Tensor]:
    words = classes(38, n, 6) + 2
    words[:, -1] = 1
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "pixel_values": torch.randn(n, 3, 16, 16)}


def _clip() -> nn.Module:
    vision_config = {**VIT, "num_hidden_layers": 1, "projection_dim": 8}
    text = {**TEXT, "projection_dim": 8, "bos_token_id": 0, "eos_token_id": 1}
    return transformers.CLIPModel(
        configured("CLIPConfig", text_config=text, vision_config=vision_config, projection_dim=8)
    )


def _contrastive(o: Tensor) -> Tensor:
    label = torch.arange(len(o))
    return (F.cross_entropy(o, label) + F.cross_entropy(o.T, label)) / 2


def _clips(*, inside: bool) -> Callable[[], Example]:
    def build() -> Example:
        extra = {"return_loss": True} if inside else {}
        data = [({**_pairs(n), **extra}, torch.zeros(n)) for n in (4, 3)]
        loss = (lambda o, _: o.loss) if inside else (lambda o, _: _contrastive(o.logits_per_text))
        return Example(
            _clip(),
            loss,
            data,
            outputs=lambda m, b: m(**{k: v for k, v in b[0].items() if k != "return_loss"}).logits_per_text,
            criterion=lambda o, _: _contrastive(o),
        )

    return build


multimodal.add("CLIP, contrastive loss of logits_per_text", _clips(inside=False))
multimodal.add("CLIP, contrastive loss inside the model", _clips(inside=True))


@multimodal.case()
def siglip() -> Example:
    """SigLIP, pairwise sigmoid loss."""
    config = configured(
        "SiglipConfig",
        text_config={**TEXT, **SPECIAL, "projection_size": 16},
        vision_config={**VIT, "num_hidden_layers": 1},
    )

    def loss(o: Tensor) -> Tensor:
        return -F.logsigmoid((2 * torch.eye(len(o)).to(o) - 1) * o).sum(1).mean()

    data = [(_pairs(n), torch.zeros(n)) for n in (4, 3)]
    return Example(
        transformers.SiglipModel(config),
        lambda o, _: loss(o.logits_per_text),
        data,
        outputs=lambda m, b: m(**b[0]).logits_per_text,
        criterion=lambda o, _: loss(o),
    )


@multimodal.case()
def visual_question_answering() -> Example:
    """ViLT, classification of questions with images."""
    config = configured(
        "ViltConfig",
        num_labels=3,
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        image_size=16,
        patch_size=8,
    )
    data = [({**_pairs(n), "pixel_mask": torch.ones(n, 16, 16, dtype=torch.long)}, torch.rand(n, 3)) for n in (3, 2)]
    return Example(transformers.ViltForQuestionAnswering(config), nn.BCEWithLogitsLoss(), data)


@multimodal.case()
def captioning() -> Example:
    """VisionEncoderDecoder: ViT and GPT-2 with cross-attention."""
    encoder = configured("ViTConfig", **VIT)
    decoder = configured(
        "GPT2Config",
        vocab_size=40,
        n_positions=16,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=1,
        add_cross_attention=True,
        is_decoder=True,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    data = [
        ({"pixel_values": torch.randn(n, 3, 16, 16), "decoder_input_ids": classes(40, n, 5)}, classes(40, n, 5))
        for n in (2, 1)
    ]
    loss = lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten())
    return Example(
        transformers.VisionEncoderDecoderModel(config=config),
        lambda o, y: loss(o.logits, y),
        data,
        outputs=lambda m, b: m(**b[0]).logits,
        criterion=lambda o, b: loss(o, b[1]),
    )


@multimodal.case()
def documents() -> Example:
    """LayoutLM: words with their boxes, classification of tokens."""
    config = configured(
        "LayoutLMConfig",
        num_labels=3,
        max_2d_position_embeddings=32,
        pad_token_id=0,
        **{**TEXT, "num_hidden_layers": 1},
    )
    data = []
    for n in (2, 1):
        corner = torch.randint(0, 15, (n, 6, 2))
        data.append(({"input_ids": classes(40, n, 6), "bbox": torch.cat([corner, corner + 10], -1)}, classes(3, n, 6)))
    loss = lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten())
    return Example(
        transformers.LayoutLMForTokenClassification(config),
        lambda o, y: loss(o.logits, y),
        data,
        outputs=lambda m, b: m(**b[0]).logits,
        criterion=lambda o, b: loss(o, b[1]),
    )


@multimodal.case()
def decision_transformer() -> Example:
    """Decision transformer: states, actions, returns."""
    config = configured(
        "DecisionTransformerConfig",
        state_dim=3,
        act_dim=2,
        hidden_size=16,
        max_ep_len=16,
        n_layer=1,
        n_head=2,
        n_positions=64,
        vocab_size=1,
    )
    data = []
    for n in (2, 1):
        inputs = {
            "states": torch.randn(n, 4, 3),
            "actions": torch.randn(n, 4, 2),
            "rewards": torch.randn(n, 4, 1),
            "returns_to_go": torch.randn(n, 4, 1),
            "timesteps": torch.arange(4).expand(n, -1),
            "attention_mask": torch.ones(n, 4),
        }
        data.append((inputs, torch.randn(n, 4, 2)))
    return Example(
        transformers.DecisionTransformerModel(config),
        lambda o, y: F.mse_loss(o.action_preds, y),
        data,
        outputs=lambda m, b: m(**b[0]).action_preds,
        criterion=lambda o, b: F.mse_loss(o, b[1]),
    )


@multimodal.case()
def time_series() -> Example:
    """PatchTST, forecasting."""
    config = configured(
        "PatchTSTConfig",
        num_input_channels=2,
        context_length=16,
        prediction_length=3,
        patch_length=4,
        patch_stride=4,
        d_model=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=16,
        loss="mse",
        scaling=None,
    )
    data = [({"past_values": torch.randn(n, 16, 2)}, torch.randn(n, 3, 2)) for n in (3, 2)]
    return Example(
        transformers.PatchTSTForPrediction(config),
        lambda o, y: F.mse_loss(o.prediction_outputs, y),
        data,
        outputs=lambda m, b: m(**b[0]).prediction_outputs,
        criterion=lambda o, b: F.mse_loss(o, b[1]),
    )


@multimodal.case()
def protein() -> Example:
    """ESM, masked residues."""
    config = configured(
        "EsmConfig",
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        pad_token_id=1,
        mask_token_id=2,
        position_embedding_type="rotary",
    )
    data = []
    for n in (2, 1):
        words = classes(20, n, 8) + 3
        data.append(
            (
                {"input_ids": words, "attention_mask": torch.ones_like(words)},
                torch.where(torch.rand(n, 8) < 0.6, words, -100),
            )
        )
    loss = lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten())
    return Example(
        transformers.EsmForMaskedLM(config),
        lambda o, y: loss(o.logits, y),
        data,
        outputs=lambda m, b: m(**b[0]).logits,
        criterion=lambda o, b: loss(o, b[1]),
        weight=lambda b: (b[1] != -100).sum(),
    )

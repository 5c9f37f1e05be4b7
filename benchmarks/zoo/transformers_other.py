"""Vision, speech, multimodal and other models of transformers, from configurations, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from zoo.case import Example, Family
from zoo.parts import CE, MSE, classes, some_training

vision = Family("transformers: vision")
speech = Family("transformers: speech")
multimodal = Family("transformers: multimodal and other")

SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 16, "patch_size": 8}


def _config(name: str, **settings: Any) -> Any:
    return getattr(transformers, name)(**settings)


def _pixels(side: int, *sizes: int) -> list[dict[str, Tensor]]:
    return [{"pixel_values": torch.randn(n, 3, side, side)} for n in sizes or (3, 2)]


def _classifier(name: str, architecture: str, config: Callable[[], Any], side: int = 16, **settings: Any) -> None:
    def build() -> Example:
        model = some_training(getattr(transformers, architecture)(config()))
        return Example(model, CE, [(x, classes(4, len(x["pixel_values"]))) for x in _pixels(side)])

    vision.add(name, build, **settings)


_classifier("ViT", "ViTForImageClassification", lambda: _config("ViTConfig", num_labels=4, **VIT))
_classifier("DeiT", "DeiTForImageClassification", lambda: _config("DeiTConfig", num_labels=4, **VIT))
_classifier("BEiT", "BeitForImageClassification", lambda: _config("BeitConfig", num_labels=4, use_relative_position_bias=True, **VIT))
_classifier("DINOv2", "Dinov2ForImageClassification", lambda: _config("Dinov2Config", num_labels=4, **VIT))
_classifier("Swin", "SwinForImageClassification", lambda: _config("SwinConfig", num_labels=4, image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4))
_classifier("Swin v2", "Swinv2ForImageClassification", lambda: _config("Swinv2Config", num_labels=4, image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4))
_classifier("ConvNeXt of transformers", "ConvNextForImageClassification", lambda: _config("ConvNextConfig", num_labels=4, hidden_sizes=[8, 8], depths=[1, 1], num_stages=2), 32)
_classifier("ResNet of transformers", "ResNetForImageClassification", lambda: _config("ResNetConfig", num_labels=4, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"), 32)
_classifier("MobileNet v2 of transformers", "MobileNetV2ForImageClassification", lambda: _config("MobileNetV2Config", num_labels=4, depth_multiplier=0.25, image_size=32), 32, limit=150.0)
_classifier("PVT", "PvtForImageClassification", lambda: _config("PvtConfig", num_labels=4, image_size=32, num_encoder_blocks=2, depths=[1, 1], sequence_reduction_ratios=[2, 1], hidden_sizes=[8, 8], patch_sizes=[4, 2], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2]), 32)
_classifier("PoolFormer", "PoolFormerForImageClassification", lambda: _config("PoolFormerConfig", num_labels=4, depths=[1, 1], hidden_sizes=[8, 8], num_encoder_blocks=2, patch_sizes=[7, 3], strides=[4, 2], padding=[2, 1]), 32)
_classifier("CvT", "CvtForImageClassification", lambda: _config("CvtConfig", num_labels=4, embed_dim=[8, 8, 16], num_heads=[1, 1, 2], depth=[1, 2, 3]), 32)
_classifier("FocalNet", "FocalNetForImageClassification", lambda: _config("FocalNetConfig", num_labels=4, image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], focal_levels=[2, 2], focal_windows=[3, 3]))


@vision.case()
def masked_autoencoder() -> Example:
    """ViT-MAE, the noise of the mask an input, loss inside the model."""
    model = some_training(transformers.ViTMAEForPreTraining(_config("ViTMAEConfig", decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=24, **{**VIT, "patch_size": 4})))

    def loss(o: Tensor, batch: Any) -> Tensor:
        told = model.patchify(batch[0]["pixel_values"])
        mask = batch[1]
        return (((o - told) ** 2).mean(-1) * mask).sum() / mask.sum()

    data = []
    for x in _pixels(16):
        noise = torch.rand(len(x["pixel_values"]), 16)
        rank = noise.argsort(1).argsort(1)
        data.append(({**x, "noise": noise}, (rank >= 4).float()))
    return Example(model, lambda o, _: o.loss, data, outputs=lambda m, b: m(**b[0]).logits, criterion=loss)


@vision.case()
def masked_image_modelling() -> Example:
    """ViT for masked image modelling, a boolean mask among the inputs."""
    model = some_training(transformers.ViTForMaskedImageModeling(_config("ViTConfig", encoder_stride=8, **VIT)))
    data = []
    for x in _pixels(16):
        mask = torch.rand(len(x["pixel_values"]), 4) < 0.5
        data.append(({**x, "bool_masked_pos": mask}, x["pixel_values"]))
    loss = lambda o, y: F.l1_loss(o, y)  # noqa: E731
    return Example(
        model, lambda o, y: loss(o.reconstruction, y), data,
        outputs=lambda m, b: m(**b[0]).reconstruction, criterion=lambda o, b: loss(o, b[1]),
    )


@vision.case()
def segformer() -> Example:
    """SegFormer, logits enlarged in the loss, ignored pixels."""
    config = _config(
        "SegformerConfig", num_labels=4, num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], patch_sizes=[7, 3],
        strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=8,
    )

    def loss(o: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.interpolate(o, size=y.shape[-2:], mode="bilinear"), y, ignore_index=255)

    data = []
    for x in _pixels(32, 2, 1):
        y = classes(4, len(x["pixel_values"]), 32, 32)
        y[0, :20] = 255
        data.append((x, y))
    return Example(
        transformers.SegformerForSemanticSegmentation(config), lambda o, y: loss(o.logits, y), data,
        outputs=lambda m, b: m(**b[0]).logits, criterion=lambda o, b: loss(o, b[1]), weight=lambda b: (b[1] != 255).sum(),
    )


@vision.case(limit=150)
def detr() -> Example:
    """DETR, Hungarian matching and its losses inside the model, labels a list of dictionaries."""
    backbone = _config("ResNetConfig", embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    config = _config(
        "DetrConfig", use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=16,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24,
        decoder_ffn_dim=24, num_queries=4, num_labels=3,
    )
    model = transformers.DetrForObjectDetection(config)
    data = []
    for n in (2, 1):
        labels = [{"class_labels": classes(3, 2), "boxes": torch.rand(2, 4) * 0.3 + 0.3} for _ in range(n)]
        data.append(({"pixel_values": torch.randn(n, 3, 32, 32), "labels": labels}, torch.zeros(n)))

    def logits(m: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        out = m(pixel_values=batch[0]["pixel_values"])
        return out.logits, out.pred_boxes

    def loss(o: Any, batch: Any) -> Tensor:
        return model.loss_function(o[0], batch[0]["labels"], o[0].device, o[1], model.config)[0]

    return Example(model, lambda o, _: o.loss, data, outputs=logits, criterion=loss)


@vision.case()
def depth() -> Example:
    """DPT, depth estimation with a scale-invariant loss."""
    config = _config(
        "DPTConfig", hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, reassemble_factors=[4, 2, 1, 0.5], is_hybrid=False,
    )

    def loss(o: Tensor, y: Tensor) -> Tensor:
        gap = torch.log(o.relu() + 0.1) - y.log()
        return gap.square().mean() - 0.5 * gap.mean((1, 2)).square().mean()

    data = [(x, torch.rand(len(x["pixel_values"]), 64, 64) + 0.1) for x in _pixels(32, 2, 1)]
    return Example(
        transformers.DPTForDepthEstimation(config), lambda o, y: loss(o.predicted_depth, y), data,
        outputs=lambda m, b: m(**b[0]).predicted_depth, criterion=lambda o, b: loss(o, b[1]),
    )


# ------------------------------------------------------------------ speech
def _wav2vec(name: str = "Wav2Vec2Config", **settings: Any) -> Any:
    return _config(
        name, vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        classifier_proj_size=8, num_labels=3, mask_time_prob=0.0, apply_spec_augment=False, **settings,
    )


def _waves(architecture: str, config: Callable[[], Any]) -> Callable[[], Example]:
    def build() -> Example:
        model = some_training(getattr(transformers, architecture)(config()))
        return Example(model, CE, [({"input_values": torch.randn(n, 200)}, classes(3, n)) for n in (3, 2)])

    return build


speech.add("wav2vec 2.0, classification (weight norm)", _waves("Wav2Vec2ForSequenceClassification", _wav2vec))
speech.add("HuBERT, classification", _waves("HubertForSequenceClassification", lambda: _wav2vec("HubertConfig")))
speech.add("WavLM, classification", _waves("WavLMForSequenceClassification", lambda: _wav2vec("WavLMConfig", num_buckets=8, max_bucket_distance=16)))


@speech.case()
def wav2vec_ctc() -> Example:
    """wav2vec 2.0, CTC inside the model."""
    model, data = transformers.Wav2Vec2ForCTC(_wav2vec(ctc_loss_reduction="mean", pad_token_id=0, bos_token_id=1, eos_token_id=2)), []
    for n in (2, 1):
        data.append(({"input_values": torch.randn(n, 200), "labels": torch.randint(1, 8, (n, 4))}, torch.zeros(n)))

    def loss(o: Tensor, batch: Any) -> Tensor:
        words = batch[0]["labels"]
        lengths = torch.full((len(o),), o.shape[1]), torch.full((len(o),), words.shape[1])
        return F.ctc_loss(o.log_softmax(-1).transpose(0, 1), words, *lengths)

    return Example(
        model, lambda o, _: o.loss, data, outputs=lambda m, b: m(input_values=b[0]["input_values"]).logits, criterion=loss,
    )


@speech.case()
def whisper() -> Example:
    """Whisper."""
    config = _config(
        "WhisperConfig", vocab_size=40, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=16, max_target_positions=16,
        decoder_start_token_id=0, suppress_tokens=None, begin_suppress_tokens=None, **SPECIAL,
    )
    data = [({"input_features": torch.randn(n, 8, 32), "decoder_input_ids": classes(40, n, 5)}, classes(40, n, 5)) for n in (2, 1)]
    loss = lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten())  # noqa: E731
    return Example(
        transformers.WhisperForConditionalGeneration(config), lambda o, y: loss(o.logits, y), data,
        outputs=lambda m, b: m(**b[0]).logits, criterion=lambda o, b: loss(o, b[1]),
    )


@speech.case()
def spectrogram_transformer() -> Example:
    """Audio spectrogram transformer."""
    config = _config("ASTConfig", num_labels=3, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, patch_size=8, frequency_stride=8, time_stride=8, max_length=24, num_mel_bins=16)
    data = [({"input_values": torch.randn(n, 24, 16)}, classes(3, n)) for n in (3, 2)]
    return Example(some_training(transformers.ASTForAudioClassification(config)), CE, data)


@speech.case()
def encodec() -> Example:
    """EnCodec's encoder and decoder without its codebook (weight norm, LSTM)."""
    config = _config("EncodecConfig", num_filters=4, hidden_size=8, codebook_size=8, codebook_dim=8, upsampling_ratios=[2, 2], num_lstm_layers=1, num_residual_layers=1)
    whole = transformers.EncodecModel(config)

    class Coder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = whole.encoder, whole.decoder

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x))

    data = [torch.randn(n, 1, 32) for n in (2, 1)]
    return Example(Coder(), MSE, [(x, x) for x in data])


# ------------------------------------------------------------------ multimodal and other
TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16}


def _pairs(n: int) -> dict[str, Tensor]:
    words = classes(38, n, 6) + 2
    words[:, -1] = 1
    return {"input_ids": words, "attention_mask": torch.ones_like(words), "pixel_values": torch.randn(n, 3, 16, 16)}


def _clip() -> nn.Module:
    vision_config = {**VIT, "num_hidden_layers": 1, "projection_dim": 8}
    text = {**TEXT, "projection_dim": 8, "bos_token_id": 0, "eos_token_id": 1}
    return transformers.CLIPModel(_config("CLIPConfig", text_config=text, vision_config=vision_config, projection_dim=8))


def _contrastive(o: Tensor) -> Tensor:
    label = torch.arange(len(o))
    return (F.cross_entropy(o, label) + F.cross_entropy(o.T, label)) / 2


def _clips(*, inside: bool) -> Callable[[], Example]:
    def build() -> Example:
        extra = {"return_loss": True} if inside else {}
        data = [({**_pairs(n), **extra}, torch.zeros(n)) for n in (4, 3)]
        loss = (lambda o, _: o.loss) if inside else (lambda o, _: _contrastive(o.logits_per_text))
        return Example(
            _clip(), loss, data, outputs=lambda m, b: m(**{k: v for k, v in b[0].items() if k != "return_loss"}).logits_per_text,
            criterion=lambda o, _: _contrastive(o),
        )

    return build


multimodal.add("CLIP, contrastive loss of logits_per_text", _clips(inside=False))
multimodal.add("CLIP, contrastive loss inside the model", _clips(inside=True))


@multimodal.case()
def siglip() -> Example:
    """SigLIP, pairwise sigmoid loss."""
    config = _config("SiglipConfig", text_config={**TEXT, **SPECIAL, "projection_size": 16}, vision_config={**VIT, "num_hidden_layers": 1})

    def loss(o: Tensor) -> Tensor:
        return -F.logsigmoid((2 * torch.eye(len(o)).to(o) - 1) * o).sum(1).mean()

    data = [(_pairs(n), torch.zeros(n)) for n in (4, 3)]
    return Example(
        transformers.SiglipModel(config), lambda o, _: loss(o.logits_per_text), data,
        outputs=lambda m, b: m(**b[0]).logits_per_text, criterion=lambda o, _: loss(o),
    )


@multimodal.case()
def visual_question_answering() -> Example:
    """ViLT, classification of questions with images."""
    config = _config("ViltConfig", num_labels=3, vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, max_position_embeddings=16, image_size=16, patch_size=8)
    data = [({**_pairs(n), "pixel_mask": torch.ones(n, 16, 16, dtype=torch.long)}, torch.rand(n, 3)) for n in (3, 2)]
    return Example(transformers.ViltForQuestionAnswering(config), nn.BCEWithLogitsLoss(), data)


@multimodal.case()
def captioning() -> Example:
    """VisionEncoderDecoder: ViT and GPT-2 with cross-attention."""
    encoder = _config("ViTConfig", **VIT)
    decoder = _config("GPT2Config", vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1, add_cross_attention=True, is_decoder=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    data = [({"pixel_values": torch.randn(n, 3, 16, 16), "decoder_input_ids": classes(40, n, 5)}, classes(40, n, 5)) for n in (2, 1)]
    loss = lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten())  # noqa: E731
    return Example(
        transformers.VisionEncoderDecoderModel(config=config), lambda o, y: loss(o.logits, y), data,
        outputs=lambda m, b: m(**b[0]).logits, criterion=lambda o, b: loss(o, b[1]),
    )


@multimodal.case()
def documents() -> Example:
    """LayoutLM: words with their boxes, classification of tokens."""
    config = _config("LayoutLMConfig", num_labels=3, max_2d_position_embeddings=32, pad_token_id=0, **{**TEXT, "num_hidden_layers": 1})
    data = []
    for n in (2, 1):
        corner = torch.randint(0, 15, (n, 6, 2))
        data.append(({"input_ids": classes(40, n, 6), "bbox": torch.cat([corner, corner + 10], -1)}, classes(3, n, 6)))
    loss = lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten())  # noqa: E731
    return Example(
        transformers.LayoutLMForTokenClassification(config), lambda o, y: loss(o.logits, y), data,
        outputs=lambda m, b: m(**b[0]).logits, criterion=lambda o, b: loss(o, b[1]),
    )


@multimodal.case()
def decision_transformer() -> Example:
    """Decision transformer: states, actions, returns."""
    config = _config("DecisionTransformerConfig", state_dim=3, act_dim=2, hidden_size=16, max_ep_len=16, n_layer=1, n_head=2, n_positions=64, vocab_size=1)
    data = []
    for n in (2, 1):
        inputs = {
            "states": torch.randn(n, 4, 3), "actions": torch.randn(n, 4, 2), "rewards": torch.randn(n, 4, 1),
            "returns_to_go": torch.randn(n, 4, 1), "timesteps": torch.arange(4).expand(n, -1), "attention_mask": torch.ones(n, 4),
        }
        data.append((inputs, torch.randn(n, 4, 2)))
    return Example(
        transformers.DecisionTransformerModel(config), lambda o, y: F.mse_loss(o.action_preds, y), data,
        outputs=lambda m, b: m(**b[0]).action_preds, criterion=lambda o, b: F.mse_loss(o, b[1]),
    )


@multimodal.case()
def time_series() -> Example:
    """PatchTST, forecasting."""
    config = _config("PatchTSTConfig", num_input_channels=2, context_length=16, prediction_length=3, patch_length=4, patch_stride=4, d_model=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, loss="mse", scaling=None)
    data = [({"past_values": torch.randn(n, 16, 2)}, torch.randn(n, 3, 2)) for n in (3, 2)]
    return Example(
        transformers.PatchTSTForPrediction(config), lambda o, y: F.mse_loss(o.prediction_outputs, y), data,
        outputs=lambda m, b: m(**b[0]).prediction_outputs, criterion=lambda o, b: F.mse_loss(o, b[1]),
    )


@multimodal.case()
def protein() -> Example:
    """ESM, masked residues."""
    config = _config("EsmConfig", vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, max_position_embeddings=24, pad_token_id=1, mask_token_id=2, position_embedding_type="rotary")
    data = []
    for n in (2, 1):
        words = classes(20, n, 8) + 3
        data.append(({"input_ids": words, "attention_mask": torch.ones_like(words)}, torch.where(torch.rand(n, 8) < 0.6, words, -100)))
    loss = lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten())  # noqa: E731
    return Example(
        transformers.EsmForMaskedLM(config), lambda o, y: loss(o.logits, y), data, outputs=lambda m, b: m(**b[0]).logits,
        criterion=lambda o, b: loss(o, b[1]), weight=lambda b: (b[1] != -100).sum(),
    )

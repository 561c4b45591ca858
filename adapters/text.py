"""The text models that may sit inside a vision-language model: the names of the parts that differ between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextModel:
    """Where one decoder keeps its parts, as attribute names below the decoder or the layer.

    Attributes:
        norm: the final norm, on the decoder.
        attention: the attention module of a layer.
        attention_out: its output projection, on the attention module.
        mlp: the MLP of a layer.
        mlp_out: its output projection, on the MLP.
        after_attention: the norm through which the attention's output joins the residual stream; None: as it is.
        after_mlp: the same for the MLP.
        handled: fields of its configuration that the package reads.
        rotated: the operation in its attention's forward that gives the rotated queries, where it is not the rotation
            itself (Phi turns a part of each head, and puts the rest behind it).
    """

    norm: str = "norm"
    attention: str = "self_attn"
    attention_out: str = "o_proj"
    mlp: str = "mlp"
    mlp_out: str = "down_proj"
    after_attention: str | None = None
    after_mlp: str | None = None
    handled: frozenset[str] = frozenset()
    rotated: str = ""


_SLIDING = frozenset({"sliding_window", "use_sliding_window", "layer_types", "max_window_layers"})
_BETWEEN_NORMS = {"after_attention": "post_attention_layernorm", "after_mlp": "post_feedforward_layernorm"}
_GEMMA = _SLIDING | {"query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"}
_PALIGEMMA = _GEMMA | {"use_bidirectional_attention", "num_image_tokens"}

TEXT_MODELS = {
    "llama": TextModel(),
    "mistral": TextModel(handled=_SLIDING),
    "qwen2": TextModel(handled=_SLIDING),
    "qwen3": TextModel(handled=_SLIDING),
    "qwen2_vl_text": TextModel(handled=_SLIDING),
    "qwen2_5_vl_text": TextModel(handled=_SLIDING),
    "qwen3_vl_text": TextModel(),
    "gemma": TextModel(handled=_PALIGEMMA),
    "gemma2": TextModel(handled=_PALIGEMMA, **_BETWEEN_NORMS),
    "gemma3_text": TextModel(handled=_GEMMA, **_BETWEEN_NORMS),
    "phi": TextModel(norm="final_layernorm", attention_out="dense", mlp_out="fc2", rotated="torch_cat_0"),
}

# Sizes are read from the weights' own shapes by transformers; the rest changes numbers, not where things are.
IGNORED = frozenset(
    """architectures dtype torch_dtype transformers_version _name_or_path model_type id2label label2id problem_type
    output_hidden_states output_attentions return_dict chunk_size_feed_forward is_encoder_decoder use_cache
    vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    hidden_act max_position_embeddings initializer_range rms_norm_eps layer_norm_eps rope_theta rope_scaling
    rope_parameters attention_bias mlp_bias attention_dropout resid_pdrop embd_pdrop partial_rotary_factor
    qk_layernorm tie_word_embeddings pretraining_tp pad_token_id bos_token_id eos_token_id
    num_channels image_size patch_size projection_dim initializer_factor vision_use_head attention_probs_dropout_prob
    projector_hidden_act multimodal_projector_bias image_seq_length quantization_config _attn_implementation_autoset
    ignore_index use_image_newline_parameter hidden_activation hidden_dropout_prob projection_dropout""".split()
)

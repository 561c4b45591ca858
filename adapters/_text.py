"""The text models that may sit inside a vision-language model: the names of the parts that differ between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextModel:
    """Where one decoder keeps its parts, as attribute names below the decoder or the layer.

    Attributes:
        norm: the final norm, on the decoder.
        attention: the attention module of a layer; its output's first element is what joins the residual stream.
        mlp: the MLP of a layer.
        handled: fields of its configuration that the package reads.
    """

    norm: str = "norm"
    attention: str = "self_attn"
    mlp: str = "mlp"
    handled: frozenset[str] = frozenset()


TEXT_MODELS = {
    "llama": TextModel(),
    "mistral": TextModel(handled=frozenset({"sliding_window"})),
    "qwen2": TextModel(handled=frozenset({"sliding_window", "use_sliding_window", "layer_types", "max_window_layers"})),
    "phi": TextModel(norm="final_layernorm"),
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
    ignore_index use_image_newline_parameter""".split()
)

"""The ranker: transformers' BertModel with a two-class head.

Letters in shapes: B batch, T tokens, d hidden size, h heads, e = d/h head size, L layers.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, BertConfig, BertModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from modeling.attention import attention_without_padding, key_lengths

POOLED_ACTIVATIONS = ("none", "relu")
_ATTENTION = "sdpa_that_hands_out_queries_and_keys"


@dataclass(frozen=True)
class RankerOutput:
    """`queries_keys[l]` are Q and K of layer l, counted from 1; `hidden_states[l]` is H_l, H_0 the embeddings."""

    logits: torch.Tensor  # (B, 2); class 1 is "relevant"
    hidden_states: dict[int, torch.Tensor]  # (B, T, d) each
    queries_keys: dict[int, tuple[torch.Tensor, torch.Tensor]]  # (B, h, T, e) each


def _attention_that_hands_out_queries_and_keys(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **kwargs
) -> tuple[torch.Tensor, None]:
    """Fused attention, which never forms the scores that a loss may ask for; hands out what they are made of."""
    keep = getattr(module, "keep_queries_keys", None)
    if keep is not None:
        keep(query, key)
    if module.training and query.device.type == "cpu":
        lengths = key_lengths(mask, len(query), key.shape[2])
        if lengths is not None:
            scale = query.shape[-1] ** -0.5
            context = attention_without_padding(query, key, value, lengths, scale, kwargs.get("dropout", 0.0))
            return context.transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


AttentionInterface.register(_ATTENTION, _attention_that_hands_out_queries_and_keys)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


class BertRanker(nn.Module):
    """BERT cross-encoder of Nogueira and Cho (2019), arXiv 1901.04085.

    `pooled = tanh(W H_L[:, 0] + b)`, `logits = classifier(activation(pooled))`, where the activation is none, or relu
    as in the training of the code published with Simplified TinyBERT. Parameters are named as in transformers'
    `BertForSequenceClassification`.
    """

    def __init__(self, config: BertConfig, pooled_activation: str = "none"):
        super().__init__()
        if pooled_activation not in POOLED_ACTIVATIONS:
            raise ValueError(f"pooled_activation '{pooled_activation}' is none of {', '.join(POOLED_ACTIVATIONS)}")
        self.config = config
        self.pooled_activation = pooled_activation
        config._attn_implementation = _ATTENTION
        self.bert = BertModel(config)
        self.classifier = nn.Linear(config.hidden_size, 2)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        hidden_states_of: Collection[int] = (),
        queries_keys_of: Collection[int] = (),
    ) -> RankerOutput:
        """Scores a batch; the three inputs are (B, T) int64, `attention_mask` 1 on tokens and 0 on padding.

        `hidden_states_of` and `queries_keys_of` (layers, counted from 1; 0 the embeddings) say what else to hand out.
        """
        kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        attentions = {number: layer.attention.self for number, layer in enumerate(self.bert.encoder.layer, start=1)}
        for number in queries_keys_of:
            attentions[number].keep_queries_keys = lambda query, key, number=number: kept.update({number: (query, key)})
        try:
            encoded = self.bert(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                output_hidden_states=bool(hidden_states_of),
            )
        finally:
            for number in queries_keys_of:
                del attentions[number].keep_queries_keys
        pooled = encoded.pooler_output  # (B, d)
        if self.pooled_activation == "relu":
            pooled = torch.relu(pooled)
        with torch.autocast(pooled.device.type, enabled=False):
            # In half precision neighbouring scores would be the same number, and documents tie.
            logits = self.classifier(pooled.to(self.classifier.weight.dtype))
        return RankerOutput(logits, {number: encoded.hidden_states[number] for number in hidden_states_of}, kept)

"""BERT (Devlin et al. 2019, arXiv 1810.04805) as a ranker (Nogueira and Cho 2019, arXiv 1901.04085).

Parameters have the names of transformers' `BertForSequenceClassification`.

Letters in shapes: B batch, T tokens, d hidden size, h heads, e = d/h head size, i intermediate size, L layers.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from modeling.activations import activation
from modeling.attention import attention_without_padding, key_lengths
from modeling.initial import set_initial_values

POOLED_ACTIVATIONS = ("none", "relu")

# MKL sets itself up in its first call of a vector function. If two threads make that call together, one of them
# sometimes computes with half of the digits. One number is computed by one thread.
torch.tanh(torch.zeros(1))


@dataclass(frozen=True)
class BertConfig:
    """The settings that make an encoder, with the names and the defaults of transformers' `BertConfig`."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0


@dataclass(frozen=True)
class RankerOutput:
    """`hidden_states[l]` is H_l, and H_0 the embeddings. `queries_keys[l]` are Q and K of layer l, counted from 1."""

    logits: torch.Tensor  # (B, 2); class 1 is "relevant"
    hidden_states: dict[int, torch.Tensor]  # (B, T, d) each
    queries_keys: dict[int, tuple[torch.Tensor, torch.Tensor]]  # (B, h, T, e) each


def _embedding(count: int, size: int, padding_idx: int | None = None) -> nn.Embedding:
    """An embedding without values: `set_initial_values` sets them.

    nn.Embedding draws values itself, and on the device `meta` this imports a compiler: most of a second.
    """
    return nn.Embedding(count, size, padding_idx, _weight=torch.empty(count, size))


class Embeddings(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        d = config.hidden_size
        self.word_embeddings = _embedding(config.vocab_size, d, padding_idx=config.pad_token_id)
        self.position_embeddings = _embedding(config.max_position_embeddings, d)
        self.token_type_embeddings = _embedding(config.type_vocab_size, d)
        self.LayerNorm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)  # (B, T, d)
        hidden = hidden + self.position_embeddings.weight[: input_ids.shape[1]]  # (B, T, d) + (T, d)
        return self.dropout(self.LayerNorm(hidden))  # (B, T, d)


class SelfAttention(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = nn.Linear(d, d)
        self.key = nn.Linear(d, d)
        self.value = nn.Linear(d, d)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, lengths: list[int] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """softmax(Q K^T / sqrt(e)) V, with Q and K. `mask` and `lengths` are made in `BertRanker.forward`."""
        query, key, value = (
            linear(hidden).view(*hidden.shape[:2], self.heads, -1).transpose(1, 2)  # (B, T, d) -> (B, h, T, e)
            for linear in (self.query, self.key, self.value)
        )
        scale = query.shape[-1] ** -0.5
        dropout = self.dropout.p if self.training else 0.0  # on the softmax
        if lengths is None:
            context = F.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scale)  # (B, h, T, e)
        else:
            context = attention_without_padding(query, key, value, lengths, scale, dropout)  # (B, h, T, e)
        return context.transpose(1, 2).flatten(2), query, key  # (B, T, d), (B, h, T, e), (B, h, T, e)


class Output(nn.Module):
    """A linear map, the residual connection and a LayerNorm: the end of the attention, and of a layer."""

    def __init__(self, inputs: int, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)  # (B, T, d or i) -> (B, T, d)


class Intermediate(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = activation(config.hidden_act)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(hidden))  # (B, T, d) -> (B, T, i)


class Layer(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(config), "output": Output(config.hidden_size, config)})
        self.intermediate = Intermediate(config)
        self.output = Output(config.intermediate_size, config)

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, lengths: list[int] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The hidden states of the layer, with its Q and K."""
        context, query, key = self.attention.self(hidden, mask, lengths)  # (B, T, d), (B, h, T, e), (B, h, T, e)
        attended = self.attention.output(context, hidden)  # (B, T, d)
        return self.output(self.intermediate(attended), attended), query, key  # (B, T, d), ...


class BertRanker(nn.Module):
    """BERT with a classifier of two classes. It starts at BERT's initial values.

    `pooled = tanh(W H_L[:, 0] + b)`, `logits = classifier(activation(pooled))`. The activation is none, or relu as in
    the training code published with Simplified TinyBERT.

    Raises ValueError for another `pooled_activation`, an unknown `hidden_act`, or a d that is not a multiple of h.
    """

    def __init__(self, config: BertConfig, pooled_activation: str = "none"):
        super().__init__()
        d = config.hidden_size
        if pooled_activation not in POOLED_ACTIVATIONS:
            raise ValueError(f"pooled_activation '{pooled_activation}' is none of {', '.join(POOLED_ACTIVATIONS)}")
        if d % config.num_attention_heads:
            raise ValueError(f"hidden_size {d} is not a multiple of the {config.num_attention_heads} attention heads")
        self.config = config
        self.pooled_activation = pooled_activation
        self.bert = nn.ModuleDict(
            {
                "embeddings": Embeddings(config),
                "encoder": nn.ModuleDict(
                    {"layer": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))}
                ),
                "pooler": nn.ModuleDict({"dense": nn.Linear(d, d)}),
            }
        )
        self.classifier = nn.Linear(d, 2)
        set_initial_values(self, config.initializer_range)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        hidden_states_of: Collection[int] = (),
        queries_keys_of: Collection[int] = (),
    ) -> RankerOutput:
        """Scores a batch. The three inputs are (B, T) int64; `attention_mask` is 1 on tokens and 0 on padding.

        `hidden_states_of` (0 the embeddings, 1 to L the layers) and `queries_keys_of` (1 to L) say what else to return.
        """
        hidden = self.bert.embeddings(input_ids, token_type_ids)  # (B, T, d)
        mask = attention_mask.to(hidden.device, torch.bool)[:, None, None]  # (B, 1, 1, T), True on tokens
        if attention_mask.device.type == "cpu" and mask.all():  # a CPU would wait for the answer of a GPU
            mask = None  # scaled_dot_product_attention has faster kernels without a mask
        lengths = None  # tokens of each example, for attention_without_padding
        if self.training and hidden.device.type == "cpu":
            lengths = key_lengths(mask, *input_ids.shape)
        hidden_states = {0: hidden} if 0 in hidden_states_of else {}
        queries_keys = {}
        for number, layer in enumerate(self.bert.encoder.layer, start=1):
            hidden, query, key = layer(hidden, mask, lengths)  # (B, T, d), (B, h, T, e), (B, h, T, e)
            if number in hidden_states_of:
                hidden_states[number] = hidden
            if number in queries_keys_of:
                queries_keys[number] = query, key
        pooled = torch.tanh(self.bert.pooler.dense(hidden[:, 0]))  # (B, d)
        if self.pooled_activation == "relu":
            pooled = torch.relu(pooled)
        with torch.autocast(pooled.device.type, enabled=False):
            # In half precision different documents would get the same score.
            logits = self.classifier(pooled.to(self.classifier.weight.dtype))  # (B, 2)
        return RankerOutput(logits, hidden_states, queries_keys)

"""Fast inference of a ranker that is not trained: the teacher, or a ranker that re-ranks.

It computes the same function as `BertRanker` in evaluation mode, with less work:
- Padding is left out, unless hidden states, Q or K are asked for.
- K and V are one matmul.
- Weights are pre-packed for the processor.
- If only logits are asked for, the last layer is computed for `[CLS]` alone (its K and V for all tokens).

Letters in shapes: B batch, T tokens, N rows of all examples, d hidden size, h heads, e = d/h head size, K keys.
"""

import math
from collections.abc import Callable, Collection
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from modeling.bert import BertRanker, RankerOutput
from modeling.int8 import quantized_linear
from runtime.device import multiplies_bfloat16

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
# oneDNN compiles a matmul for each new shape. Sizes are rounded up to these multiples, so that there are few shapes.
_ROWS, _KEYS = 64, 16
_ROWS_IN_CACHE = 512  # of each thread
Map = Callable[[torch.Tensor], torch.Tensor]


class _Rows(NamedTuple):
    """The rows of each of the B examples among the N rows of a batch."""

    starts: list[int]  # first row
    counts: list[int]  # rows, padding included
    lengths: list[int]  # rows that are tokens; they come first
    mask: torch.Tensor | None  # (B, 1, 1, T) for a GPU, True on tokens; None if no row is padding


class _Layer(NamedTuple):
    query: Map
    key_value: Map
    attention_output: Map
    attention_norm: Map
    intermediate: Map
    output: Map
    output_norm: Map

    def feed_forward(self, context: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        hidden = self.attention_norm(self.attention_output(context) + hidden)
        return self.output_norm(self.output(self.intermediate(hidden)) + hidden)


class FrozenRanker:
    """Computes what `BertRanker` computes in evaluation mode, without gradients, on the ranker's device.

    `precision` is fp32, fp16 (on CUDA), bf16, or int8 (on a CPU). int8 has weights in 8 bits with a scale for each
    output, inputs of a matmul in 8 bits with a scale for each token (modeling/int8.py), and float32 for the rest. None
    is the ranker's dtype. Weights are copied, so the ranker can change later.
    """

    def __init__(self, ranker: BertRanker, precision: str | None = None):
        self.config = ranker.config
        self.pooled_activation = ranker.pooled_activation
        self.device = ranker.classifier.weight.device
        self.dtype = ranker.classifier.weight.dtype if precision is None else _DTYPES[precision]
        self._int8 = precision == "int8"
        embeddings = ranker.bert.embeddings
        self._words, self._positions, self._segments = (
            self._cast(table.weight)
            for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings)
        )
        self._embeddings_norm = self._layer_norm(embeddings.LayerNorm)
        self._layers = [self._layer(layer) for layer in ranker.bert.encoder.layer]
        self._pooler = self._linear(ranker.bert.pooler.dense)
        # As in BertRanker: in half precision different documents would get the same score.
        head = torch.promote_types(self.dtype, torch.float32)
        self._classifier = [parameter.detach().to(head, copy=True) for parameter in ranker.classifier.parameters()]

    @torch.no_grad()  # not inference_mode: a loss saves the teacher's states for its backward pass
    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor,
        hidden_states_of: Collection[int] = (),
        queries_keys_of: Collection[int] = (),
    ) -> RankerOutput:
        """As `BertRanker.forward`. The padding of an example must follow its tokens. Inputs can be on any device.

        `attention_mask` may be None if no example has padding. torch has faster kernels for a GPU without a mask.
        """
        size, width = input_ids.shape
        returns_states = bool(hidden_states_of or queries_keys_of)
        on_cpu = self.device.type == "cpu"
        mask, lengths = None, [width] * size  # a GPU uses the mask, so that the CPU never waits for lengths
        if on_cpu and attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if on_cpu:
            lengths = attention_mask.sum(dim=1).tolist()
        elif attention_mask is not None:
            mask = attention_mask.to(self.device, torch.bool)[:, None, None]
        # On a GPU the padding stays: length-bucketed batches have little of it.
        is_padded = returns_states or not on_cpu
        counts = [width] * size if is_padded else lengths
        rows = _Rows([0, *accumulate(counts)][:-1], counts, lengths, mask)
        inputs = (input_ids, torch.arange(width, device=input_ids.device).expand(size, width), token_type_ids)
        if is_padded:
            inputs = (x.flatten() for x in inputs)
        else:
            # At least _KEYS more, so that the sizes of the last example are rounded up as those of all others.
            extra = _KEYS + -(sum(lengths) + _KEYS) % _ROWS
            inputs = (F.pad(x[attention_mask.bool()], (0, extra)) for x in inputs)
        ids, positions, segments = (x.to(self.device, non_blocking=True) for x in inputs)  # (N,) each
        with torch.autocast(self.device.type, enabled=False):  # a surrounding autocast does not change the precision
            hidden = self._words[ids] + self._positions[positions] + self._segments[segments]
            hidden = self._embeddings_norm(hidden)  # (N, d)
            hidden_states = {0: hidden} if 0 in hidden_states_of else {}
            queries_keys = {}
            for number, layer in enumerate(self._layers, start=1):
                cls_only = number == len(self._layers) and not returns_states
                query, key, value, hidden = self._project(layer, hidden, rows, cls_only)
                context = self._attend(query, key, value, rows, cls_only)  # (N or B, d)
                hidden = self._feed_forward(layer, context, hidden)  # (N or B, d)
                if number in hidden_states_of:
                    hidden_states[number] = hidden
                if number in queries_keys_of:
                    queries_keys[number] = tuple(x.unflatten(0, (size, width)).transpose(1, 2) for x in (query, key))
            pooled = torch.tanh(self._pooler(hidden[::width] if returns_states else hidden))  # (B, d)
            if self.pooled_activation == "relu":
                pooled = torch.relu(pooled)
            logits = F.linear(pooled.to(self._classifier[0].dtype), *self._classifier)
        hidden_states = {number: states.unflatten(0, (size, width)) for number, states in hidden_states.items()}
        return RankerOutput(logits, hidden_states, queries_keys)

    def _project(
        self, layer: _Layer, hidden: torch.Tensor, rows: _Rows, cls_only: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Q, K, V, (N, h, e) each, and the residual, (N, d). With `cls_only` Q and the residual have B rows."""
        heads = self.config.num_attention_heads
        key, value = layer.key_value(hidden).unflatten(-1, (2, heads, -1)).unbind(1)
        if cls_only and self.device.type == "cpu":
            hidden = hidden[torch.tensor(rows.starts)]  # (B, d)
        elif cls_only:
            hidden = hidden[:: rows.counts[0]]  # (B, d)
        return layer.query(hidden).unflatten(-1, (heads, -1)), key, value, hidden

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: _Rows, cls_only: bool
    ) -> torch.Tensor:
        """softmax(Q K^T / sqrt(e)) V over the tokens of each example; (N, d), or (B, d) with `cls_only`."""
        if self.device.type == "cpu":
            return _attend_by_example(query, key, value, rows, cls_only)
        query, key, value = (x.unflatten(0, (len(rows.counts), -1)).transpose(1, 2) for x in (query, key, value))
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=rows.mask)  # (B, h, T or 1, e)
        return context.transpose(1, 2).flatten(2).flatten(0, 1)

    def _feed_forward(self, layer: _Layer, context: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What follows attention in a layer; (N or B, d) from `context` and the layer's input, both (N or B, d)."""
        if not self._int8:
            return layer.feed_forward(context, hidden)
        # A part of the rows at a time, so that what lies between two matmuls stays in the processor's cache.
        parts = zip(*(x.split(_ROWS_IN_CACHE * torch.get_num_threads()) for x in (context, hidden)), strict=True)
        return torch.cat([layer.feed_forward(*part) for part in parts])

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(self.dtype, copy=True)

    def _layer_norm(self, norm: nn.LayerNorm) -> Map:
        weight, bias = self._cast(norm.weight), self._cast(norm.bias)
        return lambda x: F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

    def _linear(self, *parts: nn.Linear) -> Map:
        """Linear maps of the same input, as one matmul."""
        weight = torch.cat([part.weight.detach() for part in parts])  # (out, in)
        bias = torch.cat([part.bias.detach() for part in parts])
        if self._int8:
            return quantized_linear(weight, bias)
        return _linear_for_processor(weight.to(self.dtype), bias.to(self.dtype))

    def _layer(self, layer: nn.Module) -> _Layer:
        attention, activation = layer.attention, layer.intermediate.intermediate_act_fn
        intermediate = self._linear(layer.intermediate.dense)
        return _Layer(
            query=self._linear(attention.self.query),
            key_value=self._linear(attention.self.key, attention.self.value),
            attention_output=self._linear(attention.output.dense),
            attention_norm=self._layer_norm(attention.output.LayerNorm),
            intermediate=lambda x: activation(intermediate(x)),
            output=self._linear(layer.output.dense),
            output_norm=self._layer_norm(layer.output.LayerNorm),
        )


def _attend_by_example(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: _Rows, cls_only: bool
) -> torch.Tensor:
    """Attends in one example at a time, so that its scores stay in the cache of the processor.

    Sizes are rounded up, so an example also takes rows of the next one. As keys these have weight 0. As queries their
    context is overwritten by the next example.
    """
    context = torch.zeros_like(query, memory_format=torch.contiguous_format)  # zeros: the extra rows must stay finite
    query = query / math.sqrt(query.shape[-1])
    for b, (start, count, length) in enumerate(zip(rows.starts, rows.counts, rows.lengths, strict=True)):
        rows_q = slice(b, b + 1) if cls_only else slice(start, start + count + -count % _KEYS)
        rows_k = slice(start, start + length + -length % _KEYS)
        q, k, v = (x.transpose(0, 1) for x in (query[rows_q], key[rows_k], value[rows_k]))  # (h, T or 1, e), (h, K, e)
        scores = torch.bmm(q, k.transpose(1, 2))  # (h, T or 1, K)
        scores[..., length:] = float("-inf")
        context[rows_q] = torch.bmm(torch.softmax(scores, dim=-1), v).transpose(0, 1)
    return context.flatten(1)


def _linear_for_processor(weight: torch.Tensor, bias: torch.Tensor) -> Map:
    """A linear map with a pre-packed weight if torch has a matmul for it. This is 10 to 20% faster on a CPU."""
    onednn = torch.ops.mkldnn  # torch.compile uses the same operators
    has_matmul = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and multiplies_bfloat16())
    if weight.device.type == "cpu" and has_matmul and hasattr(onednn, "_linear_pointwise"):
        packed = onednn._reorder_linear_weight(weight, None)
        return lambda x: onednn._linear_pointwise(x, packed, bias, "none", [], "")
    return lambda x: F.linear(x, weight, bias)

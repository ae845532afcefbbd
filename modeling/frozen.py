"""A ranker that no longer learns, the teacher or one that re-ranks, computed as fast as the hardware allows.

The same function as `BertRanker` in evaluation, in another order: padding is left out, or kept as rows that nothing
attends to; K and V are one product; weights are laid out for the processor once; and where only logits are wanted, the
last layer is computed for `[CLS]` alone (its keys and values for all tokens).

Letters in shapes: B batch, T tokens, N rows of all examples, d hidden size, h heads, e = d/h head size.
"""

import math
import warnings
from collections.abc import Callable, Collection
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from modeling.bert import BertRanker, RankerOutput
from runtime.device import multiplies_bfloat16

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
# oneDNN compiles a product for each shape that it meets; rounded up there are few of them.
_ROWS, _KEYS = 64, 16
Map = Callable[[torch.Tensor], torch.Tensor]


class _Rows(NamedTuple):
    """Where each example's rows lie among the N of a batch, how many they are, and how many are real tokens."""

    starts: list[int]
    counts: list[int]
    lengths: list[int]
    mask: torch.Tensor | None  # (B, 1, 1, T) for a GPU, True on real tokens; None where nothing is padded


class _Layer(NamedTuple):
    query: Map
    key_value: Map
    attention_output: Map
    attention_norm: Map
    intermediate: Map
    output: Map
    output_norm: Map


class FrozenRanker:
    """Computes what `BertRanker` in evaluation computes, without gradients, on the ranker's device.

    `precision`: fp32, fp16 (CUDA), bf16, or int8 (a CPU: weights in 8 bits with a scale for each output, inputs of a
    product in 7 bits with a scale for each batch, all else in float32). None: the ranker's dtype. Weights are copied.
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
        # As in BertRanker: in half precision neighbouring scores would be the same number, and documents tie.
        head = torch.promote_types(self.dtype, torch.float32)
        self._classifier = [parameter.detach().to(head, copy=True) for parameter in ranker.classifier.parameters()]

    @torch.no_grad()  # not inference mode: a loss keeps the teacher's states for its backward pass
    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        hidden_states_of: Collection[int] = (),
        queries_keys_of: Collection[int] = (),
    ) -> RankerOutput:
        """As `BertRanker.forward`; each example's real tokens must come first. Tensors may lie on any device."""
        size, width = input_ids.shape
        hands_out = bool(hidden_states_of or queries_keys_of)
        lengths = attention_mask.sum(dim=1).tolist()
        # A GPU gains nothing from leaving out the little padding of batches of like length.
        is_padded = hands_out or self.device.type != "cpu"
        counts = [width] * size if is_padded else lengths
        mask = None  # without one torch takes its fastest kernel
        if self.device.type != "cpu" and min(lengths) < width:
            mask = attention_mask.to(self.device, torch.bool)[:, None, None]
        rows = _Rows([0, *accumulate(counts)][:-1], counts, lengths, mask)
        inputs = (input_ids, torch.arange(width, device=input_ids.device).expand(size, width), token_type_ids)
        if is_padded:
            inputs = (x.flatten() for x in inputs)
        else:
            spare = -sum(lengths) % _ROWS
            inputs = (F.pad(x[attention_mask.bool()], (0, spare)) for x in inputs)
        ids, positions, segments = (x.to(self.device, non_blocking=True) for x in inputs)  # (N,) each
        with torch.autocast(self.device.type, enabled=False):  # its precision is its own
            hidden = self._words[ids] + self._positions[positions] + self._segments[segments]
            hidden = self._embeddings_norm(hidden)  # (N, d)
            hidden_states = {0: hidden} if 0 in hidden_states_of else {}
            queries_keys = {}
            for number, layer in enumerate(self._layers, start=1):
                cls_only = number == len(self._layers) and not hands_out
                query, key, value, hidden = self._project(layer, hidden, rows, cls_only)
                context = self._attend(query, key, value, rows, cls_only)
                hidden = layer.attention_norm(layer.attention_output(context) + hidden)
                hidden = layer.output_norm(layer.output(layer.intermediate(hidden)) + hidden)
                if number in hidden_states_of:
                    hidden_states[number] = hidden
                if number in queries_keys_of:
                    queries_keys[number] = tuple(x.unflatten(0, (size, width)).transpose(1, 2) for x in (query, key))
            pooled = torch.tanh(self._pooler(hidden[::width] if hands_out else hidden))  # (B, d)
            if self.pooled_activation == "relu":
                pooled = torch.relu(pooled)
            logits = F.linear(pooled.to(self._classifier[0].dtype), *self._classifier)
        hidden_states = {number: states.unflatten(0, (size, width)) for number, states in hidden_states.items()}
        return RankerOutput(logits, hidden_states, queries_keys)

    def _project(
        self, layer: _Layer, hidden: torch.Tensor, rows: _Rows, cls_only: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Q, K, V, (N, h, e) each, and the hidden states that the layer goes on with; (B, ...) of `[CLS]` alone."""
        heads = self.config.num_attention_heads
        key, value = layer.key_value(hidden).unflatten(-1, (2, heads, -1)).unbind(1)
        if cls_only:
            hidden = hidden[torch.tensor(rows.starts, device=self.device)]  # (B, d)
        return layer.query(hidden).unflatten(-1, (heads, -1)), key, value, hidden

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: _Rows, cls_only: bool
    ) -> torch.Tensor:
        """softmax(Q K^T / sqrt(e)) V over the real tokens of each example; (N, d), or (B, d) of `[CLS]` alone."""
        if self.device.type == "cpu":
            return _attend_one_by_one(query, key, value, rows, cls_only)
        query, key, value = (x.unflatten(0, (len(rows.counts), -1)).transpose(1, 2) for x in (query, key, value))
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=rows.mask)  # (B, h, T or 1, e)
        return context.transpose(1, 2).flatten(2).flatten(0, 1)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(self.dtype, copy=True)

    def _layer_norm(self, norm: nn.LayerNorm) -> Map:
        weight, bias = self._cast(norm.weight), self._cast(norm.bias)
        return lambda x: F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

    def _linear(self, *parts: nn.Linear) -> Map:
        """Linear maps of one input as one product."""
        weight = torch.cat([part.weight.detach() for part in parts])  # (out, in)
        bias = torch.cat([part.bias.detach() for part in parts])
        if self._int8:
            return _quantized_linear(weight, bias)
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


def _attend_one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: _Rows, cls_only: bool
) -> torch.Tensor:
    """An example at a time, in order, so that its scores stay in the processor's cache.

    Rounded up, it takes in rows of the next: as keys they weigh 0, and their context is written again.
    """
    context = torch.zeros_like(query, memory_format=torch.contiguous_format)  # spare rows stay finite
    query = query / math.sqrt(query.shape[-1])
    for b, (start, count, length) in enumerate(zip(rows.starts, rows.counts, rows.lengths, strict=True)):
        asking = slice(b, b + 1) if cls_only else slice(start, start + count + -count % _KEYS)
        wide = slice(start, start + length + -length % _KEYS)
        q, k, v = (x.transpose(0, 1) for x in (query[asking], key[wide], value[wide]))  # (h, T or 1, e), (h, K, e)
        scores = torch.bmm(q, k.transpose(1, 2))  # (h, T or 1, K)
        scores[..., length:] = float("-inf")
        context[asking] = torch.bmm(torch.softmax(scores, dim=-1), v).transpose(0, 1)
    return context.flatten(1)


def _linear_for_processor(weight: torch.Tensor, bias: torch.Tensor) -> Map:
    """A linear map, its weight laid out for the processor where torch can: a tenth to a fifth faster on a CPU."""
    onednn = torch.ops.mkldnn  # what torch's compiler calls as well
    can_multiply = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and multiplies_bfloat16())
    if weight.device.type == "cpu" and can_multiply and hasattr(onednn, "_linear_pointwise"):
        packed = onednn._reorder_linear_weight(weight, None)
        return lambda x: onednn._linear_pointwise(x, packed, bias, "none", [], "")
    return lambda x: F.linear(x, weight, bias)


def _quantized_linear(weight: torch.Tensor, bias: torch.Tensor) -> Map:
    scales = weight.abs().amax(dim=1).clamp_min(1e-12).double() / 127  # (out,)
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        # Torch means to drop these tensors one day; nothing else of its own quantizes the inputs within the product.
        warnings.simplefilter("ignore", UserWarning)
        quantized = torch.quantize_per_channel(weight.float(), scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantized, bias.float())
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, True)

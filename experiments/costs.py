"""What a BERT ranker costs, by arithmetic from its config.json: parameters, and operations per pair."""

from collections.abc import Mapping

# What of a config.json the arithmetic needs.
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
CLASSES = 2


def num_parameters(config: Mapping[str, int]) -> int:
    """All parameters of the ranker: embeddings, layers, pooler and the classifier of two classes.

    With hidden size d and inner size i, a layer has 4 maps d x d (queries, keys, values, output) and 2 maps d x i, all
    with biases, and 2 LayerNorms of 2d.
    """
    d, inner = config["hidden_size"], config["intermediate_size"]
    embeddings = (config["vocab_size"] + config["max_position_embeddings"] + config["type_vocab_size"]) * d + 2 * d
    layer = 4 * (d * d + d) + (d * inner + inner) + (inner * d + d) + 2 * 2 * d
    heads = d * d + d + CLASSES * d + CLASSES
    return embeddings + config["num_hidden_layers"] * layer + heads


def flops_per_pair(config: Mapping[str, int], tokens: int) -> int:
    """Floating-point operations to score one pair of T tokens: those of matrix products, a multiply-add being two.

    A map from m to n numbers takes 2mn per token. So a layer takes 2T * 4d^2 for queries, keys, values and output,
    2T * 2di for the two maps of its inner size i, and 2T^2 d each for the scores Q K^T and their product with V,
    however many heads share the d. Pooler and classifier see one token: 2d^2 + 4d. Embeddings are looked up;
    LayerNorm, softmax, activation and biases do not count, as in torch's FlopCounterMode.
    """
    d, inner = config["hidden_size"], config["intermediate_size"]
    layer = 2 * tokens * (4 * d * d + 2 * d * inner) + 2 * 2 * tokens * tokens * d
    return config["num_hidden_layers"] * layer + 2 * d * d + 2 * CLASSES * d

"""The model files of other engines, made from an exported cross-encoder. Each engine converts in a child process.

A directory has the cross-encoder of transformers in `export`, with model.onnx if an engine needs it, and the pairs in
`pairs.tsv`. The files of an engine go into a folder of its name.
"""

import json
from pathlib import Path

from benchmarks.engine_children import encode, padded, read_texts
from benchmarks.synthetic import Shape, make_model

CALIBRATION_PAIRS = 304  # whose activations OpenVINO's int8 takes its scales from


def prepare_onnxruntime(directory: Path, max_seq_length: int) -> None:
    """Writes onnxruntime/fp32.onnx, with fused operators, and int8.onnx, which quantizes its inputs at each matmul."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model

    output = directory / "onnxruntime"
    output.mkdir()
    config = json.loads((directory / "export" / "config.json").read_text("utf-8"))
    optimized = optimize_model(
        str(directory / "export" / "model.onnx"),
        model_type="bert",
        num_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
    )
    optimized.save_model_to_file(str(output / "fp32.onnx"))
    quantize_dynamic(output / "fp32.onnx", output / "int8.onnx")


def prepare_openvino(directory: Path, max_seq_length: int) -> None:
    """Writes openvino/int8.xml: post-training quantization by NNCF, calibrated on pairs of the measurement."""
    import nncf
    import openvino

    texts = read_texts(directory)
    chosen = texts[:: max(1, len(texts) // CALIBRATION_PAIRS)][:CALIBRATION_PAIRS]
    inputs = [padded([encoding]) for encoding in encode(directory, chosen, max_seq_length)]
    model = openvino.Core().read_model(directory / "export" / "model.onnx")
    quantized = nncf.quantize(
        model, nncf.Dataset(inputs), subset_size=len(inputs), model_type=nncf.ModelType.TRANSFORMER
    )
    (directory / "openvino").mkdir()
    openvino.save_model(quantized, directory / "openvino" / "int8.xml")


def prepare_ctranslate2(directory: Path, max_seq_length: int) -> None:
    """Writes ctranslate2: the encoder and the pooler in fp32. Loading quantizes them."""
    from ctranslate2.converters import TransformersConverter
    from transformers import BertConfig

    BertConfig.position_embedding_type = "absolute"  # the converter reads it, and transformers 5 has only this type
    TransformersConverter(str(directory / "export")).convert(str(directory / "ctranslate2"))


def prepare_model(directory: Path, shape: Shape) -> None:
    """Writes a ranker with initial values into the folder model."""
    make_model(directory / "model", shape, 1)


PREPARE = {"onnxruntime": prepare_onnxruntime, "openvino": prepare_openvino, "ctranslate2": prepare_ctranslate2}

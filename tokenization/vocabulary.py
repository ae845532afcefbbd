"""A model directory's WordPiece vocabulary, read and saved. Loads no torch."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece as WordPieceModel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from runtime.errors import InputError
from tokenization.wordpiece import LONGEST_WORD

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


# Limits for files of strangers. Both are many times the size that the largest BERT vocabularies and configs have.
_MAX_VOCABULARY_BYTES = 1 << 24
_MAX_TOKENS = 1 << 21
_MAX_CONFIG_BYTES = 1 << 20


class VocabularyError(InputError):
    """A vocabulary that cannot be used. The message names the file."""


def load_vocabulary(model_dir: str | Path) -> list[str]:
    """Reads a model directory's tokens, in the order of their ids, from `vocab.txt` or else from `tokenizer.json`.

    Raises VocabularyError if both files are missing, or if the file is not a BERT WordPiece vocabulary.
    """
    vocab_file, tokenizer_file = Path(model_dir) / "vocab.txt", Path(model_dir) / "tokenizer.json"
    if vocab_file.is_file():
        return read_vocab_file(vocab_file)
    if tokenizer_file.is_file():
        try:
            model = read_json(tokenizer_file, _MAX_VOCABULARY_BYTES)["model"]
            if model.get("type", "WordPiece") != "WordPiece":
                raise VocabularyError(f"{tokenizer_file}: is a {model['type']} vocabulary; BERT has WordPiece")
            ids = model["vocab"]
            tokens = sorted(ids, key=ids.__getitem__)
            if [ids[token] for token in tokens] != list(range(len(tokens))):
                raise VocabularyError(f"{tokenizer_file}: token ids are not 0 to {len(tokens) - 1}")
        except VocabularyError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise VocabularyError(f"{tokenizer_file}: not a tokenizer file ({type(error).__name__}: {error})") from None
        return _checked(tokens, tokenizer_file)
    raise VocabularyError(f"{model_dir} has neither vocab.txt nor tokenizer.json; name a model directory")


def read_vocab_file(path: Path) -> list[str]:
    """Reads a `vocab.txt`, one token per line. Raises VocabularyError if it is not a BERT WordPiece vocabulary."""
    try:
        content = _read_at_most(path, _MAX_VOCABULARY_BYTES)
        if content.count(b"\n") > _MAX_TOKENS:
            raise ValueError(f"has more than {_MAX_TOKENS} lines")
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{path}: byte {error.start + 1} is not UTF-8") from None
    except ValueError as error:
        raise VocabularyError(f"{path}: {error}") from None
    return _checked([line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)], path)


def _checked(tokens: list[str], path: Path) -> list[str]:
    line_of: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if not token:
            raise VocabularyError(f"{path}: token {number} is empty")
        is_line = "\n" not in token and not token.endswith("\r")
        if not is_line or token.encode("utf-8", "replace").decode() != token:  # tokenizer.json can have such tokens
            raise VocabularyError(f"{path}: token {number}, {token[:100]!r}, cannot be a line of vocab.txt")
        if line_of.setdefault(token, number) != number:
            raise VocabularyError(f"{path}: token {number} is {token[:100]!r}, the same as token {line_of[token]}")
    missing = [token for token in SPECIAL_TOKENS[:4] if token not in line_of]
    if missing:
        raise VocabularyError(f"{path}: {', '.join(missing)} missing, so it is not a BERT vocabulary")
    if tokens[0] != "[PAD]":
        raise VocabularyError(f"{path}: the first token is {tokens[0][:100]!r}, but BERT's first token is [PAD]")
    return tokens


def read_json(path: Path, most_bytes: int = _MAX_CONFIG_BYTES) -> object:
    """The content of a JSON file of a model directory. Raises ValueError if it is too long, too deep, or not JSON."""
    try:
        return json.loads(_read_at_most(path, most_bytes).decode("utf-8"))
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _read_at_most(path: Path, most_bytes: int) -> bytes:
    with open(path, "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"is longer than {most_bytes} bytes")
    return content


def saved_lower_case(model_dir: str | Path) -> bool | None:
    """The value of `do_lower_case` in `tokenizer_config.json`; None if it is not there."""
    try:
        saved = read_json(Path(model_dir) / "tokenizer_config.json")
        return saved["do_lower_case"] if isinstance(saved["do_lower_case"], bool) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def vocabulary_sha256(tokens: Sequence[str]) -> str:
    """A hash of a vocabulary. Features and models with the same hash have the same token ids."""
    return hashlib.sha256("\n".join(tokens).encode()).hexdigest()


def save_tokenizer(directory: Path, tokens: Sequence[str], do_lower_case: bool, max_length: int) -> None:
    """Writes `vocab.txt`, `tokenizer.json` and `tokenizer_config.json`, as `AutoTokenizer` reads them."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordPieceModel(vocabulary, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
    tokenizer.normalizer = BertNormalizer(lowercase=do_lower_case)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS if token in tokens]
    )
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": do_lower_case,
        "model_max_length": max_length,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL_TOKENS if token in tokens},
    }
    directory.joinpath("vocab.txt").write_bytes("".join(f"{token}\n" for token in tokens).encode())
    # not by Tokenizer.save, which takes only paths that are text
    directory.joinpath("tokenizer.json").write_bytes(tokenizer.to_str(pretty=True).encode())
    directory.joinpath("tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")

"""One pickled dict of a file, read so that a hostile file runs nothing and claims little memory.

`read_dict` scans the opcodes of one pickle. It allows only the opcodes that build dicts, text, numbers and `bytes`.
None of them names or calls anything. The scan copies the pickle without the `bytes` values, and `pickle.loads` builds
the dict from this copy. In place of a `bytes` value, the dict holds the range of its place in the file. The caller
checks the size of the range before it reads the value.

`pickletools.genops` scans opcodes too. It reads the operand of an opcode before it returns the opcode, and it reads
every value whole. A reader for it that prevents both was tried. It was as long as the scan below and three times
slower.
"""

import os
import pickle
import struct
from typing import IO

from runtime.errors import InputError

# The allowed opcodes, by the size of their operands in bytes.
_OPCODES_BY_SIZE = {
    0: "STOP MARK MEMOIZE EMPTY_DICT SETITEM SETITEMS NONE NEWTRUE NEWFALSE",
    1: "PROTO BINGET BININT1 SHORT_BINUNICODE SHORT_BINBYTES",
    2: "BININT2",
    4: "BININT BINUNICODE BINBYTES",
    8: "FRAME BINUNICODE8 BINBYTES8",
}
_OPERAND_BYTES: dict[bytes, int] = {
    getattr(pickle, name): size for size, names in _OPCODES_BY_SIZE.items() for name in names.split()
}
# The operand of these opcodes is the size of the value that follows.
_TEXT = {pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8}
_BYTES = {pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8}
_PLACE = struct.Struct("<QQ")  # what the copy holds for a `bytes` value: where it starts and stops in the file

# A dict of a features file has about 60. Many more would keep a reader busy.
_MAX_OPCODES = 1_000


def read_dict(where: str, file: IO[bytes], max_text_bytes: int) -> dict[str, object]:
    """Reads one pickled dict, and leaves the file at the byte after it. Its `bytes` values come back as ranges.

    Raises InputError, which begins with `where`, for an opcode that is not allowed, for a pickle that is cut off or
    damaged, for more than `max_text_bytes` of text, and for a value that is not a dict with text as keys.
    """
    position, file_size = file.tell(), os.fstat(file.fileno()).st_size
    text_bytes = 0
    copy = bytearray()

    def skip(count: int) -> int:
        nonlocal position
        if count > file_size - position:
            raise InputError(f"{where}: cut off at byte {file_size}")
        position += count
        return position

    def take(count: int) -> bytes:
        skip(count)
        taken = file.read(count)
        if len(taken) != count:
            raise InputError(f"{where}: the file was cut short while it was read; write it again")
        return taken

    try:
        for _ in range(_MAX_OPCODES):
            opcode = take(1)
            if opcode not in _OPERAND_BYTES:
                raise InputError(f"{where}: pickle opcode {opcode!r} at byte {position - 1} is not allowed in features")
            operand = take(width) if (width := _OPERAND_BYTES[opcode]) else b""
            if opcode in _BYTES:
                start, stop = position, skip(int.from_bytes(operand, "little"))
                file.seek(stop)
                copy += pickle.SHORT_BINBYTES + bytes([_PLACE.size]) + _PLACE.pack(start, stop)
            elif opcode in _TEXT:
                size = int.from_bytes(operand, "little")
                text_bytes += size
                if text_bytes > max_text_bytes and size <= file_size - position:
                    raise InputError(f"{where}: its text is more than {max_text_bytes} bytes; write the file again")
                text = take(size)
                text.decode("utf-8")  # pickle accepts surrogates, which no other file can hold
                copy += opcode + operand + text
            elif opcode != pickle.FRAME:  # a frame is only a hint for readers that buffer
                copy += opcode + operand
            if opcode == pickle.STOP:
                break
        value = pickle.loads(copy)
    except InputError:
        raise
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError):
        raise InputError(f"{where}: damaged before byte {position}") from None
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise InputError(f"{where}: not a dict with text as keys")
    return {key: range(*_PLACE.unpack(item)) if type(item) is bytes else item for key, item in value.items()}

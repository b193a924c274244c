"""Telling text from other files."""

import codecs

PEEKED_BYTES = 8_192
KINDS = {
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF-": "a PDF document",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "gzip data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"\xfd7zXZ\x00": "xz data",
    b"\x7fELF": "an ELF program",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x00asm": "a WebAssembly module",
    codecs.BOM_UTF32_LE: "UTF-32 text",
    codecs.BOM_UTF16_LE: "UTF-16 text",
    codecs.BOM_UTF16_BE: "UTF-16 text",
}


def text_of(data: bytes, *, is_cut: bool = False) -> str | None:
    """Return the data as text, or None when it is not UTF-8; `is_cut` data may end anywhere."""
    if binary_kind(data):
        return None
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=not is_cut)
    except UnicodeDecodeError:
        return None


def binary_kind(data: bytes) -> str:
    """Return what kind of file begins like this; empty for what may be text."""
    for magic, kind in KINDS.items():
        if data.startswith(magic):
            return kind
    return "binary data" if b"\0" in data[:PEEKED_BYTES] else ""


def lines_of(text: str) -> list[str]:
    """Return the lines with their ends; only a line feed ends one."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def printable(line: str) -> str:
    """Return a line in which nothing moves a cursor, or turns the direction of writing."""
    return "".join(
        char if char.isprintable() or char == "\t" else ascii(char)[1:-1] for char in line
    )

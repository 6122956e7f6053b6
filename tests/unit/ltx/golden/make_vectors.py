#!/usr/bin/env python3
"""Writes the python-*.ltx vectors: an LTX version 3 encoder of its own, from the specification, with the standard library
only. Pages are noise, which any LZ4 encoder leaves as one run of literals, so our encoder must give the same bytes.

Run in this directory: python3 make_vectors.py
"""
import struct

FLAG = 1 << 63
MASK = (1 << 64) - 1


def crc64_iso(data):
    crc = MASK
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0xD800000000000000 if crc & 1 else crc >> 1
    return crc ^ MASK


def noise_page(pgno, seed, size):
    x = (pgno * 2654435761 + seed) & MASK
    out = bytearray()
    for _ in range(size):
        x = (x * 6364136223846793005 + 1442695040888963407) & MASK
        out.append(x >> 56)
    return bytes(out)


def literal_block(data):
    """An LZ4 block of literals only."""
    n = len(data)
    if n < 15:
        return bytes([n << 4]) + data
    n -= 15
    return b"\xf0" + b"\xff" * (n // 255) + bytes([n % 255]) + data


def uvarint(v):
    out = bytearray()
    while v >= 0x80:
        out.append(v & 0x7F | 0x80)
        v >>= 7
    out.append(v)
    return bytes(out)


def page_checksum(pgno, page):
    return FLAG | crc64_iso(struct.pack(">I", pgno) + page)


def database_checksum(pages):
    total = 0
    for pgno, page in pages:
        total ^= page_checksum(pgno, page)
    return FLAG | total


def ltx(pages, post, *, flags=0, page_size=512, commit, lo, hi, ms=1700000000123, pre=0, wal=(0, 0, 0, 0), node=0):
    out = bytearray(b"LTX1")
    out += struct.pack(">IIIQQqQqqIIQ", flags, page_size, commit, lo, hi, ms, pre, *wal, node)
    out += bytes(100 - len(out))
    summed = bytearray(out)
    index = bytearray()
    for pgno, page in pages:
        block = literal_block(page)
        head = struct.pack(">IHI", pgno, 1, len(block))
        index += uvarint(pgno) + uvarint(len(out)) + uvarint(len(head) + len(block))
        out += head + block
        summed += head + page
    index += b"\x00"
    tail = bytes(6) + index + struct.pack(">QQ", len(index), post)
    out += tail
    summed += tail
    return bytes(out + struct.pack(">Q", FLAG | crc64_iso(summed)))


def main():
    assert crc64_iso(b"123456789") == 0xB90956C775A41001
    snapshot = [(n, noise_page(n, 1, 512)) for n in (1, 2, 3)]
    changes = [(n, noise_page(n, 2, 512)) for n in (2, 300)]
    vectors = {
        "python-snapshot.ltx": ltx(snapshot, database_checksum(snapshot), commit=3, lo=1, hi=1, node=0xABCDEF),
        "python-changes.ltx": ltx(changes, FLAG | 0x123456789ABCDEF, commit=300, lo=2, hi=4, pre=FLAG | 0xFEDCBA,
                                  wal=(32, 1072, 0xA1A2A3A4, 0xB1B2B3B4), node=0xABCDEF),
        "python-delete.ltx": ltx([], FLAG, commit=0, lo=5, hi=5, pre=FLAG | 0x123456789ABCDEF, page_size=4096),
        "python-nochecksum.ltx": ltx(changes[:1], 0, flags=2, commit=3, lo=2, hi=2),
    }
    for name, data in vectors.items():
        with open(name, "wb") as f:
            f.write(data)


main()

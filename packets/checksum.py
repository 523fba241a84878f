"""The Internet checksum (RFC 1071)."""

from __future__ import annotations

from_bytes = int.from_bytes


def checksum(data: bytes, initial: int = 0) -> int:
    """The 16-bit one's complement of the one's complement sum of `data`; an odd length is padded with a zero octet.

    `initial` is the sum of further words, such as those of a pseudo header.

    A big integer modulo 65535 *is* the one's complement sum (2**16 is 1 modulo 65535), five times faster than adding
    words in a loop. Only the two zeros differ: a sum of 65535 appears as 0, unless `data` is all zero.
    """
    if len(data) & 1:
        data = data + b"\0"
    number = from_bytes(data, "big") + initial
    total = number % 65535
    if total == 0 and number:
        total = 65535
    return 65535 - total


def verifies(data: bytes | memoryview, initial: int = 0) -> bool:
    """True if `data`, which includes its checksum field, sums up to all ones (RFC 1071 section 1).

    `initial` is as in `checksum`. All zero octets sum up to zero and do not verify.
    """
    number = (from_bytes(data, "big") << 8 * (len(data) & 1)) + initial
    return number % 65535 == 0 and number != 0

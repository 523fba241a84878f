"""Ask a name server for the IPv4 addresses of a name through the stack, with a DNS query built by hand (RFC 1035).

python examples/dns_lookup.py NAME SERVER[:PORT]
"""

import secrets
import sys
from struct import pack, unpack_from

import usernet as socket

TYPE_A, CLASS_IN = 1, 1  # RFC 1035 sections 3.2.2 and 3.2.4
RECURSION_DESIRED = 0x0100  # RFC 1035 section 4.1.1


def query(identifier: int, name: str) -> bytes:
    """A question for the A records of `name`."""
    labels = b"".join(bytes([len(label)]) + label for label in name.rstrip(".").encode("idna").split(b"."))
    return pack(">6H", identifier, RECURSION_DESIRED, 1, 0, 0, 0) + labels + b"\0" + pack(">HH", TYPE_A, CLASS_IN)


def skip_name(message: bytes, at: int) -> int:
    """The offset after a name: labels up to an empty one or up to a pointer (RFC 1035 section 4.1.4)."""
    while message[at]:
        if message[at] >= 0xC0:
            return at + 2
        at += 1 + message[at]
    return at + 1


def addresses(message: bytes) -> list[str]:
    """The A records of an answer."""
    _, _, questions, answers, _, _ = unpack_from(">6H", message)
    at, found = 12, []
    for _ in range(questions):
        at = skip_name(message, at) + 4
    for _ in range(answers):
        at = skip_name(message, at)
        kind, _, _, length = unpack_from(">HHIH", message, at)
        at += 10 + length
        if kind == TYPE_A:
            found.append(socket.inet_ntoa(message[at - 4 : at]))
    return found


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    host, _, port = sys.argv[2].partition(":")
    identifier = secrets.randbits(16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.connect((host, int(port or 53)))
        endpoint.settimeout(5)
        endpoint.send(query(identifier, sys.argv[1]))
        message = endpoint.recv(512)  # RFC 1035 section 4.2.1
        while message[:2] != pack(">H", identifier):
            message = endpoint.recv(512)
        print("\n".join(addresses(message)) or "no address")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"dns_lookup: {error}")

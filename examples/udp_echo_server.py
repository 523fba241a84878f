"""Return every datagram to its sender.

python examples/udp_echo_server.py [ADDRESS:PORT]        (default: any address, port 7)

To test it from the kernel's end of the TAP: launcher.py exec -- nc -u 10.0.0.2 7
"""

import sys

import usernet as socket


def main() -> None:
    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else "0.0.0.0:7").rpartition(":")
    if not port.isdecimal():
        sys.exit(__doc__)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.bind((host, int(port)))
        host, port = endpoint.getsockname()
        print(f"echoing at {host}:{port}", flush=True)
        while True:
            data, peer = endpoint.recvfrom(65535)
            endpoint.sendto(data, peer)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError) as error:
        sys.exit(f"udp_echo_server: {error}")

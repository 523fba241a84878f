"""Send datagrams to an echo server and print the time until each is returned.

python examples/udp_echo_client.py ADDRESS:PORT [COUNT]
"""

import sys
import time

import usernet as socket


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    host, _, port = sys.argv[1].rpartition(":")
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.connect((host, int(port)))
        endpoint.settimeout(1)
        for number in range(1, count + 1):
            started = time.perf_counter()
            endpoint.send(b"echo %d" % number)
            try:
                data = endpoint.recv(65535)
            except TimeoutError:
                print(f"{number}: no answer")
            else:
                print(f"{number}: {data.decode()!r} after {(time.perf_counter() - started) * 1000:.3f} ms")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError) as error:
        sys.exit(f"udp_echo_client: {error}")

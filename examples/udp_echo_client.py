"""Send datagrams to an echo server and print the time until each is returned.

python examples/udp_echo_client.py ADDRESS:PORT [COUNT]
"""

import sys
import time

import usernet as socket


def main() -> None:
    host, _, port = "".join(sys.argv[1:2]).rpartition(":")
    count = "".join(sys.argv[2:3]) or "5"
    if not host or not port.isdecimal() or not count.isdecimal():
        sys.exit(__doc__)
    answers = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.connect((host, int(port)))
        endpoint.settimeout(5)
        for number in range(1, int(count) + 1):
            started = time.perf_counter()
            endpoint.send(b"echo %d" % number)
            try:
                data = endpoint.recv(65535)
            except TimeoutError:
                print(f"{number}: no answer")
            else:
                answers += 1
                print(f"{number}: {data.decode()!r} after {(time.perf_counter() - started) * 1000:.3f} ms")
    if not answers:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
    except (OSError, ValueError) as error:
        sys.exit(f"udp_echo_client: {error}")

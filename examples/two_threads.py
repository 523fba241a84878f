"""Two threads send datagrams to each other through the stack.

python examples/two_threads.py [ADDRESS]        (default: the stack's own address)
"""

import sys
import threading

import usernet
from usernet import udp

ROUNDS = 5


def talk(socket: udp.UdpSocket, peer: str, name: str) -> None:
    """Greet the peer, then answer its messages."""
    for number in range(ROUNDS):
        socket.send_to(f"{name} says hello {number}".encode(), peer)
        data, source = socket.recv_from(2048)
        print(f"{name} got {data.decode()!r} from {source}", flush=True)


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else usernet.Stack().address
    here, there = f"{address}:5055", f"{address}:4055"
    with udp.bind(here) as one, udp.bind(there) as other:
        for socket in (one, other):
            socket.set_read_timeout(5)
        threads = [
            threading.Thread(target=talk, args=(one, there, "one")),
            threading.Thread(target=talk, args=(other, here, "other")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"two_threads: {error}")

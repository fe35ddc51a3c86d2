"""Users of a server who cost next to nothing: one process, plain sockets, no JSON. Run by http_overhead.py.

Standard input: {"port", "bodies" (JSON texts of streamed completions), "users"}; standard output: {"tokens", "chunks",
"seconds" (from the first request to the last end), "cpu_seconds" (of this process meanwhile)}.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time

_HEAD = (
    "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    "Content-Length: {length}\r\n\r\n"
)
_USAGE, _END = re.compile(rb'"completion_tokens":(\d+)'), b"data: [DONE]\n\n\r\n0\r\n\r\n"
_TAIL = 512  # bytes of a stream that hold its usage and its end


def requests_of(port: int, bodies: list[str]) -> list[bytes]:
    """As they are sent."""
    encoded = [body.encode() for body in bodies]
    return [_HEAD.format(port=port, length=len(body)).encode() + body for body in encoded]


def ask_all(port: int, requests: list[bytes], users: int) -> tuple[int, int]:
    """Send them all, ``users`` at a time, each user on a connection of its own; tokens and chunks that came."""
    waiting, tokens, chunks = list(reversed(requests)), 0, 0
    poll, sockets, tails = select.epoll(), dict[int, socket.socket](), dict[int, bytes]()
    for _ in range(min(users, len(requests))):
        opened = socket.create_connection(("127.0.0.1", port))
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sockets[opened.fileno()] = opened
        poll.register(opened, select.EPOLLIN)
    for number, opened in sockets.items():
        tails[number] = b""
        opened.sendall(waiting.pop())
    while sockets:
        for number, _ in poll.poll():
            piece = sockets[number].recv(65536)
            if not piece:
                sys.exit(f"the server closed a connection; the last it said: {tails[number]!r}")
            chunks += piece.count(b"data: ")
            tail = tails[number] = (tails[number] + piece)[-_TAIL:]
            if not tail.endswith(_END):
                continue
            found = _USAGE.findall(tail)
            if not found:
                sys.exit(f"a stream ended without its usage: {tail!r}")
            tokens += int(found[-1])
            tails[number] = b""
            if waiting:
                sockets[number].sendall(waiting.pop())
            else:
                sockets.pop(number).close()
    return tokens, chunks


def main() -> None:
    asked = json.load(sys.stdin)
    requests = requests_of(asked["port"], asked["bodies"])
    wall, cpu = time.perf_counter(), time.process_time()
    tokens, chunks = ask_all(asked["port"], requests, asked["users"])
    spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    json.dump({"tokens": tokens, "chunks": chunks, **spent}, sys.stdout)


if __name__ == "__main__":
    main()

"""Carry connections from a listening socket of the host into the node's own network.

A socket belongs to the network namespace it was made in. The listener is made on the host
and inherited by this process, which runs in the node's namespace: what it accepts comes
from the host, what it dials is the node. No link or rule of the host is needed.
"""

import asyncio
import socket
import sys

CHUNK = 256 * 1024


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except (ConnectionError, OSError):
        writer.close()


async def serve(listener: socket.socket, host: str, port: int) -> None:
    """Accept for ever; each connection is carried to ``host:port``."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            # Nothing serves there right now: the caller sees a closed connection.
            writer.close()
            return
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        for end in (writer, far_writer):
            end.close()

    server = await asyncio.start_server(carry, sock=listener)
    async with server:
        await server.serve_forever()


def main() -> None:
    """``forward FILE_DESCRIPTOR HOST:PORT``."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    host, _, port = sys.argv[2].rpartition(":")
    asyncio.run(serve(listener, host, int(port)))


if __name__ == "__main__":
    main()

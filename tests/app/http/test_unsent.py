"""Answers that clients do not read are cut off: one by one after a time, and the slowest where they are too many."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import ClientDisconnect

from app.http.unsent import ABORT, PIECE_BYTES, UnsentAnswers

if TYPE_CHECKING:
    from starlette.types import Message


class Client:
    """Reads a piece whenever it is told to; `cut_off` is set when the connection is aborted."""

    def __init__(self, pieces: int = 0) -> None:
        self.received: list[Message] = []
        self.pieces = asyncio.Semaphore(pieces)
        self.cut_off = asyncio.Event()
        self.scope: dict[str, Any] = {"extensions": {ABORT: self.cut_off.set}}

    async def send(self, message: Message) -> None:
        if not self.cut_off.is_set():
            reading, closing = (
                asyncio.ensure_future(self.pieces.acquire()),
                asyncio.ensure_future(self.cut_off.wait()),
            )
            try:
                await asyncio.wait({reading, closing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                reading.cancel()
                closing.cancel()
        self.received.append(message)


def body(pieces: int) -> Message:
    return {"type": "http.response.body", "body": b"x" * (pieces * PIECE_BYTES - 7)}


def test_a_body_is_sent_in_pieces_and_counted_until_it_is_read() -> None:
    async def run() -> None:
        unsent, client = UnsentAnswers(1 << 30, 60), Client()
        sending = asyncio.ensure_future(unsent.sender(client.scope, client.send)(body(4)))
        await asyncio.sleep(0)
        assert unsent.bytes == 4 * PIECE_BYTES - 7
        client.pieces.release()
        while not client.received:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert unsent.bytes == 3 * PIECE_BYTES - 7
        for _ in range(3):
            client.pieces.release()
        await sending
        assert [message["more_body"] for message in client.received] == [True, True, True, False]
        assert b"".join(message["body"] for message in client.received) == body(4)["body"]
        assert unsent.bytes == 0

    asyncio.run(run())


def test_a_client_that_does_not_read_is_cut_off() -> None:
    async def run() -> None:
        unsent, client = UnsentAnswers(1 << 30, 0.01), Client(pieces=1)
        with pytest.raises(ClientDisconnect):
            await unsent.sender(client.scope, client.send)(body(3))
        assert client.cut_off.is_set()
        assert unsent.bytes == 0

    asyncio.run(run())


def test_where_too_much_is_unread_the_one_that_moved_longest_ago_is_cut_off() -> None:
    async def run() -> None:
        unsent, clients = UnsentAnswers(10 * PIECE_BYTES, 60), [Client() for _ in range(3)]
        sending = []
        for client in clients[:2]:
            sending.append(asyncio.ensure_future(unsent.sender(client.scope, client.send)(body(4))))
            await asyncio.sleep(0)
        clients[0].pieces.release()
        while not clients[0].received:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        sending.append(asyncio.ensure_future(unsent.sender(clients[2].scope, clients[2].send)(body(4))))
        await asyncio.sleep(0)
        assert [client.cut_off.is_set() for client in clients] == [False, True, False]
        await sending[1]
        for client in clients:
            client.cut_off.set()
        await asyncio.gather(*sending)
        assert unsent.bytes == 0

    asyncio.run(run())


def test_an_answer_larger_than_the_limit_is_sent_when_it_is_the_only_one() -> None:
    async def run() -> None:
        unsent, client = UnsentAnswers(PIECE_BYTES, 60), Client(pieces=9)
        await unsent.sender(client.scope, client.send)(body(9))
        assert not client.cut_off.is_set()

    asyncio.run(run())

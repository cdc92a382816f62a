"""Slots: in turn, all given back, whoever leaves and whenever."""

from __future__ import annotations

import asyncio

import pytest

from exporter_proxy.scrape.slots import Slots


def test_those_who_wait_have_their_turn_in_order() -> None:
    async def scenario() -> None:
        slots = Slots(1)
        assert slots.take()
        order: list[int] = []

        async def scrape(number: int) -> None:
            if not slots.take():
                await slots.wait()
            order.append(number)
            await asyncio.sleep(0)
            slots.give_back()

        waiting = [asyncio.create_task(scrape(number)) for number in range(4)]
        await asyncio.sleep(0)
        assert order == []
        slots.give_back()
        await asyncio.gather(*waiting)
        assert order == [0, 1, 2, 3]
        assert slots.free == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("has_its_turn", [False, True], ids=["still waiting", "in the moment of its turn"])
@pytest.mark.parametrize("others", [0, 2])
def test_who_leaves_takes_no_slot_along(has_its_turn: bool, others: int) -> None:
    async def scenario() -> None:
        slots = Slots(1)
        assert slots.take()
        leaver, *rest = (asyncio.create_task(slots.wait()) for _ in range(1 + others))
        await asyncio.sleep(0)
        if has_its_turn:
            slots.give_back()
        leaver.cancel()
        if not has_its_turn:
            slots.give_back()  # before the leaver has run
        with pytest.raises(asyncio.CancelledError):
            await leaver
        for waiter in rest:
            await waiter
            assert slots.free == 0
            slots.give_back()
        assert slots.free == 1

    asyncio.run(scenario())


def test_leaving_leaves_nothing_in_the_queue() -> None:
    async def scenario() -> None:
        slots = Slots(1)
        assert slots.take()
        for _ in range(3):
            waiter = asyncio.create_task(slots.wait())
            await asyncio.sleep(0)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        slots.give_back()
        assert slots.free == 1
        assert slots.take()

    asyncio.run(scenario())

"""The notice board between a driver and its trials: orders and decisions one way, reports the other, nothing killed.

A seat takes its next trial here, and rank 0 puts here what the trial says, for the Tune function that passes it on. The
scheduler's verdict is stored first and then put here; rank 0 of a trial reads it at a report boundary. The board's
name holds the study and the lease token, and the board dies with its driver: a worker that cannot reach it knows that
its driver is gone, keeps its checkpoint, and leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from infra import process
from trainers.schema.records import Answer, Decision, Sign

NAMESPACE = "agft"
RUNG_SLICE_SECONDS = 10.0  # the board is asked again so often, and a dead one is noticed
RUNG_PATIENCE_SECONDS = 3600.0
BOARD_ANSWER_SECONDS = 20.0
BOARD_RETURN_SECONDS = 30.0  # a driver that lives has opened another one by then
GONE = (ValueError, ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, ray.exceptions.OutOfMemoryError)
log = logging.getLogger("agft")

Answered = TypeVar("Answered")
Word = dict[str, Any]


class Order(NamedTuple):
    """What a seat is to do: attempt `serial` of this driver, at trial `number`; serial 0: leave."""

    serial: int
    number: int = -1
    text: str = ""


class Board:
    """Orders by seat, words by attempt, verdicts by (trial, epoch), one word for everybody (`pause`), and which
    processes a trial consists of."""

    def __init__(self) -> None:
        self.born = time.time_ns()
        self.orders: dict[str, Order] = {}
        self.groups: dict[str, int] = {}  # of workers, that have sat on a seat
        self.words: dict[int, list[Word]] = {}
        self.verdicts: dict[tuple[int, int], str] = {}
        self.everybody = "continue"
        self.dropped: set[int] = set()
        self.stored: dict[int, int] = {}
        self.processes: dict[int | str, list[dict[str, Any]]] = {}
        self.rooms: dict[str, list[str]] = {}  # as `held` says
        self.waiting: dict[int, str] = {}
        self.remarks: list[str] = []
        self.advanced: set[int] = set()
        self.signs: dict[int, Sign] = {}
        self.changed = asyncio.Condition()

    # --- a seat and its driver -----------------------------------------------------------------------------------

    async def place(self, seat: str, serial: int, number: int = -1, text: str = "") -> None:
        """The seat's next order."""
        async with self.changed:
            if serial:
                if seat in self.orders:
                    self.words.pop(self.orders[seat].serial, None)  # nobody listens any more
                self.words[serial] = []
            self.orders[seat] = Order(serial, number, text)
            self.changed.notify_all()

    async def sit(self, seat: str) -> None:
        """A group of workers has started; with the second one something was lost."""
        self.groups[seat] = self.groups.get(seat, 0) + 1

    async def take(self, seat: str, done: int, ending: str, worn: bool, wait_seconds: float) -> Order | None:
        """The order that comes after attempt `done`, which ended so; None if there is none yet. Called by rank 0."""
        await self.end(done, ending, worn or self.groups.get(seat, 0) > 1)

        def waits() -> bool:
            order = self.orders.get(seat)
            return order is None or (order.serial != 0 and (order.serial <= done or self._has_ended(order.serial)))

        await self._until(lambda: not waits(), wait_seconds)
        return None if waits() else self.orders[seat]

    async def order_of(self, seat: str, serial: int) -> Order | None:
        """The same order again, for the other ranks."""
        order = self.orders.get(seat)
        return order if order is not None and order.serial == serial else None

    async def post(self, serial: int, word: Word) -> None:
        """What an attempt says, once; one that nobody listens to any more is not heard."""
        async with self.changed:
            if serial in self.words and self.words[serial][-1:] != [word]:
                self.words[serial].append(word)
                self.changed.notify_all()

    async def end(self, serial: int, ending: str, worn: bool) -> None:
        """How an attempt ended, as whoever says it first knows. `worn`: its seat is to be made anew."""
        if serial in self.words and not self._has_ended(serial):
            await self.post(serial, {"ending": ending, "worn": worn})

    def _has_ended(self, serial: int) -> bool:
        return any("ending" in word for word in self.words.get(serial, ()))

    async def listen(self, serial: int, born: int, heard: int, wait_seconds: float) -> tuple[int, list[Word]]:
        """When this board was born, and the words of an attempt after the first `heard` ones of the board born then."""
        after = heard if born == self.born else 0
        await self._until(lambda: len(self.words.get(serial, ())) > after, wait_seconds)
        return self.born, self.words.get(serial, [])[after:]

    async def _until(self, holds: Callable[[], bool], seconds: float) -> None:
        async with self.changed:
            try:
                await asyncio.wait_for(self.changed.wait_for(holds), timeout=seconds)
            except TimeoutError:
                return

    # --- a trial and its driver ----------------------------------------------------------------------------------

    async def publish(self, number: int, epoch: int, decision: str) -> None:
        """The verdict on one trial's epoch."""
        async with self.changed:
            self.verdicts[number, epoch] = decision
            self.changed.notify_all()

    async def forget(self, number: int) -> None:
        """A trial that was stopped is trained to its end after all."""
        self.verdicts = {key: word for key, word in self.verdicts.items() if key[0] != number}

    async def tell_everybody(self, decision: str) -> None:
        """`pause`: every trial keeps its checkpoint and leaves, inside an epoch too; `stop`: at its next report."""
        async with self.changed:
            self.everybody = decision
            self.changed.notify_all()

    async def drop(self, number: int) -> None:
        """A user takes the trial out: it leaves."""
        async with self.changed:
            self.dropped.add(number)
            self.changed.notify_all()

    async def arrive(self, whose: int | str, process: dict[str, Any]) -> None:
        """A process of a trial or of a seat has started; those of its role there that are gone stay in the list."""
        self.processes.setdefault(whose, []).append(process)
        if isinstance(whose, int):
            self.waiting.pop(whose, None)
        elif "group" in process:
            self.rooms.setdefault(whose, []).append(process["group"])

    async def wait(self, number: int, reason: str) -> str:
        """A trial waits for a service, or no longer (no reason); what it is told: `continue` is to go on waiting."""
        self.waiting.pop(number, None)
        if reason:
            self.waiting[number] = reason
        return "stop" if number in self.dropped else self.everybody

    async def remark(self, line: str) -> None:
        """What the driver is to print."""
        self.remarks.append(line)

    async def alive(self, number: int, sign: Sign, wait_seconds: float) -> bool:
        """A trial is at work inside an epoch. Whether it is to leave there: said as soon as it is, and after
        `wait_seconds` if it is not."""
        self.signs[number] = sign

        def leaves() -> bool:
            return self.everybody == "pause" or number in self.dropped

        await self._until(leaves, wait_seconds)
        return leaves()

    async def advance(self, number: int) -> None:
        """A trial has kept a state inside an epoch."""
        self.advanced.add(number)

    async def news(self) -> tuple[dict[int, str], list[str], dict[int, Sign], set[int]]:
        """Number -> why a trial waits; since the last question the remarks, the trials' signs of life, and which have
        kept a state inside an epoch."""
        remarks, self.remarks = self.remarks, []
        signs, self.signs = self.signs, {}
        advanced, self.advanced = self.advanced, set()
        return self.waiting, remarks, signs, advanced

    async def depart(self, whose: int | str) -> list[dict[str, Any]]:
        """The processes of a seat, or of a trial and its seat, which are forgotten: their successors will arrive."""
        seats = [seat for seat, order in self.orders.items() if order.number == whose]
        return [process for key in (whose, *seats) for process in self.processes.pop(key, [])]

    async def held(self) -> dict[str, list[str]]:
        """The placement groups, as hexadecimal ids, of each seat's groups of workers, those that have departed too."""
        return self.rooms

    async def have(self, number: int, epoch: int) -> None:
        """The study has the records of a trial up to this epoch: they need not be sent again."""
        self.stored[number] = epoch

    async def answer(self, number: int, epoch: int, wait_seconds: float) -> Answer:
        """To a report: the verdict, and which records the driver has by now."""
        word = await self.verdict(number, epoch, wait_seconds)
        return Answer(Decision(word or "continue"), self.stored.get(number, 0))

    async def answer_at_rung(self, number: int, epoch: int, wait_seconds: float) -> Answer | None:
        """The same where the trial is judged; None if it is not yet."""
        word = await self.verdict(number, epoch, wait_seconds)
        return None if word is None else Answer(Decision(word), self.stored.get(number, 0))

    async def verdict(self, number: int, epoch: int, wait_seconds: float) -> str | None:
        """The decision on a report; waits for it at most `wait_seconds`. None: there is none."""
        deadline = time.monotonic() + wait_seconds
        async with self.changed:
            while True:
                earlier = [self.verdicts[number, e] for n, e in self.verdicts if n == number and e <= epoch]
                if "stop" in earlier or number in self.dropped:
                    return "stop"
                if self.everybody != "continue":
                    return self.everybody
                if (number, epoch) in self.verdicts:
                    return "continue"
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(self.changed.wait(), timeout=left)
                except TimeoutError:
                    return None


def board_name(study: str, token: int) -> str:
    """Name of the board actor of one driver."""
    return f"agft-board/{study}/{token}"


def open_board(study: str, token: int) -> Any:
    """Start this driver's board; it is owned by the driver and ends with it, and on its node, so not before it."""
    actor = ray.remote(num_cpus=0, max_concurrency=1000)(Board)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(name=board_name(study, token), namespace=NAMESPACE, scheduling_strategy=here).remote()


def lasting(name: str, ask: Callable[[Any], Answered], introduce: Callable[[], None] = lambda: None) -> Answered | None:
    """What `ask(board)` answers. A board that has died comes back if its driver lives, to which `introduce` is said
    first; without one there is no driver any more: None."""
    missing: float | None = None
    while True:
        try:
            board = ray.get_actor(name, namespace=NAMESPACE)
            if missing is not None:
                introduce()
            return ask(board)
        except GONE as error:
            missing = missing or time.monotonic()
            if time.monotonic() - missing > BOARD_RETURN_SECONDS:
                log.warning("no driver answers at %s (%s)", name, type(error).__name__)
                return None
            time.sleep(1.0)


def ask_board(name: str, number: int, rungs: Sequence[int], epoch: int, said: tuple[int, Word] | None = None) -> Answer:
    """The answer to a report that has just been made; called by rank 0 of a trial. `said`: the attempt and its words,
    put on the board before.

    At a rung it waits for the verdict, however busy the driver is: with an epoch more, what the study finds would
    depend on the clock. Without a driver: `pause`; nor is there one that is silent for an hour.
    """

    def ask(board: Any) -> Answer:
        if said is not None:
            ray.get(board.post.remote(*said), timeout=BOARD_ANSWER_SECONDS)
        return _ask(board, number, rungs, epoch)

    answer = lasting(name, ask, partial(announce, name, number, "worker"))
    if answer is None:
        log.warning("trial %s: keeping the checkpoint and leaving", number)
    return answer or Answer(Decision.PAUSE, 0)


def _ask(board: Any, number: int, rungs: Sequence[int], epoch: int) -> Answer:
    deadline = time.monotonic() + RUNG_PATIENCE_SECONDS
    if epoch not in rungs:
        answer: Answer | None = ray.get(board.answer.remote(number, epoch, 0.0), timeout=BOARD_ANSWER_SECONDS)
        assert answer is not None
        return answer
    while time.monotonic() < deadline:
        asked = board.answer_at_rung.remote(number, epoch, RUNG_SLICE_SECONDS)
        if (answer := ray.get(asked, timeout=RUNG_SLICE_SECONDS + BOARD_ANSWER_SECONDS)) is not None:
            return answer
    log.warning("trial %s: no verdict on epoch %s; keeping the checkpoint and leaving", number, epoch)
    return Answer(Decision.PAUSE, 0)


def take_order(name: str, seat: str, done: int, ending: str, worn: bool) -> Order:
    """`Board.take`, however long it takes; without a driver: leave."""

    def ask(board: Any) -> Order | None:
        asked = board.take.remote(seat, done, ending, worn, RUNG_SLICE_SECONDS)
        found: Order | None = ray.get(asked, timeout=RUNG_SLICE_SECONDS + BOARD_ANSWER_SECONDS)
        return found or Order(-1)

    while (order := lasting(name, ask)) is not None and order.serial < 0:
        continue
    return order or Order(0)


def listen(name: str, serial: int) -> Iterator[Word]:
    """The words of an attempt, the last one its ending; no more without a driver."""
    born = heard = 0
    while True:
        heard_now = lasting(name, partial(_listen, serial, born, heard))
        if heard_now is None:
            return
        since, words = heard_now
        born, heard = since, (heard if since == born else 0) + len(words)
        for word in words:
            yield word
            if "ending" in word:
                return


def _listen(serial: int, born: int, heard: int, board: Any) -> tuple[int, list[Word]]:
    asked = board.listen.remote(serial, born, heard, RUNG_SLICE_SECONDS)
    answer: tuple[int, list[Word]] = ray.get(asked, timeout=RUNG_SLICE_SECONDS + BOARD_ANSWER_SECONDS)
    return answer


def this_process(role: str) -> dict[str, Any]:
    """What somebody else needs to end this process and no other."""
    pid, began = process.this()
    return {"role": role, "node": ray.get_runtime_context().get_node_id(), "pid": pid, "began": began}


def announce(name: str, whose: int | str, role: str, **more: str) -> None:
    """Tell the driver that this process works for a trial or a seat (`role`: worker or driver), so that it can be ended
    should it hang; without a driver there is nobody to tell."""
    try:
        board = ray.get_actor(name, namespace=NAMESPACE)
        ray.get(board.arrive.remote(whose, {**this_process(role), **more}), timeout=BOARD_ANSWER_SECONDS)
    except GONE as error:
        log.warning("%s: no driver answers (%s)", whose, type(error).__name__)


def remark(name: str, number: int, text: str) -> None:
    """Let the driver say something of a trial; without a driver there is nobody to tell."""
    try:
        board = ray.get_actor(name, namespace=NAMESPACE)
        ray.get(board.remark.remote(f"trial {number:>3}  {text}"), timeout=BOARD_ANSWER_SECONDS)
    except GONE as error:
        log.warning("trial %s: no driver answers (%s): %s", number, type(error).__name__, text)


class Inside:
    """Between rank 0 of a trial inside an epoch and its driver: nothing is waited for."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number
        self.answer: Any = None  # that comes to the last sign
        self.leaves = False

    def tell(self, sign: Sign) -> None:
        """`Board.alive`."""
        if (board := self._board()) is not None:
            self.answer = board.alive.remote(self.number, sign, RUNG_SLICE_SECONDS)

    def advance(self) -> None:
        """`Board.advance`."""
        if (board := self._board()) is not None:
            board.advance.remote(self.number)

    def asked(self) -> bool:
        """Whether the driver wants the trial to leave."""
        if self.answer is not None and ray.wait([self.answer], timeout=0)[0]:
            answer, self.answer = self.answer, None
            try:
                self.leaves = self.leaves or ray.get(answer)
            except GONE as error:
                log.warning("trial %s: no driver answers (%s)", self.number, type(error).__name__)
        return self.leaves

    def _board(self) -> Any:
        try:
            return ray.get_actor(self.name, namespace=NAMESPACE)
        except GONE as error:
            log.warning("trial %s: no driver answers (%s)", self.number, type(error).__name__)
            return None


def tell_wait(name: str, number: int, reason: str) -> str:
    """`Board.wait`, from a process of a trial; one that nobody answers goes on waiting for the service."""
    try:
        board = ray.get_actor(name, namespace=NAMESPACE)
        return str(ray.get(board.wait.remote(number, reason), timeout=BOARD_ANSWER_SECONDS))
    except GONE as error:
        log.warning("trial %s: no driver answers (%s)", number, type(error).__name__)
        return "continue"

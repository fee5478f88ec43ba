"""Where trials run: slots that admission grants, and on each a seat that serves one trial after the other.

A seat is one long-lived Ray Train run with its workers and its placement group. What a process needs half a minute of
CPU for (imports, the device's context) and what it has read already stay; a trial comes as an order on the board. A
seat is kept after a trial that has ended well, and made anew after any other one, after a worker was lost, and when its
memory has grown. It is given up when the trial of another study goes first, and when it has stood idle for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray._raylet import PlacementGroupID
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from study.driver.actors import Actor
from study.driver.admission import open_admission
from study.driver.board import announce, board_name
from study.driver.silence import kill_processes
from study.driver.trial import TrialOrder, ending_of, serve, short_of_memory
from study.spec.config import ResourcesConfig
from trainers.leaving import heed
from trainers.schema.records import Ending

log = logging.getLogger("agft")
WORKER_RESTARTS = 3  # lost workers a trial survives, each from its newest state
COLLECTIVE_SECONDS = 1800  # ranks may wait so long for each other, beside what one of them waits for S3
START_SECONDS = 60.0  # for a worker that is there to answer
CONTROLLER_FAILURES = 5  # Train's own start failures; its default is to try for ever
IDLE_SECONDS = 30.0  # a seat that has had nothing to do for so long gives its slot back
ASK_SECONDS = 2.0  # how often it is asked whether somebody else waits for the slots of idle seats
LEAVE_SECONDS = 20.0  # for seats that are to leave when their driver does
Work = Callable[[TrialOrder], Ending]


class Seat:
    """A slot, and the run that sits on it; none where trials run in Tune's own processes."""

    def __init__(self, name: str, need: dict[str, float]) -> None:
        self.name, self.need = name, need
        self.number: int | None = None  # the trial that it serves
        self.order: tuple[int, int, str] | None = None  # as `Board.place` takes it
        self.leaving = self.told = self.worn = self.heard = False
        self.since = time.monotonic()  # idle
        self.groups: set[str] = set()  # placement groups that its workers have had
        self.run: threading.Thread | None = None
        self.error: Exception | None = None

    @property
    def idle(self) -> bool:
        return self.number is None and not self.leaving

    def start(self, trainer: Any) -> None:
        """Begin the run, which ends when it is told to leave, or fails."""

        def fit() -> None:
            try:
                trainer.fit()
            except Exception as error:
                self.error = error

        self.run = threading.Thread(target=fit, name=f"agft-{self.name}", daemon=True)
        self.run.start()

    @property
    def over(self) -> bool:
        """Whether its run has ended, and everything that it held is free."""
        return self.run is not None and not self.run.is_alive()


class Seats:
    """The seats of one driver. `work` does one trial in a worker; None: trials run in Tune's own processes."""

    def __init__(
        self, study: str, token: int, wanted: ResourcesConfig, total: dict[str, float], board: Actor, work: Work | None
    ) -> None:
        self.board_name, self.identity = board_name(study, token), f"{study}/{token}"
        self.wanted, self.total, self.board, self.work = wanted, total, board, work
        self.admission = Actor("admission actor", open_admission)
        self.seats: dict[str, Seat] = {}
        self.serial = 0
        self.asked = time.monotonic()

    def admit(self, number: int, need: dict[str, float]) -> bool:
        """A place for one more trial: a seat that stands idle, if nobody goes first, or a slot for a new one."""
        idle = [seat for seat in self.seats.values() if seat.idle]
        if seat := next((seat for seat in idle if seat.need == need), None):
            kept = self._ask("keep", seat.name, need)
            if kept is False:
                self._leave(seat)
            if not kept:
                return False
        else:
            for each in idle:  # they stand in the way
                self._leave(each)
            name = f"{self.identity}/{self.serial + 1}"
            if not self._ask("ask", name, need):
                return False
            seat = self.seats[name] = Seat(name, need)
        self.serial += 1
        seat.number, seat.told, seat.heard = number, False, False
        return True

    def _ask(self, what: str, name: str, need: dict[str, float]) -> bool | None:
        """None where the admission actor does not answer."""
        granted: bool | None = self.admission.ask(
            what, self.identity, name, need, self.total, self.wanted.priority, self.wanted.workers
        )
        return granted

    def begin(self, order: TrialOrder) -> None:
        """An admitted trial starts."""
        seat = self._of(order.number)
        if self.work is None or seat is None:
            return
        seat.order = order.serial, order.number, order.settings()["order"]
        self.board.tell("place", seat.name, *seat.order)
        if seat.run is None:
            seat.start(self._trainer(seat, self.work))

    def ends(self, number: int, *, worn: bool) -> None:
        """Its seat has said the trial's last word. `worn`: the seat is to be made anew."""
        if seat := self._of(number):
            seat.heard, seat.worn = True, worn

    def end(self, number: int, ending: Ending | None, *, goes_on: bool) -> None:
        """Tune is done with the trial, which ended so; None where nobody knows. Workers that have not said so
        themselves may still be at it, and nobody would hear them: they are ended. `goes_on`: more trials may start."""
        seat = self._of(number)
        if seat is None:
            return
        seat.number, seat.since = None, time.monotonic()
        if seat.run is None:
            self._give_back(seat)
            return
        well = ending is not None and ending.outcome in ("finished", "stopped")
        if not well or seat.worn or seat.over or not goes_on:
            self._leave(seat)
        if not seat.heard and not seat.over:
            kill_processes(self.board.ask("depart", seat.name, otherwise=[]))

    def step(self, clock: float) -> None:
        """Look after seats whose run has ended, and after those that stand idle."""
        for seat in list(self.seats.values()):
            if seat.over and seat.number is None:
                self._give_back(seat)
            elif seat.over and not seat.told and seat.order is not None:  # it went before its trial
                # A seat leaves by itself for no other reason than this.
                ending = Ending(outcome="interrupted", lost=True, message="its workers lost the driver's board")
                if seat.error:
                    ending = ending_of(seat.error, workers=self.wanted.workers)
                self.board.tell("end", seat.order[0], ending.model_dump_json(), True)
                seat.told = True
        idle = [seat for seat in self.seats.values() if seat.idle and seat.run is not None]
        waited = False
        if idle and clock - self.asked > ASK_SECONDS:
            self.asked = clock
            waited = self.admission.ask("others_wait", self.identity, otherwise=False)
        for seat in idle:
            if waited or clock - seat.since > IDLE_SECONDS:
                self._leave(seat)

    def heartbeat(self) -> None:
        """Tell the admission actor that this driver lives, and what it holds."""
        self.admission.look()
        held = {seat.name: seat.need for seat in self.seats.values()}
        self.admission.tell("heartbeat", self.identity, held, self.wanted.workers)
        self._learn_groups()

    def _learn_groups(self) -> None:
        """Asked now and then, since a board may die."""
        for name, groups in self.board.ask("held", otherwise={}).items():
            if name in self.seats:
                self.seats[name].groups.update(groups)

    def place_again(self, board: Any) -> Any:
        """Tell a board in the place of a dead one what it has to know."""
        for seat in self.seats.values():
            if seat.leaving:
                board.place.remote(seat.name, 0)
            elif seat.number is not None and seat.order is not None:
                board.place.remote(seat.name, *seat.order)
            seat.told = False
        return board

    def close(self) -> None:
        """Let all seats leave. Those that still work for a trial are left to Ray, which ends them with this process."""
        for seat in self.seats.values():
            self._leave(seat)
        deadline = time.monotonic() + LEAVE_SECONDS
        for seat in self.seats.values():
            if seat.run is not None and seat.number is None:
                seat.run.join(max(0.0, deadline - time.monotonic()))
        self.admission.tell("leave", self.identity)

    def _of(self, number: int) -> Seat | None:
        return next((seat for seat in self.seats.values() if seat.number == number), None)

    def _leave(self, seat: Seat) -> None:
        if not seat.leaving:
            seat.leaving = True
            self.board.tell("place", seat.name, 0)

    def _give_back(self, seat: Seat) -> None:
        if seat.run is not None:
            self._learn_groups()
        del self.seats[seat.name]
        for group in seat.groups:  # mostly gone; where Train's controller and its cleaner were killed, nobody else does
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
        self.admission.tell("give_back", self.identity, seat.name)

    def _trainer(self, seat: Seat, work: Work) -> Any:
        import ray.train
        from ray.train.backend import BackendConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        wanted = self.wanted
        group = BackendConfig()  # none for one worker, which needs no port
        if wanted.workers > 1:
            from ray.train.torch import TorchConfig

            from infra.cluster.rendezvous import LOOPBACK, LoopbackConfig

            library = "nccl" if wanted.gpus_per_worker else "gloo"
            kind = LoopbackConfig if ray.util.get_node_ip_address() == LOOPBACK else TorchConfig
            group = kind(backend=library, timeout_s=int(wanted.patience) + COLLECTIVE_SECONDS)
        return DataParallelTrainer(
            serve,
            train_loop_config={"board": self.board_name, "seat": seat.name, "work": work},
            backend_config=group,
            scaling_config=ray.train.ScalingConfig(
                num_workers=wanted.workers, use_gpu=wanted.gpus_per_worker > 0, resources_per_worker=wanted.of_worker()
            ),
            run_config=ray.train.RunConfig(
                name=seat.name,
                **in_memory(),
                failure_config=ray.train.FailureConfig(
                    max_failures=WORKER_RESTARTS, controller_failure_limit=CONTROLLER_FAILURES
                ),
                callbacks=[GivesBack(self.board_name, seat.name)],
            ),
        )


def in_memory() -> dict[str, Any]:
    """Where Ray keeps files of its own, which nobody ever reads: in the memory of each of its processes.

    For the `RunConfig` of Tune and of Train; both hand our files to nobody, so no process needs another one's.
    """
    return {"storage_path": "/agft", "storage_filesystem": PyFileSystem(FSSpecHandler(MemoryFileSystem()))}


# What Ray does otherwise with the workers of a seat than we need: it tries those again, unseen, that ran out of memory,
# and to the job's end it keeps the placement group of those that die at their very start.
#
# Ray (2.60) cleans up a start that fails before it knows the workers, and a group that has started; in between nobody
# does, and its own cleaner acts only when the controller dies. Every such death would cost the cluster a slot.


class GivesBack(ControllerCallback, WorkerGroupCallback):
    """For `RunConfig.callbacks`; lives in Train's controller, and tells the board that this is its process."""

    def __init__(self, board: str, seat: str) -> None:
        self.board, self.seat = board, seat
        self.held: Any = None  # the group of workers that are starting or at work

    def before_init_train_context(self, workers: Any) -> dict[str, list[Any]]:
        """Learn the placement group, before Ray counts the workers as known; let them heed SIGTERM."""
        self.held = ray.get(workers[0].execute_async(get_current_placement_group), timeout=START_SECONDS)
        announce(self.board, self.seat, "driver", group=self.held.id.hex())
        ray.get([worker.execute_async(heed) for worker in workers], timeout=START_SECONDS)
        return {}

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Ray tries a group again that has failed, as often as it may lose workers; where memory ran out, the driver
        decides. Of what is raised here Ray makes an error of the controller, which ends the run."""
        if short := short_of_memory(worker_group_status.errors.values()):
            raise short

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Ray has removed it."""
        self.held = None

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        """Before the next one: Ray forgot the last one if it is still here."""
        self._give_back()

    async def before_controller_shutdown(self) -> None:
        """The same, where there is no next one."""
        self._give_back()

    def _give_back(self) -> None:
        if self.held is not None:
            remove_placement_group(self.held)
            self.held = None

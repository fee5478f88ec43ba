"""Gives back the placement group of workers that die at their very start, which Ray itself keeps to the job's end.

Ray (2.60) cleans up a start that fails before it knows the workers, and a group that has started; in between nobody
does, and its own cleaner acts only when the controller dies. Every such death would cost the cluster a slot.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.util.placement_group import get_current_placement_group, remove_placement_group

__all__ = ["GivesBack"]


class GivesBack(ControllerCallback, WorkerGroupCallback):
    """For `RunConfig.callbacks`; lives in Train's controller."""

    def __init__(self) -> None:
        self.held: Any = None  # the group of workers that are starting or at work

    def before_init_train_context(self, workers: Any) -> dict[str, list[Any]]:
        """Learn the placement group, before Ray counts the workers as known."""
        self.held = ray.get(workers[0].execute_async(get_current_placement_group))
        return {}

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

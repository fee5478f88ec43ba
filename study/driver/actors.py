"""An actor that a driver leans on: never waited for without end, and opened again when it has died."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError, RayTaskError

log = logging.getLogger("agft")
ANSWER_SECONDS = 20.0


class Actor:
    """Calls by name to the actor that `open(again)` starts; `again`: in the place of one that died."""

    def __init__(self, name: str, start: Callable[[bool], Any]) -> None:
        self.name, self.start = name, start
        self.handle = start(False)
        self.told: Any = None  # the last call that nobody has looked at

    def tell(self, method: str, *arguments: Any) -> None:
        """Call without waiting."""
        self.told = getattr(self.handle, method).remote(*arguments)

    def ask(self, method: str, *arguments: Any, otherwise: Any = None) -> Any:
        """The answer, or `otherwise` where none comes; a dead actor is opened again."""
        return self._answer(getattr(self.handle, method).remote(*arguments), ANSWER_SECONDS, otherwise)

    def look(self) -> None:
        """Open the actor again if it died since the last call."""
        told, self.told = self.told, None
        if told is not None:
            self._answer(told, 0.0, None)

    def _answer(self, reference: Any, seconds: float, otherwise: Any) -> Any:
        try:
            return ray.get(reference, timeout=seconds)
        except RayTaskError:
            raise  # it lives, and has a bug
        except (GetTimeoutError, ActorUnavailableError):
            return otherwise
        except RayError as error:
            log.warning("the %s has died (%s); it is opened again", self.name, type(error).__name__)
            self._open_again()
            return otherwise

    def _open_again(self) -> None:
        try:
            ray.kill(self.handle)  # gives its name back
            self.handle = self.start(True)
        except (ValueError, RayError) as error:  # its name is taken until Ray has heard of the death
            log.warning("the %s could not be opened yet: %s", self.name, type(error).__name__)
